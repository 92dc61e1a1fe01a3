"""What a call to one of our contracts would do: decoded from its bytes, in a sentence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_utils import keccak
from eth_utils.abi import function_abi_to_4byte_selector
from web3 import Web3

from maxgreen.actions.session import kwh, tokens
from maxgreen.chain.artifacts import artifact
from maxgreen.chain.deployment import FIELDS, Deployment
from maxgreen.chain.registry import application
from maxgreen.clock import utc
from maxgreen.errors import Retryable
from maxgreen.protocol.system import Kind

_WORD: Final = 32
_MOST_TOKEN: Final = 2**48
_STATUSES: Final = ("none", "active", "suspended", "revoked")
_CHOICES: Final = ("against", "for", "abstain")
_TOPICS: Final = ("hardware status", "pool data")
_SPENDERS: Final = {"EnergyExchange": "the exchange", "EnergyPool": "the pool"}
_NAMES: Final = {"EnergyToken": "energy", "Deca": "DECA", "MaxCoin": "MaxCoin", "CarbonToken": "CarbonToken"}


@dataclass(frozen=True)
class Call:
    """One call of a proposal; `contract` is empty when the target is none of ours."""

    target: str
    contract: str
    function: str
    values: dict[str, Any]
    says: str

    def to_json(self) -> dict[str, Any]:
        """Return the call for scripts."""
        return {
            "target": self.target,
            "contract": self.contract,
            "function": self.function,
            "arguments": {name: _readable(value) for name, value in self.values.items()},
            "says": self.says,
        }


def decode_call(deployment: Deployment, target: str, data: bytes) -> Call:
    """Return what a call would do, by its bytes and our contracts' interfaces."""
    contract = contract_at(deployment, target)
    for abi in artifact(contract)["abi"] if contract else ():
        if abi["type"] == "function" and bytes(function_abi_to_4byte_selector(abi)) == data[:4]:
            try:
                _, values = deployment.chain.contract(contract, target).decode_function_input(data)
                says = _sentence(deployment, target, contract, str(abi["name"]), values)
            except Retryable:
                raise
            except Exception:  # noqa: BLE001 - whoever proposed may have written any bytes
                break
            return Call(target, contract, str(abi["name"]), values, says)
    return Call(target, contract, "", {"data": data}, f"an unknown call to {contract or target}: look closely")


def contract_at(deployment: Deployment, address: str) -> str:
    """Return the name of our contract at an address, a node's pool and energy token too; empty when it is none."""
    wanted = Web3.to_checksum_address(address)
    names = {deployment.address_of(name): name for name in FIELDS}
    if wanted in names:
        return names[wanted]
    chain: Any = deployment.chain
    if not chain.code(wanted):
        return ""
    if chain.call(deployment.functions("EnergyPools").isPool(wanted)):
        return "EnergyPool"
    said = chain.ask_once(wanted, bytes(keccak(text="node()")[:4]))
    node = int.from_bytes(said, "big") if len(said) == _WORD else _MOST_TOKEN
    mine: Any = deployment.registry.functions
    is_ours = node < _MOST_TOKEN and chain.call(mine.energyTokenOf(node)) == wanted
    return "EnergyToken" if is_ours else ""


def _sentence(deployment: Deployment, target: str, contract: str, function: str, values: dict[str, Any]) -> str:
    """Return what a call would change; a plain rendering for what has no sentence of its own."""
    known = _SAYS.get(f"{contract}.{function}")
    if known is not None:
        return known(deployment, target, values)
    return f"{contract}.{function}({', '.join(f'{name}={_readable(v)}' for name, v in values.items())})"


