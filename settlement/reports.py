"""What a member of the DAO looks at before a vote: named checks of each line, from the evidence alone.

A check passes, fails or does not know, and says by what. None of them decides anything: windows are held by the rules
of settlement.md, and who votes may have reasons of its own. Limits are this version's.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final, NamedTuple

from maxgreen.protocol.batch import Birth, EventKind, Role
from maxgreen.protocol.reasons import Reason
from settlement.checks import channel_sums
from settlement.ends import End
from settlement.evidence import Evidence
from settlement.explain import explain
from settlement.facts import Fact
from settlement.statement import LineResult
from settlement.windows import DAY_S, State, online_windows, period_start

VERSION: Final = "2"
_ONLINE_PPM: Final = 950_000  # of the windows in which a device measured
_COUNTED_PPM: Final = 900_000  # of what was sent
_DARK_PPM: Final = 50_000  # of the time in which one end metered
_PPM: Final = 10**6
_SKY_MARGIN: Final = 1.25  # the edges of clouds
_BEYOND_PPM: Final = 10_000
_SHAPE: Final = 0.3  # a real plant has 0.80, the same data moved by eight hours -0.25 (docs/settlement.md)
_SHAPE_WINDOWS: Final = 144
_NEIGHBOURS: Final = 2
_NEAR_DEGREES: Final = 0.5
_NEIGHBOUR_TIMES: Final = 1.5
_NEIGHBOUR_S: Final = 1_800.0  # half an hour of full sun: dull days differ by more than their size
_ODD_PPM: Final = 200_000
_STORES: Final = {0: "a file", 1: "PKCS#11", 2: "a TPM"}


class Finding(StrEnum):
    """What a check found."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Check:
    """A named check of a line, or of one of its ends, and what it goes by."""

    line: str
    end: str  # miner, node, or line
    name: str
    found: Finding
    evidence: str


def check_line(result: LineResult, evidence: Evidence, releases: Mapping[bytes, str] | None = None) -> Iterator[Check]:
    """Yield every check of a line; `releases` names software by its SHA-256, as the DAO registered it."""
    name, inputs = result.line.hex(), result.inputs
    if result.statement["trouble"]:
        yield Check(name, "line", "data integrity", Finding.FAIL, result.statement["trouble"])
        return
    begin_s = period_start(inputs)
    for where, end in (("miner", result.windows.miner), ("node", result.windows.node)):
        facts = [fact for fact in end.facts if begin_s <= fact.window_s < inputs.until_s]
        chains = [evidence.chains.get(party.device, ()) for party in inputs.keys(end.party.token)]
        before = (chain[0].start.birth for chain in chains if chain)
        births = [birth for birth in (*before, *(fact.birth for fact in facts)) if birth is not None]
        for check, found, said in _end(end, facts, births, releases):
            yield Check(name, where, check, found, said)
    for check, found, said in _sky(result.windows.miner, _generation(result)):
        yield Check(name, "miner", check, found, said)
    for check, found, said in _whole(result, begin_s):
        yield Check(name, "line", check, found, said)


def _end(
    end: End, facts: Sequence[Fact], births: Sequence[Birth], releases: Mapping[bytes, str] | None
) -> Iterator[tuple[str, Finding, str]]:
    if not facts:
        yield "data integrity", Finding.UNKNOWN, "it has no batch in the period"
        return
    refused = Counter(fact.reason.label for fact in facts if not fact.accepted)
    said = ", ".join(f"{count} {label}" for label, count in sorted(refused.items()))
    yield "data integrity", _found(not refused), f"{len(facts)} batches, not accepted: {said or 'none'}"
    yield _mining(end, facts)
    yield from _hardware(facts, births)
    yield _software(births, releases)


