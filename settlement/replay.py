"""A device's chain judged again from the pack: the same verifier as at ingest, bit for bit."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from maxgreen.protocol.batch import Batch
from maxgreen.protocol.pack import PackError
from maxgreen.protocol.reasons import Reason, Rejected
from maxgreen.protocol.work import window_of
from maxgreen.verify.meter import Growth
from maxgreen.verify.replay import Replay
from maxgreen.verify.verdict import Judgement, Place, Reading, open_message, place
from settlement.inputs import Inputs, Party


@dataclass(frozen=True, slots=True)
class Fact:
    """A batch of the chain, or ahead of a hole in it, with what was decided; t0 in ms since the epoch."""

    batch: Batch
    digest: bytes
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

    def growth(self, channel: int) -> Growth:
        """Return the exact sums behind it."""
        reading = self.reading(channel)
        return reading.growth if reading else Growth()


def replay(inputs: Inputs, party: Party) -> list[Fact]:
    """Judge a device's batches again, in the order of their seq; PackError when the chain does not hold.

    Batches without a date belong to no window and are left out.
    """
    return list(_facts(inputs, party))


def _facts(inputs: Inputs, party: Party) -> Iterator[Fact]:
    name = f"batches/{party.device.hex()}.cborseq"
    arrivals = inputs.arrivals[party.device]
    messages = inputs.batches[party.device]
    if len(arrivals) != len(messages):
        raise PackError(f"arrivals/{party.device.hex()}.csv: {len(arrivals)} rows for {len(messages)} batches")
    chain = Replay(inputs.starts[party.device], party.record, inputs.rules)
    judged: dict[int, Judgement] = {}
    order: list[tuple[Batch, bytes]] = []
    ahead = False
    for message, (seq, received_ms) in zip(messages, arrivals, strict=True):
        try:
            signed = open_message(message, None, received_ms, lambda _id: party.record, inputs.network)
        except Rejected as error:
            raise PackError(f"{name}: seq {seq}: {error.reason.label}: {error}") from error
        batch = signed.batch
        if signed.envelope.key_id != party.device or batch.seq != seq:
            raise PackError(f"{name}: seq {batch.seq} of another place than its arrival {seq}")
        order.append((batch, hashlib.sha256(message).digest()))
        skipped_to = not ahead and batch.seq in inputs.rules.skip_targets(party.device, chain.state.next_seq)
        if batch.seq != chain.state.next_seq and not skipped_to:
            ahead = True  # a hole: whatever follows waits
            continue
        where = Place.NEXT if skipped_to else place(chain.state, signed, None)
        if where is not Place.NEXT:
            raise PackError(f"{name}: seq {seq}: {where.reason.label}")
        judgements = chain.take(signed, received_ms, skipped_to=skipped_to)
        judged.update((judgement.seq, judgement) for judgement in judgements)
    for batch, digest in order:
        judgement = judged.get(batch.seq)
        if judgement is None:
            if batch.synchronised:
                yield Fact(batch, digest, Reason.GAP_BEFORE, Reason.NONE, batch.t0_ms, (), 0, 0, False)
        elif judgement.t0_ms is not None:
            yield Fact(
                batch,
                digest,
                judgement.reason,
                judgement.remark,
                judgement.t0_ms,
                judgement.readings,
                judgement.shares,
                judgement.hashes,
                judgement.skipped_to,
            )
