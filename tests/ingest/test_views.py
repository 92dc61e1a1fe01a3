"""The InfluxDB view, the pages, and Grafana's queries on a real InfluxDB."""

import json
import re
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from decimal import Decimal

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert
from typer.testing import CliRunner

from ingest.cli import app
from ingest.config import InfluxSettings
from ingest.http import make_app
from ingest.metrics import Metrics
from ingest.view.compare import Compared, asker, compare
from ingest.view.days import Days
from ingest.view.influx import InfluxSink
from ingest.view.lines import decimal, minute_lines_of, sample_line
from ingest.view.projector import REBUILDING, RUNNING, Projector, rebuilding, running
from ingest.view.records import Records
from ingest.view.sink import BadLinesError, TooLargeError
from maxgreen.clock import SystemClock
from maxgreen.errors import Fatal, Retryable
from maxgreen.ledger.book import Book
from maxgreen.ledger.schema import decisions
from maxgreen.protocol.batch import Channel
from native.lines import minute_lines, sample_lines
from simulator.lab import T0_MS, Lab
from tests.ingest.desks import LATER, Bench, register, rows

pytestmark = pytest.mark.services
DAY_NS = 86_400 * 10**9


def send(engine, message, received_ms=LATER):
    return Bench(engine).send(message, received_ms=received_ms)


class FakeSink:
    """An InfluxDB in memory, with the faults that a real one shows."""

    def __init__(self):
        self.lines, self.error, self.bad, self.requests, self.most = {}, None, "", 0, 10**9

    def write(self, text):
        lines = text.decode().split("\n")
        self.requests += 1
        if self.error:
            raise self.error
        if len(lines) > self.most:
            raise TooLargeError("413")
        if self.bad and any(self.bad in line for line in lines):
            raise BadLinesError("400")
        for line in lines:
            key, fields, t_ns = line.rsplit(" ", 2)
            self.lines[key, t_ns] = fields


def query(influx, text):
    url, token, _org, bucket = influx
    arguments = urllib.parse.urlencode({"db": bucket, "q": text, "epoch": "ms"})
    request = urllib.request.Request(f"{url}/query?{arguments}", headers={"Authorization": f"Token {token}"})
    answer = json.loads(urllib.request.urlopen(request, timeout=20).read())["results"][0]
    assert "error" not in answer, answer
    return answer.get("series", [])


def sink(influx, tmp_path):
    url, token, org, bucket = influx
    (tmp_path / "token").write_text(token)
    return InfluxSink(InfluxSettings(url=url, token_file=tmp_path / "token", org=org, bucket=bucket))


def project(projector):
    count = 0
    while step := projector.step():
        count += step
    return count


def verdicts(fake):
    return Counter(fields.split('"')[1] for (key, _), fields in fake.lines.items() if key.startswith("batch,"))


def all_aside(engine):
    with engine.begin() as connection:
        return Book(connection).all_aside()


def test_an_outage_of_the_view_stops_nothing_and_loses_nothing(engine):
    lab, fake = Lab(), FakeSink()
    for _ in range(3):
        send(engine, lab.next())
    fake.error = Retryable("away")
    with pytest.raises(Retryable):
        Projector(engine, fake).step()
    fake.error = None
    assert Projector(engine, fake).step() == 3
    before = dict(fake.lines)
    assert Projector(engine, fake).step() == 0
    assert Projector(engine, fake, REBUILDING).rebuild() == 3
    assert fake.lines == before


def test_a_batch_is_one_point_whatever_becomes_of_it(engine):
    lab, fake = Lab(), FakeSink()
    first, *rest = [lab.next() for _ in range(20)]
    undated = [lab.next(synchronised=False, t0_ms=0) for _ in range(3)]
    bench, projector = Bench(engine), Projector(engine, fake)
    bench.send(*rest, b"noise", b"other noise")
    project(projector)
    assert verdicts(fake) == {"held": 19}
    assert len([key for key, _ in fake.lines if key.startswith("rejected,reason=malformed")]) == 2
    bench.send(first)
    lab.reboot(bytes(16), wall_ms=LATER - 1_000)
    project(projector)
    assert verdicts(fake) == {"accepted": 20}
    bench.send(*undated)
    project(projector)
    assert len([key for key, _ in fake.lines if key.startswith("batch,")]) == 23


