"""What a call to one of our contracts would do: decoded from its bytes, in a sentence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from eth_utils import keccak
from eth_utils.abi import function_abi_to_4byte_selector
from web3 import Web3

from maxgreen.actions.session import kwh, tokens
from maxgreen.chain.artifacts import artifact
from maxgreen.chain.deployment import FIELDS, Deployment
from maxgreen.chain.market import Exchange, Pool
from maxgreen.chain.orders import SettlementContract
from maxgreen.chain.registry import application
from maxgreen.clock import utc
from maxgreen.errors import Retryable
from maxgreen.protocol.batch import Role
from maxgreen.protocol.system import Kind
from maxgreen.said import Said, joined, quoted, said, visible

_WORD: Final = 32
_MOST: Final = 50  # calls of a proposal that are explained
_INSIDE: Final = 20  # of one that is only proposed
_LONG: Final = 1_000
_LARGE: Final = 16_384
_PPM: Final = 10**6
_ENDLESS: Final = 2**128
_MOST_TOKEN: Final = 2**48
_STATUSES: Final = ("none", "active", "suspended", "revoked")
_CHOICES: Final = ("against", "for", "abstain")
_TOPICS: Final = ("hardware status", "pool data")
_SPENDERS: Final = {"EnergyExchange": "the exchange", "EnergyPool": "the pool"}
_NAMES: Final = {"EnergyToken": "energy", "Deca": "DECA", "MaxCoin": "MaxCoin", "CarbonToken": "CarbonToken"}


@dataclass(frozen=True)
class Call:
    """One call of a proposal; `contract` is empty when the target is none of ours.

    `odd`: look closely, it is a call that no sentence was written for, or that gives power or money to strangers.
    """

    target: str
    contract: str
    function: str
    values: dict[str, Any]
    says: Said
    odd: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the call for scripts."""
        return {
            "target": self.target,
            "contract": self.contract,
            "function": self.function,
            "arguments": {name: _readable(value) for name, value in self.values.items()},
            "says": self.says,
            "odd": self.odd,
        }


def decode_calls(
    deployment: Deployment,
    targets: Sequence[str],
    calldatas: Sequence[bytes],
    values: Sequence[int] = (),
    *,
    inside: bool = False,
) -> list[Call]:
    """Return what calls would do; of more than fifty (`inside` another: twenty) the first, and how many are left."""
    most = _INSIDE if inside else _MOST
    pairs = zip(targets[:most], calldatas, strict=False)
    found = [decode_call(deployment, to, bytes(data), inside=inside) for to, data in pairs]
    for number, wei in enumerate(values[:most]):
        if wei:
            call = found[number]
            says = said("send {amount} of the chain's own currency with: {call}", amount=tokens(wei), call=call.says)
            found[number] = replace(call, says=says, odd=True)
    if len(targets) > most:
        says = said("{count} calls more: look closely", count=len(targets) - most)
        found.append(Call("", "", "", {}, says, odd=True))
    return found


def decode_call(deployment: Deployment, target: str, data: bytes, *, inside: bool = False) -> Call:
    """Return what a call would do, by its bytes and our contracts' interfaces; `inside` another one's."""
    contract = contract_at(deployment, target)
    for abi in artifact(contract)["abi"] if contract else ():
        if abi["type"] == "function" and bytes(function_abi_to_4byte_selector(abi)) == data[:4]:
            name = str(abi["name"])
            if f"{contract}.{name}" in _HOLD_CALLS and (inside or len(data) > _LARGE):  # their parts may be named often
                says = said("calls within calls ({what}): look closely", what=f"{contract}.{name}")
                return Call(target, contract, name, {"data": data}, says, odd=True)
            try:
                _, values = deployment.chain.contract(contract, target).decode_function_input(data)
                says = _sentence(deployment, target, contract, name, values)
            except Retryable:
                raise
            except Exception:  # noqa: BLE001 - whoever proposed may have written any bytes
                break
            known = f"{contract}.{name}"
            odd = (
                known not in _SAYS
                or known in _POWER
                or (known.endswith(".approve") and _is_strange(deployment, values))
            )
            return Call(target, contract, name, values, says, odd)
    says = said("an unknown call to {what}: look closely", what=contract or target)
    return Call(target, contract, "", {"data": data}, says, odd=True)


