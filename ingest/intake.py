"""One message to one verdict, with its effect on the chain, within one ledger transaction (P-ING-3)."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from maxgreen.ledger.book import Book, KnownDevice
from maxgreen.protocol.backend import Receipt
from maxgreen.protocol.batch import SignedBatch, parse_batch
from maxgreen.protocol.reasons import Reason, Rejected, Verdict
from maxgreen.protocol.work import WINDOW_MS, credit_of, nbits_of_credit
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action, Rules
from maxgreen.verify.verdict import Judgement, Place, Waiting, open_message, place, take

EVIDENCE_QUOTA: Final = 10_000
SEQ_LIMIT: Final = 2**63
_RECEIPT_LIST: Final = 64
_STEERING_WINDOWS: Final = 6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a message; `device` is set when it deserves a receipt."""

    verdict: Verdict
    reason: Reason
    device: bytes | None = None


class Intake:
    """Judges messages against the ledger of one transaction."""

    def __init__(self, book: Book, network: str, rules: Rules) -> None:
        self._book = book
        self._network = network
        self._rules = rules

    def handle(self, topic: str, message: bytes, received_ms: int) -> Outcome:
        """Judge a message, keep it with its verdict, and let what waited behind it follow."""
        known: KnownDevice | None = None

        def find(device: bytes) -> KnownDevice | None:
            nonlocal known
            known = self._book.device(device)
            return known

        try:
            signed = open_message(
                message, topic, received_ms, lambda d: found.record if (found := find(d)) else None, self._network
            )
        except Rejected as error:
            self._book.add_evidence(error, topic, message, received_ms, None, None)
            self._book.trim_evidence(EVIDENCE_QUOTA)
            return Outcome(Verdict.REJECTED, error.reason)
        if known is None:
            raise AssertionError("open_message finds the device")
        return self._authentic(known, signed, topic, received_ms)

    def resume(self, device: bytes) -> None:
        """Let a chain go on after a decision: `continue`, `skip` or `reinstate`."""
        known = self._book.device(device)
        if known is None:
            return
        state = known.chain or ChainState.start(self._network)
        if state.halted and any(d.device == device and d.action is Action.CONTINUE for d in self._rules.decisions):
            state = replace(state, halted=False)
            self._book.put_chain(device, state)
        self._follow(known, state)

    def _authentic(self, known: KnownDevice, signed: SignedBatch, topic: str, received_ms: int) -> Outcome:
        device, batch = known.record.device, signed.batch
        state = known.chain or ChainState.start(self._network)
        kept = self._book.digest_at(device, batch.seq) if batch.seq < SEQ_LIMIT else None
        where = place(state, signed, kept, self._predecessor(signed))
        if where is Place.DUPLICATE:
            return Outcome(Verdict.DUPLICATE, Reason.NONE, device)
        if where is Place.NEXT:
            judgement = self._take(known, state, signed, received_ms)
            return Outcome(judgement.verdict, judgement.reason, device)
        if where is Place.TOO_FAR:
            return Outcome(Verdict.HELD, where.reason, device)
        if where in {Place.AHEAD, Place.SUSPENDED, Place.SKIPPED}:
            if batch.seq < SEQ_LIMIT:
                self._book.add_batch(device, signed.message, batch.seq, received_ms, None)
            if where is Place.AHEAD:
                self._follow(known, state)  # a skip may have waited for it
            return Outcome(Verdict.HELD, where.reason, device)
        error = Rejected(where.reason, f"seq {batch.seq}: {where.reason.label}")
        self._book.add_evidence(error, topic, signed.message, received_ms, device, batch.seq)
        self._book.put_chain(device, replace(state, halted=True))
        return Outcome(Verdict.REJECTED, where.reason, device)

    def _take(self, known: KnownDevice, state: ChainState, signed: SignedBatch, received_ms: int) -> Judgement:
        """Give a new batch its place, then those that waited behind it."""
        state, judgement = self._take_one(known, state, signed, received_ms)
        self._follow(known, state)
        return judgement

    def _take_one(
        self,
        known: KnownDevice,
        state: ChainState,
        signed: SignedBatch,
        received_ms: int,
        *,
        kept: bool = False,
        skipped_to: bool = False,
    ) -> tuple[ChainState, Judgement]:
        device = known.record.device
        state_before = state
        state, judgements = take(
            state,
            signed,
            received_ms,
            known.record,
            self._rules,
            waiting=self._waiting(device),
            skipped_to=skipped_to,
            predecessor=self._predecessor(signed),
        )
        own, *dated = judgements
        before = state_before.enter(signed.batch.boot) if own.verdict is Verdict.HELD else None
        if kept:
            self._book.judge_batch(device, own, before)
        else:
            self._book.add_batch(device, signed.message, own.seq, received_ms, own, before)
        for judgement in dated:
            self._book.judge_batch(device, judgement)
        self._book.put_chain(device, state)
        return state, own

    def _follow(self, known: KnownDevice, state: ChainState) -> None:
        """Take the batches that waited for their turn."""
        device = known.record.device
        while not state.halted:
            row = self._book.batch(device, state.next_seq)
            skipped_to = False
            if row is None:
                target = self._rules.skip_from(device, state.next_seq)
                row = self._book.batch(device, target) if target is not None else None
                skipped_to = row is not None
            if row is None or row.in_chain:
                return
            signed = parse_batch(bytes(row.message))
            if not skipped_to:
                where = place(state, signed, None, self._predecessor(signed))
                if where.halts:
                    self._book.put_chain(device, replace(state, halted=True))
                if where is not Place.NEXT:
                    return
            state, _ = self._take_one(known, state, signed, row.received_ms, kept=True, skipped_to=skipped_to)

    def _predecessor(self, signed: SignedBatch) -> ChainState | None:
        if signed.batch.succeeds is None:
            return None
        old = self._book.device(signed.batch.succeeds[0])
        return old.chain if old else None

    def _waiting(self, device: bytes) -> Callable[[int], Waiting]:
        def waiting(seq: int) -> Waiting:
            row = self._book.batch(device, seq)
            state = ChainState.from_json(json.loads(row.state_before))
            return Waiting(parse_batch(bytes(row.message)), row.received_ms, state)

        return waiting


def receipt_for(book: Book, device: bytes, network: str, server_ms: int) -> Receipt:
    """Return the receipt that a device deserves now (P-RCT-1)."""
    known = book.device(device)
    state = (known.chain if known else None) or ChainState.start(network)
    return Receipt(
        device=device,
        next_seq=state.next_seq,
        head=state.head,
        server_ms=server_ms,
        nbits=wanted_nbits(book, device, server_ms),
        held=tuple(book.held_beyond(device, state.next_seq, _RECEIPT_LIST)),
        verdicts=tuple(book.unreported(device, _RECEIPT_LIST)),
    )


def wanted_nbits(book: Book, device: bytes, now_ms: int) -> int:
    """Return the difficulty that gives `shares_per_window` at the rate of the last hour (P-POW-4)."""
    limits = book.limits()[-1][1]
    hashes = book.hashes_since(device, now_ms - _STEERING_WINDOWS * WINDOW_MS)
    per_share = hashes // (_STEERING_WINDOWS * limits.shares_per_window)
    least = credit_of(limits.pow_nbits_min)
    return limits.pow_nbits_min if per_share <= least else nbits_of_credit(per_share)
