"""paho's client with what a backend needs of it: buffers, a short way for what comes often, bounds.

paho asks the system for each byte of a header, hands it each packet alone, and keeps books of each message. Here the
socket is read and written in large parts; PUBLISH and PUBACK (MQTT 3.1.1 and 5, 3.3 and 3.4) that are whole and plain
are taken apart at once. Whatever else comes, in parts or with properties, is paho's.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

LARGEST_BYTES: Final = 80 * 1024  # of a packet: the largest message of the protocol (P-BAT-1), topic and header
_READ_AHEAD: Final = 65_536  # bytes that are asked of the socket at once
_MOST_UNSENT: Final = 65_536  # bytes, before paho keeps packets back
_KIND, _QOS, _QOS_1, _RETAIN = 0xF0, 0x06, 0x02, 0x01  # of a packet's first byte
_LENGTH_BYTES: Final = 4  # at most, of a packet's length

Heard = Callable[[bytes, bytes, int, int, bool], None]  # topic, payload, packet id, QoS, retained
Answered = Callable[[int, int], None]  # packet id, reason code


class Client(mqtt.Client):
    """paho's client, driven by who calls `loop_read` and `loop_write`; nothing is written before that."""

    def __init__(self, heard: Heard, answered: Answered, largest: int, **options: Any) -> None:
        """`heard` gets what comes, `answered` what the broker says to `send`; `largest`: bytes of a packet."""
        super().__init__(**options)
        self._heard, self._answered, self._largest = heard, answered, largest
        self._acknowledges = not options.get("manual_ack", False)
        self._is_5 = options.get("protocol") == mqtt.MQTTv5
        self._ahead, self._at = b"", 0  # what was read, and how much of it was looked at
        self._unsent = bytearray()
        self.on_message = lambda _client, _data, message: heard(
            message._topic,  # noqa: SLF001 - `topic` raises where it is no UTF-8
            bytes(message.payload),
            message.mid,
            message.qos,
            message.retain,
        )
        self.on_socket_register_write = lambda *_: None  # else each packet is written when it is made

    @property
    def has_read_ahead(self) -> bool:
        """Whether something was read that nobody looked at."""
        return self._at < len(self._ahead)

    def send(self, topic: bytes, payload: bytes, *, retain: bool) -> int:
        """Let a message of QoS 1 go out with the next `loop_write`; return its packet id."""
        number = self._mid_generate()
        rest = b"".join([
            len(topic).to_bytes(2, "big"), topic, number.to_bytes(2, "big"), b"\0" if self._is_5 else b"", payload
        ])  # fmt: skip
        packet = bytearray([mqtt.PUBLISH | _QOS_1 | retain])
        self._pack_remaining_length(packet, len(rest))
        self._packet_queue(mqtt.PUBLISH, packet + rest, number, 1)
        return number

    def acknowledge(self, numbers: Iterable[int]) -> None:
        """Acknowledge messages of QoS 1 by their packet ids, in one part."""
        packets = b"".join([b"\x40\x02" + number.to_bytes(2, "big") for number in numbers])
        if packets:
            self._packet_queue(mqtt.PUBACK, packets, 0, 1)

    def want_write(self) -> bool:
        """Tell whether anything waits to go out."""
        return bool(self._unsent) or super().want_write()

    def loop_write(self) -> MQTTErrorCode:
        """Write what waits, in as few parts as the socket takes."""
        code = super().loop_write()
        try:
            self._flush()
        except OSError as error:
            self._easy_log(mqtt.MQTT_LOG_ERR, "failed to send on socket: %s", error)
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        return code

    def ping_unheard(self) -> None:
        """Keep the connection alive while nothing is read from it: the answer waits behind what is not read."""
        now_s = time.monotonic()
        if now_s - self._last_msg_out > self._keepalive / 2:
            self._send_pingreq()
            self._last_msg_out = now_s
        self._ping_t, self._last_bytes_received = 0.0, now_s

    def _packet_read(self) -> MQTTErrorCode:
        if self._in_packet["command"] == 0:
            try:
                if not self.has_read_ahead:
                    self._fill(_READ_AHEAD)
            except BlockingIOError:
                return MQTTErrorCode.MQTT_ERR_AGAIN
            except OSError as error:
                self._easy_log(mqtt.MQTT_LOG_ERR, "failed to receive on socket: %s", error)
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            if self._take():
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._packet_read()

    def _take(self) -> bool:
        """Take the next packet apart, if it is whole and plain; what is not, stays."""
        ahead, begin = self._ahead, self._at + 1
        length = shift = 0
        while True:
            if begin >= len(ahead) or shift == 7 * _LENGTH_BYTES:
                return False
            byte = ahead[begin]
            begin += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        end = begin + length
        if end > len(ahead) or length > self._largest:
            return False
        first = ahead[self._at]
        if first == mqtt.PUBACK:
            taken = self._take_answer(ahead[begin:end])
        else:
            taken = first & _KIND == mqtt.PUBLISH and self._take_message(first, ahead[begin:end])
        if taken:
            self._at = end
        return taken

    def _take_message(self, first: int, packet: bytes) -> bool:
        qos = (first & _QOS) >> 1
        topic_ends = 2 + int.from_bytes(packet[:2], "big")
        begin = topic_ends + 2 * qos
        if qos > 1 or topic_ends == 2 or begin + self._is_5 > len(packet) or (self._is_5 and packet[begin]):
            return False
        number = int.from_bytes(packet[topic_ends:begin], "big")
        self._heard(packet[2:topic_ends], packet[begin + self._is_5 :], number, qos, bool(first & _RETAIN))
        if qos and self._acknowledges:
            self.acknowledge([number])
        return True

    def _take_answer(self, packet: bytes) -> bool:
        """Hear PUBACK; only MQTT 5 has a reason code in it."""
        if len(packet) < 2 or (len(packet) > 2 and not self._is_5):
            return False
        self._answered(int.from_bytes(packet[:2], "big"), packet[2] if len(packet) > 2 else 0)
        return True

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:
        if cmd != "PUBACK":
            return super()._handle_pubackcomp(cmd)
        is_whole = self._take_answer(bytes(self._in_packet["packet"]))
        return MQTTErrorCode.MQTT_ERR_SUCCESS if is_whole else MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _fill(self, size: int) -> None:
        self._ahead, self._at = super()._sock_recv(size), 0
        self._last_bytes_received = time.monotonic()

    def _sock_recv(self, bufsize: int) -> bytes:
        """Read; the rest of a packet that is too large is never asked for."""
        if bufsize > self._largest:
            raise ConnectionError(f"the broker announces a packet that is larger than any of the protocol's: {bufsize}")
        if not self.has_read_ahead:
            self._fill(max(bufsize, _READ_AHEAD))
        part = self._ahead[self._at : self._at + bufsize]
        self._at += len(part)
        return part

    def _sock_send(self, buf: bytes | bytearray) -> int:
        """Keep bytes until `loop_write` ends, a bounded number of them."""
        if len(self._unsent) > _MOST_UNSENT:
            raise BlockingIOError
        self._unsent += buf
        return len(buf)

    def _sock_close(self) -> None:
        """Close, after what is under way: a goodbye is written last."""
        with suppress(OSError):
            self._flush()
        super()._sock_close()

    def _flush(self) -> None:
        with suppress(BlockingIOError):
            while self._unsent and self._sock is not None:
                del self._unsent[: super()._sock_send(self._unsent)]