def test_who_lost_the_lease_in_the_middle_of_a_step_writes_no_more_and_leaves_the_position(engine, monkeypatch):
    monkeypatch.setattr("ingest.view.projector.MAX_LINES", 50)
    monkeypatch.setattr("ingest.view.projector._BESIDE", 1)
    lab, fake, asked = Lab(), FakeSink(), []
    Bench(engine).send(*[lab.next() for _ in range(20)])

    def ours():
        asked.append(1)
        return len(asked) <= 2

    with pytest.raises(Retryable, match="not this service"):
        Projector(engine, fake, may_write=ours).step()
    assert fake.requests == 2
    with engine.begin() as connection:
        assert Book(connection).position(RUNNING) == 0
    Projector(engine, fake).rebuild()
    assert verdicts(fake) == {"accepted": 20}


def test_a_bad_row_is_set_aside_and_the_others_are_written_then_it_is_replayed(engine):
    lab, fake = Lab(), FakeSink()
    for k in range(9):
        send(engine, lab.next([(18_000_000 + k, 1_000_000)] * 10))
    fake.bad = "v=18.000004"
    assert Projector(engine, fake).step() == 9
    assert [(row.device, row.number) for row in all_aside(engine)] == [(lab.device, 4)]
    assert verdicts(fake) == {"accepted": 8}
    assert Projector(engine, fake).replay() == (1, 0)
    project(Projector(engine, fake))
    assert [(row.device, row.number) for row in all_aside(engine)] == [(lab.device, 4)]
    fake.bad = ""
    assert Projector(engine, fake).replay() == (1, 0)
    project(Projector(engine, fake))
    assert all_aside(engine) == []
    assert verdicts(fake) == {"accepted": 9}


def test_rejected_messages_are_replayed_too(engine):
    fake = FakeSink()
    Bench(engine).send(b"noise", b"other noise")
    fake.bad = "rejected"
    project(Projector(engine, fake))
    assert len(all_aside(engine)) == 2
    fake.bad = ""
    assert Projector(engine, fake).replay() == (0, 2)
    assert all_aside(engine) == []
    assert len(fake.lines) == 2


def test_the_command_lists_what_was_set_aside_and_writes_all_of_it_again(engine, influx, tmp_path):
    """More than a screen of it, into a real InfluxDB."""
    url, token, org, name = bucket_of(influx, f"aside{uuid.uuid4().hex}")
    Bench(engine).send(*[b"noise %d" % k for k in range(1_500)])
    with engine.begin() as connection:
        book = Book(connection)
        for row in book.all_evidence(2_000):
            book.set_aside(b"", row.id, "field type conflict")
    (tmp_path / "token").write_text(token)
    config = tmp_path / "ingest.toml"
    config.write_text(
        f'ledger = "{engine.url.render_as_string(hide_password=False)}"\n[influx]\nurl = "{url}"\norg = "{org}"\n'
        f'token_file = "{tmp_path}/token"\nbucket = "{name}"\n'
    )

    def run(*options):
        done = CliRunner().invoke(app, ["aside", "--config", str(config), *options])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert "… and more; --json lists all" in run()
    assert len(json.loads(run("--json"))) == 1_500
    assert run("--replay") == "the running service writes 0 batches again; 1500 rejected messages are written\n"
    assert run() == "InfluxDB refused nothing\n"
    [series] = query((url, token, org, name), 'SELECT count("id") FROM "rejected"')
    assert series["values"][0][1] == 1_500


def test_good_rows_that_were_set_aside_with_bad_ones_are_written_in_the_end(engine):
    lab, fake = Lab(), FakeSink()
    Bench(engine).send(*[lab.next([(18_000_000 + (k % 3 == 0), 1)]) for k in range(120)])
    fake.bad = "v=18.000001"
    project(Projector(engine, fake))
    for _ in range(40):
        if len(all_aside(engine)) == 40:
            break
        Projector(engine, fake).replay()
        project(Projector(engine, fake))
    assert len(all_aside(engine)) == 40
    assert verdicts(fake) == {"accepted": 80}


def test_a_rebuild_ends_while_batches_keep_coming_and_another_database_begins_anew(engine):
    lab, bench, fake = Lab(), Bench(engine), FakeSink()
    bench.send(*[lab.next() for _ in range(5)])
    write = fake.write

    def meanwhile(text):
        bench.send(lab.next())
        write(text)

    fake.write = meanwhile
    assert Projector(engine, fake, REBUILDING).rebuild() == 5
    one, other = (InfluxSettings(url="http://x", bucket=name) for name in ("a", "b"))
    assert len({rebuilding(one), rebuilding(other), running(one), running(other)}) == 4
    project(Projector(engine, FakeSink(), running(one)))
    fresh = FakeSink()
    project(Projector(engine, fresh, running(other)))
    assert verdicts(fresh) == {"accepted": 6}


