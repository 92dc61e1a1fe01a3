"""A group of messages to verdicts: pure, on a desk that was read before and is written after (P-ING-3).

The way of a message: opened (`ingest.opening`), a place in its chain, its content. What waited behind it follows, some
at a time: a chain with more to do is `due`.
"""

from dataclasses import dataclass, replace
from typing import Final, Protocol

from ingest.difficulty import steered
from ingest.opening import Message
from maxgreen.ledger.desk import NOBODY, Chain, Desk, Due, Evidence, Fate, Kept, Row
from maxgreen.protocol.batch import EventKind, SignedBatch, parse_batch
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Reason, Rejected, Verdict
from maxgreen.values import value
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action, Rules
from maxgreen.verify.shares import ShareCheck
from maxgreen.verify.verdict import (
    MAX_HELD_BEYOND,
    Judgement,
    Place,
    Waiting,
    date,
    dated,
    place,
    reinstate,
    take,
)

MOST_WAITING_BYTES: Final = 32 * 2**20  # of one device, ahead of its chain
FOLLOW: Final = 256  # batches that follow, or get a date, in one transaction
_FETCH: Final = 64
_FATES: Final = {EventKind.TRANSFER_START, EventKind.COMMAND_OBEYED, EventKind.COMMAND_REFUSED}
_MOST_FATES: Final = 8  # of one batch; agents state one or two


@value(frozen=True, slots=True)
class Outcome:
    """What became of a message; `device` is set when it deserves a receipt."""

    verdict: Verdict
    reason: Reason
    device: bytes | None = None


class Waiters(Protocol):
    """Where batches wait for their turn or their date."""

    def waiting(self, device: bytes, from_seq: int, limit: int) -> list[Kept]:
        """Return batches that wait ahead of the chain, lowest seq first."""
        ...

    def undated(self, device: bytes, from_seq: int, limit: int) -> list[Kept]:
        """Return batches that wait for the date of their boot."""
        ...

    def suspended(self, device: bytes, limit: int) -> list[Kept]:
        """Return batches in the chain that are held since the device was suspended."""
        ...


@dataclass(slots=True)
class _Fetched:
    """What was read of a chain's waiting batches: all of them from a seq on, or up to the last one here."""

    from_seq: int
    to_seq: int | None  # None: all of them
    rows: dict[int, Kept]

    def answers(self, seq: int) -> bool:
        """Tell whether it is known what waits at a seq."""
        return seq >= self.from_seq and (self.to_seq is None or seq <= self.to_seq)


