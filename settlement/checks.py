"""Named checks of windows, version 2: each returns what it holds (settlement.md, 3)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from maxgreen.protocol.batch import Batch, Channel, Role
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
    party: Party, facts: Iterable[Fact], channel: int, limits: Callable[[int], Limits]
) -> set[int]:
    """Return the windows in which a channel grew by more than the panel's peak allows in ten minutes."""
    found = set()
    for window_s, (energy_mws, counted_ms) in _by_window(facts, channel).items():
        terms = party.terms(channel, window_s * 1000)
        most_ms = min(counted_ms, WINDOW_MS)
        if terms and energy_mws * 1000 * _PPM > terms.peak_mw * limits(window_s).capacity_ppm * most_ms:
            found.add(window_s)
    return found


def overfull_windows(facts: Sequence[Fact], channel: int) -> set[int]:
    """Return the windows in which more time was metered on a channel than ten minutes and its longest segment."""
    longest: defaultdict[int, int] = defaultdict(int)
    for fact in facts:
        longest[fact.window_s] = max(longest[fact.window_s], fact.growth(channel).longest_ms)
    return {
        window_s
        for window_s, (_, counted_ms) in _by_window(facts, channel).items()
        if counted_ms > WINDOW_MS + longest[window_s]
    }


def night_windows(party: Party, facts: Iterable[Fact], channel: int, limits: Callable[[int], Limits]) -> set[int]:
    """Return the windows with energy while the sun is below the horizon; without a place there is no check."""
    if party.place is None:
        return set()
    found = set()
    for window_s, (energy_mws, counted_ms) in _by_window(facts, channel).items():
        terms = party.terms(channel, window_s * 1000)
        # 1 % of the peak, but at least 1 mW; in 1/100 mW to stay in integers
        limit_cmw = max(terms.peak_mw if terms else 0, 100)
        if energy_mws * 100_000 > limit_cmw * counted_ms and all(
            elevation_mdeg(t, *party.place) < limits(window_s).night_mdeg for t in (window_s, window_s + _WINDOW_S)
        ):
            found.add(window_s)
    return found


def stuck_windows(facts: Iterable[Fact], number: int, limits: Callable[[int], Limits]) -> set[int]:
    """Return the windows in which a channel's reading had stayed the same, above the dead band, for `stuck_s`.

    Only what was before decides, so a day does not change when the next one comes.
    """
    found: set[int] = set()
    run: _Run | None = None
    for fact in facts:
        channel, reading = fact.batch.channel(number), fact.reading(number)
        if channel is None or reading is None:
            continue
        samples = _Samples(channel, fact.batch, reading.dead_band_ua)
        stuck_ms = limits(fact.window_s).stuck_s * 1000
        at = 0
        while at < samples.count:
            if run is None or not run.takes(samples, at):
                # a run that begins and ends in this batch is too short: go on with the one that reaches its end
                begin = at if samples.lasts_ms(at) >= stuck_ms else samples.last_run(at)
                run, at = _Run.of(samples, begin), begin + 1
            else:
                at += 1
            if run is not None and run.last_ms - run.first_ms >= stuck_ms:
                found.add(fact.window_s)
    return found


class _Samples:
    """The samples of a channel in a batch, as its arrays have them."""

    def __init__(self, channel: Channel, batch: Batch, dead_band_ua: int) -> None:
        self._channel, self.boot, self._t0_ms, self._dead_band_ua = channel, batch.boot, batch.t0_boot_ms, dead_band_ua
        self.longest_ms = longest_segment_ms(batch.interval_ms)
        self.count = channel.count

    def value(self, at: int) -> tuple[bytes, bytes]:
        """Return a sample's voltage and current, as they are written."""
        return self._channel.voltage[4 * at : 4 * at + 4], self._channel.current[4 * at : 4 * at + 4]

    def boot_ms(self, at: int) -> int:
        return self._t0_ms + int.from_bytes(self._channel.offsets[4 * at : 4 * at + 4], "little")

    def flows(self, at: int) -> bool:
        """Tell whether a sample's current is not below the dead band."""
        return abs(int.from_bytes(self.value(at)[1], "little", signed=True)) >= self._dead_band_ua

    def lasts_ms(self, at: int) -> int:
        """Return how long it is from a sample to the last one."""
        return self.boot_ms(self.count - 1) - self.boot_ms(at)

    def last_run(self, at: int) -> int:
        """Return where the equal samples begin that reach the end, at `at` or later."""
        begin = self.count - 1
        while begin > at and self.value(begin - 1) == self.value(begin) and self._adjoin(begin):
            begin -= 1
        return begin

    def _adjoin(self, at: int) -> bool:
        return self.boot_ms(at) - self.boot_ms(at - 1) <= self.longest_ms


@dataclass(slots=True)
class _Run:
    """Equal readings of a channel without a gap between them."""

    boot: bytes
    value: tuple[bytes, bytes]
    first_ms: int
    last_ms: int

    @classmethod
    def of(cls, samples: _Samples, at: int) -> "_Run | None":
        """Return the run that begins with a sample; None below the dead band."""
        boot_ms = samples.boot_ms(at)
        return cls(samples.boot, samples.value(at), boot_ms, boot_ms) if samples.flows(at) else None

    def takes(self, samples: _Samples, at: int) -> bool:
        """Take a sample in, where the run goes on with it."""
        boot_ms = samples.boot_ms(at)
        goes_on = (
            samples.value(at) == self.value
            and samples.boot == self.boot
            and 0 < boot_ms - self.last_ms <= samples.longest_ms
            and samples.flows(at)
        )
        if goes_on:
            self.last_ms = boot_ms
        return goes_on


def _by_window(facts: Iterable[Fact], channel: int) -> dict[int, tuple[int, int]]:
    """Return a channel's energy (mW·s) and counted time (ms) by window."""
    sums: dict[int, tuple[int, int]] = {}
    for fact in facts:
        energy_mws, counted_ms = sums.get(fact.window_s, (0, 0))
        sums[fact.window_s] = (
            energy_mws + fact.energy_mws(channel),
            counted_ms + fact.growth(channel).counted_ms,
        )
    return sums