def _admit(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    found = application(deployment, values["applicationId"])
    if found.content != values["content"]:
        return f"admit application {found.number}, which is another one now: it would be skipped"
    channels = ", ".join(f"{c.number} (role {c.role}, {c.peak_mw / 1000:g} W)" for c in found.spec.channels)
    place = "" if found.spec.place_deci is None else f", at {'/'.join(f'{d / 10:g}' for d in found.spec.place_deci)}"
    battery = f", battery {found.spec.battery_wh} Wh" if found.spec.battery_wh else ""
    return (
        f"admit application {found.number}: a {found.spec.kind.label.replace('_', ' ')} of {found.applicant}, "
        f"channels {channels}{battery}{place}"
    )


def _approve(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    posting = values["posting"]
    text = (
        f"approve order {values['orderId']}: {posting['count']} lines until {utc(posting['until'] * 1000)}, "
        f"all lines together {kwh(posting['total'])} since they opened, manifest "
        f"{posting['manifestDigest'].hex()}, evidence {posting['evidence'] or 'from the operator'}"
    )
    excluded = [f"without line {e['line'].hex()} ({e['code']}: {e['text']})" for e in values["excluded"]]
    return "; ".join([text, *excluded])


def _approve_line(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    ends, loss = values["ends"], values["loss"]
    return (
        f"allow the line from system {ends['minerToken']} channel {ends['minerChannel']} to system "
        f"{ends['nodeToken']} channel {ends['nodeChannel']}: {loss['resistanceUohm']} µΩ, {loss['lossPpm']} ppm "
        f"expected, at most {loss['maxLossPpm']} ppm lost"
    )


def _claim(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    wanted = values["wanted"]
    return (
        f"claim for line {wanted['line'].hex()[:8]} what is not paid yet of the {kwh(wanted['payableTotal'])} that "
        "count since it opened; its tokens go to the owners of both ends"
    )


def _open_pool(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    worth = ", ".join(
        f"{tokens(amount)} {name}"
        for amount, name in zip(values["coinsPerKwh"], list(_NAMES.values())[1:], strict=True)
    )
    return (
        f"open a pool of node {values['node']}, where a kWh is worth {worth}, for ever; it keeps at most "
        + ", ".join(f"{tokens(most)} {name}" for most, name in zip(values["caps"], _NAMES.values(), strict=True))
    )


def _token(deployment: Deployment, address: str) -> str:
    """Return what people call a token."""
    contract = contract_at(deployment, address)
    name = _NAMES.get(contract, address)
    if contract != "EnergyToken":
        return name
    return (
        f"{name} of node {int.from_bytes(deployment.chain.ask_once(address, bytes(keccak(text='node()')[:4])), 'big')}"
    )


def _transfer(deployment: Deployment, target: str, values: Mapping[str, Any]) -> str:
    return f"give {tokens(values['value'])} {_token(deployment, target)} of the vault to {values['to']}"


def _allow(deployment: Deployment, target: str, values: Mapping[str, Any]) -> str:
    contract = contract_at(deployment, values["spender"])
    spender = _SPENDERS.get(contract, contract) or f"THE STRANGER {values['spender']}"
    return (
        f"let {spender} take {tokens(values['value'])} {_token(deployment, target)}, for the step after this one; "
        "nothing moves yet"
    )


def _pool_of(deployment: Deployment, target: str) -> str:
    functions: Any = deployment.chain.contract("EnergyPool", target).functions
    return f"the pool of node {deployment.chain.call(functions.node())}"


def _deposit(deployment: Deployment, target: str, values: Mapping[str, Any]) -> str:
    what = f"{tokens(values['amount'])} {_token(deployment, values['token'])}"
    return f"put {what} into {_pool_of(deployment, target)}, for shares of it"


def _redeem_in(deployment: Deployment, target: str, values: Mapping[str, Any]) -> str:
    return (
        f"give {tokens(values['shares'])} shares back to {_pool_of(deployment, target)}, for what they are worth in "
        f"{_token(deployment, values['token'])}"
    )


def _swap(deployment: Deployment, target: str, values: Mapping[str, Any]) -> str:
    return (
        f"give {tokens(values['amountIn'])} {_token(deployment, values['tokenIn'])} to {_pool_of(deployment, target)} "
        f"and get at least {tokens(values['minOut'])} {_token(deployment, values['tokenOut'])}"
    )


def _take_out(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    return (
        f"ask node {values['nodeToken']} for {tokens(values['amount'])} kWh, metered by channel "
        f"{values['buyerChannel']} of system {values['buyerToken']}; as many energy tokens, and their carbon, are in "
        f"escrow until it came; the node may accept until {utc(values['expiresAt'] * 1000)}"
    )


def _request_storage(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    return (
        f"ask node {values['nodeToken']} to store {kwh(values['energy'])} of system {values['minerToken']}; it may "
        f"answer until {utc(values['expiresAt'] * 1000)}"
    )


def _proposed(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    calls = zip(values["targets"], values["calldatas"], strict=True)
    return "propose to " + "; and to ".join(decode_call(deployment, one, bytes(data)).says for one, data in calls)


def _carried(what: str) -> "_Say":
    def say(deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
        calls = zip(values["targets"], values["calldatas"], strict=True)
        return f"{what}: " + "; and ".join(decode_call(deployment, one, bytes(data)).says for one, data in calls)

    return say


def _held(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
    held = values["exclusion"]
    return f"stop the payment of line {held['line'].hex()} ({held['code']}: {held['text']})"


def _plain(text: str, **ways: Callable[[Any], object]) -> "_Say":
    """Return a sentence with a call's values in it, each as its way makes it."""

    def say(_deployment: Deployment, _target: str, values: Mapping[str, Any]) -> str:
        return text.format(**{n: ways[n](v) if n in ways else _readable(v) for n, v in values.items()})

    return say


_Say = Callable[[Deployment, str, Mapping[str, Any]], str]
_GOVERNORS: Final[Mapping[str, _Say]] = {
    "propose": _proposed,
    "castVoteWithReason": _plain(
        "vote {support} on proposal {proposalId}", support=_CHOICES.__getitem__, proposalId=lambda n: f"{n:064x}"[:10]
    ),
    "queue": _carried("put into the timelock what was voted for"),
    "execute": _carried("carry out what was voted for"),
}
_SAYS: Final[Mapping[str, _Say]] = {
    **{f"{body}.{name}": say for body in ("TechGovernor", "ModuleGovernor") for name, say in _GOVERNORS.items()},
    **{f"{token}.approve": _allow for token in _NAMES},
    **{f"{token}.transfer": _transfer for token in _NAMES},
    "Authority.grantRole": _plain(
        "GIVE ROLE {roleId} TO {account}: who holds it may do what docs/contracts.md says"
    ),
    "Authority.revokeRole": _plain("take role {roleId} from {account}"),
    "DaoBadge.grant": _plain("make {member} a member of the DAO"),
    "DaoBadge.revoke": _plain("end the membership of {member} in the DAO"),
    "Electorate.refresh": _plain("give {elector} the votes on modules that membership or an active system gives"),
    "EnergyExchange.accept": _plain("accept to deliver take-out {id}, on channel {nodeChannel}"),
    "EnergyExchange.answerStorage": _plain(
        "{accepted} storage request {id}", accepted=lambda yes: "accept" if yes else "refuse or take back"
    ),
    "EnergyExchange.confirm": _plain("confirm with your meter what take-out {id} delivered"),
    "EnergyExchange.decide": _plain("decide that take-out {id} delivered {energy}", energy=kwh),
    "EnergyExchange.decline": _plain("end take-out {id} before it is accepted; its tokens come back"),
    "EnergyExchange.finish": _plain("close the delivery of take-out {id} with the node's meter"),
    "EnergyExchange.requestStorage": _request_storage,
    "EnergyExchange.requestTakeOut": _take_out,
    "EnergyExchange.settle": _plain("settle take-out {id} by the one meter that spoke"),
    "EnergyExchange.withdraw": lambda deployment, _target, values: (
        f"take back what is out of escrow, in {_token(deployment, values['token'])}"
    ),
    "EnergyPool.deposit": _deposit,
    "EnergyPool.redeem": lambda deployment, target, values: (
        f"give {tokens(values['shares'])} shares back to {_pool_of(deployment, target)}, for a part of all it holds"
    ),
    "EnergyPool.redeemIn": _redeem_in,
    "EnergyPool.swap": _swap,
    "EnergyPools.open": _open_pool,
    "EnergySettlement.approve": _approve,
    "EnergySettlement.claim": _claim,
    "EnergySettlement.collect": _plain("pay out the credit of line {id}, as far as the node has room"),
    "EnergySettlement.forfeit": _plain("take back what line {line} was credited and not paid"),
    "EnergySettlement.hold": _held,
    "EnergySettlement.nextKey": _plain(
        "let the {minerEnd} end of line {id} go on with its next key", minerEnd=lambda yes: "miner" if yes else "node"
    ),
    "EnergySettlement.proveFraud": _plain("prove that the device of system {token} signed what contradicts itself"),
    "EnergySettlement.reject": _plain("reject order {orderId} with code {code}: {text}"),
    "EnergySettlement.release": _plain("pay line {line} again"),
    "EnergySettlement.setParameters": _plain(
        "pay nodes {nodeSharePpm_} ppm of what is minted, allow {capacityPpm_} ppm of a channel's peak, let orders "
        "lapse after {orderLife_} s"
    ),
    "EnergySettlement.showClosing": _plain("show what an earlier key of line {id} measured last"),
    "EnergySettlement.withdraw": _plain("withdraw order {orderId}"),
    "LineBook.agreeToClose": _plain("agree to close line {id}; it closes when both owners agreed"),
    "LineBook.approveLine": _approve_line,
    "LineBook.close": _plain("close line {id}: nothing measured later counts"),
    "MinerRegistry.admit": _admit,
    "MinerRegistry.applyFor": _plain(
        "apply for a {system}, with the key that its device showed",
        system=lambda system: "solar system" if system["kind"] == Kind.MINER else "storage node",
    ),
    "MinerRegistry.replaceKey": _plain("let device {newDevice} take the place of the key of system {tokenId}"),
    "MinerRegistry.requestKey": _plain("ask the DAO to let another device take the place of that of system {tokenId}"),
    "MinerRegistry.rotateKey": _plain("let the next key, to which the old one handed over, count for system {tokenId}"),
    "MinerRegistry.setRecord": _plain(
        "record {digest} as {topic} of system {tokenId}", topic=_TOPICS.__getitem__
    ),
    "MinerRegistry.setStatus": _plain("set system {tokenId} to {status}: {reason}", status=_STATUSES.__getitem__),
    "ModuleRegistry.set": _plain("release {name} {version}, SHA-256 {digest}, from {uri}"),
    "Rewards.sweep": _plain("mint the coins that are due on paid energy, to the vault"),
}  # fmt: skip


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dict):
        return {name: _readable(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_readable(inner) for inner in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
