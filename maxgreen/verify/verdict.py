"""The verdict on a batch: a pure function of bytes, arrival time and rules (P-ING-1, P-ING-3).

A message passes three stages: `open_message` (a: no chain named), `place` (b: where it stands in its chain),
`take` (c: content). Only `take` moves the chain.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from itertools import repeat
from typing import Final

from maxgreen.protocol.batch import MAX_MESSAGE_BYTES, MAX_SENSORS, Batch, Birth, Channel, SignedBatch, parse_batch
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Reason, Rejected, Verdict
from maxgreen.protocol.work import WINDOW_MS, credit_of, window_of
from maxgreen.values import value
from maxgreen.verify.chain import ChainState, ChannelState
from maxgreen.verify.meter import HALF_FEMTOJOULES_PER_MWS, Growth, Sample, measure_arrays
from maxgreen.verify.rules import Action, DeviceRecord, Limits, Rules, Status, is_easier
from maxgreen.verify.shares import ShareCheck, Shares, check_shares

MAX_HELD_BEYOND: Final = 4_096
# what covers wall time (P-BAT-6); suspended too: whatever is decided later, the batches after it were judged by it
_COVERS: Final = {Reason.NONE, Reason.SUSPENDED_DEVICE}
_HELD: Final = {Reason.GAP_BEFORE, Reason.CLOCK_UNSYNCHRONISED, Reason.SUSPENDED_DEVICE}
_VERDICTS: Final = {
    reason: Verdict.HELD if reason in _HELD else Verdict.ACCEPTED if reason is Reason.NONE else Verdict.REJECTED
    for reason in Reason
}


class Place(Enum):
    """Where an authentic message stands in its chain."""

    NEXT = auto()
    DUPLICATE = auto()
    SKIPPED = auto()  # for a seq that a decision skipped: kept, never counts (P-ING-4)
    AHEAD = auto()  # held gap_before
    TOO_FAR = auto()  # not kept; the receipt's next seq calls for it again
    EQUIVOCATION = auto()
    CHAIN_BREAK = auto()
    REGRESSION = auto()
    SUSPENDED = auto()  # the chain is halted

    @property
    def halts(self) -> bool:
        """Tell whether such a message suspends the device."""
        return self in {Place.EQUIVOCATION, Place.CHAIN_BREAK, Place.REGRESSION}

    @property
    def waits(self) -> bool:
        """Tell whether such a message is kept until the chain comes to it."""
        return self in {Place.AHEAD, Place.SUSPENDED}

    @property
    def reason(self) -> Reason:
        """The reason under which the message is kept."""
        return _PLACE_REASONS.get(self, Reason.NONE)


_PLACE_REASONS: Final = {
    Place.SKIPPED: Reason.GAP_BEFORE,
    Place.AHEAD: Reason.GAP_BEFORE,
    Place.TOO_FAR: Reason.GAP_BEFORE,
    Place.EQUIVOCATION: Reason.EQUIVOCATION,
    Place.CHAIN_BREAK: Reason.CHAIN_BREAK,
    Place.REGRESSION: Reason.REGISTER_REGRESSION,
    Place.SUSPENDED: Reason.SUSPENDED_DEVICE,
}


@value(frozen=True, slots=True)
class Reading:
    """What a batch adds on one channel: registers' growth as stated, and the segments counted."""

    channel: int
    role: int
    energy_mws: int
    reverse_mws: int
    growth: Growth
    dead_band_ua: int
    rises: bool  # the times of its samples


@value(frozen=True, slots=True)
class Judgement:
    """What was decided about one batch that took its place in the chain."""

    seq: int
    reason: Reason
    remark: Reason
    t0_ms: int | None  # None while the batch waits for a date
    readings: tuple[Reading, ...]
    shares: int  # credited
    hashes: int  # credited
    skipped_to: bool  # the chain went on here over a hole (P-ING-4)
    interval_ms: int  # the nominal one
    begins_boot: bool  # it brings the first birth of its boot, whatever became of those before it

    @property
    def verdict(self) -> Verdict:
        """The verdict that the reason means."""
        return verdict_of(self.reason)