def test_what_was_written_before_a_failure_is_not_written_again(engine, monkeypatch):
    monkeypatch.setattr("ingest.view.projector.MAX_LINES", 60)
    lab, fake = Lab(), FakeSink()
    Bench(engine).send(*[lab.next() for _ in range(30)])
    write, calls = fake.write, [0]

    def limited(text):
        calls[0] += 1
        if calls[0] % 5 == 0:
            raise Retryable("InfluxDB answered 429")
        write(text)

    fake.write = limited
    projector = Projector(engine, fake)
    for _ in range(30):
        try:
            if not projector.step():
                break
        except Retryable:
            continue
    assert verdicts(fake) == {"accepted": 30}
    assert calls[0] < 60


def test_a_token_that_changed_is_used_without_a_restart(influx, tmp_path):
    here = sink(influx, tmp_path)
    here.write("token_test v=1 1767225600000000000")
    (tmp_path / "token").write_text("revoked")
    with pytest.raises(Fatal, match="check url, token and bucket"):
        here.write("token_test v=2 1767225600000000001")
    (tmp_path / "token").write_text(influx[1])
    here.write("token_test v=2 1767225600000000001")
    (tmp_path / "token").write_text("two\nlines")
    with pytest.raises(Fatal, match="one line"):
        here.write("token_test v=2 1767225600000000001")
    (tmp_path / "token").unlink()
    with pytest.raises(Fatal, match="token_file"):
        here.write("token_test v=2 1767225600000000001")


def test_a_view_that_refuses_everything_is_not_asked_for_every_row(engine):
    lab, fake = Lab(), FakeSink()
    bench = Bench(engine)
    bench.send(*[lab.next([(1, 1)]) for _ in range(200)])
    fake.bad = "batch"
    project(Projector(engine, fake))
    assert fake.requests < 120
    assert len(all_aside(engine)) == 200
    fake.bad = ""
    assert Projector(engine, fake).replay() == (200, 0)
    project(Projector(engine, fake))
    assert verdicts(fake) == {"accepted": 200}


def test_requests_that_are_too_large_are_cut(engine):
    lab, fake = Lab(), FakeSink()
    bench = Bench(engine)
    bench.send(*[lab.next() for _ in range(40)])
    fake.most = 50
    project(Projector(engine, fake))
    assert verdicts(fake) == {"accepted": 40}
    assert all_aside(engine) == []


def test_a_request_that_fails_for_ever_is_made_smaller(engine):
    lab, fake = Lab(), FakeSink()
    Bench(engine).send(*[lab.next() for _ in range(40)])
    write, fails = fake.write, [0]

    def chokes(lines):
        if lines.count(b"\n") >= 100:
            fails[0] += 1
            raise Retryable("InfluxDB answered 500")
        write(lines)

    fake.write = chokes
    projector = Projector(engine, fake)
    for _ in range(30):
        try:
            projector.step()
        except Retryable:
            continue
    assert verdicts(fake) == {"accepted": 40}
    assert fails[0] < 20


def test_a_rebuild_beside_the_running_service_writes_everything_and_goes_on_after_a_failure(engine, monkeypatch):
    monkeypatch.setattr("ingest.view.projector._BATCHES", 3)
    monkeypatch.setattr("ingest.view.sink._RETRY_S", 0)
    lab = Lab()
    bench = Bench(engine)
    bench.send(*[lab.next() for _ in range(12)])
    running, fresh = FakeSink(), FakeSink()
    service, rebuild = Projector(engine, running), Projector(engine, fresh, REBUILDING)
    write, calls = fresh.write, []

    def shaky(lines):
        calls.append(len(lines))
        service.step()
        if len(calls) == 3:
            raise Retryable("InfluxDB answered 503")
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(lines)

    fresh.write = shaky
    with pytest.raises(KeyboardInterrupt):
        rebuild.rebuild()
    assert 0 < sum(verdicts(fresh).values()) < 12
    before = sum(verdicts(fresh).values())
    assert Projector(engine, fresh, REBUILDING).rebuild() == 12 - before
    assert verdicts(fresh) == {"accepted": 12}
    project(service)
    assert verdicts(running) == {"accepted": 12}


