"""A segment: what a device's chain took from one batch to another, with all that judging it again needs (P-PCK-3).

It never changes, is named by its SHA-256, and leads on from the one before: by its digest, and by the chain's state.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar

from maxgreen.protocol import cbor
from maxgreen.protocol.batch import MAX_MESSAGE_BYTES, MAX_SENSORS, MAX_SEQ, SignedBatch, decode_birth
from maxgreen.protocol.reasons import Malformed
from maxgreen.verify.chain import ChainState, ChannelState
from maxgreen.verify.meter import Sample

MAX_BATCHES: Final = 4_096  # but for those that wait for a date: a segment ends where none does
CUT_BYTES: Final = 16 * 2**20  # of batches in a segment, where it can end
MAX_BYTES: Final = 256 * 2**20
_VERSION: Final = 1
_TIME: Final = 2**50
_REGISTER: Final = 2**62
_DIGEST: Final = 32
_FIELDS: Final = 9
_NULL: Final = b"\xf6"
T = TypeVar("T")


class Taking(NamedTuple):
    """A batch that took its place: the signed bytes, when they came (ms).

    `skipped_to`: the chain was skipped to it. `idle`: its work is not looked at, since it was of a beacon that the
    backend did not know then, or too easy.
    """

    message: bytes
    received_ms: int
    skipped_to: bool = False
    idle: bool = False


@dataclass(frozen=True)
class Segment:
    """A part of a device's chain."""

    network: str
    device: bytes
    previous: bytes | None  # SHA-256 of the segment before
    start: ChainState
    predecessor: ChainState | None  # the chain that a first batch with field 14 succeeds
    batches: tuple[Taking, ...]
    beacons: tuple[bytes, ...] = ()  # signed, those that the batches' work names, ascending
    receipts: tuple[bytes, ...] = ()  # signed, the last of each UTC day that ends in one of the batches

    @cached_property
    def data(self) -> bytes:
        """The segment as it is kept: deterministic CBOR."""
        return cbor.encode(
            [
                _VERSION,
                self.network,
                self.device,
                self.previous,
                _ordered(self.start).to_bytes(),
                None if self.predecessor is None else _ordered(self.predecessor).to_bytes(),
                [[t.message, t.received_ms, t.skipped_to + 2 * t.idle] for t in self.batches],
                list(self.beacons),
                list(self.receipts),
            ]
        )

    @cached_property
    def digest(self) -> bytes:
        """Its SHA-256, which names it."""
        return hashlib.sha256(self.data).digest()

    @classmethod
    def parse(cls, data: bytes) -> "Segment":
        """Read a segment; Malformed unless it is one, in its one form."""
        if len(data) > MAX_BYTES:
            raise Malformed(f"a segment of {len(data)} bytes")
        read = _Reader(data)
        if (read.array(), read.number(_VERSION)) != (_FIELDS, _VERSION):
            raise Malformed(f"not a segment of version {_VERSION}")
        segment = cls(
            read.text(),
            read.bytes(16),
            read.optional(lambda: read.bytes(_DIGEST)),
            _state(read.bytes()),
            read.optional(lambda: _state(read.bytes())),
            tuple(_taking(read) for _ in range(read.array())),
            tuple(read.bytes() for _ in range(read.array())),
            tuple(read.bytes() for _ in range(read.array())),
        )
        if segment.data != data:
            raise Malformed("not a segment's one form")
        return segment


