"""A device's chain judged again from the pack: the same verifier as at ingest, bit for bit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from maxgreen.protocol.batch import Batch, SignedBatch, parse_batch
from maxgreen.protocol.cose import check_group
from maxgreen.protocol.pack import PackError
from maxgreen.protocol.reasons import DATED, Reason, Rejected
from maxgreen.protocol.work import window_of
from maxgreen.verify.chain import ChainState
from maxgreen.verify.meter import Growth, counted_spans
from maxgreen.verify.replay import Replay
from maxgreen.verify.rules import Action
from maxgreen.verify.shares import ShareCheck, check_together, shares_of
from maxgreen.verify.verdict import Judgement, Place, Reading, place, read_message, sender_of
from settlement.inputs import Arrival, Inputs, Party, Taken

_GROUP: Final = 480  # batches whose signatures and shares are checked together


@dataclass(frozen=True, slots=True)
class Fact:
    """A batch of the chain, or ahead of a hole in it, with what was decided; t0 in ms since the epoch."""

    party: Party
    batch: Batch
    digest: bytes
    received_ms: int
    reason: Reason
    remark: Reason
    t0_ms: int
    readings: tuple[Reading, ...]
    shares: int
    hashes: int
    skipped_to: bool

    @property
    def window_s(self) -> int:
        """The proof window that the batch belongs to (P-POW-4)."""
        return window_of(self.t0_ms)

    @property
    def dated(self) -> bool:
        """Whether it is known when it was measured: its time was judged, whatever became of it."""
        return self.accepted or self.reason in {Reason.SUSPENDED_DEVICE, Reason.TAKEN_OUT} or self.reason in DATED

    @property
    def accepted(self) -> bool:
        """Whether its energy counts."""
        return self.reason is Reason.NONE

    def reading(self, channel: int) -> Reading | None:
        """Return what the batch adds on a channel, when it was accepted."""
        if not self.accepted:
            return None
        return next((reading for reading in self.readings if reading.channel == channel), None)

    def energy_mws(self, channel: int) -> int:
        """Return the register growth on a channel that counts."""
        reading = self.reading(channel)
        return reading.energy_mws if reading else 0

    def spans(self, channel: int) -> list[tuple[int, int]]:
        """Return from when to when it was metered on a channel, ms since the epoch."""
        reading, measured = self.reading(channel), self.batch.channel(channel)
        if reading is None or measured is None:
            return []
        offsets_ms = measured.offsets_ms if reading.growth.gap_ms else (measured.last_offset_ms,)
        times_ms = [self.t0_ms + offset_ms for offset_ms in offsets_ms]
        return counted_spans(reading.growth, times_ms, interval_ms=self.batch.interval_ms)

    def growth(self, channel: int) -> Growth:
        """Return the exact sums behind it."""
        reading = self.reading(channel)
        return reading.growth if reading else Growth()


@dataclass(frozen=True)
class Replayed:
    """What every device's batches are, judged again; and what does not hold together, by device."""

    facts: Mapping[bytes, Sequence[Fact]]
    troubles: Mapping[bytes, str]

    def trouble(self, parties: Sequence[Party]) -> str:
        """Return what does not hold with these devices; nothing when all is well."""
        return next((self.troubles[party.device] for party in parties if party.device in self.troubles), "")


def replay(inputs: Inputs) -> Replayed:
    """Judge every device's batches again, in the order of their seq. One device's trouble is its own.

    Batches without a date belong to no window; those from before a key counted, or after it, to no line: they are
    left out.
    """
    ends: dict[bytes, ChainState] = {}
    found: dict[bytes, list[Fact]] = {}
    troubles: dict[bytes, str] = {}
    for party in sorted(inputs.parties, key=lambda p: p.key_number):  # a key begins where the one before it ended
        chain = Replay(inputs.starts[party.device], party.record, inputs.rules)
        try:
            facts = list(_facts(inputs, party, chain, ends.get(party.record.predecessor or b"")))
        except PackError as error:
            troubles[party.device] = str(error)
            continue
        ends[party.device] = chain.state
        found[party.device] = [_decided(inputs, fact) for fact in facts if _counts(fact)]
    return Replayed(found, troubles)


def state_at(inputs: Inputs, party: Party, seq: int) -> ChainState | None:
    """Return the state of a device's chain before `seq`; None when the evidence does not reach it."""
    if inputs.starts[party.device].next_seq > seq:
        return None
    chain = Replay(inputs.starts[party.device], party.record, inputs.rules)
    for message, arrival in zip(inputs.batches[party.device], inputs.arrivals[party.device], strict=True):
        if arrival.taken and arrival.seq < seq:
            signed = parse_batch(message)
            before = None
            if signed.batch.succeeds is not None:
                old = next((p for p in inputs.parties if p.device == party.record.predecessor), None)
                before = None if old is None else _end_of(inputs, old)
            skipped_to = arrival.taken is Taken.SKIPPED_TO
            chain.take(signed, arrival.received_ms, skipped_to=skipped_to, predecessor=before)
    return chain.state if chain.state.next_seq == seq else None


