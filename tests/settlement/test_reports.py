"""What a member looks at before a vote."""

from dataclasses import replace

from maxgreen.protocol.batch import Event, EventKind, Health
from settlement.reports import Finding, check_line
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
    assert unknown == {("miner", "software"), ("node", "software"), ("node", "mining history")}
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
