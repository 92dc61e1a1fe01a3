"""The real service, as a process, on a real Mosquitto and each database: cut, killed, blocked, run twice."""

import random
import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from ingest.check import check
from maxgreen.chain.orders import Ends, Line, LossTerms, Reading
from maxgreen.errors import Retryable
from maxgreen.ledger import rejections
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine, reader
from maxgreen.ledger.lease import TERM_S, Lease
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.ledger.schema import batches, beacons, chains, commands, metadata, periods, replaced_periods, segments
from maxgreen.protocol.backend import Rejection, sign_beacon
from maxgreen.protocol.batch import Role
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Reason
from maxgreen.store import FolderStore
from maxgreen.verify.rules import Limits
from settlement import close, outcomes
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon
from tests.conftest import served
from tests.ingest.desks import BACKEND, NOBODY, Bench, reasons, register, rows
from tests.ingest.site import Site
from tests.ingest.test_worker import poison
from tests.services import free_port, mosquitto_server, stop, wait_for

pytestmark = pytest.mark.services
EACH = 60


@pytest.fixture
def site(tmp_path, ledger_url):
    with served(mosquitto_server(tmp_path)) as port:
        yield Site(tmp_path, ledger_url, port, [Lab(secret) for secret in (1, 2, 3)])


def publish(site, seconds):
    """Send batches of three devices over some time; return their number."""
    labs = [site.lab(secret) for secret in (1, 2, 3)]
    client = site.client("publisher")
    for _ in range(EACH):
        for lab in labs:
            client.publish(
                device_topic(lab.device, "batch"), lab.sign(lab.batch([(1, 1)]), network=site.network), qos=1
            )
        time.sleep(seconds / EACH)
    client.disconnect()
    client.loop_stop()


