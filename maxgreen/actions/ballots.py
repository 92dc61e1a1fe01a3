"""Proposals as they are on the chain, decoded from their calls and never from their text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_utils import keccak
from eth_utils.abi import function_abi_to_4byte_selector
from web3 import Web3

from maxgreen.actions.session import kwh, tokens
from maxgreen.chain.artifacts import artifact
from maxgreen.chain.dao import ENDED, Dao, Proposal, ProposalState
from maxgreen.chain.deployment import FIELDS, Deployment
from maxgreen.chain.registry import application
from maxgreen.clock import Clock, utc
from maxgreen.errors import UsageError

_BLOCKS: Final = 10_000
_UNSURE: Final = 256  # blocks that a chain may still take back
_WORD: Final = 32
_MOST_TOKEN: Final = 2**48
_SHORT: Final = 10
_STATUSES: Final = ("none", "active", "suspended", "revoked")


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


@dataclass(frozen=True)
class Ballot:
    """A proposal on the chain."""

    number: int
    proposer: str
    targets: tuple[str, ...]
    calldatas: tuple[bytes, ...]
    description: str

    @property
    def short(self) -> str:
        """The first digits of its number in hex, by which people name it."""
        return f"{self.number:064x}"[:_SHORT]

    @property
    def arguments(self) -> tuple[list[str], list[int], list[bytes], bytes]:
        """Targets, values, calldatas and the description's hash, as the governor takes them."""
        return (
            list(self.targets),
            [0] * len(self.targets),
            list(self.calldatas),
            bytes(keccak(text=self.description)),
        )


class Ballots:
    """All proposals of a governor."""

    def __init__(self, deployment: Deployment, clock: Clock, governor: str = "TechGovernor") -> None:
        self._deployment = deployment
        self._chain = deployment.chain
        self._contract = self._chain.contract(governor, deployment.address_of(governor))
        self.dao = Dao(deployment, clock, governor)
        self._known: dict[int, Ballot] = {}  # of the blocks before the next
        self._followed_to = 0

    def all(self) -> list[Ballot]:
        """Return all proposals, the newest first. Blocks that were read stay read, but for the last ones."""
        newest = self._chain.newest_block().number
        found = dict(self._known)
        for first in range(self._followed_to, newest + 1, _BLOCKS):
            for event in self._chain.all_events(self._contract, first, min(first + _BLOCKS - 1, newest)):
                if event["event"] == "ProposalCreated":
                    ballot = _ballot(event["args"])
                    found[ballot.number] = ballot
                    if event["blockNumber"] < newest - _UNSURE:
                        self._known[ballot.number] = ballot
        self._followed_to = max(self._followed_to, newest - _UNSURE)
        return list(found.values())[::-1]

    def find(self, short: str) -> Ballot:
        """Return the proposal that a person names by its first digits, or `latest`: the newest one."""
        wanted = short.lower().removeprefix("0x")
        known = self.all()
        if wanted == "latest" and known:
            return known[0]
        found = [ballot for ballot in known if wanted and f"{ballot.number:064x}".startswith(wanted)]
        if len(found) != 1:
            many = "no proposal" if not found else f"{len(found)} proposals"
            raise UsageError(f"proposal {short!r}: {many} with these first digits; 'maxgreen dao list' prints them")
        return found[0]

    def state(self, ballot: Ballot) -> ProposalState:
        """Return where a proposal stands, as a transaction would find it now."""
        return self.dao.state_of(ballot.number)

    def next_attempt(self, proposal: Proposal, proposer: str) -> Proposal:
        """Return a proposal with the first attempt number that is not dead; one under way is found again."""
        number = 1
        while True:
            text = f"{proposal.description}, attempt {number}"
            attempt = Proposal(proposal.calls, text).by(proposer)
            if self.dao.state(attempt) not in ENDED - {ProposalState.EXECUTED}:
                return attempt
            number += 1

    def calls(self, ballot: Ballot) -> list[Call]:
        """Return what a proposal would do, decoded from its calls."""
        pairs = zip(ballot.targets, ballot.calldatas, strict=True)
        return [decode_call(self._deployment, target, data) for target, data in pairs]


def decode_call(deployment: Deployment, target: str, data: bytes) -> Call:
    """Return what a call would do, by its bytes and our contracts' interfaces."""
    contract = contract_at(deployment, target)
    for abi in artifact(contract)["abi"] if contract else ():
        if abi["type"] == "function" and bytes(function_abi_to_4byte_selector(abi)) == data[:4]:
            try:
                _, values = deployment.chain.contract(contract, target).decode_function_input(data)
            except Exception:  # noqa: BLE001 - whoever proposed may have written any bytes
                break
            says = _Explained(deployment).say(contract, str(abi["name"]), values)
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


