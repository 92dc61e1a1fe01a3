"""What a member looks at before a vote."""

import csv
from collections import defaultdict
from dataclasses import replace
from datetime import datetime

from maxgreen.protocol.batch import Event, EventKind, Health
from maxgreen.units import MWS_PER_KWH
from settlement.reports import Finding, Yield, check_line, check_neighbours
from settlement.sky import compare
from tests.conftest import ROOT
from tests.settlement.test_explain import story
from tests.settlement.test_thieves import Thieves


def found(pair, releases=None):
    made = pair.made()
    return {(check.end, check.name): check for check in check_line(made.result(), made.evidence(), releases)}


def test_an_honest_line_passes_and_what_nobody_knows_is_unknown():
    pair = Thieves()
    for k in range(6):
        pair.both(attested=k == 5)
    checks = found(pair)
    unknown = {place for place, check in checks.items() if check.found is Finding.UNKNOWN}
    assert unknown == {
        ("miner", "software"), ("node", "software"), ("node", "mining history"), ("miner", "clear sky"),
    }  # fmt: skip
    assert Finding.FAIL not in {check.found for check in checks.values()}
    assert checks["line", "counted share"].evidence.startswith("100.0 %")
    released = found(pair, {bytes(32): "agent"})
    assert released["miner", "software"].found is Finding.PASS
    foreign = found(pair, {b"\1" * 32: "agent"})
    assert foreign["miner", "software"].found is Finding.FAIL
    assert "maxgreen/0.1.0" in foreign["miner", "software"].evidence


def test_what_happened_is_named():
    pair = Thieves()
    for k in range(6):
        happened = {}
        if k == 2:
            happened = {"events": (Event(EventKind.TAMPER, 0), Event(EventKind.SENSOR_FAULT, 5))}
        if k == 3:
            birth = replace(pair.miner.birth, hardware="Raspberry Pi 3")
            happened = {"birth": birth, "health": Health(tamper_open=True)}
        pair.both(attested=k == 5, miner=happened)
    checks = found(pair)
    failed = {place for place, check in checks.items() if check.found is Finding.FAIL}
    assert failed == {("miner", "case"), ("miner", "sensors and clock"), ("miner", "hardware")}
    assert "Raspberry Pi 3, Raspberry Pi 5" in checks["miner", "hardware"].evidence


def test_a_bad_month_fails_where_it_is_bad():
    checks = found(story())
    failed = {place for place, check in checks.items() if check.found is Finding.FAIL}
    assert failed == {("line", "counted share"), ("line", "unmetered time"), ("line", "loss")}


GOLDEN = (39.7, -105.2)
PLANT_MW = 360_000_000


def plant():
    """Return the generation of a real plant by window, mW·s, and its days (PVDAQ 1430, one of its inverters)."""
    found = defaultdict(float)
    with (ROOT / "tests/data/pvdaq1430_meters_15min.csv").open() as file:
        for row in csv.DictReader(file):
            end_s = int(datetime.fromisoformat(row["ts_utc"]).timestamp())
            for k in range(3):
                found[(end_s - 900 + k * 300) // 600 * 600] += max(0.0, float(row["kwh_gross"] or 0)) / 6 * MWS_PER_KWH
    return {w: round(energy) for w, energy in found.items()}


def test_a_real_plant_is_within_a_clear_sky_and_made_up_ones_are_not():
    real = plant()
    sky = compare(real, PLANT_MW, GOLDEN, 1.25)
    assert sky.windows > 8_000
    assert sky.beyond < sky.windows / 1_000
    assert sky.shape > 0.7
    shifted = compare({w + 8 * 3_600: energy for w, energy in real.items()}, PLANT_MW, GOLDEN, 1.25)
    assert (shifted.beyond > sky.windows / 10, shifted.shape < 0.3) == (True, True)
    always = compare({w: PLANT_MW * 300 * (1 + w % 7) // 4 for w in real}, PLANT_MW, GOLDEN, 1.25)
    assert (always.beyond > sky.windows / 10, always.shape < 0.3) == (True, True)
    small = compare(real, PLANT_MW // 3, GOLDEN, 1.25)  # a panel that is registered with a third of its peak
    assert small.beyond > sky.windows / 50
    assert compare({}, PLANT_MW, GOLDEN, 1.25).windows == 0


def test_the_checks_of_a_line_with_a_place_look_at_the_sky():
    pair = Thieves(place=(0.0, 0.0))  # it is midnight there
    for k in range(6):
        pair.both(attested=k == 5)
    checks = found(pair)
    assert checks["miner", "clear sky"].found is Finding.FAIL
    assert checks["miner", "daily shape"].found is Finding.UNKNOWN


def test_neighbours_tell_who_has_more_sun_than_they():
    days = range(10)
    honest = [
        Yield(f"{k}", k, (39.7 + k / 50, -105.2), {day: 10_000.0 * (1 + day % 3) + 500 * k for day in days})
        for k in range(4)
    ]
    liar = Yield("liar", 9, (39.8, -105.1), dict.fromkeys(days, 40000.0))
    far = Yield("far", 10, (10.0, 10.0), dict.fromkeys(days, 90000.0))
    checks = {check.line: check.found for check in check_neighbours([*honest, liar, far])}
    assert checks == {**{f"{k}": Finding.PASS for k in range(4)}, "liar": Finding.FAIL, "far": Finding.UNKNOWN}
