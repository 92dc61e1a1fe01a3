"""Proposals as they are on the chain: what they would do is their calls, never their text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from eth_utils import keccak

from maxgreen.actions.calls import Call, decode_calls
from maxgreen.chain.client import LOG_SPAN
from maxgreen.chain.dao import ENDED, Dao, Proposal, ProposalState
from maxgreen.chain.deployment import Deployment
from maxgreen.clock import Clock
from maxgreen.errors import UsageError

_UNSURE: Final = 256  # blocks that a chain may still take back
_SHORT: Final = 10


@dataclass(frozen=True)
class Ballot:
    """A proposal on the chain."""

    number: int
    proposer: str
    targets: tuple[str, ...]
    calldatas: tuple[bytes, ...]
    description: str
    values: tuple[int, ...] = ()  # of the chain's own currency that goes along, wei

    @property
    def short(self) -> str:
        """The first digits of its number in hex, by which people name it."""
        return f"{self.number:064x}"[:_SHORT]

    @property
    def arguments(self) -> tuple[list[str], list[int], list[bytes], bytes]:
        """Targets, values, calldatas and the description's hash, as the governor takes them."""
        return (
            list(self.targets),
            list(self.values),
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
        self.option = " --modules" if governor == "ModuleGovernor" else ""  # of commands, to mean this body's
        self._known: dict[int, Ballot] = {}  # of the blocks before the next
        self._followed_to = 0

    def all(self) -> list[Ballot]:
        """Return all proposals, the newest first. Blocks that were read stay read, but for the last ones."""
        newest = self._chain.newest_block().number
        found = dict(self._known)
        for first in range(self._followed_to, newest + 1, LOG_SPAN):
            last = min(first + LOG_SPAN - 1, newest)
            for event in self._chain.all_events(self._contract, first, last, ("ProposalCreated",)):
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
            raise UsageError(
                f"proposal {short!r}: {many} with these first digits; "
                f"'maxgreen dao list --ended{self.option}' prints all"
                + ("" if self.option else ", and with --modules those of the vote on modules")
            )
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
        """Return what a proposal would do, decoded from its calls; of very many only the first."""
        return decode_calls(self._deployment, ballot.targets, ballot.calldatas, ballot.values)


def _ballot(args: Any) -> Ballot:
    return Ballot(
        int(args["proposalId"]),
        str(args["proposer"]),
        tuple(args["targets"]),
        tuple(bytes(data) for data in args["calldatas"]),
        str(args["description"]),
        tuple(int(value) for value in args["values"]),
    )


def waiting(ballots: Ballots) -> Iterator[tuple[Ballot, ProposalState]]:
    """Yield the proposals that are not ended, the newest first."""
    for ballot in ballots.all():
        state = ballots.state(ballot)
        if state not in ENDED:
            yield ballot, state
