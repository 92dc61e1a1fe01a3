"""Every query of every dashboard on a real InfluxDB of each version: rows with the ledger's own values."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from ingest.commands import give
from ingest.view.days import Days
from ingest.view.projector import RUNNING, Projector
from ingest.view.records import Records
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.protocol.backend import CommandKind, sign_beacon
from maxgreen.protocol.batch import Event, EventKind, Role
from maxgreen.protocol.keys import MemorySigner
from maxgreen.verify.rules import Action, Decision, Limits
from simulator.lab import EASY, NETWORK, Lab, beacon
from tests.conftest import ROOT, served
from tests.ingest.desks import BACKEND, NOBODY, Bench, Clock
from tests.ingest.test_views import query, sink
from tests.services import influx_server, old_influx_server

pytestmark = pytest.mark.services
KWH = 3.6e9
OWNER = "0x" + 40 * "a"
FOLDER = ROOT / "grafana/dashboards"
LINE = {
    "line": 64 * "a", "miner": "1", "node": "2", "sent_mws": str(36 * 10**8), "received_mws": str(27 * 10**8),
    "payable_mws": str(18 * 10**8), "held": {"41": str(36 * 10**7)}, "disputed": {}, "expected_loss_mws": "900",
    "mint_wei": str(5 * 10**17), "online_windows": 6, "counted_windows": 5, "trouble": "",
}  # fmt: skip


class Filled:
    """A view of two devices, one of them an owner's, with everything that a dashboard shows."""

    def __init__(self, engine, influx, folder):
        self.influx = influx
        self.now = datetime.now(UTC)
        now_ms = int(self.now.timestamp() * 1000) - 60_000
        begin_ms = now_ms - 60_000
        begin_ms -= max(0, begin_ms % 600_000 - 500_000)  # what is measured lies in one proof window (P-BAT-5)
        self.miner = Lab(roles=(Role.GENERATION, Role.SENT), wall_offset_ms=begin_ms - 60_000)
        self.node = Lab(secret=2, roles=(Role.RECEIVED,), wall_offset_ms=begin_ms - 60_000)
        ahead = Lab(secret=3, roles=(Role.RECEIVED,), wall_offset_ms=now_ms + 10**8)
        challenge = beacon(7, now_ms // 1000 - 60)
        with engine.begin() as connection:
            for token, (lab, owner) in enumerate(((self.miner, OWNER), (self.node, NOBODY), (ahead, NOBODY)), 1):
                system = {"kind": "miner" if owner == OWNER else "storage_node", "channels": [
                    {"number": n, "role": int(role)} for n, role in enumerate(lab.roles)]}  # fmt: skip
                put_devices(connection, [KnownDevice(lab.record(), token, owner, system)])
            book = Book(connection)
            book.add_beacon(challenge, sign_beacon(challenge, MemorySigner.from_secret(2), NETWORK))
            book.add_decision(
                Decision(self.miner.device, 1, 1, Action.REJECT, "", "Ada, operator", now_ms, 'a "shadow", seen')
            )
        bench = Bench(engine)
        send = lambda message: bench.send(message, received_ms=now_ms + 30_000)  # noqa: E731
        for _ in range(3):
            send(self.miner.next(work=self.miner.work(challenge, nbits=EASY)))
            send(self.node.next([(18_000_000, 900_000)] * 10))
        send(self.miner.next(events=(Event(int(EventKind.SENSOR_FAULT), 0),)))
        self.miner.next()
        send(self.miner.next())  # held: the one before is missing
        send(ahead.next())  # rejected: in the future
        send(b"noise")
        with engine.begin() as connection:
            book = Book(connection)
            known, state = book.device(self.miner.device), book.state(self.miner.device)
            give(
                book,
                BACKEND,
                NETWORK,
                known,
                state,
                CommandKind.SEND_REGISTERS,
                {},
                who="Ada",
                now_ms=now_ms,
                valid_ms=60_000,
            )
            last_month = self.now.replace(day=1) - timedelta(days=1)
            document = {"period": f"{last_month:%Y-%m}", "revision": 0, "lines": [LINE]}
            book.add_period(
                int(self.now.timestamp()), f"{last_month:%Y-%m}", bytes(32), json.dumps(document), "[]", now_ms, 1
            )
            self.forward = {
                (role.name.lower()): book.state(lab.device).channels[n].register_mws / KWH
                for lab in (self.miner, self.node)
                for n, role in enumerate(lab.roles)
            }
        clock = Clock()
        clock.now_ms = lambda: now_ms
        there = sink(influx, folder)
        Projector(engine, there).rebuild()
        Days(engine, there, RUNNING).rebuild()
        Records(engine, there, RUNNING, clock).rebuild()

    def ask(self, text, span=timedelta(days=1), **chosen):
        """Send a query as Grafana does: its own variables, and ours; return {tags: values of the first column}."""
        begin, end = (int(at.timestamp() * 1000) for at in (self.now - span, self.now + timedelta(minutes=5)))
        chosen = {"device": self.miner.device.hex(), "owner": OWNER, "period": ".*", **chosen}
        text = text.replace("$timeFilter", f"time >= {begin}ms and time <= {end}ms").replace("$__interval", "1m")
        text = text.replace("$__from", str(begin)).replace("$__to", str(end))
        for name, value in chosen.items():
            text = text.replace(f"${name}", value)
        assert "$" not in text.replace("$/", ""), text
        return query(self.influx, text)


@pytest.fixture(scope="module", params=[influx_server, old_influx_server], ids=["influxdb2", "influxdb1"])
def view(request, tmp_path_factory):
    """A view of its own, so that "all" is what was written here."""
    folder = tmp_path_factory.mktemp("view")
    engine = open_engine(f"sqlite:///{folder}/ledger.db")
    with engine.begin() as connection:
        Book(connection).set_limits(0, Limits(pow_nbits_min=EASY))
    with served(request.param(folder)) as influx:
        yield Filled(engine, influx, folder)


def boards():
    return {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}


def queries():
    """Yield each InfluxQL query of a panel or mark: board, title, query, its own time."""
    for name, board in boards().items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                if "query" in target:
                    yield name, panel["title"], target["query"], panel.get("timeFrom", "")
        for mark in board["annotations"]["list"]:
            yield name, mark["name"], mark["query"], ""


def span(view, since):
    if since == "now/d":
        return timedelta(hours=view.now.hour, minutes=view.now.minute, seconds=view.now.second + 1)
    if since == "now/M":
        return view.now - view.now.replace(day=1, hour=0, minute=0, second=0) + timedelta(seconds=1)
    return timedelta(days=70) if since or "period" in since else timedelta(days=1)


@pytest.mark.parametrize(("board", "title", "text", "since"), list(queries()))
def test_every_query_gets_rows(view, board, title, text, since):
    wide = timedelta(days=70) if board == "settlement" else span(view, since)
    found = view.ask(text, wide)
    assert found, f"{board}: {title}"
    assert all(row[1] is not None for one in found for row in one["values"][-1:] if "fill(null)" not in text)


def value(view, board, title, by=None, **more):
    """Return the last value of a panel, or by a tag."""
    for name, what, text, since in queries():
        if (name, what) == (board, title):
            wide = timedelta(days=70) if name == "settlement" else span(view, since)
            found = view.ask(text, wide, **more)
            if by is None:
                return found[0]["values"][-1][1]
            return {one["tags"][by]: one["values"][-1][1] for one in found}
    raise AssertionError(title)


def test_the_numbers_are_the_ledgers_own(view):
    for title in ("Energy today", "Energy this month"):
        if span(view, "now/d") < timedelta(minutes=10):
            pytest.skip("midnight UTC was just now: what was measured is partly of yesterday")
        assert value(view, "fleet", title, "role") == pytest.approx(view.forward)
        own = {role: kwh for role, kwh in view.forward.items() if role != "received"}
        assert value(view, "device", title, "role") == pytest.approx(own)
        assert value(view, "device", title, "role", device=view.node.device.hex()) == pytest.approx(
            {"received": view.forward["received"]}
        )
    assert value(view, "fleet", "Power now", "role") == pytest.approx({"generation": 18, "sent": 18, "received": 16.2})
    assert value(view, "fleet", "Devices that deliver") == 3
    assert value(view, "fleet", "Refused today") == 1
    assert value(view, "operations", "Refused messages", "reason") == {"malformed": 1}
    share = value(view, "device", "At work")
    assert 0 < share <= 2 / 145
    assert value(view, "settlement", "Sent") == 1
    assert value(view, "settlement", "Received") == 0.75
    assert value(view, "settlement", "Lost") == 0.25
    assert value(view, "settlement", "To be paid") == 0.5


def test_variables_offer_names(view):
    found = {v["name"]: v for board in boards().values() for v in board["templating"]["list"]}
    [owners] = view.ask(found["owner"]["query"])
    assert OWNER in {row[1] for row in owners["values"]}
    [labels] = view.ask(found["device"]["query"])
    pattern = re.compile(found["device"]["regex"].strip("/").replace("(?<", "(?P<"))
    [chosen] = [pattern.search(row[1]).groupdict() for row in labels["values"]]
    assert chosen == {"text": "miner 1", "value": view.miner.device.hex()}
    [labels] = view.ask(found["device"]["query"], owner=".*")
    assert len(labels["values"]) == 3
    [periods] = view.ask(found["period"]["query"])
    assert re.fullmatch(r"\d{4}-\d{2}", periods["values"][0][1])


def test_the_files_are_what_their_source_makes():
    done = subprocess.run([sys.executable, ROOT / "scripts/dashboards.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_dashboard_is_complete():
    for name, board in boards().items():
        assert board["timezone"] == "utc"
        assert {link["title"] for link in board["links"]} == {"Dashboards", "Pages"}, name
        assert {mark["name"] for mark in board["annotations"]["list"]} == {"Faults and events", "Commands", "Decisions"}
        for panel in board["panels"]:
            assert panel["title"]
            assert panel["description"]
            assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