@value(frozen=True, slots=True)
class Waiting:
    """A batch that took its place but is held: its bytes, arrival, and the chain state of its place."""

    signed: SignedBatch
    received_ms: int
    state: ChainState
    skipped_to: bool = False  # the chain went on here over a hole


def verdict_of(reason: Reason) -> Verdict:
    """Return the verdict of a reason of P-ING-3's table."""
    return _VERDICTS[reason]


def open_message(
    message: bytes,
    topic: str | None,
    received_ms: int,
    find: Callable[[bytes], DeviceRecord | None],
    network: str,
) -> SignedBatch:
    """Return the authentic batch of a message, or raise Rejected with a reason of stage (a).

    `topic` is None where the message did not come over MQTT.
    """
    signed = read_message(message)
    record = sender_of(signed, topic, received_ms, find)
    signed.envelope.check(record.verifier, network, "batch")
    return signed


def read_message(message: bytes) -> SignedBatch:
    """Return the batch of a message whose form is right; whose it is was not checked yet."""
    if len(message) > MAX_MESSAGE_BYTES:
        raise Rejected(Reason.OVERSIZE, f"{len(message)} bytes, at most {MAX_MESSAGE_BYTES} (P-BAT-1)")
    return parse_batch(message)


def sender_of(
    signed: SignedBatch, topic: str | None, received_ms: int, find: Callable[[bytes], DeviceRecord | None]
) -> DeviceRecord:
    """Return the device whose signature a batch must have; Rejected when topic or registration are wrong."""
    device = signed.envelope.key_id
    if topic is not None and topic != device_topic(device, "batch"):
        raise Rejected(Reason.MALFORMED, f"topic {topic[:100]!r} is not that of the signing key {device.hex()}")
    record = find(device)
    if record is None or not record.known_at(received_ms):
        raise Rejected(Reason.UNKNOWN_DEVICE, f"device {device.hex()} is not registered")
    if signed.batch.succeeds is not None and signed.batch.succeeds[0] != record.predecessor:
        raise Rejected(Reason.UNKNOWN_DEVICE, "the registry does not confirm this rotation (field 14)")
    return record


def place(state: ChainState, signed: SignedBatch, kept: bytes | None, predecessor: ChainState | None = None) -> Place:
    """Return where a message stands (stage b).

    `kept` is the SHA-256 of the message that holds this seq already, in the chain or ahead of it;
    `predecessor` is the chain of the device that a seq 0 with field 14 succeeds.
    """
    batch = signed.batch
    if kept is not None:
        return Place.DUPLICATE if kept == signed.digest else Place.EQUIVOCATION
    if batch.seq < state.next_seq:
        return Place.SKIPPED
    if batch.seq > state.next_seq + MAX_HELD_BEYOND:
        return Place.TOO_FAR
    if state.halted:
        return Place.SUSPENDED
    if batch.seq > state.next_seq or state.dating:
        return Place.AHEAD
    if batch.prev != state.head:
        return Place.CHAIN_BREAK
    if batch.succeeds is not None and (predecessor is None or predecessor.head != batch.succeeds[1]):
        return Place.AHEAD
    return Place.REGRESSION if state.regresses(batch) else Place.NEXT


def take(
    state: ChainState,
    signed: SignedBatch,
    received_ms: int,
    record: DeviceRecord,
    rules: Rules,
    *,
    skipped_to: bool = False,
    predecessor: ChainState | None = None,
    shares: ShareCheck = check_shares,
) -> tuple[ChainState, Judgement]:
    """Give the batch its place (stage c): return the new state and what was decided about it.

    `skipped_to` says that a decision let the chain go on here (P-ING-4). Where the new state is `dating`, `date` is
    due for each batch of this boot that waits for a date, before another takes its place.
    """
    batch = signed.batch
    if predecessor is not None:
        state = replace(state, wall_ms=predecessor.wall_ms)
    state = state.enter(batch.boot)
    if skipped_to:
        state = replace(state, channels={n: replace(c, last=None) for n, c in state.channels.items()})
    judgement = judge(Waiting(signed, received_ms, state), record, rules, skipped_to=skipped_to, shares=shares)
    return _moved(state, signed, judgement), judgement


