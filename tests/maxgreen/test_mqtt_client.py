"""The short way of PUBLISH and PUBACK: what paho itself hears of the same bytes, however they are cut."""

import random
import time

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.client import CallbackAPIVersion
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from maxgreen.mqtt_client import LARGEST_BYTES, Client

ENDS = MQTTErrorCode.MQTT_ERR_CONN_LOST


class Wire:
    """A socket that gives bytes in parts, then has none, and takes so many at once."""

    def __init__(self, parts=(), takes=1 << 30):
        self.parts, self.takes, self.written, self.calls = list(parts), takes, b"", 0

    def recv(self, size):
        if not self.parts:
            raise BlockingIOError
        part = self.parts.pop(0)
        if len(part) > size:
            self.parts.insert(0, part[size:])
        return part[:size]

    def send(self, data):
        if self.takes == 0:
            raise BlockingIOError
        taken = bytes(data[: self.takes])
        self.written += taken
        self.calls += 1
        return len(taken)

    def close(self):
        """Nothing is held."""


def ours(protocol, wire, *, manual_ack=True):
    """Return our client on a wire, and what it hears."""
    heard = []
    client = Client(
        lambda *message: heard.append(message),
        lambda *answer: heard.append(answer),
        LARGEST_BYTES,
        callback_api_version=CallbackAPIVersion.VERSION2,
        protocol=MQTTProtocolVersion(protocol),
        manual_ack=manual_ack,
    )
    client._sock = wire
    return client, heard


def theirs(protocol, wire):
    """Return paho's client on a wire, and what it hears; each PUBACK is of a message that it knows."""
    heard = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion(protocol), manual_ack=True)
    client.on_message = lambda _client, _data, m: heard.append((m._topic, bytes(m.payload), m.mid, m.qos, m.retain))
    client.on_publish = lambda _client, _data, mid, code, _properties: heard.append((mid, code.value))
    for number in range(1, 200):
        client._out_messages[number] = mqtt.MQTTMessage(number, b"t")
    client._sock = wire
    return client, heard


def read_all(client):
    """Read until the wire is empty or the connection ends."""
    for _ in range(100_000):
        code = client.loop_read()
        if client._sock is None or code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return "ended"
        if not client._sock.parts and not getattr(client, "has_read_ahead", False):
            return "open"
    raise AssertionError("it reads for ever")


def varint(value):
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def packet(random_, number, protocol):
    """Return a random packet of a broker, now and then a broken one."""
    is_5 = protocol == mqtt.MQTTv5
    kind = random_.random()
    if kind < 0.25:
        code = random_.choice([b"", b"", b"\x00", b"\x10", b"\x87\x00"]) if is_5 else b""
        body, first = number.to_bytes(2, "big") + code, 0x40
    elif kind < 0.3:
        body, first = b"", 0xD0
    else:
        qos = random_.choice([0, 1, 1, 1])
        topic = random_.choice([b"mg/v1/00/ab/batch", "ü".encode(), b"\xff\xfe", b"t" * 300])
        properties = random_.choice([b"\0", b"\0", b"\x05\x02\0\0\0\x07"]) if is_5 else b""
        payload = random_.randbytes(random_.choice([0, 1, 100, 127, 128, 900, 20_000]))
        body = (
            len(topic).to_bytes(2, "big") + topic + (number.to_bytes(2, "big") if qos else b"") + properties + payload
        )
        first = 0x30 | qos << 1 | random_.randrange(2)
    if random_.random() < 0.01:
        body = body[: random_.randrange(len(body) + 1)]
    if random_.random() < 0.003:
        first = random_.choice([k for k in range(256) if k >> 4 not in {5, 7}])  # of QoS 2, which nobody sends here
    return bytes([first]) + varint(len(body)) + body


@pytest.mark.parametrize("protocol", [mqtt.MQTTv311, mqtt.MQTTv5])
def test_it_hears_what_paho_hears(protocol):
    """Of random streams in random parts: the same messages and answers in the same order, and the same end."""
    ends = set()
    for seed in range(150):
        random_ = random.Random(seed)
        stream = b"".join(packet(random_, k, protocol) for k in range(1, random_.randrange(2, 120)))
        parts = []
        while stream:
            size = random_.choice([1, 2, 3, 50, 1_500, 70_000])
            parts.append(stream[:size])
            stream = stream[size:]
        client, heard = ours(protocol, Wire(parts))
        peer, expected = theirs(protocol, Wire(parts))
        ended, peer_ended = outcome(client), outcome(peer)
        assert heard == expected, seed
        assert ended == peer_ended, seed
        ends.add(ended)
    assert ends == {"open", "ended"}