def _mining(end: End, facts: Sequence[Fact]) -> tuple[str, Finding, str]:
    """Verify continuous mining: what work shows is that the key was at work, never whose processor it was."""
    measured, online = {fact.window_s for fact in facts}, online_windows(facts)
    credited = len(measured & online)
    said = f"online in {credited} of {len(measured)} windows, {sum(fact.hashes for fact in facts)} hashes credited"
    late = sum(fact.remark is Reason.LATE_WORK for fact in facts)
    if late:
        said += f", {late} batches with work that came late"
    if not end.online_required and not credited:
        return "mining history", Finding.UNKNOWN, f"{said}; its registration asks for none"
    return "mining history", _found(credited * _PPM >= _ONLINE_PPM * len(measured)), said


def _hardware(facts: Sequence[Fact], births: Sequence[Birth]) -> Iterator[tuple[str, Finding, str]]:
    events = Counter(event for fact in facts for event in fact.events)
    opened = any(fact.opened for fact in facts)
    tampered = events[EventKind.TAMPER]
    said = f"{tampered} tamper events, the case was {'open' if opened else 'never seen open'}"
    yield "case", _found(not tampered and not opened), said
    faults, steps, boots = (events[kind] for kind in (EventKind.SENSOR_FAULT, EventKind.CLOCK_STEP, EventKind.BOOT))
    yield (
        "sensors and clock",
        _found(not faults and not steps),
        f"{faults} sensor faults, {steps} clock steps, {boots} boots",
    )
    if not births:
        yield "hardware", Finding.UNKNOWN, "no birth was stated in the period"
        return
    models = sorted({birth.hardware for birth in births})
    sensors = {birth.sensors for birth in births}
    stores = sorted({_STORES[birth.key_store] for birth in births})
    same = len(models) == len(sensors) == len(stores) == 1
    parts = sorted({f"{sensor.part} ({sensor.calibration})" for birth in births for sensor in birth.sensors})
    said = f"{', '.join(models)}; {', '.join(parts)}; keys in {', '.join(stores)}"
    yield "hardware", _found(same), said + ("" if same else "; it changed in the period")


def _software(births: Sequence[Birth], releases: Mapping[bytes, str] | None) -> tuple[str, Finding, str]:
    stated = sorted({(birth.software, birth.software_sha256) for birth in births})
    said = ", ".join(f"{name} {digest.hex()[:16]}…" for name, digest in stated)
    if not stated or not releases:
        why = "no birth was stated" if not stated else "the DAO's releases are not known"
        return "software", Finding.UNKNOWN, f"{said or why}{'' if not stated else f'; {why}'}"
    foreign = [name for name, digest in stated if digest not in releases]
    return (
        "software",
        _found(not foreign),
        said + (f"; not of the DAO's releases: {', '.join(foreign)}" if foreign else ""),
    )


def _generation(result: LineResult) -> dict[int, int]:
    """Return what a miner generated by window, mW·s, in the period; what it sent where it meters no generation."""
    end, begin_s = result.windows.miner, period_start(result.inputs)
    found: dict[int, int] = {}
    for channel in end.party.numbers(Role.GENERATION) or [end.channel]:
        for window_s, one in channel_sums(end.facts, channel).items():
            if begin_s <= window_s < result.inputs.until_s:
                found[window_s] = found.get(window_s, 0) + one.energy_mws
    return found


def _peak_mw(end: End) -> int:
    channels = end.party.numbers(Role.GENERATION) or [end.channel]
    return sum(c.peak_mw for c in end.party.channels if c.channel in channels)


def _sky(end: End, generation: Mapping[int, int]) -> Iterator[tuple[str, Finding, str]]:
    """Compare generation with a clear sky over the registered place."""
    if end.party.place is None:
        yield "clear sky", Finding.UNKNOWN, "no place is registered"
        return
    try:
        from settlement.sky import compare  # noqa: PLC0415 - pvlib is an extra
    except ModuleNotFoundError:
        yield "clear sky", Finding.UNKNOWN, "install maxgreen[checks] to compare with a clear sky"
        return
    sky = compare(generation, _peak_mw(end), end.party.place, _SKY_MARGIN)
    said = f"{sky.beyond} of {sky.windows} windows above what a panel that faces the sun gets of a clear sky"
    yield "clear sky", _found(sky.beyond * _PPM <= _BEYOND_PPM * sky.windows) if sky.windows else Finding.UNKNOWN, said
    said = f"its power follows that of a clear sky with a correlation of {sky.shape:.2f}"
    enough = sky.windows >= _SHAPE_WINDOWS and any(generation.values())
    yield "daily shape", _found(sky.shape >= _SHAPE) if enough else Finding.UNKNOWN, said