def contract_at(deployment: Deployment, address: str) -> str:
    """Return the name of our contract at an address, a node's pool and energy token too; empty when it is none."""
    return _known_at(deployment, address)[0]


def _known_at(deployment: Deployment, address: str) -> tuple[str, int]:
    """Return the name of our contract at an address, and of which node it is; what was found once is remembered."""
    wanted = Web3.to_checksum_address(address)
    if not deployment.found:
        deployment.found.update({deployment.address_of(name): (name, 0) for name in FIELDS})
    known = deployment.found.get(wanted)
    if known is None:
        known = _asked(deployment, wanted)
        if known[0]:
            deployment.found[wanted] = known
    return known


def _asked(deployment: Deployment, address: str) -> tuple[str, int]:
    chain: Any = deployment.chain
    if not chain.code(address):
        return "", 0
    if chain.call(deployment.functions("EnergyPools").isPool(address)):
        return "EnergyPool", int(chain.call(chain.contract("EnergyPool", address).functions.node()))
    answer = chain.ask_once(address, bytes(keccak(text="node()")[:4]))
    node = int.from_bytes(answer, "big") if len(answer) == _WORD else _MOST_TOKEN
    mine: Any = deployment.registry.functions
    is_ours = node < _MOST_TOKEN and chain.call(mine.energyTokenOf(node)) == address
    return ("EnergyToken", node) if is_ours else ("", 0)


def _is_strange(deployment: Deployment, values: Mapping[str, Any]) -> bool:
    """Tell whether an allowance is for somebody who is none of our contracts."""
    return not contract_at(deployment, values["spender"]) if "spender" in values else False


def _sentence(deployment: Deployment, target: str, contract: str, function: str, values: dict[str, Any]) -> Said:
    """Return what a call would change; a plain rendering for what has no sentence of its own."""
    known = _SAYS.get(f"{contract}.{function}")
    if known is not None:
        return known(deployment, target, values)
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in values.items())
    return said("{call}({values})", call=f"{contract}.{function}", values=visible(shown, _LONG))


