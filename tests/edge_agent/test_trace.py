"""Bad traces get one sentence with file, line and cure."""

import pytest

from edge_agent.sensors.trace import interval_of, read_trace
from maxgreen.errors import UsageError

HEADER = "ts_utc,channel,v_bus_V,i_A\n"
GOOD = "2015-11-11T07:00:00Z,a,18.0,1.0\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (HEADER, "no samples"),
        ("a,b\n1,2\n", "line 1: no column ts_utc"),
        (HEADER + GOOD + GOOD, "line 3: time .* sort the trace"),
        (HEADER + GOOD.replace("18.0", "nan"), "line 2: v_bus_V is 'nan', not a number"),
        (HEADER + GOOD.replace("18.0", "inf"), "line 2: v_bus_V is 'inf', not a number"),
        (HEADER + GOOD.replace("1.0", ""), "line 2: i_A is '', not a number"),
        (HEADER + GOOD.replace("18.0", "30"), "line 2: voltage 30 V .* scale the trace"),
        (HEADER + GOOD.replace("18.0", "-1"), "line 2: voltage -1 V"),
        (HEADER + GOOD.replace("Z", ""), "line 2: time .* expected UTC"),
        (HEADER + GOOD.replace("2015-11-11T07:00:00Z", "noon"), "line 2: time 'noon'"),
        (HEADER + GOOD.replace("1.0", "1e9"), "line 2: current"),
        ("\x00\x01", "no column|not a CSV"),
    ],
)
def test_a_bad_trace_names_file_line_and_cure(tmp_path, text, says):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_a_missing_trace_and_an_unknown_channel_are_named(tmp_path):
    with pytest.raises(UsageError, match="--trace"):
        read_trace(tmp_path / "none.csv")
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + GOOD)
    with pytest.raises(UsageError, match="no channel 'b'; it has: a"):
        read_trace(path).channel("b")


def test_values_become_exact_micro_units(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "2015-11-11T07:00:00Z,a,0.140833,-0.0015\n2015-11-11T07:01:00Z,a,1,2\n")
    points = read_trace(path).channel(None)
    assert (points[0].reading.voltage_uv, points[0].reading.current_ua) == (140_833, -1_500)
    assert interval_of(points) == 60_000