def date(
    state: ChainState, waiting: Waiting, record: DeviceRecord, rules: Rules, *, shares: ShareCheck = check_shares
) -> tuple[ChainState, Judgement]:
    """Judge a batch that waited for the date that its boot has now (P-BAT-7); they come in the order of their seq."""
    judgement = judge(
        waiting, record, rules, boot_date_ms=state.boot_date_ms, skipped_to=waiting.skipped_to, shares=shares
    )
    batch = waiting.signed.batch
    covers = judgement.reason in _COVERS
    wall_ms = max(state.wall_ms, _last_ms(judgement, batch)) if covers else state.wall_ms
    return replace(state, wall_ms=wall_ms, undated_from=batch.seq + 1), judgement


def reinstate(waiting: Waiting, record: DeviceRecord, rules: Rules, *, shares: ShareCheck = check_shares) -> Judgement:
    """Judge a batch again that was held since its device was suspended, after the decision to reinstate it."""
    return judge(waiting, record, rules, skipped_to=waiting.skipped_to, shares=shares)


def dated(state: ChainState) -> ChainState:
    """Return the state once no batch of its boot waits for a date any more."""
    return replace(state, undated_from=None)


def judge(
    waiting: Waiting,
    record: DeviceRecord,
    rules: Rules,
    *,
    boot_date_ms: int | None = None,
    skipped_to: bool = False,
    shares: ShareCheck = check_shares,
) -> Judgement:
    """Judge a batch's content against the chain state of its place, without moving the chain.

    Checks run in P-ING-3's order 16, 10, 19, 18, 8, 9, 13, 14, 15, 11; the first failure is the reason.
    """
    state, batch = waiting.state, waiting.signed.batch
    birth = batch.birth or state.birth
    if boot_date_ms is None:
        boot_date_ms = state.boot_date_ms
    limits = rules.limits_at(waiting.received_ms)
    own = _has_own_date(batch, boot_date_ms, limits)
    if own:
        t0_ms: int | None = batch.t0_ms
    else:
        t0_ms = None if boot_date_ms is None else boot_date_ms + batch.t0_boot_ms
    readings: tuple[Reading, ...] = ()
    if birth is None or not _born(batch, birth) or not _has_room(state, batch):
        reason, remark = Reason.BIRTH_MISSING, Reason.NONE
    else:
        readings = tuple(_reading(state, batch, channel, birth) for channel in batch.channels)
        rises = all(reading.rises for reading in readings)
        readings = () if skipped_to else readings
        reason, remark = _content(waiting, t0_ms, readings, record, rules, own=own, rises=rises, shares=shares)
    credited = reason is Reason.NONE and remark is Reason.NONE and batch.work is not None
    return Judgement(
        seq=batch.seq,
        reason=reason,
        remark=remark,
        t0_ms=t0_ms,
        readings=readings,
        shares=len(batch.work.nonces) if credited and batch.work else 0,
        hashes=len(batch.work.nonces) * credit_of(batch.work.nbits) if credited and batch.work else 0,
        skipped_to=skipped_to,
        interval_ms=batch.interval_ms,
        begins_boot=state.birth is None,
    )