class _Reader:
    """Reads CBOR items one after the other, each of the kind that is expected, without building more than it is."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _head(self, major: int) -> int:
        """Return the argument of the next item, of this major type (RFC 8949, 3)."""
        first = self._data[self._at] if self._at < len(self._data) else 0xFF
        size = {24: 1, 25: 2, 26: 4, 27: 8}.get(first & 31, 0)
        if first >> 5 != major or first & 31 > 27:
            raise Malformed(f"byte {self._at}: another kind of item than a segment has there")
        end = self._at + 1 + size
        value = int.from_bytes(self._data[self._at + 1 : end], "big") if size else first & 31
        self._at = end
        return value

    def array(self) -> int:
        """Return how many items an array has; each has a byte at least."""
        count = self._head(4)
        if count > len(self._data) - self._at:
            raise Malformed("an array that is longer than its segment")
        return count

    def number(self, most: int) -> int:
        """Return an unsigned number."""
        return cbor.check_integer(self._head(0), "number", 0, most)

    def _slice(self, major: int, most: int) -> bytes:
        size = self._head(major)
        found = self._data[self._at : self._at + size]
        if size > most or len(found) != size:
            raise Malformed(f"byte {self._at}: {size} bytes are too many")
        self._at += size
        return found

    def bytes(self, size: int | None = None) -> bytes:
        """Return a byte string, of exactly `size` bytes where given."""
        return cbor.check_bytes(self._slice(2, MAX_MESSAGE_BYTES), "bytes", size)

    def text(self) -> str:
        """Return text."""
        try:
            return self._slice(3, cbor.MAX_TEXT).decode()
        except UnicodeDecodeError as error:
            raise Malformed("text that is none") from error

    def optional(self, read: Callable[[], T]) -> T | None:
        """Return what is read, or None for null."""
        if self._data[self._at : self._at + 1] == _NULL:
            self._at += 1
            return None
        return read()


def segment_name(digest: bytes) -> str:
    """Return what a segment is called, in a store and in a pack."""
    return f"segments/{digest.hex()}.cbor"


def without_work(signed: SignedBatch) -> SignedBatch:
    """Return a batch as it is judged where its work is not looked at."""
    return replace(signed, batch=replace(signed.batch, work=None))


def _taking(read: _Reader) -> Taking:
    if read.array() != len(("message", "arrival", "flags")):
        raise Malformed("a batch that is not [message, arrival, flags]")
    message, received_ms, flags = read.bytes(), read.number(_TIME), read.number(3)
    return Taking(message, received_ms, bool(flags & 1), bool(flags & 2))


def _ordered(state: ChainState) -> ChainState:
    return replace(state, channels={number: state.channels[number] for number in sorted(state.channels)})


def _state(data: bytes) -> ChainState:
    """Read a chain's state, each number in its bounds."""
    try:
        value = cbor.decode(data)
        head, seq, boot, boot_ms, wall_ms, earlier_ms, date_ms, birth, channels, undated_from, halted = value
        known = [_channel(channel) for channel in channels]
    except (TypeError, ValueError) as error:
        raise Malformed("a state that is none") from error
    if halted is not False or undated_from is not None or len(known) > MAX_SENSORS:
        raise Malformed("a state in which a chain waits")
    if birth is not None and type(birth) is not bytes:
        raise Malformed("a state that is none")
    if type(boot) is not bytes or len(boot) not in {0, 16}:
        raise Malformed("a state of no boot")
    return ChainState(
        cbor.check_bytes(head, "head", _DIGEST),
        cbor.check_integer(seq, "seq", 0, MAX_SEQ + 1),
        boot,
        _optional(boot_ms, 0),
        cbor.check_integer(wall_ms, "wall time", -1, _TIME),
        cbor.check_integer(earlier_ms, "wall time", -1, _TIME),
        _optional(date_ms, -_TIME),
        None if birth is None else decode_birth(birth),
        {channel.channel: channel for channel in known},
    )


def _optional(value: Any, low: int) -> int | None:
    return None if value is None else cbor.check_integer(value, "time", low, _TIME)


def _channel(value: Any) -> ChannelState:
    number, role, register, reverse, gap_ms, *last = value
    sample = None
    if last:
        voltage_uv, current_ua, boot_ms = last
        bounds = -(2**31), 2**31 - 1
        sample = Sample(
            cbor.check_integer(voltage_uv, "voltage", *bounds),
            cbor.check_integer(current_ua, "current", *bounds),
            cbor.check_integer(boot_ms, "time", 0, _TIME),
        )
    return ChannelState(
        cbor.check_integer(number, "channel", 0, 65_535),
        cbor.check_integer(role, "role", 0, 4),
        cbor.check_integer(register, "register", 0, _REGISTER),
        cbor.check_integer(reverse, "register", 0, _REGISTER),
        cbor.check_integer(gap_ms, "register", 0, _REGISTER),
        sample,
    )
