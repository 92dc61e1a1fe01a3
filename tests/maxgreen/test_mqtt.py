"""Reconnecting: a fleet spreads out, a stable connection begins afresh, a stop is a stop, and no bytes end the thread."""

import contextlib
import logging
import os
import random
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from maxgreen import mqtt
from maxgreen.mqtt import BrokerTable, Connected, Connection, Disconnected, Incoming
from tests.conftest import wait_for

SETTINGS = BrokerTable(host="broker.example", port=1)


@pytest.fixture
def run(monkeypatch):
    """Run a connection whose attempts last as long as given, None where they fail; return the waits between them."""

    def run(holds, max_retry_s=300):
        now, asked, notices = [0.0], [], []
        monkeypatch.setattr(mqtt.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(mqtt.random, "uniform", lambda low, high: (low, high))
        connection = Connection(SETTINGS, "me", sink=notices.append, max_retry_s=max_retry_s, versions=(4,))
        left = list(holds)

        def connect_once():
            held = left.pop(0)
            if not left:
                connection._stopping.set()
            connection._greeted = held is not None
            if held is None:
                return "[Errno 111] Connection refused"
            now[0] += held
            connection._accept()
            return "closed"

        monkeypatch.setattr(connection, "_connect_once", connect_once)
        monkeypatch.setattr(connection, "_wait", asked.append)
        connection._run()
        return asked

    return run


def test_attempts_wait_a_random_part_of_a_time_that_doubles_up_to_its_limit(run):
    assert run([None] * 13) == [(0, float(min(2**k, 300))) for k in range(12)]
    assert run([None] * 8, max_retry_s=30)[-1] == (0, 30)


def test_only_a_connection_that_held_longer_than_the_next_wait_begins_afresh(run):
    assert [longest for _, longest in run([None, None, 3, None, 300, None, None])] == [1, 2, 4, 8, 1, 2]


def test_a_broker_that_greets_and_lets_go_again_and_again_is_asked_each_minute_at_least(run):
    assert [longest for _, longest in run([0.5] * 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_fifty_reconnects_in_ten_minutes_keep_a_device_away_for_seconds(run):
    assert {longest for _, longest in run([12] * 50)} == {1}


def test_an_absent_broker_is_said_once(run, caplog):
    with caplog.at_level(logging.WARNING):
        run([None] * 5 + [1] + [None] * 5)
    assert [record.getMessage() for record in caplog.records] == [
        "broker broker.example:1: [Errno 111] Connection refused",
        "broker broker.example:1: closed",
        "broker broker.example:1: [Errno 111] Connection refused",
    ]


def test_a_stop_ends_the_thread_also_while_it_waits():
    connection = Connection(BrokerTable(port=1), "nobody", sink=lambda _notice: None)
    connection.start()
    connection.stop()
    assert "mqtt" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}


class Peer:
    """Something that listens and answers each connection with what `answer` gives."""

    def __init__(self, answer, hold_s=0.002):
        self.answer, self.connections, self.greetings, self.hold_s = answer, 0, [], hold_s
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(50)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                try:
                    connection.settimeout(2)
                    self.greetings.append(connection.recv(500))
                    connection.sendall(self.answer(self.connections))
                    time.sleep(self.hold_s)
                except OSError:
                    pass

    def close(self):
        self.socket.close()


CONNACK = b"\x20\x02\x00\x00"
RANDOM = random.Random(5)


def garbage(_number):
    """A captive portal, another service, a broken proxy, or a broker that ends in nonsense."""
    body = bytes(RANDOM.randrange(256) for _ in range(RANDOM.randrange(12)))
    kind = RANDOM.choice([0x20, 0x30, 0x32, 0x40, 0x50, 0x62, 0x70, 0x90, 0xB0, 0xD0, 0xE0, 0xF0])
    packet = bytes([kind, len(body)]) + body
    return RANDOM.choice(
        [
            bytes(RANDOM.randrange(256) for _ in range(RANDOM.randrange(1, 40))),
            b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n",
            packet,
            CONNACK + packet,
            b"\x20\x03\x00\x00\x00" + packet,
        ]
    )


def test_no_bytes_of_a_peer_end_the_thread(monkeypatch):
    died = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    peer = Peer(garbage)
    connection = Connection(
        BrokerTable(port=peer.port), "me", sink=lambda _notice: None, subscriptions=[("t", 1)], max_retry_s=0.001
    )
    connection._wait = lambda _seconds: None
    connection.start()
    wait_for(lambda: peer.connections >= 500, seconds=120, what="500 connections")
    assert connection._thread.is_alive()
    connection.stop()
    peer.close()
    assert died == []


def rss_mib():
    with open("/proc/self/status") as file:  # noqa: PTH123
        return int(file.read().split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.parametrize(
    ("flood", "word"),
    [
        (b"\x30\xff\xff\xff\x7f" + bytes(2**25), "larger than any"),  # 256 MiB are announced
        (b"\x34\x07\x00\x01t\x00\x01xy" * 400_000, "QoS 2"),
    ],
    ids=["one packet", "QoS 2"],
)
def test_a_peer_that_floods_us_ends_the_connection_and_takes_no_memory(flood, word):
    peer = Peer(lambda _number: CONNACK + flood)
    notices = []
    connection = Connection(BrokerTable(port=peer.port), "me", sink=notices.append, versions=(4,), max_retry_s=0.01)
    before = rss_mib()
    connection.start()
    wait_for(lambda: sum(word in getattr(n, "reason", "") for n in notices) >= 3, what="the end")
    connection.stop()
    peer.close()
    assert rss_mib() - before < 100  # the peer's own copies of what it sends


def test_a_broker_of_one_version_alone_is_found_and_kept():
    def answer(number):
        # this one knows 3.1.1 alone, and closes without a word when it is greeted otherwise
        version = peer.greetings[number - 1][8]
        return CONNACK if version == 4 else b""

    peer = Peer(answer)
    notices = []
    connection = Connection(BrokerTable(port=peer.port), "me", sink=notices.append, max_retry_s=0.01)
    connection.start()
    wait_for(lambda: sum(isinstance(n, Connected) for n in notices) >= 3, what="three connections")
    connection.stop()
    peer.close()
    assert [greeting[8] for greeting in peer.greetings[:4]] == [5, 4, 4, 4]


def test_messages_wait_for_room_and_none_is_lost():
    import struct

    packets = b"".join(
        bytes([0x30, 7]) + struct.pack(">H", 1) + b"t" + struct.pack(">I", number) for number in range(5_000)
    )
    peer = Peer(lambda number: CONNACK + packets if number == 1 else b"")
    taken, room = [], [True]
    connection = Connection(
        BrokerTable(port=peer.port), "me", sink=taken.append, has_room=lambda: room[0], versions=(4,), max_retry_s=0.01
    )
    room[0] = False
    connection.start()
    time.sleep(0.3)
    room[0] = True
    wait_for(lambda: sum(isinstance(n, Incoming) for n in taken) == 5_000, what="all messages")
    connection.stop()
    peer.close()
    assert [n.payload for n in taken if isinstance(n, Incoming)] == [struct.pack(">I", k) for k in range(5_000)]


def test_a_broker_that_never_answers_subscriptions_is_given_up(monkeypatch):
    monkeypatch.setattr(mqtt, "_GREETING_S", 0.3)
    peer = Peer(lambda _number: CONNACK, hold_s=5)
    notices = []
    connection = Connection(
        BrokerTable(port=peer.port),
        "me",
        sink=notices.append,
        subscriptions=[("t", 1)],
        versions=(4,),
        max_retry_s=0.01,
    )
    connection.start()
    wait_for(lambda: any("no answer within" in getattr(n, "reason", "") for n in notices), what="the end")
    connection.stop()
    peer.close()


def test_publishing_goes_over_the_connection_that_was_meant():
    connection = Connection(BrokerTable(port=1), "me", sink=lambda _notice: None, waiting=2)
    connection._open, connection._session = True, 7
    assert connection.publish("t", b"", session=6) is None
    assert [connection.publish("t", b"", session=7) for _ in range(3)] == [1, 2, None]
    assert connection.publish("t", b"offline", urgent=True) == 3
    assert connection._outbox[0].payload == b"offline"


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0", "x" * 65_536])
def test_what_is_no_topic_is_refused_here(topic):
    with pytest.raises(ValueError, match="no topic"):
        Connection(BrokerTable(port=1), "me", sink=lambda _notice: None).publish(topic, b"")


def certificate(folder, name, issuer=None):
    """Write a key and a certificate, of an issuer's or its own; return both as `issuer` of others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signing, by = issuer or (key, subject)
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(by, subject, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    made = made.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    signed = made.sign(signing, hashes.SHA256())
    (folder / f"{name}.crt").write_bytes(signed.public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    return key, subject


def test_a_certificate_that_the_broker_does_not_take_is_said_each_time(tmp_path, monkeypatch):
    """In TLS 1.3 the client hears of it after the handshake: at its first write, or at its first read."""
    monkeypatch.setattr(mqtt, "_FIRST_RETRY_S", 0.01)
    ours, _ = certificate(tmp_path, "ours"), certificate(tmp_path, "theirs")
    for name in ("server", "client"):
        certificate(tmp_path, name, ours)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "theirs.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    peer = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = peer.accept()
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(100)

    threading.Thread(target=serve, daemon=True).start()
    settings = BrokerTable(
        host="localhost", port=peer.getsockname()[1], ca=tmp_path / "ours.crt",
        certificate=tmp_path / "client.crt", key=tmp_path / "client.key",
    )  # fmt: skip
    notices = []
    connection = Connection(settings, "me", sink=notices.append, max_retry_s=0.01)
    connection.start()
    wait_for(lambda: len(notices) >= 6, what="six attempts")
    connection.stop()
    peer.close()
    for notice in notices[:6]:
        assert isinstance(notice, Disconnected)
        assert notice.refused, notice
        assert "does it refuse this certificate?" in notice.reason


def test_a_certificate_that_is_not_there_is_said_and_tried_again(tmp_path, caplog):
    notices = []
    settings = BrokerTable(port=1, ca=tmp_path / "none.pem")
    connection = Connection(settings, "me", sink=notices.append, max_retry_s=0.01)
    connection.start()
    wait_for(lambda: sum(isinstance(n, Disconnected) for n in notices) >= 2, what="two attempts")
    connection.stop()
    assert "No such file" in caplog.text


def test_publishing_is_refused_when_not_connected_and_when_too_many_wait():
    connection = Connection(BrokerTable(port=1), "me", sink=lambda _notice: None, waiting=3)
    assert connection.publish("t", b"") is None
    connection._open = True
    assert [connection.publish("t", os.urandom(4)) for _ in range(5)] == [1, 2, 3, None, None]