def _content(
    waiting: Waiting,
    t0_ms: int | None,
    readings: tuple[Reading, ...],
    record: DeviceRecord,
    rules: Rules,
    *,
    own: bool,
    rises: bool,
    shares: ShareCheck,
) -> tuple[Reason, Reason]:
    """Return the first failing reason from 10 on, and the remark on the shares."""
    state, batch, received_ms = waiting.state, waiting.signed.batch, waiting.received_ms
    limits = rules.limits_at(received_ms)
    remark = Reason.NONE
    if t0_ms is None:
        return Reason.CLOCK_UNSYNCHRONISED, remark
    if any(record.role(channel.number) not in {None, channel.role} for channel in batch.channels):
        return Reason.WRONG_ROLE, remark
    last_ms = t0_ms + batch.last_offset_ms
    if batch.last_offset_ms > WINDOW_MS or (own and window_of(last_ms) != window_of(t0_ms)):
        return Reason.CROSSES_WINDOW, remark
    if not rises or _overlaps(state, batch, t0_ms):
        return Reason.TIME_OVERLAP, remark
    if last_ms > received_ms + limits.future_s * 1000:
        return Reason.FUTURE_TIME, remark
    # a batch that the chain was skipped to has no readings: its registers are not held against the chain's
    if readings and not all(map(_agrees, readings, batch.channels, repeat(state))):
        return Reason.REGISTER_MISMATCH, remark
    if batch.work is not None:
        remark = _check_work(batch, record.device, t0_ms, last_ms, received_ms, rules, limits, shares)
        if remark is Reason.BAD_WORK:
            return Reason.BAD_WORK, Reason.NONE
    if batch.attestations and not (own and _attested(batch, record, rules.network)):
        return Reason.BAD_ATTESTATION, remark
    if record.status_at(t0_ms) == Status.SUSPENDED and not rules.decided(record.device, batch.seq, Action.REINSTATE):
        return Reason.SUSPENDED_DEVICE, remark
    return Reason.NONE, remark


def _has_own_date(batch: Batch, boot_date_ms: int | None, limits: Limits) -> bool:
    """Tell whether a batch's own clock dates it: it is synchronised, and not too far behind the boot's (P-BAT-9)."""
    if not batch.synchronised:
        return False
    return boot_date_ms is None or batch.t0_ms >= boot_date_ms + batch.t0_boot_ms - limits.behind_s * 1000


def _born(batch: Batch, birth: Birth) -> bool:
    """Tell whether the birth has every channel of the batch, in its role (birth_missing)."""
    for channel in batch.channels:
        sensor = birth.sensor(channel.number)
        if sensor is None or sensor.role != channel.role:
            return False
    return True


def _has_room(state: ChainState, batch: Batch) -> bool:
    """Tell whether the chain has room for the channels of a batch (P-BAT-8)."""
    new = [channel for channel in batch.channels if channel.number not in state.channels]
    return not new or len(state.channels) + len(new) <= MAX_SENSORS


def _dead_band_ua(birth: Birth | None, channel: int) -> int:
    sensor = birth.sensor(channel) if birth else None
    return sensor.dead_band_ua if sensor else 0


def _reading(state: ChainState, batch: Batch, channel: Channel, birth: Birth) -> Reading:
    known = state.channels.get(channel.number) or ChannelState(channel.number, channel.role)
    # a birth holds from the first sample of its batch, so the sample before keeps its own dead band
    last_power_pw = known.last.power_pw(_dead_band_ua(state.birth, channel.number)) if known.last else 0
    dead_band_ua = _dead_band_ua(birth, channel.number)
    growth, rises = measure_arrays(
        known.last,
        last_power_pw,
        channel.voltage,
        channel.current,
        channel.offsets,
        batch.t0_boot_ms,
        interval_ms=batch.interval_ms,
        dead_band_ua=dead_band_ua,
    )
    return Reading(
        channel.number,
        channel.role,
        channel.register_mws - known.register_mws,
        channel.reverse_mws - known.reverse_mws,
        growth,
        dead_band_ua,
        rises,
    )


def _overlaps(state: ChainState, batch: Batch, t0_ms: int) -> bool:
    """Tell whether a batch goes back in time (P-BAT-6)."""
    if batch.channels and state.boot_ms is not None and batch.t0_boot_ms <= state.boot_ms:
        return True
    return t0_ms <= state.earlier_wall_ms


def _agrees(reading: Reading, channel: Channel, state: ChainState) -> bool:
    """Tell whether the registers grew by the exact sums, to less than 1 mW·s (P-ING-2)."""
    unit = HALF_FEMTOJOULES_PER_MWS
    known = state.channels.get(channel.number)
    gap_growth_ms = channel.gap_ms - (known.gap_ms if known else 0)
    return (
        abs(reading.energy_mws * unit - reading.growth.forward) < unit
        and abs(reading.reverse_mws * unit - reading.growth.reverse) < unit
        and gap_growth_ms == reading.growth.gap_ms
    )


