"""Bad traces get one sentence with file, line and cure."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.sensors.trace import interval_of, read_trace
from maxgreen.errors import UsageError
from tests.conftest import TRACES

HEADER = "ts_utc,channel,v_bus_V,i_A\n"
GOOD = "2015-11-11T07:00:00Z,a,18.0,1.0\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (HEADER, "no samples"),
        ("a,b\n1,2\n", "line 1: no column ts_utc"),
        (HEADER + GOOD + GOOD.replace("07:00", "06:59"), "line 3: time .* sort the trace"),
        (HEADER + GOOD + GOOD.replace("1.0", "1.1"), "line 3: a second reading for .* keep one"),
        (HEADER + GOOD.replace("18.0", "nan"), "line 2: v_bus_V is 'nan', not a number"),
        (HEADER + GOOD.replace("18.0", "inf"), "line 2: v_bus_V is 'inf', not a number"),
        (HEADER + GOOD.replace("1.0", ""), "line 2: i_A is '', not a number"),
        (HEADER + GOOD.replace("18.0", "30"), "line 2: voltage 30 V .* scale the trace"),
        (HEADER + GOOD.replace("18.0", "-1.5"), "line 2: voltage -1.5 V .* swapped"),
        (HEADER + GOOD.replace("18.0", "1e999999"), "line 2: v_bus_V is 1e999999: no sensor"),
        (HEADER + GOOD.replace("1.0", "1e400"), "line 2: i_A is 1e400: no sensor"),
        (HEADER + GOOD.replace("1.0", "1e999990"), "line 2: i_A is 1e999990"),
        (HEADER + GOOD.replace("1.0", "1" * 5_000), "line 2: i_A is '1{40}', not a number"),
        (HEADER + GOOD.replace("2015-11-11T07:00:00Z", "0001-01-01T00:00:00+14:00"), "line 2: time .* expected UTC"),
        (HEADER + GOOD.replace("2015-11-11T07:00:00Z", "9999-12-31T23:59:50-14:00"), "line 2: time .* expected UTC"),
        (HEADER + GOOD.replace("2015", "9999"), "line 2: time .* between 1990 and 2100"),
        (HEADER + GOOD.replace("2015-11-11", "1970-01-03"), "line 2: time .* clock was not set"),
        (HEADER + GOOD + GOOD.replace(",a", ',"a') + GOOD, "line 3: a quotation mark opens here"),
        (HEADER + GOOD + "2015-11-11T07:01:00Z,a,18\0\0.0,1.0\n", "line 3: NUL bytes in the middle, .* tr -d"),
        (HEADER + GOOD.replace("Z", ""), "line 2: time .* expected UTC"),
        (HEADER + GOOD.replace("2015-11-11T07:00:00Z", "noon"), "line 2: time 'noon'"),
        (HEADER + GOOD.replace("1.0", "1e9"), "line 2: current"),
        ("\x00\x01", "UTF-16 without"),
        (HEADER + GOOD.replace("18.0", "18,0"), "line 2: 5 values for 4 columns; put decimal commas"),
        (HEADER.replace(",i_A", ",i_A,i_A") + GOOD, "line 1: two columns i_A"),
        (HEADER + GOOD + GOOD.replace("07:00", "07:01").replace("1.0", '"1,000"'), "line 3: 1,000 has another decimal"),
        (HEADER + GOOD.replace("1.0", "1_0"), "line 2: i_A is '1_0', not a number"),
        (HEADER + GOOD.replace("1.0", "\u0661"), "line 2: i_A is .*, not a number"),
        (HEADER + GOOD.replace("1.0", '"1"0'), "line 2: a quotation mark"),
        (HEADER + "x" * 100_000 + "\n" + GOOD, "line 2: longer than 65536"),
    ],
)
def test_a_bad_trace_names_file_line_and_cure(tmp_path, text, says):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_a_name_that_a_json_line_has_twice_is_refused(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"ts_utc": "2015-11-11T07:00:00Z", "channel": "a", "v_bus_V": 18, "i_A": 1, "i_A": 9}\n')
    with pytest.raises(UsageError, match="line 1: .* twice"):
        read_trace(path)


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


@pytest.mark.parametrize(
    "data",
    [
        ("\ufeff" + HEADER + GOOD).encode(),
        (HEADER + GOOD).encode("utf-16"),
        ("\ufeff" + HEADER + GOOD).encode("utf-16-be"),
        HEADER.replace(",", ", ").encode() + GOOD.encode(),
        (HEADER + GOOD).replace(",", ";").replace(".", ",").encode(),
        (HEADER + GOOD).replace(",", "\t").encode(),
        (HEADER + '2015-11-11T07:00:00Z,a,"18,0","1,0"\n').encode(),
        (HEADER + '"2015-11-11T07:00:00Z","a","18.0","1.0"\r\n').encode(),
        (HEADER + GOOD + GOOD).encode(),
        (HEADER + '"2015-11-11T07:00:00Z" ,"a" ,"18.0" ,"1.0" \n').encode(),
        b"ts_utc;channel;v_bus_V;i_A\n2015-11-11T07:00:00Z;a;18,0;1,0\n2015-11-11T07:01:00Z;a;-9999.0;0\n",
        (HEADER + GOOD).encode() + bytes(4_096),
        (HEADER + GOOD + "2015-11-11T07:01:00Z,a,-9999,-9999\n").encode(),
        (HEADER + GOOD + "2015-11-11T07:01:00Z,a,18.0,655.35\n").encode(),
        (HEADER + "\n" + GOOD + "\n,,,\n").encode(),
    ],
)
def test_what_loggers_write_is_read(tmp_path, data):
    path = tmp_path / "trace.csv"
    path.write_bytes(data)
    points = read_trace(path).channel("a")
    assert [(p.reading.voltage_uv, p.reading.current_ua) for p in points] == [(18_000_000, 1_000_000)]


def test_what_is_left_out_is_said(tmp_path, caplog):
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + GOOD + GOOD + "2015-11-11T07:01:00Z,a,-999,0\n" + "2015-11-11T07:02:00Z,a,1,-999\n")
    remarks = read_trace(path).remarks
    assert len(remarks) == 2
    assert "lines left out: 2; they hold a logger's mark" in remarks[1]
    assert "lines left out: 1; the line before them says the same" in caplog.text


def test_a_night_reads_as_no_voltage(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "2015-11-11T03:00:00Z,a,-0.004,-0.01\n")
    assert read_trace(path).channel("a")[0].reading.voltage_uv == 0


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda t: (HEADER + t).encode())))
def test_any_bytes_are_a_trace_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "trace.csv"
    path.write_bytes(data)
    try:
        found = read_trace(path)
    except UsageError as error:
        assert str(path) in str(error)  # noqa: PT017 - most bytes are no trace
    else:
        assert found.channels


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem[:20])
def test_the_measured_traces_are_read_whole(path):
    trace = read_trace(path)
    lines = len(path.read_text().splitlines()) - 1
    assert sum(map(len, trace.channels.values())) == lines
    assert trace.remarks == ()
