"""What settlement knows of a batch once it is judged: little enough to keep a month of them in memory."""

from collections.abc import Sequence
from operator import eq
from typing import Final, NamedTuple

from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.batch import Batch, Birth, Channel
from maxgreen.protocol.reasons import DATED, Reason
from maxgreen.protocol.work import WINDOW_MS
from maxgreen.verify.meter import counted_spans, longest_segment_ms
from maxgreen.verify.verdict import Judgement, Reading

_WINDOW_S: Final = WINDOW_MS // 1000

Span = tuple[int, int]  # from when to when, ms


class Stretch(NamedTuple):
    """Equal samples, one after the other and not below the dead band: voltage and current, boot times in ms."""

    value: tuple[int, int]
    begin_ms: int
    end_ms: int


class Stretches(NamedTuple):
    """A batch's stretches: the one that begins with its first sample, the one that ends with its last, the longest."""

    first: Stretch | None
    last: Stretch | None
    longest_ms: int  # -1 without any


NO_STRETCHES: Final = Stretches(None, None, -1)


class Metered(NamedTuple):
    """What an accepted batch adds on a channel: registers' growth, mW·s, and when it was metered."""

    channel: int
    role: int
    energy_mws: int = 0
    reverse_mws: int = 0
    square_current: int = 0  # µA²·ms, as Growth has it
    counted_ms: int = 0
    longest_ms: int = 0
    spans: tuple[Span, ...] = ()  # ms since the epoch
    stretches: Stretches = NO_STRETCHES


_NOTHING: Final = Metered(-1, 0)


class Fact(NamedTuple):
    """A batch of the chain, or ahead of a hole in it, with what was decided; t0 in ms since the epoch."""

    device: bytes
    key_number: int
    seq: int
    reason: Reason
    remark: Reason
    t0_ms: int
    boot: bytes = b""
    interval_ms: int = 0
    channels: tuple[Metered, ...] = ()  # of an accepted batch
    attestations: tuple[Attestation, ...] = ()
    events: tuple[int, ...] = ()  # their kinds
    opened: bool = False  # the case
    birth: Birth | None = None
    shares: int = 0
    hashes: int = 0

    @property
    def window_s(self) -> int:
        """The proof window that the batch belongs to (P-POW-4)."""
        return self.t0_ms // WINDOW_MS * _WINDOW_S

    @property
    def dated(self) -> bool:
        """Whether it is known when it was measured: its time was judged, whatever became of it."""
        return self.accepted or self.reason in {Reason.SUSPENDED_DEVICE, Reason.TAKEN_OUT} or self.reason in DATED

    @property
    def accepted(self) -> bool:
        """Whether its energy counts."""
        return self.reason is Reason.NONE

    def channel(self, number: int) -> Metered:
        """Return what the batch adds on a channel; nothing where it was not accepted."""
        for metered in self.channels:
            if metered.channel == number:
                return metered
        return _NOTHING


def fact_of(device: bytes, key_number: int, batch: Batch, judgement: Judgement, t0_ms: int) -> Fact:
    """Return what settlement needs of a batch that was judged and has a date."""
    accepted = judgement.reason is Reason.NONE
    return Fact(
        device,
        key_number,
        batch.seq,
        judgement.reason,
        judgement.remark,
        t0_ms,
        batch.boot,
        batch.interval_ms,
        tuple(_metered(batch, t0_ms, reading) for reading in judgement.readings) if accepted else (),
        batch.attestations if accepted else (),
        tuple(event.kind for event in batch.events),
        batch.health is not None and bool(batch.health.tamper_open),
        batch.birth if accepted else None,
        judgement.shares,
        judgement.hashes,
    )


def _metered(batch: Batch, t0_ms: int, reading: Reading) -> Metered:
    channel = batch.channel(reading.channel)
    if channel is None:
        return Metered(reading.channel, reading.role)
    offsets_ms = channel.offsets_ms if reading.growth.gap_ms else (channel.last_offset_ms,)
    times_ms = [t0_ms + offset_ms for offset_ms in offsets_ms]
    return Metered(
        reading.channel,
        reading.role,
        reading.energy_mws,
        reading.reverse_mws,
        reading.growth.square_current,
        reading.growth.counted_ms,
        reading.growth.longest_ms,
        tuple(counted_spans(reading.growth, times_ms, interval_ms=batch.interval_ms)),
        stretches_of(channel, batch.t0_boot_ms, batch.interval_ms, reading.dead_band_ua),
    )


def stretches_of(channel: Channel, t0_boot_ms: int, interval_ms: int, dead_band_ua: int) -> Stretches:
    """Return the stretches of a channel's samples."""
    current_ua = channel.current_ua
    if not current_ua or (max(current_ua) < dead_band_ua and min(current_ua) > -dead_band_ua):
        return NO_STRETCHES
    voltage_uv, offsets_ms = channel.voltage_uv, channel.offsets_ms
    values = list(zip(voltage_uv, current_ua, strict=True))
    if not any(map(eq, current_ua, current_ua[1:])):  # as sunlight does it: no two are equal
        return Stretches(
            _alone(values[0], t0_boot_ms + offsets_ms[0], dead_band_ua),
            _alone(values[-1], t0_boot_ms + offsets_ms[-1], dead_band_ua),
            0,
        )
    found = _all_stretches(values, [t0_boot_ms + offset_ms for offset_ms in offsets_ms], interval_ms, dead_band_ua)
    first, last = found[0], found[-1]
    return Stretches(
        first if first is not None and first.begin_ms == t0_boot_ms + offsets_ms[0] else None,
        last if last is not None and last.end_ms == t0_boot_ms + offsets_ms[-1] else None,
        max((stretch.end_ms - stretch.begin_ms for stretch in found if stretch is not None), default=-1),
    )


def _alone(value: tuple[int, int], boot_ms: int, dead_band_ua: int) -> Stretch | None:
    return Stretch(value, boot_ms, boot_ms) if abs(value[1]) >= dead_band_ua else None


def _all_stretches(
    values: Sequence[tuple[int, int]], times_ms: Sequence[int], interval_ms: int, dead_band_ua: int
) -> list[Stretch | None]:
    """Return stretches in their order; None stands for samples below the dead band."""
    longest_ms = longest_segment_ms(interval_ms)
    found: list[Stretch | None] = []
    for value, boot_ms in zip(values, times_ms, strict=True):
        last = found[-1] if found else None
        if abs(value[1]) < dead_band_ua:
            found.append(None)
        elif last is not None and last.value == value and 0 < boot_ms - last.end_ms <= longest_ms:
            found[-1] = last._replace(end_ms=boot_ms)
        else:
            found.append(Stretch(value, boot_ms, boot_ms))
    return found