def _check_work(
    batch: Batch,
    device: bytes,
    t0_ms: int,
    last_ms: int,
    received_ms: int,
    rules: Rules,
    limits: Limits,
    shares: ShareCheck,
) -> Reason:
    """Return bad_work when a share misses its target, else the remark on the shares (P-POW-2, P-POW-3)."""
    work = batch.work
    if work is None:
        return Reason.NONE
    beacon = rules.beacons.get(work.beacon)
    if beacon is not None and not shares(Shares(device, batch.prev, beacon, work.nbits, work.nonces)):
        return Reason.BAD_WORK
    if is_easier(work.nbits, limits.pow_nbits_min):
        return Reason.WEAK_WORK
    if beacon is None or not (
        beacon.issued_s * 1000 < window_of(t0_ms) * 1000 + WINDOW_MS
        and t0_ms <= (beacon.issued_s + beacon.valid_s + limits.grace_s) * 1000
    ):
        return Reason.STALE_WORK
    if received_ms > last_ms + limits.late_s * 1000:
        return Reason.LATE_WORK
    return Reason.NONE


def _attested(batch: Batch, record: DeviceRecord, network: str) -> bool:
    """Tell whether every attestation is right, and at most one per channel (P-ATT-1)."""
    seen: set[int] = set()
    for attestation in batch.attestations:
        channel = batch.channel(attestation.channel)
        if channel is None or channel.number in seen:
            return False
        seen.add(channel.number)
        if (
            attestation.seq != batch.seq
            or attestation.register_mws != channel.register_mws
            or attestation.unix_s != (batch.t0_ms + channel.last_offset_ms) // 1000
            or not attestation.verified_by(record.verifier, network)
        ):
            return False
    return True


def _moved(state: ChainState, signed: SignedBatch, judgement: Judgement) -> ChainState:
    """Return the state after a batch: what it states holds, accepted or not (P-ING-3 c)."""
    batch, reason = signed.batch, judgement.reason
    forget = reason is Reason.BIRTH_MISSING
    channels = {n: replace(c, last=None) for n, c in state.channels.items()} if forget else dict(state.channels)
    for channel in batch.channels:
        if channel.number not in channels and len(channels) >= MAX_SENSORS:
            continue  # it has no room, and never counts
        voltage_uv, current_ua, offset_ms = channel.last
        last = Sample(voltage_uv, current_ua, batch.t0_boot_ms + offset_ms)
        channels[channel.number] = ChannelState(
            channel.number,
            channel.role,
            channel.register_mws,
            channel.reverse_mws,
            channel.gap_ms,
            None if forget else last,
        )
    boot_ms, wall_ms, undated_from = state.boot_ms, state.wall_ms, state.undated_from
    boot_date_ms = state.boot_date_ms
    if batch.channels and reason in {Reason.NONE, Reason.CLOCK_UNSYNCHRONISED, Reason.SUSPENDED_DEVICE}:
        boot_ms = max(boot_ms or 0, batch.t0_boot_ms + batch.last_offset_ms)
    covers = reason in _COVERS
    if covers and batch.channels:
        wall_ms = max(wall_ms, _last_ms(judgement, batch))
    if covers and batch.synchronised and boot_date_ms is None:
        boot_date_ms = batch.t0_ms - batch.t0_boot_ms
    if reason is Reason.CLOCK_UNSYNCHRONISED and undated_from is None:
        undated_from = batch.seq
    return ChainState(
        head=signed.digest,
        next_seq=batch.seq + 1,
        boot=state.boot,
        boot_ms=boot_ms,
        wall_ms=wall_ms,
        earlier_wall_ms=state.earlier_wall_ms,
        boot_date_ms=boot_date_ms,
        birth=batch.birth or state.birth,
        channels=channels,
        undated_from=undated_from,
        halted=state.halted,
    )


def _last_ms(judgement: Judgement, batch: Batch) -> int:
    """Wall time of a dated batch's last sample."""
    return (judgement.t0_ms or 0) + batch.last_offset_ms
