"""Energy from samples: the one definition of P-BAT-4, for agent, ingest and audit.

Products of µV and µA are pW; times ms and halved they are 0.5·10⁻¹⁵ J, the unit of every exact sum here.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from maxgreen.values import value
from native import meter

HALF_FEMTOJOULES_PER_MWS: Final = 2 * 10**12
MIN_GAP_MS: Final = 10_000
GAP_INTERVALS: Final = 10


@value(frozen=True, slots=True)
class Sample:
    """One reading: microvolts, microamperes (positive in the role's direction), ms since boot."""

    voltage_uv: int
    current_ua: int
    boot_ms: int

    def power_pw(self, dead_band_ua: int) -> int:
        """Power in pW; 0 below the dead band."""
        return self.voltage_uv * self.current_ua if abs(self.current_ua) >= dead_band_ua else 0


@value(frozen=True, slots=True)
class Growth:
    """What samples add to a channel: exact sums, and what settlement needs of the segments counted."""

    forward: int = 0  # units of 0.5e-15 J
    reverse: int = 0
    gap_ms: int = 0
    square_current: int = 0  # Σ(i₁²+i₂²)·Δt of the raw current, µA²·ms
    counted_ms: int = 0
    longest_ms: int = 0  # the longest segment counted

    def __add__(self, other: "Growth") -> "Growth":
        return Growth(
            self.forward + other.forward,
            self.reverse + other.reverse,
            self.gap_ms + other.gap_ms,
            self.square_current + other.square_current,
            self.counted_ms + other.counted_ms,
            max(self.longest_ms, other.longest_ms),
        )


@value(frozen=True, slots=True)
class MeterState:
    """A channel's exact sums since seq 0, and the sample (with its power) that the next segment starts from."""

    forward: int = 0
    reverse: int = 0
    gap_ms: int = 0
    last: Sample | None = None
    last_power_pw: int = 0

    @property
    def register_mws(self) -> int:
        """Energy in the role's direction, mW·s, rounded down; the remainder stays in `forward`."""
        return self.forward // HALF_FEMTOJOULES_PER_MWS

    @property
    def reverse_mws(self) -> int:
        """Energy against the role's direction, mW·s, rounded down."""
        return self.reverse // HALF_FEMTOJOULES_PER_MWS


def advance(state: MeterState, samples: Iterable[Sample], *, interval_ms: int, dead_band_ua: int) -> MeterState:
    """Return the state after `samples`, which must rise in time (P-BAT-4)."""
    growth, last, power_pw = measure(
        state.last, state.last_power_pw, samples, interval_ms=interval_ms, dead_band_ua=dead_band_ua
    )
    return MeterState(
        state.forward + growth.forward,
        state.reverse + growth.reverse,
        state.gap_ms + growth.gap_ms,
        last,
        power_pw,
    )


def measure(
    last: Sample | None, last_power_pw: int, samples: Iterable[Sample], *, interval_ms: int, dead_band_ua: int
) -> tuple[Growth, Sample | None, int]:
    """Return the growth over the segments that end in `samples`, the last sample and its power.

    `last` is the sample before them in the same boot; a segment that does not go forward in time is none.
    """
    longest_allowed_ms = longest_segment_ms(interval_ms)
    forward = reverse = gap_ms = square_current = counted_ms = longest_ms = 0
    for sample in samples:
        power_pw = sample.power_pw(dead_band_ua)
        if last is not None and (span_ms := sample.boot_ms - last.boot_ms) > 0:
            if span_ms > longest_allowed_ms:
                gap_ms += span_ms
            else:
                energy = (last_power_pw + power_pw) * span_ms
                if energy >= 0:
                    forward += energy
                else:
                    reverse -= energy
                square_current += (last.current_ua**2 + sample.current_ua**2) * span_ms
                counted_ms += span_ms
                longest_ms = max(longest_ms, span_ms)
        last, last_power_pw = sample, power_pw
    return Growth(forward, reverse, gap_ms, square_current, counted_ms, longest_ms), last, last_power_pw


def measure_arrays(
    last: Sample | None,
    last_power_pw: int,
    voltage: bytes,
    current: bytes,
    offsets: bytes,
    t0_boot_ms: int,
    *,
    interval_ms: int,
    dead_band_ua: int,
) -> tuple[Growth, bool]:
    """Return what `measure` returns of a batch's arrays, computed in C, and whether their times rise."""
    *sums, rises = meter.measure(
        voltage,
        current,
        offsets,
        t0_boot_ms,
        None if last is None else (last.current_ua, last_power_pw, last.boot_ms),
        longest_allowed_ms=longest_segment_ms(interval_ms),
        dead_band_ua=dead_band_ua,
    )
    return Growth(*sums), rises


def counted_spans(growth: Growth, times_ms: Sequence[int], *, interval_ms: int) -> list[tuple[int, int]]:
    """Return from when to when the segments behind a growth were counted, ms on the clock of `times_ms`, ascending.

    `times_ms` are those of the samples; the sample before them, if any, is what the growth reaches back to.
    """
    if not times_ms or not growth.counted_ms:
        return []
    begin_ms = times_ms[-1] - growth.counted_ms - growth.gap_ms
    if not growth.gap_ms:
        return [(begin_ms, times_ms[-1])]
    longest_allowed_ms = longest_segment_ms(interval_ms)
    spans: list[tuple[int, int]] = []
    for time_ms in times_ms:
        if begin_ms < time_ms <= begin_ms + longest_allowed_ms:
            first_ms = spans.pop()[0] if spans and spans[-1][1] == begin_ms else begin_ms
            spans.append((first_ms, time_ms))
        begin_ms = time_ms
    return spans


def longest_segment_ms(interval_ms: int) -> int:
    """Return the longest time between two samples that is counted (P-BAT-4)."""
    return max(GAP_INTERVALS * interval_ms, MIN_GAP_MS)