def judged(site):
    for _ in range(20):
        try:
            with site.engine.begin() as connection:
                return len(connection.execute(select(batches.c.seq)).all())
        except Retryable:  # our own connection was cut too
            time.sleep(0.1)
    raise AssertionError("the ledger stays away")


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cut_once(site):
    """Do to the database what happens to databases: cut its connections, or hold its lock and read for long."""
    if site.engine.dialect.name == "postgresql":
        import psycopg

        server, _, name = site.url.replace("+psycopg", "").rpartition("/")
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        return
    other = sqlite3.connect(site.url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    time.sleep(0.3)
    other.execute("ROLLBACK")
    other.close()


def test_whatever_is_cut_or_killed_every_batch_is_in_the_ledger_once(site):
    chance, port = random.Random(3), free_port()
    site.subscribed("ingest")
    process = site.service(http=port)
    load = threading.Thread(target=publish, args=(site, 8))
    load.start()
    kills = 0
    try:
        while load.is_alive():
            time.sleep(chance.uniform(0.3, 0.8))
            try:
                cut_once(site)
            except sqlite3.OperationalError:
                pass
            if judged(site) > EACH * (kills + 1) // 2 and kills < 3:
                begun = children(process)
                process.kill()
                process.wait()
                wait_for(lambda: not any(map(runs, begun)), 30, "the end of what it had begun")
                kills += 1
                process = site.service(http=port, processes=kills % 2 + 1)
        wait_for(lambda: judged(site) == 3 * EACH, 60, "the last batch")
        wait_for(lambda: "ok" in site.ready(port), 60, "the service's readiness")
        assert process.poll() is None
    finally:
        load.join()
        stop(process)
    for secret in (1, 2, 3):
        lab = Lab(secret)
        assert reasons(site.engine, lab.device) == [Reason.NONE] * EACH
        with site.engine.begin() as connection:
            assert Book(connection).state(lab.device).next_seq == EACH
    assert kills > 0
    assert process.returncode == 0


SLOW = """
import runpy, signal, sys, time
install = signal.signal
signal.signal = lambda number, handler: install(
    number, (lambda *a: (time.sleep(1), handler(*a))) if callable(handler) else handler
)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_service_without_messages_ends_though_its_signal_came_late(site, processes):
    port = free_port()
    process = site.service(http=port, processes=processes, before=(sys.executable, "-c", SLOW))
    try:
        wait_for(lambda: "ok" in site.ready(port), 60, "the service's readiness")
    finally:
        stop(process)
    assert process.returncode == 0


def test_two_services_on_one_broker_and_ledger_double_nothing(site):
    for name in ("one", "two"):
        site.subscribed(name)
    processes = [site.service(name) for name in ("one", "two")]
    try:
        publish(site, 4)
        wait_for(lambda: judged(site) >= 3 * EACH, 60, "the last batch")
        time.sleep(1)
        assert [process.poll() for process in processes] == [None, None]
    finally:
        for process in processes:
            stop(process)
    assert judged(site) == 3 * EACH
    for secret in (1, 2, 3):
        assert reasons(site.engine, Lab(secret).device) == [Reason.NONE] * EACH
    with site.engine.begin() as connection:
        assert connection.execute(select(beacons.c.number)).scalars().all() == [0]  # one of them keeps house
    assert [process.returncode for process in processes] == [0, 0]
    assert "Traceback" not in site.log("one") + site.log("two")


def test_a_reader_stops_no_writer_and_sees_one_state(engine):
    lab, bench = Lab(), Bench(engine)
    bench.send(lab.next())
    with reader(engine).begin() as connection:
        book = Book(connection)
        before = book.revision()
        begun = time.monotonic()
        bench.send(lab.next())
        assert time.monotonic() - begun < 10
        assert book.revision() == before
        assert len(list(book.chain_of(lab.device))) == 1
    assert len(rows(engine)) == 2


def test_a_lease_has_one_holder_and_passes_on(engine, monkeypatch):
    one, two = Lease(engine, "x"), Lease(engine, "x")
    assert one.held()
    assert one.held(TERM_S - 1)
    assert not one.held(TERM_S + 1)
    assert not two.held()
    assert Lease(engine, "y").held()
    now = time.monotonic()
    clock = [now]
    monkeypatch.setattr("maxgreen.ledger.lease.time.monotonic", lambda: clock[0])
    for _ in range(40):  # the holder renews it
        clock[0] += 2
        assert one.held()
        assert not two.held()
    clock[0] += TERM_S + 1  # it hangs
    assert not two.held() or not one.held()
    for _ in range(20):
        clock[0] += 2
        if two.held():
            break
    assert two.held()
    assert not one.held()
    two.release()
    clock[0] += 2
    assert one.held()


def test_a_lease_of_a_process_that_is_no_more_is_free(engine):
    dead = Lease(engine, "x")
    dead._holder = dead._holder.rsplit(":", 2)[0] + ":4194300:gone"
    assert dead.held()
    assert Lease(engine, "x").held()


@pytest.mark.parametrize("processes", [1, 2])
def test_poison_ends_no_service_now_or_after_a_restart(site, processes):
    """Every message that ever broke one, before and after it is killed; the device that sent it is served on."""
    lab, port = site.lab(1), free_port()
    bad = list(poison(site.lab(1), site.network))
    good = [lab.sign(lab.batch([(1, 1)]), network=site.network) for _ in range(3)]
    site.subscribed("ingest")
    client, topic = site.client("publisher"), device_topic(lab.device, "batch")

    def send(*messages):
        for message in messages:
            client.publish(topic, message, qos=1).wait_for_publish(30)

    def kept():
        with reader(site.engine).begin() as connection:
            return {bytes(row.message) for row in Book(connection).all_evidence(1_000)}

    service = site.service(http=port, processes=processes)
    try:
        send(*bad[::2], good[0])
        wait_for(lambda: judged(site) == 1 and kept() >= set(bad[::2]), what="the first half")
        service.kill()
        service.wait()
        send(*bad[1::2], *good[1:])
        service = site.service(http=port, processes=processes)
        wait_for(lambda: judged(site) == 3 and kept() >= set(bad), what="the rest")
        assert reasons(site.engine, lab.device) == [Reason.NONE] * 3
        wait_for(lambda: site.ready(port) == '{"status":"ok"}', what="readiness")
        assert service.poll() is None
        assert "Traceback" not in site.log()
    finally:
        stop(service)
        client.disconnect()
        client.loop_stop()


def test_a_ledger_with_everything_in_it_goes_down_and_up_again(ledger_url):
    """What an earlier version knows stays, and the ledger is whole and goes on."""
    from importlib.resources import files

    from alembic import command
    from alembic.config import Config

    engine = open_engine(ledger_url)
    register(engine, Lab())
    with engine.begin() as connection:
        Book(connection).set_limits(0, Limits(pow_nbits_min=EASY, late_s=10**8))
    bench, lab = Bench(engine), Lab()
    bench.send(lab.next(), lab.next())
    lab.next()
    bench.send(lab.next())  # it waits for the one before
    assert rejections.tell(engine, [lab.device], Rejection(1_767_225_600, 63, "why")) == 1
    with engine.begin() as connection:
        some = {"device": lab.device, "number": 1}
        connection.execute(insert(commands).values(**some, expires_ms=1, who="x", message=b"1", obeyed=True, told_ms=2))
        connection.execute(
            insert(segments).values(**some, first_seq=0, next_seq=2, digest=b"1", first_ms=1, last_ms=2, state=b"s")
        )
        period = {"until_s": 1, "period": "2026-01", "run": b"r", "document": "{}", "closed_ms": 1}
        connection.execute(insert(periods).values(**period, claims="[]", revision=3))
        connection.execute(insert(replaced_periods).values(**period, replaced_ms=4))

    def stands():
        with engine.begin() as connection:
            known = [column for column in chains.c if column is not chains.c.rejection]
            return (
                connection.execute(select(*known)).all(),
                connection.execute(select(batches).order_by(batches.c.seq)).all(),
                connection.execute(select(commands)).all(),
            )

    bench.settle()
    before = stands()
    config = Config()
    config.set_main_option("script_location", str(files("maxgreen.ledger").joinpath("migrations")))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        for _ in range(3):
            command.downgrade(config, "-1")
        command.upgrade(config, "head")
    assert stands() == before
    found = check(engine, NETWORK)
    assert (found.damages, found.counters) == ((), ())
    assert Bench(engine).send(lab.sign(lab.batch(seq=9))).reason is Reason.GAP_BEFORE


def test_the_schema_goes_up_and_down(ledger_url):
    from importlib.resources import files

    from alembic import command
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import inspect

    engine = open_engine(ledger_url)
    with engine.begin() as connection:
        postgres = engine.dialect.name == "postgresql"
        context = MigrationContext.configure(
            connection,
            opts={"include_object": lambda _, name, kind, *__: kind != "table" or not name.startswith("batches_")},
        )
        differences = compare_metadata(context, metadata)
        # there, what is unique is so in each partition
        assert [(what, [column.name for column in key.columns]) for what, key in differences] == (
            [("add_constraint", ["device", "seq"])] if postgres else []
        )
    config = Config()
    config.set_main_option("script_location", str(files("maxgreen.ledger").joinpath("migrations")))
    revisions = list(ScriptDirectory.from_config(config).walk_revisions())
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        for _ in revisions:
            command.downgrade(config, "-1")
            command.upgrade(config, "+1")
            command.downgrade(config, "-1")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    register(open_engine(ledger_url), Lab())


def system(kind, roles):
    channels = [
        {"number": k, "role": int(role), "peak_mw": 40_000, "error_ppm": 5_000, "offset_mw": 0}
        for k, role in enumerate(roles)
    ]
    return {
        "kind": kind, "channels": channels, "place_deci": None, "since_ms": 0, "efficiency_ppm": 1_000_000,
        "battery_wh": 10**6, "online_required": False,
    }  # fmt: skip


def batch_of(lab, number):
    made = lab.batch(
        [(18_000_000 + 1_000 * (k % 7), 1_000_000 + 500 * k) for k in range(20)], work=lab.work(beacon(), shares=1)
    )
    return lab.sign(lab.attested(made) if number % 6 == 0 or number == 17 else made)


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_what_is_committed_around_a_close_is_paid_once(engine, monkeypatch, when, tmp_path):
    """The revision that a period covers is read before the batches that it covers."""
    miner = Lab(interval_ms=30_000)
    node = Lab(secret=4, roles=(Role.RECEIVED,), interval_ms=30_000)
    with engine.begin() as connection:
        put_devices(
            connection,
            [
                KnownDevice(miner.record(), 1, NOBODY, system("miner", miner.roles)),
                KnownDevice(node.record(), 2, NOBODY, system("storage_node", node.roles)),
            ],
        )
        book = Book(connection)
        book.set_limits(0, Limits(pow_nbits_min=EASY, shares_per_window=1, grace_s=40 * 86_400))
        book.add_beacon(beacon(), sign_beacon(beacon(), BACKEND, NETWORK))
    bench = Bench(engine)
    sent, received = ([batch_of(lab, k) for k in range(18)] for lab in (miner, node))
    bench.send(*sent, *received[:7], received_ms=T0_MS + 86_400_000)

    def late():
        bench.send(*received[7:], received_ms=T0_MS + 39 * 86_400_000)

    base = Reading(T0_MS // 1000, 0, 0)
    line = Line(Ends(1, 1, 2, 0), LossTerms(150_000, 0, 200_000), base.time_s, 0, *[base] * 4, *[0] * 7)
    contract = type("Contract", (), {"opened_lines": lambda _: [line]})()
    closer = close.Closer(engine, FolderStore(tmp_path / "evidence"), contract, BACKEND, NETWORK)
    account_of_days = outcomes.account_of_days
    if when == "before":
        late()
    if when == "during":
        monkeypatch.setattr(outcomes, "account_of_days", lambda *days: (late(), account_of_days(*days))[1])
    january = closer.close("2026-01", T0_MS + 39 * 86_400_000)
    monkeypatch.undo()
    if when == "after":
        late()
    february = closer.close("2026-02", T0_MS + 70 * 86_400_000)
    first, total = (int(closed.lines[0]["payable_total_mws"]) for closed in (january, february))
    assert (first == total) == (when == "before")
    assert total > 0.9 * node.meters[0].register_mws


def test_a_connection_that_broke_while_it_was_idle_is_replaced_without_a_word(engine):
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no connections to a server")
    import psycopg

    with engine.begin() as connection:
        assert Book(connection).rules_change() >= 0
    address = engine.url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [engine.url.database]
        )
    time.sleep(0.2)  # what was in use a moment ago is not asked whether it lives
    for one in (engine, reader(engine)):
        with one.begin() as connection:
            assert Book(connection).rules_change() >= 0