class Yield(NamedTuple):
    """A miner among others: line, place (degrees), and what it generated on each UTC day for each mW of its peak."""

    line: str
    miner: int
    place: tuple[float, float] | None
    days: Mapping[int, float]


def yield_of(result: LineResult) -> Yield:
    """Return what a miner generated, as its neighbours are compared."""
    end = result.windows.miner
    days: dict[int, float] = {}
    for window_s, energy_mws in _generation(result).items():
        day = window_s // DAY_S
        days[day] = days.get(day, 0.0) + energy_mws / max(1, _peak_mw(end))
    return Yield(result.line.hex(), end.party.token, end.party.place, days)


def check_neighbours(yields: Sequence[Yield]) -> Iterator[Check]:
    """Yield for each line whether its miner generated about what others near it did, day by day."""
    for own in yields:
        near = {other.miner: other for other in yields if other.miner != own.miner and _are_near(own, other)}
        if len(near) < _NEIGHBOURS:
            said = f"{len(near)} other miners of this pack are within {_NEAR_DEGREES} degrees; it takes {_NEIGHBOURS}"
            yield Check(own.line, "miner", "neighbours", Finding.UNKNOWN, said)
            continue
        shared, odd = 0, 0
        for day, amount in own.days.items():
            others = [other.days[day] for other in near.values() if day in other.days]
            if len(others) >= _NEIGHBOURS:
                shared += 1
                odd += amount > _NEIGHBOUR_TIMES * median(others) + _NEIGHBOUR_S
        said = f"above {_NEIGHBOUR_TIMES} times the median of {len(near)} neighbours on {odd} of {shared} days"
        yield Check(own.line, "miner", "neighbours", _found(odd * _PPM <= _ODD_PPM * shared), said)


def _are_near(one: Yield, other: Yield) -> bool:
    if one.place is None or other.place is None:
        return False
    return all(abs(a - b) <= _NEAR_DEGREES for a, b in zip(one.place, other.place, strict=True))


def _whole(result: LineResult, begin_s: int) -> Iterator[tuple[str, Finding, str]]:
    windows = [w for w in result.windows.windows if w.window_s >= begin_s]
    explained = explain(result.inputs.period, result.statement, windows)
    counted = sum(w.measured.sent_mws for w in windows if w.counts)
    share = f"{explained.counted_windows} of {explained.windows} windows count"
    if not explained.sent_mws:
        yield "counted share", Finding.UNKNOWN, f"nothing was sent; {share}"
    else:
        found = _found(counted * _PPM >= _COUNTED_PPM * explained.sent_mws)
        yield "counted share", found, f"{100 * counted / explained.sent_mws:.1f} % of what was sent; {share}"
    metered_ms = sum(w.measured.metered_ms for w in windows)
    dark_s = explained.dark_sent_s + explained.dark_received_s
    said = f"the miner did not meter for {explained.dark_sent_s} s, the node for {explained.dark_received_s} s"
    unmetered = _found(dark_s * 1000 * _PPM <= _DARK_PPM * metered_ms) if metered_ms else Finding.UNKNOWN
    yield "unmetered time", unmetered, said
    disputed = sum(w.measured.sent_mws for w in windows if w.state is State.DISPUTED)
    said = f"{result.statement['loss_mws']} mW·s lost, {result.statement['expected_loss_mws']} mW·s expected"
    yield "loss", _found(not disputed), f"{said}, {disputed} mW·s sent in disputed windows"


def _found(well: bool) -> Finding:
    return Finding.PASS if well else Finding.FAIL
