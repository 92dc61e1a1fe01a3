"""Proposals of the technical DAO: propose, vote, queue, execute; each step may be repeated."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final

from eth_abi.abi import encode as abi_encode
from eth_account.signers.local import LocalAccount
from eth_utils import keccak
from web3.contract.contract import ContractFunction

from maxgreen.chain.deployment import Deployment
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.clock import Clock, utc
from maxgreen.errors import MaxgreenError, Retryable

_LOG: Final = logging.getLogger(__name__)
_DONE_ALREADY: Final = {"GovernorUnexpectedProposalState", "GovernorAlreadyCastVote", "GovernorAlreadyQueuedProposal"}
_PROPOSER: Final = re.compile(r" #proposer=0x[0-9a-f]{40}$")
_FIRST_PAUSE_MS: Final = 1_000
_LONGEST_PAUSE_MS: Final = 30_000


class ProposalState(IntEnum):
    """OpenZeppelin's IGovernor.ProposalState."""

    PENDING = 0
    ACTIVE = 1
    CANCELED = 2
    DEFEATED = 3
    SUCCEEDED = 4
    QUEUED = 5
    EXPIRED = 6
    EXECUTED = 7


ENDED: Final = {ProposalState.CANCELED, ProposalState.DEFEATED, ProposalState.EXPIRED, ProposalState.EXECUTED}
_WAITS: Final = {
    ProposalState.PENDING: "the vote on '{}' has not begun",
    ProposalState.ACTIVE: "the vote on '{}' is open",
    ProposalState.SUCCEEDED: "'{}' passed",
    ProposalState.QUEUED: "'{}' passed and waits in the timelock",
}


class Vote(IntEnum):
    """How a member votes."""

    AGAINST = 0
    FOR = 1
    ABSTAIN = 2


@dataclass(frozen=True)
class Proposal:
    """Calls that the DAO's timelock makes when the vote passes; the description makes it unique."""

    calls: tuple[ContractFunction, ...]
    description: str

    def by(self, proposer: str) -> "Proposal":
        """Return it with the proposer's address at its end, as the governor wants it."""
        suffix = f" #proposer={proposer.lower()}"
        return self if _PROPOSER.search(self.description) else replace(self, description=self.description + suffix)

    @property
    def arguments(self) -> tuple[list[str], list[int], list[bytes], bytes]:
        """Targets, values, calldatas and the description's hash, as the governor takes them."""
        return (
            [call.address for call in self.calls],
            [0] * len(self.calls),
            [bytes.fromhex(call._encode_transaction_data()[2:]) for call in self.calls],  # noqa: SLF001
            keccak(text=self.description),
        )