def test_a_rebuild_that_the_service_overtakes_writes_the_newer_verdict_again(engine):
    lab, bench, fake = Lab(), Bench(engine), FakeSink()
    first, held = lab.next(), lab.next()
    bench.send(held)
    service, write, done = Projector(engine, fake), fake.write, []

    def overtaken(text):
        if not done:
            done.append(1)
            bench.send(first)
            project(service)
        write(text)

    rebuild = Projector(engine, type("Sink", (), {"write": lambda _, text: overtaken(text)})(), REBUILDING)
    rebuild.rebuild()
    assert verdicts(fake) == {"accepted": 2}


@pytest.mark.parametrize("value", [0, 1, -1, 999_999, -1_000_000, 18_004_000, -(2**31), 2**62])
def test_numbers_are_written_exactly(value):
    for digits in (3, 6, 12):
        assert Decimal(decimal(value, digits)) == Decimal(value).scaleb(-digits)


@given(
    st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 2, st.integers(0, 2**32 - 1)), max_size=70),
    st.integers(0, 2**43 - 1),
)
def test_lines_from_c_are_those_of_the_reference(samples, t0_ms):
    tags = "device=00,channel=1,role=2"
    channel = Channel.of(1, 2, *[[sample[k] for sample in samples] for k in range(3)], registers=(0, 0, 0))
    arrays = (channel.voltage, channel.current, channel.offsets)
    made = sample_lines(tags, *arrays, t0_ms).decode()
    assert made == "".join(sample_line(tags, v, i, t0_ms + offset) + "\n" for v, i, offset in samples)
    made = minute_lines(tags, *arrays, t0_ms, 999_999).decode()
    wanted = minute_lines_of(tags, [(v, i, t0_ms + offset) for v, i, offset in samples], 999_999)
    assert made == "".join(line + "\n" for line in wanted)
    assert sum(int(re.search(r"n=(\d+)i", line)[1]) for line in wanted) == len(samples)


def test_the_real_influxdb_holds_what_the_ledger_holds(engine, influx, tmp_path):
    lab = Lab()
    for _ in range(4):
        send(engine, lab.next())
    projector = Projector(engine, sink(influx, tmp_path), REBUILDING)
    projector.rebuild()
    projector.rebuild()
    [series] = query(influx, f"SELECT count(v) FROM sample WHERE channel='1' AND device='{lab.device.hex()}'")
    assert series["values"][0][1] == 40
    [series] = query(
        influx, f"SELECT last(forward_kwh) FROM register WHERE channel='1' AND device='{lab.device.hex()}'"
    )
    assert series["values"][0][1] == pytest.approx(lab.meters[1].register_mws / 3.6e9)