def _end_of(inputs: Inputs, party: Party) -> ChainState | None:
    taken = [arrival.seq for arrival in inputs.arrivals[party.device] if arrival.taken]
    return state_at(inputs, party, taken[-1] + 1) if taken else inputs.starts[party.device]


def _counts(fact: Fact) -> bool:
    return fact.party.record.counts(fact.t0_ms, fact.received_ms)


def _decided(inputs: Inputs, fact: Fact) -> Fact:
    """Return a fact as a decision of the DAO leaves it: what it rejected is out for ever."""
    if not fact.dated or not inputs.rules.decided(fact.party.device, fact.batch.seq, Action.REJECT):
        return fact
    return replace(fact, reason=Reason.TAKEN_OUT, readings=(), shares=0, hashes=0)


def _facts(inputs: Inputs, party: Party, chain: Replay, predecessor: ChainState | None) -> Iterator[Fact]:
    name = f"batches/{party.device.hex()}.cborseq"
    arrivals = inputs.arrivals[party.device]
    messages = inputs.batches[party.device]
    if len(arrivals) != len(messages):
        raise PackError(f"arrivals/{party.device.hex()}.csv: {len(arrivals)} rows for {len(messages)} batches")
    judged: dict[int, Judgement] = {}
    order: list[tuple[Batch, bytes, int]] = []
    for signed, arrival, shares in _opened(inputs, party):
        batch = signed.batch
        order.append((batch, signed.digest, arrival.received_ms))
        if arrival.taken is Taken.NOT:
            continue
        skipped_to = arrival.taken is Taken.SKIPPED_TO
        if skipped_to and batch.seq not in inputs.rules.skip_targets(party.device, chain.state.next_seq):
            raise PackError(f"{name}: seq {batch.seq}: no decision skips to it from {chain.state.next_seq}")
        where = Place.NEXT if skipped_to else place(chain.state, signed, None, predecessor)
        if where is not Place.NEXT:
            raise PackError(f"{name}: seq {batch.seq}: {where.reason.label}")
        judgements = chain.take(
            signed,
            arrival.received_ms,
            skipped_to=skipped_to,
            predecessor=predecessor if batch.succeeds else None,
            shares=shares,
        )
        judged.update((judgement.seq, judgement) for judgement in judgements)
    for batch, digest, received_ms in order:
        judgement = judged.get(batch.seq)
        if judgement is None:
            # it waits; what the chain was skipped past counts nowhere
            if batch.synchronised and batch.seq >= chain.state.next_seq:
                yield _waiting(party, batch, digest, received_ms)
        elif judgement.t0_ms is not None:
            yield Fact(
                party,
                batch,
                digest,
                received_ms,
                judgement.reason,
                judgement.remark,
                judgement.t0_ms,
                judgement.readings,
                judgement.shares,
                judgement.hashes,
                judgement.skipped_to,
            )


def _opened(inputs: Inputs, party: Party) -> Iterator[tuple[SignedBatch, Arrival, ShareCheck]]:
    """Yield authentic batches; signatures and shares are checked some at a time, to fill the lanes of kernels."""
    name = f"batches/{party.device.hex()}.cborseq"
    rows = list(zip(inputs.batches[party.device], inputs.arrivals[party.device], strict=True))
    for start in range(0, len(rows), _GROUP):
        group: list[tuple[SignedBatch, Arrival]] = []
        for message, arrival in rows[start : start + _GROUP]:
            try:
                signed = read_message(message)
                sender_of(signed, None, arrival.received_ms, lambda _id: party.record)
            except Rejected as error:
                raise PackError(f"{name}: seq {arrival.seq}: {error.reason.label}: {error}") from error
            if signed.envelope.key_id != party.device or signed.batch.seq != arrival.seq:
                raise PackError(f"{name}: seq {signed.batch.seq} of another place than its arrival {arrival.seq}")
            group.append((signed, arrival))
        envelopes = [(signed.envelope, party.record.verifier) for signed, _ in group]
        for (_, arrival), wrong in zip(group, check_group(envelopes, inputs.network, "batch"), strict=True):
            if wrong is not None:
                raise PackError(f"{name}: seq {arrival.seq}: {wrong.reason.label}: {wrong}") from wrong
        shares = check_together(shares_of((signed for signed, _ in group), inputs.rules.beacons))
        for signed, arrival in group:
            yield signed, arrival, shares


def _waiting(party: Party, batch: Batch, digest: bytes, received_ms: int) -> Fact:
    return Fact(party, batch, digest, received_ms, Reason.GAP_BEFORE, Reason.NONE, batch.t0_ms, (), 0, 0, False)
