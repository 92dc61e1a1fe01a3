"""Reconnecting: a fleet spreads out, a stable connection begins afresh, and a stop is a stop."""

import logging
import threading

import pytest

from maxgreen import mqtt
from maxgreen.mqtt import BrokerTable, Connection

SETTINGS = BrokerTable(host="broker.example", port=1)


class Client:
    """What Connection uses of paho's client: `holds` says how long each connection lasts, None that it fails."""

    def __init__(self, now, holds):
        self.now, self.holds, self.disconnected = now, list(holds), 0

    def connect(self, host, port, keepalive):
        assert (host, port) == ("broker.example", 1)
        self.held = self.holds.pop(0)
        if self.held is None:
            raise ConnectionRefusedError(111, "Connection refused")

    def loop_forever(self):
        self.now[0] += self.held

    def disconnect(self):
        self.disconnected += 1


class Waits:
    """An event whose waits are noted; it is set when the client has no connection left to give."""

    def __init__(self, client):
        self.client, self.asked = client, []

    def is_set(self):
        return not self.client.holds

    def wait(self, seconds):
        self.asked.append(seconds)


@pytest.fixture
def run(monkeypatch):
    def run(holds, max_retry_s=300):
        now = [0.0]
        monkeypatch.setattr(mqtt.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(mqtt.random, "uniform", lambda low, high: (low, high))
        client = Client(now, holds)
        connection = Connection(lambda _version: client, SETTINGS, max_retry_s=max_retry_s, versions=(4,))
        connection._stopping = Waits(client)
        connection._run()
        return connection._stopping.asked

    return run


def test_attempts_wait_a_random_part_of_a_time_that_doubles_up_to_its_limit(run):
    assert run([None] * 12) == [(0, float(min(2**k, 300))) for k in range(12)]
    assert run([None] * 7, max_retry_s=30)[-1] == (0, 30)


def test_only_a_connection_that_held_five_minutes_begins_afresh(run):
    assert [longest for _, longest in run([None, None, 299, None, 300, None])] == [1, 2, 4, 8, 1, 2]


def test_an_absent_broker_is_said_once(run, caplog):
    with caplog.at_level(logging.WARNING):
        run([None] * 5 + [1] + [None] * 5)
    assert [record.getMessage() for record in caplog.records] == [
        "broker broker.example:1: [Errno 111] Connection refused"
    ] * 2


def test_a_stop_ends_the_thread_also_while_it_waits():
    connection = Connection(
        lambda version: mqtt.make_client(SETTINGS, "nobody", version=version), BrokerTable(port=1), max_retry_s=300
    )
    connection.start()
    connection.stop()
    assert "mqtt" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}


class Versioned(Client):
    """A client of one protocol version, on a broker that accepts `knows` alone."""

    def __init__(self, now, holds, version, asked):
        super().__init__(now, holds)
        self.holds, self.version, self.asked = holds, version, asked

    def connect(self, host, port, keepalive, **more):
        self.asked.append((self.version, more.get("clean_start"), "properties" in more))
        super().connect(host, port, keepalive)


def test_mqtt_5_is_asked_first_and_what_the_broker_accepted_stays(monkeypatch):
    now, asked, holds = [0.0], [], [0, 10, 10, 10]
    monkeypatch.setattr(mqtt.time, "monotonic", lambda: now[0])
    made = []

    def make(version):
        made.append(Versioned(now, holds, version, asked))
        return made[-1]

    connection = Connection(make, SETTINGS, max_retry_s=300)
    connection._stopping = Waits(made[0])
    original = Versioned.loop_forever

    def loop(client):
        original(client)
        if client.version == 4:
            connection.accepted()

    monkeypatch.setattr(Versioned, "loop_forever", loop)
    connection._run()
    assert asked == [(5, False, True)] + [(4, None, False)] * 3