class Dao:
    """The DAO of a deployment."""

    def __init__(self, deployment: Deployment, clock: Clock, governor: str = "TechGovernor") -> None:
        """`governor` is TechGovernor, or ModuleGovernor for the votes on modules."""
        self._chain = deployment.chain
        self._functions: Any = deployment.functions(governor)
        self._clock = clock

    def id_of(self, proposal: Proposal) -> int:
        """Return the proposal's id, which its content determines (IGovernor.hashProposal)."""
        types = ["address[]", "uint256[]", "bytes[]", "bytes32"]
        return int.from_bytes(keccak(abi_encode(types, list(proposal.arguments))), "big")

    def state(self, proposal: Proposal) -> ProposalState | None:
        """Return the state, or None when it was never proposed."""
        proposal_id = self.id_of(proposal)
        if not self._chain.call(self._functions.proposalSnapshot(proposal_id)):
            return None
        return ProposalState(self._chain.call(self._functions.state(proposal_id)))

    def propose(self, member: LocalAccount, proposal: Proposal) -> Proposal:
        """Propose in a member's name, unless it was proposed already; return the proposal as it is on the chain."""
        proposal = proposal.by(member.address)
        if self.state(proposal) is None:
            targets, values, calldatas, _ = proposal.arguments
            self._chain.transact(member, self._functions.propose(targets, values, calldatas, proposal.description))
        return proposal

    def vote(self, member: LocalAccount, proposal: Proposal, vote: Vote = Vote.FOR) -> None:
        """Cast a member's vote, unless it was cast already."""
        self.cast(member, self.id_of(proposal), vote)

    def cast(self, member: LocalAccount, number: int, vote: Vote, reason: str = "") -> None:
        """Cast a member's vote on a proposal's number, unless it was cast already."""
        if not self.has_voted(number, member.address):
            self._chain.transact(member, self._functions.castVoteWithReason(number, int(vote), reason))

    def has_voted(self, number: int, address: str) -> bool:
        """Tell whether an account has voted on a proposal."""
        return bool(self._chain.call(self._functions.hasVoted(number, address)))

    def weight_of(self, number: int, address: str) -> int:
        """Return how many votes an account has on a proposal: those that it had when the vote began."""
        begun_s = int(self._chain.call(self._functions.proposalSnapshot(number)))
        if begun_s >= self._chain.now_s():
            return 0
        return int(self._chain.call(self._functions.getVotes(address, begun_s)))

    def needed_of(self, number: int) -> int:
        """Return how many votes for it a proposal takes; 0 as long as its vote has not begun."""
        begun_s = int(self._chain.call(self._functions.proposalSnapshot(number)))
        return int(self._chain.call(self._functions.quorum(begun_s))) if begun_s < self._chain.now_s() else 0

    def queue(self, account: LocalAccount, arguments: tuple[list[str], list[int], list[bytes], bytes]) -> None:
        """Put what passed into the timelock."""
        self._chain.transact(account, self._functions.queue(*arguments))

    def execute(self, account: LocalAccount, arguments: tuple[list[str], list[int], list[bytes], bytes]) -> None:
        """Carry out what passed, when its timelock is over."""
        self._chain.transact(account, self._functions.execute(*arguments))

    def votes(self, proposal: Proposal) -> tuple[int, int, int]:
        """Return the votes against, for and abstaining."""
        return self.votes_of(self.id_of(proposal))

    def votes_of(self, number: int) -> tuple[int, int, int]:
        """Return the votes against, for and abstaining on a proposal's number."""
        against, in_favour, abstaining = self._chain.call(self._functions.proposalVotes(number))
        return int(against), int(in_favour), int(abstaining)

    def due_ms(self, proposal: Proposal) -> int:
        """Return when the present state can end, by the chain's time; 0 when only an act ends it."""
        state = self.state(proposal)
        return self.due_of(self.id_of(proposal), state) if state is not None else 0

    def due_of(self, number: int, state: ProposalState) -> int:
        """Return when a state can end: votes open, votes close, the timelock is over (unix ms)."""
        read = {
            ProposalState.PENDING: self._functions.proposalSnapshot,
            ProposalState.ACTIVE: self._functions.proposalDeadline,
            ProposalState.QUEUED: self._functions.proposalEta,
        }.get(state)
        return int(self._chain.call(read(number))) * 1000 + 1000 if read else 0

    def carry_out(self, proposal: Proposal, members: Sequence[LocalAccount], *, wait: bool) -> ProposalState:
        """Take every step that can be taken now, in the members' names; `wait` sleeps from one to the next.

        Returns the state reached: EXECUTED, or a state that only time or votes can end.
        """
        proposal = proposal.by(members[0].address)
        number, said = self.id_of(proposal), None
        self._unless_done(lambda: self.propose(members[0], proposal))
        pause_ms = _FIRST_PAUSE_MS
        while True:
            now_ms = self._chain.now_s() * 1000
            state = self._state_now(number)
            due_ms = self.due_of(number, state)
            if state is ProposalState.ACTIVE:
                for member in members:
                    self._unless_done(lambda: self.cast(member, number, Vote.FOR))  # noqa: B023 - called at once
            elif state is ProposalState.SUCCEEDED:
                self._unless_done(lambda: self.queue(members[0], proposal.arguments))
                continue
            elif state is ProposalState.QUEUED and now_ms >= due_ms:
                self._unless_done(lambda: self.execute(members[0], proposal.arguments))
                continue
            if state in ENDED or not wait:
                return state
            if state is not said:
                _LOG.info("waiting until %s: %s", utc(due_ms), _WAITS[state].format(proposal.description))
                said, pause_ms = state, _FIRST_PAUSE_MS
            # by the chain's time, not ours; where that is over and nothing changed, it is asked ever more seldom
            left_ms = due_ms - now_ms if due_ms > now_ms else pause_ms
            pause_ms = min(2 * pause_ms, _LONGEST_PAUSE_MS)
            self._clock.sleep_until(self._clock.now_ms() + left_ms)

    def _unless_done(self, step: Callable[[], object]) -> None:
        """Take a step, which another may have taken since we looked."""
        try:
            step()
        except ChainRefusedError as error:
            if error.name not in _DONE_ALREADY:
                raise
            self._clock.sleep_until(self._clock.now_ms() + _FIRST_PAUSE_MS)

    def _state_now(self, number: int) -> ProposalState:
        try:
            return self.state_of(number)
        except ChainRefusedError as error:
            if error.name == "GovernorNonexistentProposal":
                raise MaxgreenError("the proposal was not found on the chain") from error
            raise

    def state_of(self, number: int) -> ProposalState:
        """Return a proposal's state as a transaction would find it: a chain without traffic has old blocks."""
        function = self._functions.state(number)
        if self._chain.is_eth_tester:
            return ProposalState(self._chain.call(function))
        try:
            return ProposalState(self._chain.call(function, at="pending"))
        except (Retryable, ChainRefusedError):  # not every RPC has a pending block
            return ProposalState(self._chain.call(function))