def _admit(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    found = application(deployment, values["applicationId"])
    if found.content != values["content"]:
        return said("admit application {number}, which is another one now: it would be skipped", number=found.number)
    spec = found.spec
    channels = joined(
        ", ",
        (
            said(
                "{number} ({role}, {watts} W)",
                number=c.number,
                role=said(Role(c.role).name.lower()),
                watts=f"{c.peak_mw / 1000:g}",
            )
            for c in spec.channels
        ),
    )
    more = []
    if spec.battery_wh:
        more.append(said(", battery {watt_hours} Wh", watt_hours=spec.battery_wh))
    if spec.place_deci is not None:
        more.append(said(", at {place}", place="/".join(f"{deci / 10:g}" for deci in spec.place_deci)))
    return said(
        "admit application {number}: a {kind} of {applicant}, channels {channels}{more}", number=found.number,
        kind=said(spec.kind.label.replace("_", " ")), applicant=found.applicant, channels=channels,
        more=joined("", more),
    )  # fmt: skip


def _approve(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    posting, paid_mws = values["posting"], SettlementContract(deployment).total_paid_mws()
    text = said(
        "approve order {order}: {count} lines until {until}, all lines together {total} since they opened, of which "
        "{new} are not paid yet; manifest {manifest}, evidence {evidence}",
        order=values["orderId"], count=posting["count"], until=utc(posting["until"] * 1000),
        total=kwh(posting["total"]), new=kwh(max(0, posting["total"] - paid_mws)),
        manifest=posting["manifestDigest"].hex(),
        evidence=quoted(posting["evidence"]) if posting["evidence"] else said("from the operator"),
    )  # fmt: skip
    excluded = [
        said("without line {line} ({code}: {text})", line=e["line"].hex(), code=e["code"], text=quoted(e["text"]))
        for e in values["excluded"]
    ]
    return joined("; ", [text, *excluded])


def _approve_line(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    return said(
        "allow the line from system {minerToken} channel {minerChannel} to system {nodeToken} channel {nodeChannel}: "
        "{resistanceUohm} µΩ, {lossPpm} ppm expected, at most {maxLossPpm} ppm lost",
        **values["ends"], **values["loss"],
    )  # fmt: skip


def _line(deployment: Deployment, line: bytes) -> Said:
    """Return a line by its ends."""
    ends = SettlementContract(deployment).line(line).ends
    return said(
        "{line} (system {miner} to node {node})", line=line.hex()[:8], miner=ends.miner_token, node=ends.node_token
    )


def _about_line(template: str, name: str = "line") -> "_Say":
    def say(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
        return said(template, **{**values, name: _line(deployment, values[name])})

    return say


def _claim(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    wanted, contract = values["wanted"], SettlementContract(deployment)
    line = contract.line(wanted["line"])
    registry: Any = deployment.registry.functions
    _, efficiency_ppm = deployment.chain.call(registry.storageOf(line.ends.node_token))
    new_mws = max(0, wanted["payableTotal"] - line.paid_mws) * efficiency_ppm // _PPM
    to_node = new_mws * contract.node_share_ppm() // _PPM
    return said(
        "claim for line {line} what is not paid yet, as far as the node has room: {miner} as tokens for the owner of "
        "system {system}, {node} for that of the node",
        line=_line(deployment, wanted["line"]), miner=kwh(new_mws - to_node), system=line.ends.miner_token,
        node=kwh(to_node),
    )  # fmt: skip


def _open_pool(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    names = list(_NAMES.values())
    worth = zip(values["coinsPerKwh"], names[1:], strict=True)
    caps = zip(values["caps"], names, strict=True)
    return said(
        "open a pool of node {node}, where a kWh is worth {worth}, for ever; it keeps at most {caps}",
        node=values["node"],
        worth=joined(", ", (said("{amount} {token}", amount=tokens(a), token=said(name)) for a, name in worth)),
        caps=joined(", ", (said("{amount} {token}", amount=tokens(a), token=said(name)) for a, name in caps)),
    )


def _token(deployment: Deployment, address: str) -> Said:
    """Return what people call a token."""
    contract, node = _known_at(deployment, address)
    return (
        said("energy of node {node}", node=node) if contract == "EnergyToken" else said(_NAMES.get(contract, address))
    )


def _pool_of(deployment: Deployment, target: str) -> int:
    return _known_at(deployment, target)[1]


def _transfer(deployment: Deployment, target: str, values: Mapping[str, Any]) -> Said:
    return said(
        "give {amount} {token} of the vault to {to}", amount=tokens(values["value"]), token=_token(deployment, target),
        to=values["to"],
    )  # fmt: skip


def _allow(deployment: Deployment, target: str, values: Mapping[str, Any]) -> Said:
    contract = contract_at(deployment, values["spender"])
    known = _SPENDERS.get(contract, contract)
    return said(
        "let {spender} take {amount} {token}",
        spender=said(known) if known else said("THE STRANGER {address}", address=values["spender"]),
        amount=tokens(values["value"]) if values["value"] < _ENDLESS else said("any amount of"),
        token=_token(deployment, target),
    )  # fmt: skip


def _deposit(deployment: Deployment, target: str, values: Mapping[str, Any]) -> Said:
    return said(
        "put {amount} {token} into the pool of node {node}, for shares of it", amount=tokens(values["amount"]),
        token=_token(deployment, values["token"]), node=_pool_of(deployment, target),
    )  # fmt: skip


def _redeemed(template: str) -> "_Say":
    """Return a sentence about shares of a pool that are given back, and what they are worth."""

    def say(deployment: Deployment, target: str, values: Mapping[str, Any]) -> Said:
        pool = Pool(deployment, _pool_of(deployment, target))
        token = {"token": _token(deployment, values["token"])} if "token" in values else {}
        value = tokens(pool.worth(values["shares"]))
        return said(template, shares=tokens(values["shares"]), node=pool.node, value=value, **token)

    return say


def _accept(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    found = Exchange(deployment).take_out(values["id"])
    return said(
        "accept to deliver take-out {id}: {energy} kWh to system {buyer}, on channel {nodeChannel}",
        energy=tokens(found.amount_wei), buyer=found.buyer_token, **values,
    )  # fmt: skip


def _answer_storage(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    found = Exchange(deployment).storage_request(values["id"])
    return said(
        "{answer} storage request {id}: {energy} of system {miner} in node {node}",
        answer=said("accept" if values["accepted"] else "refuse or take back"), id=values["id"],
        energy=kwh(found.energy_mws), miner=found.miner, node=found.node,
    )  # fmt: skip


def _swap(deployment: Deployment, target: str, values: Mapping[str, Any]) -> Said:
    return said(
        "give {amount} {token} to the pool of node {node} and get at least {least} {other}",
        amount=tokens(values["amountIn"]), token=_token(deployment, values["tokenIn"]),
        node=_pool_of(deployment, target), least=tokens(values["minOut"]),
        other=_token(deployment, values["tokenOut"]),
    )  # fmt: skip


def _take_out(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    return said(
        "ask node {nodeToken} for {energy} kWh, metered by channel {buyerChannel} of system {buyerToken}; as many "
        "energy tokens, and their carbon, are in escrow until it came; the node may accept until {until}",
        **values, energy=tokens(values["amount"]), until=utc(values["expiresAt"] * 1000),
    )  # fmt: skip


def _request_storage(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    return said(
        "ask node {node} to store {kwh} of system {minerToken}; it may answer until {until}", node=values["nodeToken"],
        kwh=kwh(values["energy"]), minerToken=values["minerToken"], until=utc(values["expiresAt"] * 1000),
    )  # fmt: skip


def _of_proposal(template: str) -> "_Say":
    """Return a sentence about what a proposal would do, whose calls are in it."""

    def say(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
        found = decode_calls(deployment, values["targets"], values["calldatas"], inside=True)
        return said(template, calls=joined("; ", (call.says for call in found)))

    return say


def _held(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
    held = values["exclusion"]
    return said(
        "stop the payment of line {line} ({code}: {text})", line=_line(deployment, held["line"]), code=held["code"],
        text=quoted(held["text"]),
    )  # fmt: skip


def _plain(template: str, **ways: Callable[[Any], object]) -> "_Say":
    """Return a sentence with a call's values in it, each as its way makes it."""

    def say(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> Said:
        return said(template, **{n: ways[n](v) if n in ways else _readable(v) for n, v in values.items()})

    return say


def _one_of(*words: str) -> Callable[[int], Said]:
    """Return how a number is said that stands for one of some words."""
    return lambda number: said(words[number])


_BODIES: Final = ("TechGovernor", "ModuleGovernor")
_HOLD_CALLS: Final = {
    *(f"{body}.{name}" for body in _BODIES for name in ("propose", "queue", "execute", "relay")),
    "Authority.multicall", "Authority.execute", "Authority.schedule",
}  # fmt: skip
_POWER: Final = {"Authority.grantRole", "Authority.execute", "Authority.multicall"}  # whoever gets it may do much
_Say = Callable[[Deployment, str, Mapping[str, Any]], Said]
_GOVERNORS: Final[Mapping[str, _Say]] = {
    "propose": _of_proposal("propose to {calls}"),
    "castVoteWithReason": _plain(
        "vote {support} on proposal {proposalId}", support=_one_of(*_CHOICES), proposalId=lambda n: f"{n:064x}"[:10]
    ),
    "queue": _of_proposal("put into the timelock what was voted for: {calls}"),
    "execute": _of_proposal("carry out what was voted for: {calls}"),
}
_SAYS: Final[Mapping[str, _Say]] = {
    **{f"{body}.{name}": say for body in _BODIES for name, say in _GOVERNORS.items()},
    **{f"{token}.approve": _allow for token in _NAMES},
    **{f"{token}.transfer": _transfer for token in _NAMES},
    "Authority.grantRole": _plain(
        "GIVE ROLE {roleId} TO {account}: who holds it may do what docs/contracts.md says"
    ),
    "Authority.revokeRole": _plain("take role {roleId} from {account}"),
    "DaoBadge.grant": _plain("make {member} a member of the DAO"),
    "DaoBadge.revoke": _plain("end the membership of {member} in the DAO"),
    "Electorate.refresh": _plain("give {elector} the votes on modules that membership or an active system gives"),
    "EnergyExchange.accept": _accept,
    "EnergyExchange.answerStorage": _answer_storage,
    "EnergyExchange.confirm": _plain("confirm with your meter what take-out {id} delivered"),
    "EnergyExchange.decide": _plain("decide that take-out {id} delivered {energy}", energy=kwh),
    "EnergyExchange.decline": _plain("end take-out {id} before it is accepted; its tokens come back"),
    "EnergyExchange.finish": _plain("close the delivery of take-out {id} with the node's meter"),
    "EnergyExchange.requestStorage": _request_storage,
    "EnergyExchange.requestTakeOut": _take_out,
    "EnergyExchange.settle": _plain("settle take-out {id} by the one meter that spoke"),
    "EnergyExchange.withdraw": lambda deployment, _target, values: said(
        "take back what is out of escrow, in {token}", token=_token(deployment, values["token"])
    ),
    "EnergyPool.deposit": _deposit,
    "EnergyPool.redeem": _redeemed(
        "give {shares} shares back to the pool of node {node}, for a part of all it holds, worth {value} kWh"
    ),
    "EnergyPool.redeemIn": _redeemed(
        "give {shares} shares back to the pool of node {node}, which are worth {value} kWh, for {token} at its parity"
    ),
    "EnergyPool.swap": _swap,
    "EnergyPools.open": _open_pool,
    "EnergySettlement.approve": _approve,
    "EnergySettlement.claim": _claim,
    "EnergySettlement.collect": _about_line("pay out the credit of line {id}, as far as the node has room", "id"),
    "EnergySettlement.forfeit": _about_line("take back what line {line} was credited and not paid"),
    "EnergySettlement.hold": _held,
    "EnergySettlement.nextKey": _plain(
        "let the {minerEnd} end of line {id} go on with its next key", minerEnd=_one_of("node", "miner")
    ),
    "EnergySettlement.proveFraud": _plain("prove that the device of system {token} signed what contradicts itself"),
    "EnergySettlement.reject": _plain("reject order {orderId} with code {code}: {text}", text=quoted),
    "EnergySettlement.release": _about_line("pay line {line} again"),
    "EnergySettlement.setParameters": _plain(
        "pay nodes {nodeSharePpm_} ppm of what is minted, allow {capacityPpm_} ppm of a channel's peak, let orders "
        "lapse after {orderLife_} s"
    ),
    "EnergySettlement.showClosing": _plain("show what an earlier key of line {id} measured last"),
    "EnergySettlement.withdraw": _plain("withdraw order {orderId}"),
    "LineBook.agreeToClose": _about_line("agree to close line {id}; it closes when both owners agreed", "id"),
    "LineBook.approveLine": _approve_line,
    "LineBook.close": _about_line("close line {id}: nothing measured later counts", "id"),
    "MinerRegistry.admit": _admit,
    "MinerRegistry.applyFor": _plain(
        "apply for a {system}, with the key that its device showed",
        system=lambda system: said(Kind(system["kind"]).label.replace("_", " ")),
    ),
    "MinerRegistry.replaceKey": _plain("let device {newDevice} take the place of the key of system {tokenId}"),
    "MinerRegistry.requestKey": _plain("ask the DAO to let another device take the place of that of system {tokenId}"),
    "MinerRegistry.rotateKey": _plain("let the next key, to which the old one handed over, count for system {tokenId}"),
    "MinerRegistry.setRecord": _plain(
        "record {digest} as {topic} of system {tokenId}, from {uri}", topic=_one_of(*_TOPICS), uri=quoted
    ),
    "MinerRegistry.setStatus": _plain(
        "set system {tokenId} to {status}: {reason}", status=_one_of(*_STATUSES), reason=quoted
    ),
    "ModuleRegistry.set": _plain(
        "release {name} {version}, SHA-256 {digest}, from {uri}", name=quoted, version=quoted, uri=quoted
    ),
    "Rewards.sweep": _plain("mint the coins that are due on paid energy, to the vault"),
}  # fmt: skip


def _shown(value: Any) -> Any:
    return quoted(value) if isinstance(value, str) and not value.startswith("0x") else _readable(value)


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dict):
        return {name: _readable(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_readable(inner) for inner in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