class Judge:
    """Judges the messages of one group, in their order, on one desk."""

    def __init__(self, desk: Desk, waiters: Waiters, rules: Rules, shares: ShareCheck) -> None:
        self._desk = desk
        self._waiters = waiters
        self._rules = rules
        self._shares = shares
        self._verdicts: dict[bytes, list[tuple[int, int]]] = {}
        self._fetched: dict[bytes, _Fetched] = {}
        self._undated: dict[bytes, dict[int, Kept]] = {}  # that took their place here
        self._left = FOLLOW

    def verdicts(self, device: bytes) -> list[tuple[int, int]]:
        """Return what was decided here about a device's batches: seq and reason."""
        return self._verdicts.get(device, [])

    def handle(self, message: Message, opened: SignedBatch | Rejected, received_ms: int) -> Outcome:
        """Judge a message, keep it with its verdict, and let what waited behind it follow."""
        if isinstance(opened, Rejected):
            self._desk.evidence.append(Evidence(opened, message.topic, message.payload, received_ms, NOBODY, None))
            return Outcome(Verdict.REJECTED, opened.reason)
        chain = self._desk.chains[opened.envelope.key_id]
        device, seq = chain.device, opened.batch.seq
        where = place(chain.state, opened, self._desk.kept.get((device, seq)), self._predecessor(opened))
        if where is Place.NEXT:
            judgement = self._take(chain, opened, received_ms)
            self.follow(chain)
            return Outcome(judgement.verdict, judgement.reason, device)
        if where is Place.TOO_FAR and seq in self._rules.skip_targets(device, chain.state.next_seq):
            where = Place.AHEAD
        if where.waits and chain.waiting_bytes + len(opened.message) > MOST_WAITING_BYTES:
            where = Place.TOO_FAR
        if where is Place.DUPLICATE:
            if seq == chain.state.next_seq:  # what it waited for may have come
                self.follow(chain)
            return Outcome(Verdict.DUPLICATE, Reason.NONE, device)
        if where is Place.TOO_FAR:
            return Outcome(Verdict.HELD, where.reason, device)
        if where.halts:
            self._halt(chain, where, opened, received_ms)
            return Outcome(Verdict.REJECTED, where.reason, device)
        self._desk.add(Row(device, seq, opened.digest, opened.message, received_ms, None, None, where.reason))
        chain.changed = True
        if where.waits:
            chain.waiting += 1
            chain.waiting_bytes += len(opened.message)
            if self._rules.skip_targets(device, chain.state.next_seq):
                self.follow(chain)  # a skip may have waited for it
        return Outcome(Verdict.HELD, where.reason, device)

    def go_on(self, chain: Chain) -> None:
        """Do what is due on a chain: what a decision allows, and what was left for later."""
        decided, chain.due = chain.due, Due.NOTHING
        chain.changed = True
        if decided is Due.CONTINUED and chain.state.halted:
            self._move(chain, replace(chain.state, halted=False))
        if decided >= Due.DECIDED and not self._reinstate(chain):
            chain.due = Due.DECIDED
        self.follow(chain)

    def follow(self, chain: Chain) -> None:
        """Date and take what waited for its turn, up to the group's bound: what is left makes the chain due."""
        if chain.state.dating:
            self._date(chain)
        while self._left and chain.waiting and not chain.state.halted and self._follow_one(chain):
            self._left -= 1
            if chain.state.dating:
                self._date(chain)
        if not self._left and chain.due is Due.NOTHING and (chain.waiting or chain.state.dating):
            chain.due = Due.MORE
            chain.changed = True

    def _follow_one(self, chain: Chain) -> bool:
        """Take the batch that waits at the chain's end, or where a decision lets it go on; False when there is none."""
        seq = chain.state.next_seq
        found, skipped_to = self._waiting_at(chain, seq), False
        if found is None:
            targets = self._rules.skip_targets(chain.device, seq)
            found = next((kept for target in targets if (kept := self._waiting_at(chain, target)) is not None), None)
            skipped_to = found is not None
        if found is None:
            return False
        signed = parse_batch(found.message)
        if skipped_to:
            self._pass_over(chain, seq, found.seq)
        else:
            where = place(chain.state, signed, None, self._predecessor(signed))
            if where.halts:  # as if it had come only now: its place is free again
                self._desk.remove(chain.device, seq, found.reason)
                self._forget(chain, found)
                self._halt(chain, where, signed, found.received_ms)
            if where is not Place.NEXT:
                return False
        self._forget(chain, found)
        self._take(chain, signed, found.received_ms, was=found.reason, skipped_to=skipped_to)
        return True

    def _forget(self, chain: Chain, kept: Kept) -> None:
        """Count a batch as waiting no more."""
        fetched = self._fetched.get(chain.device)
        if fetched is not None:
            fetched.rows.pop(kept.seq, None)
        chain.waiting -= 1
        chain.waiting_bytes -= len(kept.message)

    def _halt(self, chain: Chain, where: Place, signed: SignedBatch, received_ms: int) -> None:
        """Keep a message as the proof against its device, and halt the chain."""
        device, seq = chain.device, signed.batch.seq
        error = Rejected(where.reason, f"seq {seq}: {where.reason.label}")
        topic = device_topic(device, "batch")
        self._desk.evidence.append(Evidence(error, topic, signed.message, received_ms, device, seq))
        self._move(chain, replace(chain.state, halted=True))

    def _pass_over(self, chain: Chain, from_seq: int, to_seq: int) -> None:
        """Forget the batches that waited for a seq that is skipped: they stay, and never take a place (P-ING-4)."""
        waiting = {
            kept.seq: len(kept.message) for kept in self._waiters.waiting(chain.device, from_seq, MAX_HELD_BEYOND)
        }
        for (device, seq), row in self._desk.rows.items():
            if device == chain.device and row.judgement is None:
                waiting[seq] = len(row.message)
        passed = [size for seq, size in waiting.items() if from_seq <= seq < to_seq]
        chain.waiting -= len(passed)
        chain.waiting_bytes -= sum(passed)

    def _waiting_at(self, chain: Chain, seq: int) -> Kept | None:
        """Return the batch that waits at a seq: of this group, or of the ledger, which is read some at a time."""
        row = self._desk.rows.get((chain.device, seq))
        if row is not None:
            return Kept(seq, row.message, row.received_ms, row.reason) if row.judgement is None else None
        fetched = self._fetched.get(chain.device)
        if fetched is None or not fetched.answers(seq):
            rows = self._waiters.waiting(chain.device, seq, _FETCH)
            to_seq = rows[-1].seq if len(rows) == _FETCH else None
            fetched = _Fetched(seq, to_seq, {kept.seq: kept for kept in rows})
            self._fetched[chain.device] = fetched
        return fetched.rows.get(seq)

    def _date(self, chain: Chain) -> None:
        """Give batches of this boot that waited for it their date, up to the group's bound."""
        state, device = chain.state, chain.device
        from_seq = state.undated_from or 0
        undated = {
            kept.seq: kept
            for kept in self._waiters.undated(device, from_seq, self._left)
            if (device, kept.seq) not in self._desk.judged
        }
        undated |= {seq: kept for seq, kept in self._undated.get(device, {}).items() if seq >= from_seq}
        for seq in sorted(undated):
            if not self._left:
                break
            kept = undated[seq]
            waiting = _held(kept)
            state, judgement = date(state, waiting, chain.record, self._rules, shares=self._shares)
            before = None
            if judgement.verdict is Verdict.HELD:  # now since the device is suspended: it keeps its date
                before = replace(waiting.state, boot_date_ms=state.boot_date_ms).to_bytes()
            self._desk.judge(device, Reason.CLOCK_UNSYNCHRONISED, judgement, before)
            self._note(chain, judgement)
            self._left -= 1
        self._move(chain, dated(state) if self._left else state)

    def _reinstate(self, chain: Chain) -> bool:
        """Judge batches again that a decision reinstates; False when the group's bound left some."""
        while True:
            held = [
                kept
                for kept in self._waiters.suspended(chain.device, 10 * FOLLOW)
                if self._rules.decided(chain.device, kept.seq, Action.REINSTATE)
                and (chain.device, kept.seq) not in self._desk.judged
            ]
            if not held:
                return True
            for kept in held:
                if not self._left:
                    return False
                judgement = reinstate(_held(kept), chain.record, self._rules, shares=self._shares)
                self._desk.judge(chain.device, Reason.SUSPENDED_DEVICE, judgement, kept.state_before, reinstated=True)
                self._note(chain, judgement)
                self._left -= 1

    def _take(
        self,
        chain: Chain,
        signed: SignedBatch,
        received_ms: int,
        *,
        was: Reason | None = None,
        skipped_to: bool = False,
    ) -> Judgement:
        """Give a batch its place: a new one, or one that was held for the reason `was`."""
        before = chain.state
        state, judgement = take(
            before,
            signed,
            received_ms,
            chain.record,
            self._rules,
            skipped_to=skipped_to,
            predecessor=self._predecessor(signed),
            shares=self._shares,
        )
        held = judgement.verdict is Verdict.HELD
        state_before = before.enter(signed.batch.boot).to_bytes() if held else None
        if was is None:
            row = Row(chain.device, judgement.seq, signed.digest, signed.message, received_ms, judgement, state_before)
            self._desk.add(row)
        else:
            self._desk.judge(chain.device, was, judgement, state_before)
        if state_before is not None and judgement.t0_ms is None:
            self._undated.setdefault(chain.device, {})[judgement.seq] = Kept(
                judgement.seq, signed.message, received_ms, judgement.reason, state_before, skipped_to
            )
        self._note(chain, judgement)
        self._note_fates(chain, signed, received_ms)
        self._move(chain, state)
        if signed.batch.succeeds is not None:  # the chain that it goes on from is closed
            old = self._desk.chains[signed.batch.succeeds[0]]
            self._move(old, replace(old.state, halted=True))
        return judgement

    def _note_fates(self, chain: Chain, signed: SignedBatch, received_ms: int) -> None:
        """Note what a batch says of commands (P-CMD-2), whatever becomes of its energy."""
        fates = [
            Fate(
                chain.device,
                event.command,
                event.refusal or 0 if event.kind == EventKind.COMMAND_REFUSED else None,
                received_ms,
            )
            for event in signed.batch.events
            if event.kind in _FATES and event.command is not None
        ]
        self._desk.fates += fates[:_MOST_FATES]

    def _note(self, chain: Chain, judgement: Judgement) -> None:
        self._verdicts.setdefault(chain.device, []).append((judgement.seq, int(judgement.reason)))
        if judgement.hashes and judgement.t0_ms is not None:
            chain.credited = steered(chain.credited, judgement.t0_ms, judgement.hashes)

    def _move(self, chain: Chain, state: ChainState) -> None:
        chain.state = state
        chain.changed = True

    def _predecessor(self, signed: SignedBatch) -> ChainState | None:
        if signed.batch.succeeds is None:
            return None
        old = self._desk.chains.get(signed.batch.succeeds[0])
        return old.state if old is not None else None


def _held(kept: Kept) -> Waiting:
    """Return a batch that holds its place, with the state of that place."""
    if kept.state_before is None:
        raise AssertionError("a batch that is held in its place has the state of it")
    state = ChainState.from_bytes(kept.state_before)
    return Waiting(parse_batch(kept.message), kept.received_ms, state, kept.skipped_to)
