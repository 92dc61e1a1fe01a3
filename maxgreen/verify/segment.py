"""A segment: what a device's chain took from one batch to another, with all that judging it again needs (P-PCK-3).

It never changes, is named by its SHA-256, and leads on from the one before: by its digest, and by the chain's state.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

from maxgreen.protocol import cbor
from maxgreen.protocol.batch import MAX_MESSAGE_BYTES, MAX_SENSORS, MAX_SEQ, decode_birth
from maxgreen.protocol.reasons import Malformed
from maxgreen.verify.chain import ChainState, ChannelState
from maxgreen.verify.meter import Sample

MAX_BATCHES: Final = 4_096  # but for those that wait for a date: a segment ends where none does
MAX_BYTES: Final = 256 * 2**20
_VERSION: Final = 1
_TIME: Final = 2**50
_REGISTER: Final = 2**62
_DIGEST: Final = 32


class Taking(NamedTuple):
    """A batch that took its place: the signed bytes, when they came (ms), whether the chain was skipped to it."""

    message: bytes
    received_ms: int
    skipped_to: bool = False


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
                _state_value(self.start),
                None if self.predecessor is None else _state_value(self.predecessor),
                [list(taking) for taking in self.batches],
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
        match cbor.decode(data):
            case [
                int(version),
                str(network),
                bytes(device),
                previous,
                start,
                before,
                [*batches],
                [*beacons],
                [*receipts],
            ]:
                pass
            case _:
                raise Malformed("not a segment")
        if version != _VERSION or type(version) is not int:
            raise Malformed(f"a segment of another version than {_VERSION}")
        segment = cls(
            network,
            cbor.check_bytes(device, "device", 16),
            None if previous is None else cbor.check_bytes(previous, "previous", _DIGEST),
            _state(start),
            None if before is None else _state(before),
            tuple(_taking(value) for value in batches),
            tuple(cbor.check_bytes(message, "beacon") for message in beacons),
            tuple(cbor.check_bytes(message, "receipt") for message in receipts),
        )
        if segment.data != data:
            raise Malformed("not a segment's one form")
        return segment


def segment_name(digest: bytes) -> str:
    """Return what a segment is called, in a store and in a pack."""
    return f"segments/{digest.hex()}.cbor"


def _taking(value: Any) -> Taking:
    match value:
        case [bytes(message), int(received_ms), bool(skipped_to)] if len(message) <= MAX_MESSAGE_BYTES:
            return Taking(message, cbor.check_integer(received_ms, "arrival", 0, _TIME), skipped_to)
    raise Malformed("batches: not [message, arrival, skipped to]")


def _state_value(state: ChainState) -> Any:
    channels = {number: state.channels[number] for number in sorted(state.channels)}
    return cbor.read(replace(state, channels=channels).to_bytes())


def _state(value: Any) -> ChainState:
    """Read a chain's state, each number in its bounds."""
    try:
        head, seq, boot, boot_ms, wall_ms, earlier_ms, date_ms, birth, channels, undated_from, halted = value
        known = [_channel(channel) for channel in channels]
    except (TypeError, ValueError) as error:
        raise Malformed("a state that is none") from error
    if (
        halted is not False
        or undated_from is not None
        or len(known) > MAX_SENSORS
        or (birth is not None and type(birth) is not bytes)
    ):
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
