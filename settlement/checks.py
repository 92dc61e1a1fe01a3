"""Named checks of windows, version 2: each returns what it holds (settlement.md, 3)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from maxgreen.protocol.batch import Role
from maxgreen.protocol.reasons import Reason
from maxgreen.protocol.work import WINDOW_MS
from maxgreen.verify.meter import longest_segment_ms
from maxgreen.verify.rules import Limits
from settlement.inputs import Party
from settlement.replay import Fact
from settlement.sun import elevation_mdeg

CHECKS_VERSION: Final = "2"

Held = defaultdict[int, set[Reason]]

_WINDOW_S = 600
_DAY_S = 86_400
_PPM = 10**6


def not_generated_days(
    party: Party, facts: Sequence[Fact], limits: Callable[[int], Limits], without: set[int]
) -> set[int]:
    """Return the UTC days (their first second) on which more was sent than generated, beyond the meters' error.

    Channels that are not registered are neither; windows `without` which it is judged show no generation either.
    """
    sent: defaultdict[int, dict[int, int]] = defaultdict(dict)
    generated: defaultdict[int, dict[int, int]] = defaultdict(dict)
    longest_ms: defaultdict[int, int] = defaultdict(int)
    for fact in facts:
        day = fact.window_s // _DAY_S * _DAY_S
        if not fact.accepted or fact.window_s in without:
            continue
        longest_ms[day] = max(longest_ms[day], min(fact.batch.interval_ms, limits(day).edge_ms))
        for reading in fact.readings:
            into = {Role.SENT: sent, Role.GENERATION: generated}.get(Role(reading.role))
            if into is not None and party.terms(reading.channel, day * 1000):
                into[day][reading.channel] = into[day].get(reading.channel, 0) + reading.energy_mws
    found = set()
    for day, channels in sent.items():
        terms = {n: party.terms(n, day * 1000) for n in (*channels, *generated[day])}
        allowance = sum(generated[day].values())
        for channel, energy_mws in (*channels.items(), *generated[day].items()):
            term = terms[channel]
            allowance += -(-energy_mws * (term.error_ppm if term else 0) // _PPM)
        allowance += sum(abs(term.offset_mw) for term in terms.values() if term) * _DAY_S
        peak_mw = max((term.peak_mw for n, term in terms.items() if term and n in channels), default=0)
        allowance += -(-2 * peak_mw * longest_ms[day] // 1000)
        if sum(channels.values()) > allowance:
            found.add(day)
    return found


def over_capacity_windows(
    party: Party, facts: Iterable[Fact], channels: Sequence[int], limits: Callable[[int], Limits]
) -> set[int]:
    """Return the windows in which a channel grew by more than the panel's peak allows in ten minutes."""
    sums = _by_window(facts, channels)
    found = set()
    for (window_s, channel), (energy_mws, counted_ms) in sums.items():
        terms = party.terms(channel, window_s * 1000)
        most_ms = min(counted_ms, WINDOW_MS)
        if terms and energy_mws * 1000 * _PPM > terms.peak_mw * limits(window_s).capacity_ppm * most_ms:
            found.add(window_s)
    return found


def overfull_windows(facts: Sequence[Fact], channels: Sequence[int]) -> set[int]:
    """Return the windows in which more time was metered on a channel than ten minutes and one interval."""
    intervals: defaultdict[int, int] = defaultdict(int)
    for fact in facts:
        if fact.accepted:
            intervals[fact.window_s] = max(intervals[fact.window_s], fact.batch.interval_ms)
    return {
        window_s
        for (window_s, _), (_, counted_ms) in _by_window(facts, channels).items()
        if counted_ms > WINDOW_MS + intervals[window_s]
    }


def night_windows(
    party: Party, facts: Iterable[Fact], channels: Sequence[int], limits: Callable[[int], Limits]
) -> set[int]:
    """Return the windows with energy while the sun is below the horizon; without a place there is no check."""
    if party.place is None:
        return set()
    found = set()
    for (window_s, channel), (energy_mws, counted_ms) in _by_window(facts, channels).items():
        terms = party.terms(channel, window_s * 1000)
        # 1 % of the peak, but at least 1 mW; in 1/100 mW to stay in integers
        limit_cmw = max(terms.peak_mw if terms else 0, 100)
        if energy_mws * 100_000 > limit_cmw * counted_ms and all(
            elevation_mdeg(t, *party.place) < limits(window_s).night_mdeg for t in (window_s, window_s + _WINDOW_S)
        ):
            found.add(window_s)
    return found


def stuck_windows(facts: Iterable[Fact], channels: Sequence[int], limits: Callable[[int], Limits]) -> set[int]:
    """Return the windows in which a reading had stayed the same, above the dead band, for `stuck_s`.

    Only what was before decides, so a day does not change when the next one comes.
    """
    found: set[int] = set()
    runs: dict[int, _Run] = {}
    for fact in facts:
        stuck_ms = limits(fact.window_s).stuck_s * 1000
        longest_ms = longest_segment_ms(fact.batch.interval_ms)
        for channel in fact.batch.channels:
            reading = fact.reading(channel.number)
            if channel.number not in channels or reading is None:
                continue
            for voltage_uv, current_ua, offset_ms in zip(
                channel.voltage_uv, channel.current_ua, channel.offsets_ms, strict=True
            ):
                boot_ms = fact.batch.t0_boot_ms + offset_ms
                run = runs.get(channel.number)
                if abs(current_ua) < reading.dead_band_ua:
                    runs.pop(channel.number, None)
                elif run is None or not run.goes_on(fact.batch.boot, boot_ms, (voltage_uv, current_ua), longest_ms):
                    runs[channel.number] = _Run(fact.batch.boot, (voltage_uv, current_ua), boot_ms, boot_ms)
                else:
                    run.last_ms = boot_ms
                    if boot_ms - run.first_ms >= stuck_ms:
                        found.add(fact.window_s)
    return found


@dataclass(slots=True)
class _Run:
    """Equal readings of a channel without a gap between them."""

    boot: bytes
    value: tuple[int, int]
    first_ms: int
    last_ms: int

    def goes_on(self, boot: bytes, boot_ms: int, value: tuple[int, int], longest_ms: int) -> bool:
        return boot == self.boot and value == self.value and 0 < boot_ms - self.last_ms <= longest_ms


def _by_window(facts: Iterable[Fact], channels: Sequence[int]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return energy (mW·s) and counted time (ms) by window and channel."""
    sums: dict[tuple[int, int], tuple[int, int]] = {}
    for fact in facts:
        for channel in channels:
            energy_mws, counted_ms = sums.get((fact.window_s, channel), (0, 0))
            sums[fact.window_s, channel] = (
                energy_mws + fact.energy_mws(channel),
                counted_ms + fact.growth(channel).counted_ms,
            )
    return sums