class _Explained:
    """Says in a sentence what a call would change."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def say(self, contract: str, function: str, values: dict[str, Any]) -> str:
        """Return the sentence; a plain rendering for what has none of its own."""
        known = getattr(self, f"_{contract}_{function}", None)
        if known is not None:
            return str(known(values))
        return f"{contract}.{function}({', '.join(f'{name}={_readable(v)}' for name, v in values.items())})"

    def _MinerRegistry_admit(self, values: dict[str, Any]) -> str:  # noqa: N802 - named as contract and function
        found = application(self._deployment, values["applicationId"])
        if found.content != values["content"]:
            return f"admit application {found.number}, which is another one now: it would be skipped"
        channels = ", ".join(f"{c.number} (role {c.role}, {c.peak_mw / 1000:g} W)" for c in found.spec.channels)
        place = (
            "" if found.spec.place_deci is None else f", at {'/'.join(f'{d / 10:g}' for d in found.spec.place_deci)}"
        )
        battery = f", battery {found.spec.battery_wh} Wh" if found.spec.battery_wh else ""
        return (
            f"admit application {found.number}: a {found.spec.kind.label.replace('_', ' ')} of {found.applicant}, "
            f"channels {channels}{battery}{place}"
        )

    def _MinerRegistry_setStatus(self, values: dict[str, Any]) -> str:  # noqa: N802
        return f"set system {values['tokenId']} to {_STATUSES[values['status']]}: {values['reason']}"

    def _EnergySettlement_approve(self, values: dict[str, Any]) -> str:  # noqa: N802
        posting = values["posting"]
        text = (
            f"approve order {values['orderId']}: {posting['count']} lines until {utc(posting['until'] * 1000)}, "
            f"all lines together {kwh(posting['total'])} since they opened, manifest "
            f"{posting['manifestDigest'].hex()}, evidence {posting['evidence'] or 'from the operator'}"
        )
        excluded = [f"without line {e['line'].hex()} ({e['code']}: {e['text']})" for e in values["excluded"]]
        return "; ".join([text, *excluded])

    def _EnergySettlement_reject(self, values: dict[str, Any]) -> str:  # noqa: N802
        return f"reject order {values['orderId']} with code {values['code']}: {values['text']}"

    def _EnergySettlement_hold(self, values: dict[str, Any]) -> str:  # noqa: N802
        held = values["exclusion"]
        return f"stop the payment of line {held['line'].hex()} ({held['code']}: {held['text']})"

    def _EnergySettlement_release(self, values: dict[str, Any]) -> str:  # noqa: N802
        return f"pay line {values['line'].hex()} again"

    def _LineBook_approveLine(self, values: dict[str, Any]) -> str:  # noqa: N802
        ends, loss = values["ends"], values["loss"]
        return (
            f"allow the line from system {ends['minerToken']} channel {ends['minerChannel']} to system "
            f"{ends['nodeToken']} channel {ends['nodeChannel']}: {loss['resistanceUohm']} µΩ, {loss['lossPpm']} ppm "
            f"expected, at most {loss['maxLossPpm']} ppm lost"
        )

    def _Authority_grantRole(self, values: dict[str, Any]) -> str:  # noqa: N802
        return f"GIVE ROLE {values['roleId']} TO {values['account']}: who holds it may do what docs/contracts.md says"

    def _Deca_transfer(self, values: dict[str, Any]) -> str:  # noqa: N802
        return f"give {tokens(values['value'])} DECA of the vault to {values['to']}"

    def _MaxCoin_transfer(self, values: dict[str, Any]) -> str:  # noqa: N802
        return f"give {tokens(values['value'])} MaxCoin of the vault to {values['to']}"

    def _CarbonToken_transfer(self, values: dict[str, Any]) -> str:  # noqa: N802
        return f"give {tokens(values['value'])} CarbonToken of the vault to {values['to']}"


def _ballot(args: Any) -> Ballot:
    return Ballot(
        int(args["proposalId"]),
        str(args["proposer"]),
        tuple(args["targets"]),
        tuple(bytes(data) for data in args["calldatas"]),
        str(args["description"]),
    )


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dict):
        return {name: _readable(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_readable(inner) for inner in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def waiting(ballots: Ballots) -> Iterator[tuple[Ballot, ProposalState]]:
    """Yield the proposals that are not ended, the newest first."""
    for ballot in ballots.all():
        state = ballots.state(ballot)
        if state not in ENDED:
            yield ballot, state