def days_in(fake):
    """The days of a view: (measurement, channel, day) and their fields."""
    found = {}
    for (key, t_ns), fields in fake.lines.items():
        measurement, *tags = key.split(",")
        if measurement.endswith("day"):
            values = {name: float(value.rstrip("i")) for name, value in (f.split("=") for f in fields.split(","))}
            found[measurement, *[tag for tag in tags if "channel" in tag], int(t_ns) // DAY_NS] = values
    return found


def test_days_are_the_sums_of_their_windows_and_grow(engine):
    lab, fake = Lab(), FakeSink()
    bench, days = Bench(engine), Days(engine, fake, RUNNING)
    midnight_ms = T0_MS // 86_400_000 * 86_400_000 + 86_400_000
    bench.send(*[lab.next() for _ in range(3)])
    while days.step():
        pass
    first = T0_MS // 86_400_000
    whole = days_in(fake)["work_day", first]
    assert (whole["accepted"], whole["rejected"], whole["held"]) == (3, 0, 0)
    forward_kwh = days_in(fake)["day", "channel=1", first]["forward_kwh"]
    assert forward_kwh == pytest.approx(lab.meters[1].register_mws / 3.6e9)

    lab.reboot(bytes(16), wall_ms=midnight_ms)
    before = dict(fake.lines)
    bench.send(lab.next(), lab.next(), received_ms=midnight_ms + 3_600_000)
    fake.lines.clear()
    assert days.step()
    assert not days.step()
    assert {key[-1] for key in days_in(fake)} == {first + 1}  # what did not change is not written again
    assert days_in(fake)["work_day", first + 1]["accepted"] == 2
    fake.lines.update(before)
    both = [days_in(fake)["day", "channel=1", day]["forward_kwh"] for day in (first, first + 1)]
    assert sum(both) == pytest.approx(lab.meters[1].register_mws / 3.6e9)

    fresh = FakeSink()
    Days(engine, fresh, REBUILDING).rebuild()
    assert fresh.lines == fake.lines
    Days(engine, fresh, REBUILDING).rebuild(afresh=True)
    assert fresh.lines == fake.lines


def test_a_day_that_is_refused_keeps_no_other_back_and_one_that_fails_comes_again(engine, caplog):
    labs, fake = [Lab(secret=k) for k in (90, 91, 92)], FakeSink()
    register(engine, *labs)
    for lab in labs:
        send(engine, lab.next())
    days = Days(engine, fake, RUNNING)
    fake.error = Retryable("away")
    with pytest.raises(Retryable):
        days.step()
    assert not Days(engine, fake, RUNNING, lambda: False).step()
    fake.error, fake.bad = None, f"work_day,device={labs[1].device.hex()}"
    assert days.step()
    assert len([key for key in days_in(fake) if key[0] == "work_day"]) == 1
    assert {key.split(",")[1] for key, _ in fake.lines if key.startswith("work_day")} == {
        f"device={lab.device.hex()}" for lab in (labs[0], labs[2])
    }
    assert "rebuild-view" in caplog.text


def test_the_first_difference_between_view_and_ledger_is_named(engine, influx, tmp_path):
    lab = Lab(secret=77)
    register(engine, lab)
    for k in range(3):
        send(engine, lab.next([(18_000_000 - k, -1_000_000)] * 10))
    url, _token, org, bucket = influx
    here = sink(influx, tmp_path)
    Projector(engine, here).step()
    ask = asker(InfluxSettings(url=url, token_file=tmp_path / "token", org=org, bucket=bucket))
    assert compare(engine, ask, RUNNING) == Compared(3, None)
    t_ns = rows(engine, lab.device)[1].t0_ms * 10**6
    here.write(f"sample,device={lab.device.hex()},channel=0,role=generation v=17.5 {t_ns}")
    difference = compare(engine, ask, RUNNING).difference
    assert f"device {lab.device.hex()} seq 1: sample of channel 0 at {t_ns} ns" in difference
    assert "17.999999" in difference
    assert "17.5" in difference
    assert compare(engine, ask, RUNNING, since_ms=LATER + 1) == Compared(0, None)
    Projector(engine, here, REBUILDING).rebuild()
    days = Days(engine, here, RUNNING)
    assert days.step()
    assert compare(engine, ask, RUNNING) == Compared(3, None)
    here.write(f"day,device={lab.device.hex()},channel=0,role=unknown forward_kwh=17.5 {t_ns // DAY_NS * DAY_NS}")
    assert f"{lab.device.hex()} a day: day of channel 0 at" in compare(engine, ask, RUNNING).difference
    send(engine, lab.next())
    Projector(engine, here).step()
    assert compare(engine, ask, RUNNING) == Compared(4, None)  # a day that changed is not compared before it is written
    assert days.step()
    assert compare(engine, ask, RUNNING) == Compared(4, None)


def bucket_of(influx, name, *, keep_s=0):
    """Make a bucket; return the settings' values."""
    url, token, org, _ = influx
    headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}

    def api(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        return json.loads(urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=20).read())

    if not org:  # version 1
        keeps = f" WITH DURATION {keep_s}s" if keep_s else ""
        headers = {"Authorization": f"Token {token}"}
        data = urllib.parse.urlencode({"q": f"CREATE DATABASE {name}{keeps}"}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{url}/query", data, headers), timeout=20).read()
        return url, token, org, name
    org_id = api(f"/api/v2/orgs?org={org}")["orgs"][0]["id"]
    rules = [{"type": "expire", "everySeconds": keep_s}] if keep_s else []
    api("/api/v2/buckets", {"orgID": org_id, "name": name, "retentionRules": rules})
    return url, token, org, name


class Counted:
    def __init__(self, sink):
        self.sink, self.requests = sink, 0

    def write(self, lines):
        self.requests += 1
        self.sink.write(lines)


def test_what_is_older_than_the_bucket_keeps_costs_no_search(engine, influx, tmp_path):
    Bench(engine).send(*[lab.next() for lab in [Lab()] for _ in range(50)])
    counted = Counted(sink(bucket_of(influx, f"short{uuid.uuid4().hex}", keep_s=86_400), tmp_path))
    project(Projector(engine, counted))
    assert counted.requests <= 2
    assert all_aside(engine) == []


def test_a_field_of_another_type_sets_rows_aside_within_a_bound(engine, influx, tmp_path):
    lab = Lab()
    Bench(engine).send(*[lab.next() for _ in range(50)])
    other = bucket_of(influx, f"typed{uuid.uuid4().hex}")
    here = sink(other, tmp_path)
    here.write("sample,device=x v=1i 1767225600000000000")
    counted = Counted(here)
    project(Projector(engine, counted))
    assert counted.requests < 100
    assert {row.number for row in all_aside(engine)} == set(range(50))
    assert "field type conflict" in all_aside(engine)[0].text


def test_a_wrong_token_or_bucket_holds_the_view(engine, influx, tmp_path):
    url, _token, org, bucket = influx
    (tmp_path / "bad").write_text("wrong")
    with pytest.raises(Fatal, match="check url, token and bucket"):
        InfluxSink(InfluxSettings(url=url, token_file=tmp_path / "bad", org=org, bucket=bucket)).write(b"a b=1 1")
    with pytest.raises(BadLinesError):
        sink(influx, tmp_path).write("not line protocol")
    with pytest.raises(Retryable):
        InfluxSink(InfluxSettings(url="http://127.0.0.1:9", org=org, bucket=bucket)).write(b"a b=1 1")


def test_gauges_of_readiness_need_nobody_who_asks_for_health():
    metrics = Metrics()
    client = TestClient(make_app(metrics, lambda: metrics.ready.set(1)))
    text = client.get("/metrics").text
    assert "maxgreen_ingest_ready 1.0" in text
    assert 'maxgreen_ingest_batches_total{reason="accepted",verdict="accepted"} 0.0' in text
    assert "maxgreen_ingest_free_bytes{" not in text  # a ledger in PostgreSQL has no file


def test_health_and_metrics():
    metrics = Metrics()
    client = TestClient(make_app(metrics, lambda: None))
    assert client.get("/health/live").json() == {"status": "ok"}
    metrics.batches.labels("accepted", "").inc(3)
    assert 'maxgreen_ingest_batches_total{reason="",verdict="accepted"} 3.0' in client.get("/metrics").text
    waiting = TestClient(make_app(Metrics(), lambda: "no connection to the broker"))
    assert waiting.get("/health/ready").status_code == 503


def test_a_decision_that_is_committed_late_is_in_the_view_too(engine):
    """On PostgreSQL a row may come after one with a higher number; both databases are told so here by its number."""
    device, there, clock = b"d" * 16, FakeSink(), SystemClock()
    values = {
        "device": device,
        "from_seq": 1,
        "to_seq": 1,
        "action": "skip",
        "reason": "",
        "who": "Ada",
        "at_ms": LATER,
    }

    def decide(number):
        with engine.begin() as connection:
            connection.execute(insert(decisions).values(**values, id=number, text=f"no{number}"))

    def seen():
        return sorted(re.findall(r'text="no(\d)"', " ".join(there.lines.values())))

    records = Records(engine, there, RUNNING, clock)
    decide(7)
    assert records.step()
    decide(6)
    assert records.step()
    assert seen() == ["6", "7"]
    before = there.requests
    assert not records.step()
    assert there.requests == before  # what was written is not written again
    decide(8)
    assert Records(engine, there, RUNNING, clock).step()  # another process
    assert seen() == ["6", "7", "8"]


def test_periods_that_are_closed_in_one_millisecond_are_both_in_the_view(engine):
    there = FakeSink()
    with engine.begin() as connection:
        for number in (1, 2):
            run = json.dumps({"period": f"2026-0{number}", "revision": 0, "lines": []})
            Book(connection).add_period(number, f"2026-0{number}", bytes(32), run, "[]", LATER, 1)
    Records(engine, there, RUNNING, SystemClock()).rebuild()
    assert {line.split("period=")[1] for line, _ in there.lines if "period=" in line} == {"2026-01", "2026-02"}


def test_a_registry_is_mirrored_in_parts(engine, monkeypatch):
    """A database takes so many parameters in a statement: a fleet of 100,000 has more."""
    monkeypatch.setattr("maxgreen.ledger.registry._AT_ONCE", 3)
    labs = [Lab(secret) for secret in range(50, 58)]
    register(engine, *labs)
    with engine.begin() as connection:
        assert {lab.device for lab in labs} <= {known.record.device for known in Book(connection).all_devices()}
