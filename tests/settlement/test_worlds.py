"""Random worlds against the oracle; `python -m tests.settlement.worlds 100000` is the long run."""

import pytest

from settlement import days, kept_days, loss, windows
from tests.settlement.worlds import COUNTS, night, run


def test_windows_and_what_is_payable_are_the_oracles():
    COUNTS.clear()
    assert run(2_000, seed=3) > 700
    assert COUNTS["by days"] > 30


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (loss, "_edge_mws", lambda found: sum(w.edge_mws for w in found)),
        (loss, "_dark_ms", lambda _spans, either_ms, longest_ms: max(0, either_ms - longest_ms)),
        (windows, "_released", lambda _inputs, _ends: windows.defaultdict(frozenset)),
        (windows, "_hold_incomplete", lambda _held, _end, _seconds: None),
        (windows, "_hold_unmetered", lambda _held, _day, _limits, _released: None),
        (windows, "over_capacity_windows", lambda *_: set()),
        (windows, "night_windows", lambda *_: set()),
        (windows, "not_generated_days", lambda *_: set()),
        (windows, "overfull_windows", lambda *_: set()),
        (windows, "online_windows", lambda facts: {f.window_s for f in facts if f.accepted and f.shares}),
        (days, "sums_of", lambda found: windows.add_up(w.measured for w in found)),
    ],
)
def test_the_oracle_sees_what_is_wrong(monkeypatch, module, name, wrong):
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        run(2_000, seed=3)


def test_days_come_to_the_whole_where_a_reading_stays_the_same_over_midnights_boots_keys_and_segments():
    COUNTS.clear()
    for seed in range(600):
        night(seed)
    assert COUNTS["by days"] > 40


@pytest.mark.parametrize("name", ["_strays", "_reaches_back"])
def test_the_nights_see_days_that_do_not_stand_alone(monkeypatch, name):
    monkeypatch.setattr(kept_days, name, lambda *_: False)
    with pytest.raises(AssertionError):
        for seed in range(600):
            night(seed)
