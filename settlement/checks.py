"""Named checks of windows, version 2: each returns what it holds (settlement.md, 3)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from maxgreen.protocol.batch import Role
from maxgreen.protocol.reasons import Reason
from maxgreen.protocol.work import WINDOW_MS
from maxgreen.verify.meter import longest_segment_ms
from maxgreen.verify.rules import Limits
from settlement.facts import Fact, Stretch, Stretches
from settlement.inputs import Party
from settlement.sun import elevation_mdeg

CHECKS_VERSION: Final = "2"

Held = defaultdict[int, set[Reason]]

_WINDOW_S = 600
_DAY_S = 86_400
_PPM = 10**6


class ChannelSum(NamedTuple):
    """What a channel adds up to in a window: mW·s, ms counted, ms of its longest segment."""

    energy_mws: int
    counted_ms: int
    longest_ms: int


_NOTHING: Final = ChannelSum(0, 0, 0)


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
        longest_ms[day] = max(longest_ms[day], min(fact.interval_ms, limits(day).edge_ms))
        for metered in fact.channels:
            into = {Role.SENT: sent, Role.GENERATION: generated}.get(Role(metered.role))
            if into is not None and party.terms(metered.channel, day * 1000):
                into[day][metered.channel] = into[day].get(metered.channel, 0) + metered.energy_mws
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
    party: Party, channel: int, sums: Mapping[int, ChannelSum], limits: Callable[[int], Limits]
) -> set[int]:
    """Return the windows in which a channel grew by more than the panel's peak allows in ten minutes."""
    found = set()
    for window_s, one in sums.items():
        terms = party.terms(channel, window_s * 1000)
        most_ms = min(one.counted_ms, WINDOW_MS)
        if terms and one.energy_mws * 1000 * _PPM > terms.peak_mw * limits(window_s).capacity_ppm * most_ms:
            found.add(window_s)
    return found


def overfull_windows(sums: Mapping[int, ChannelSum]) -> set[int]:
    """Return the windows in which more time was metered on a channel than ten minutes and its longest segment."""
    return {window_s for window_s, one in sums.items() if one.counted_ms > WINDOW_MS + one.longest_ms}


def night_windows(
    party: Party, channel: int, sums: Mapping[int, ChannelSum], limits: Callable[[int], Limits]
) -> set[int]:
    """Return the windows with energy while the sun is below the horizon; without a place there is no check."""
    if party.place is None:
        return set()
    found = set()
    for window_s, one in sums.items():
        terms = party.terms(channel, window_s * 1000)
        # 1 % of the peak, but at least 1 mW; in 1/100 mW to stay in integers
        limit_cmw = max(terms.peak_mw if terms else 0, 100)
        if one.energy_mws * 100_000 > limit_cmw * one.counted_ms and all(
            elevation_mdeg(t, *party.place) < limits(window_s).night_mdeg for t in (window_s, window_s + _WINDOW_S)
        ):
            found.add(window_s)
    return found


def stuck_windows(facts: Iterable[Fact], number: int, limits: Callable[[int], Limits]) -> set[int]:
    """Return the windows in which a channel's reading had stayed the same, above the dead band, for `stuck_s`.

    Only what was before decides, so a day does not change when the next one comes.
    """
    found: set[int] = set()
    boot, run = b"", None
    for fact, stretches in _stretches(facts, number):
        first, last, longest_ms = stretches
        if run is not None and first is not None and boot == fact.boot and _goes_on(run, first, fact):
            longest_ms = max(longest_ms, first.end_ms - run.begin_ms)
            if last is not None and last.begin_ms == first.begin_ms:  # all of the batch is one stretch
                last = last._replace(begin_ms=run.begin_ms)
        boot, run = fact.boot, last
        if longest_ms >= limits(fact.window_s).stuck_s * 1000:
            found.add(fact.window_s)
    return found


def reaches_back(facts: Iterable[Fact], number: int, from_s: int, stuck_ms: int) -> bool:
    """Tell whether a reading may have stayed the same for so long at a time, if it did so before these batches."""
    boot, run = b"", None
    for fact, (first, last, _) in _stretches(facts, number):
        if first is None or (run is not None and not (boot == fact.boot and _goes_on(run, first, fact))):
            return False
        if fact.window_s >= from_s and first.end_ms >= stuck_ms:  # no reading is older than its boot
            return True
        if last is None or last.begin_ms != first.begin_ms:  # it changed within the batch
            return False
        boot, run = fact.boot, last
    return False


def _stretches(facts: Iterable[Fact], number: int) -> Iterator[tuple[Fact, Stretches]]:
    """Yield the batches that have a channel, with its stretches."""
    for fact in facts:
        metered = next((metered for metered in fact.channels if metered.channel == number), None)
        if metered is not None:
            yield fact, metered.stretches


def _goes_on(run: Stretch, first: Stretch, fact: Fact) -> bool:
    """Tell whether a batch's first stretch goes on with one of before, of its boot."""
    return run.value == first.value and 0 < first.begin_ms - run.end_ms <= longest_segment_ms(fact.interval_ms)


def channel_sums(facts: Iterable[Fact], channel: int) -> dict[int, ChannelSum]:
    """Return what a channel adds up to by window, of the batches that were accepted."""
    sums: dict[int, ChannelSum] = {}
    for fact in facts:
        for metered in fact.channels:
            if metered.channel == channel:
                window_s = fact.window_s
                energy_mws, counted_ms, longest_ms = sums.get(window_s, _NOTHING)
                sums[window_s] = ChannelSum(
                    energy_mws + metered.energy_mws,
                    counted_ms + metered.counted_ms,
                    max(longest_ms, metered.longest_ms),
                )
    return sums
