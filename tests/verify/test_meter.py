"""Energy by P-BAT-4, against a second implementation and against measured totals."""

import csv
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sensors.trace import interval_of, read_trace
from maxgreen.protocol.batch import Channel
from maxgreen.verify.meter import MeterState, Sample, advance, measure, measure_arrays
from tests.conftest import ROOT, TRACES

SETTINGS = {"interval_ms": 1000, "dead_band_ua": 5000}


def exact_integral(points, interval_ms, dead_band_ua):
    """P-BAT-4 again, in fractions of a joule, written from the text alone."""
    forward = reverse = Fraction(0)
    gap_ms = 0
    for (t1, v1, i1), (t2, v2, i2) in zip(points, points[1:]):
        span = t2 - t1
        if span > 10 * interval_ms and span > 10_000:
            gap_ms += span
            continue
        watts = [Fraction(v * i, 10**12) if abs(i) >= dead_band_ua else Fraction(0) for v, i in ((v1, i1), (v2, i2))]
        joules = sum(watts) * Fraction(span, 1000) / 2
        if joules >= 0:
            forward += joules
        else:
            reverse -= joules
    return int(forward * 1000), int(reverse * 1000), gap_ms


@st.composite
def traces(draw):
    times = sorted(draw(st.sets(st.integers(0, 60_000), min_size=2, max_size=30)))
    return [Sample(draw(st.integers(-(10**7), 2**31 - 1)), draw(st.integers(-(2**31), 2**31 - 1)), t) for t in times]


@pytest.mark.rule("P-BAT-4")
@given(traces(), st.integers(0, 30))
def test_energy_does_not_depend_on_where_batches_are_cut(trace, cut):
    whole = advance(MeterState(), trace, **SETTINGS)
    halves = advance(advance(MeterState(), trace[:cut], **SETTINGS), trace[cut:], **SETTINGS)
    assert halves == whole


@pytest.mark.rule("P-BAT-4")
@given(
    st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 2, st.integers(0, 10**8)), min_size=1, max_size=30),
    st.one_of(st.none(), st.builds(Sample, *[st.integers(-(2**31), 2**31 - 1)] * 2, st.integers(0, 2**41))),
    st.integers(0, 2**41),
    st.integers(0, 900_000),
    st.sampled_from([0, 5_000, 2**31, 2**62]),
)
def test_the_sums_in_c_are_those_of_the_reference(samples, last, t0_boot_ms, interval_ms, dead_band_ua):
    channel = Channel.of(0, 0, *[[sample[k] for sample in samples] for k in range(3)], registers=(0, 0, 0))
    settings = {"interval_ms": interval_ms, "dead_band_ua": dead_band_ua}
    power_pw = last.power_pw(dead_band_ua) if last else 0
    rising = [Sample(v, i, t0_boot_ms + offset) for v, i, offset in samples]
    growth, _, _ = measure(last, power_pw, rising, **settings)
    offsets = [offset for _, _, offset in samples]
    assert measure_arrays(
        last, power_pw, channel.voltage, channel.current, channel.offsets, t0_boot_ms, **settings
    ) == (growth, offsets == sorted(set(offsets)))


@pytest.mark.rule("P-BAT-4")
@given(traces())
def test_registers_are_the_exact_integral(trace):
    state = advance(MeterState(), trace, **SETTINGS)
    points = [(s.boot_ms, s.voltage_uv, s.current_ua) for s in trace]
    assert (state.register_mws, state.reverse_mws, state.gap_ms) == exact_integral(points, 1000, 5000)


@pytest.mark.rule("P-BAT-3")
@given(traces())
def test_registers_only_grow(trace):
    state = MeterState()
    for sample in trace:
        after = advance(state, [sample], **SETTINGS)
        assert after.register_mws >= state.register_mws
        assert after.reverse_mws >= state.reverse_mws
        assert after.gap_ms >= state.gap_ms
        state = after


@pytest.mark.rule("P-BAT-4")
def test_a_segment_of_more_than_ten_intervals_and_ten_seconds_is_a_gap():
    for span, gap in ((10_000, 0), (10_001, 10_001)):
        state = advance(MeterState(), [Sample(10**7, 10**6, 0), Sample(10**7, 10**6, span)], **SETTINGS)
        assert state.gap_ms == gap
        assert (state.register_mws == 0) == bool(gap)


def test_currents_below_the_dead_band_are_no_power():
    samples = [Sample(12_600_000, 4_999, 0), Sample(12_600_000, -4_999, 1000)]
    state = advance(MeterState(), samples, **SETTINGS)
    assert (state.forward, state.reverse) == (0, 0)


def test_a_new_boot_starts_without_a_segment():
    first = advance(MeterState(), [Sample(10**7, 10**6, 0)], **SETTINGS)
    second = advance(replace(first, last=None), [Sample(10**7, 10**6, 1000)], **SETTINGS)
    assert second.register_mws == 0


@pytest.mark.parametrize("path", TRACES, ids=lambda p: p.stem)
def test_every_measured_channel_is_integrated_to_the_milliwatt_second(path):
    trace = read_trace(path)
    rows = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            rows[row["channel"]].append((row["ts_utc"], row["v_bus_V"], row["i_A"]))
    totals = defaultdict(float)
    with (ROOT / "tests/data/totals.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["file"] == path.name and row["integral_kwh"]:
                totals[row["device"]] += float(row["integral_kwh"])
    for name, points in trace.channels.items():
        interval_ms = interval_of(points)
        samples = [Sample(p.reading.voltage_uv, p.reading.current_ua, p.t_ms - points[0].t_ms) for p in points]
        state = advance(MeterState(), samples, interval_ms=interval_ms, dead_band_ua=5000)
        from datetime import datetime

        independent = [
            (int(datetime.fromisoformat(t).timestamp()) * 1000, round(Fraction(v) * 10**6), round(Fraction(i) * 10**6))
            for t, v, i in rows[name]
        ]
        assert (state.register_mws, state.reverse_mws, state.gap_ms) == exact_integral(independent, interval_ms, 5000)
        if path.stem.startswith(("sandia", "solarma")) and totals[name] > 0.001:
            assert state.register_mws / 3.6e9 == pytest.approx(totals[name], rel=5e-4)