def outcome(client):
    """Return how reading ends; paho itself raises for some of what it is sent."""
    try:
        return read_all(client)
    except Exception:
        return "ended"


def test_random_bytes_end_the_connection_or_nothing():
    for seed in range(300):
        random_ = random.Random(seed)
        client, heard = ours(mqtt.MQTTv5, Wire([random_.randbytes(random_.randrange(1, 3_000))]))
        outcome(client)
        assert all(len(one) in {2, 5} for one in heard)


@pytest.mark.parametrize("protocol", [mqtt.MQTTv311, mqtt.MQTTv5])
def test_what_goes_out_is_written_in_one_part_and_comes_as_it_was(protocol):
    wire = Wire()
    client, _ = ours(protocol, wire)
    for k in range(50):
        client.send(b"t%d" % k, b"x" * k, retain=bool(k % 2))
    client.acknowledge(range(1, 101))
    client.acknowledge([])
    assert wire.calls == 0
    client.loop_write()
    assert (wire.calls, client.want_write()) == (1, False)
    peer, heard = theirs(protocol, Wire([wire.written]))
    assert read_all(peer) == "open"
    assert heard[:50] == [(b"t%d" % k, b"x" * k, k + 1, 1, bool(k % 2)) for k in range(50)]
    assert heard[50:] == [(k, 0) for k in range(1, 101)]


def test_who_is_not_read_gets_the_rest_later_and_a_bounded_part_is_kept():
    wire = Wire(takes=0)
    client, _ = ours(mqtt.MQTTv311, wire)
    for _ in range(100):
        client.send(b"t", b"x" * 9_000, retain=False)
    client.loop_write()
    assert len(client._unsent) < 80_000
    wire.takes = 1_000
    for _ in range(1_000):
        client.loop_write()
    assert len(wire.written) == 100 * (9_000 + 3 + 2 + 3)
    assert not client.want_write()


def test_a_goodbye_is_written_before_the_end():
    wire = Wire()
    client, _ = ours(mqtt.MQTTv311, wire)
    client.send(b"t", b"last words", retain=False)
    client.disconnect()
    client.loop_write()
    assert wire.written.endswith(b"last words\xe0\x00")
    assert client.socket() is None


@pytest.mark.parametrize("doing", ["recv", "send"])
def test_a_socket_that_breaks_ends_the_connection_with_its_reason(doing):
    """The reason is what tells an expired certificate from a broker that restarts."""
    wire, said, ended = Wire(), [], []
    client, _ = ours(mqtt.MQTTv311, wire)
    client.enable_logger(mqtt.logging.getLogger("paho"))
    client.on_log = lambda _client, _data, _level, text: said.append(text)
    client.on_disconnect = lambda *_: ended.append(1)

    def broken(*_):
        raise ConnectionResetError(104, "tlsv1 alert unknown ca")

    setattr(wire, doing, broken)
    client.send(b"t", b"x", retain=False)
    (client.loop_read if doing == "recv" else client.loop_write)()
    assert "tlsv1 alert unknown ca" in said[-1]
    assert (ended, client.socket()) == ([1], None)


def test_it_acknowledges_by_itself_where_nobody_else_does():
    wire = Wire([b"\x32\x06\x00\x01t\x00\x07x"])
    client, heard = ours(mqtt.MQTTv311, wire, manual_ack=False)
    read_all(client)
    client.loop_write()
    assert (heard, wire.written) == ([(b"t", b"x", 7, 1, False)], b"\x40\x02\x00\x07")


def test_a_packet_that_is_too_large_ends_the_connection():
    client, _ = ours(mqtt.MQTTv311, Wire([b"\x30\xff\xff\xff\x7f" + b"\0" * 100]))
    said = []
    client.enable_logger(mqtt.logging.getLogger("paho"))
    client.on_log = lambda _client, _data, _level, text: said.append(text)
    assert read_all(client) == "ended"
    assert "larger than any of the protocol's" in said[0]


def test_who_reads_nothing_on_pings_by_its_own_keepalive(monkeypatch):
    """A broker ends a connection after one and a half of the keepalive that it was told."""
    client, sent = ours(mqtt.MQTTv311, Wire())[0], []
    monkeypatch.setattr(client, "_send_pingreq", lambda: sent.append(1))
    for keepalive_s, silent_s, pings in ((10, 4, 0), (10, 6, 1), (60, 6, 0), (60, 31, 1)):
        client._keepalive, client._last_msg_out = keepalive_s, time.monotonic() - silent_s
        sent.clear()
        client.ping_unheard()
        assert len(sent) == pings, (keepalive_s, silent_s)
