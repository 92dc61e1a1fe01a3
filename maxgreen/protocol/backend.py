"""What the backend signs: beacons, receipts, commands (docs/protocol.md, From the backend)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import IntEnum
from typing import Any, Final

from maxgreen.protocol import cbor, cose
from maxgreen.protocol.cbor import U32_MAX, U64_MAX, Fields
from maxgreen.protocol.keys import Signer, Verifier
from maxgreen.protocol.reasons import BadSignature, Malformed
from maxgreen.values import value

BEACON_PREFIX: Final = b"maxgreen beacon"


@value(frozen=True, slots=True)
class Beacon:
    """The value that work must be done on, made from the chain's newest block; times in unix s."""

    number: int
    issued_s: int
    valid_s: int
    block_number: int
    block_hash: bytes
    value: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Make the value: SHA-256("maxgreen beacon" ‖ number u64 BE ‖ block hash)."""
        value = hashlib.sha256(BEACON_PREFIX + self.number.to_bytes(8, "big") + self.block_hash).digest()
        object.__setattr__(self, "value", value)


@value(frozen=True, slots=True)
class Rejection:
    """The DAO's no to the order of a period that this device's energy is in: code and words are the proposal's."""

    until_s: int  # when the period ends, unix s
    code: int
    text: str = ""


@value(frozen=True, slots=True)
class Receipt:
    """How far the ledger has committed a device's chain; the device may rely on nothing else (P-RCT-1)."""

    device: bytes
    next_seq: int
    head: bytes
    server_ms: int
    nbits: int
    held: tuple[int, ...] = ()
    verdicts: tuple[tuple[int, int], ...] = ()  # seq, reason
    registers: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)  # channel: register, reverse, gap
    rejection: Rejection | None = None


class CommandKind(IntEnum):
    """What a device can be asked to do."""

    START_TRANSFER = 0
    STOP_TRANSFER = 1
    SEND_REGISTERS = 2
    SAMPLING_INTERVAL = 3


@value(frozen=True, slots=True)
class Command:
    """A request to a device, obeyed once (P-CMD-1); times in ms since the epoch."""

    device: bytes
    number: int
    issued_ms: int
    expires_ms: int
    kind: CommandKind
    arguments: Mapping[int, int] = field(default_factory=dict)


# argument keys of each kind
_ARGUMENTS: Final = {
    CommandKind.START_TRANSFER: (0, 1, 2),
    CommandKind.STOP_TRANSFER: (0,),
    CommandKind.SEND_REGISTERS: (),
    CommandKind.SAMPLING_INTERVAL: (0,),
}


class UnknownKey(BadSignature):
    """Signed by a key that is not pinned."""


class BackendKeys:
    """The backend keys that an agent pins, or that a pack names."""

    def __init__(self, spkis: tuple[bytes, ...], network: str) -> None:
        self._verifiers = {verifier.key_id: verifier for verifier in map(Verifier, spkis)}
        self._network = network

    def open(self, message: bytes, kind: cose.MessageType, *, detached_payload: bytes | None = None) -> bytes:
        """Return the payload of a message signed by one of the keys; Rejected when it is not."""
        envelope = cose.parse(message, detached_payload=detached_payload)
        envelope.check(self._verifier(envelope.key_id), self._network, kind)
        return envelope.payload

    def _verifier(self, key_id: bytes) -> Verifier:
        verifier = self._verifiers.get(key_id)
        if verifier is None:
            raise UnknownKey(f"key {key_id.hex()} is not one of the backend's")
        return verifier

    def open_beacon(self, message: bytes) -> Beacon:
        """Return a beacon that one of the keys signed."""
        return decode_beacon(self.open(message, "beacon"))

    def open_beacons(self, messages: Sequence[bytes]) -> tuple[Beacon, ...]:
        """Return beacons that the keys signed, which are checked together; Rejected when one is not."""
        envelopes = [cose.parse(message) for message in messages]
        signed = [(envelope, self._verifier(envelope.key_id)) for envelope in envelopes]
        for wrong in cose.check_group(signed, self._network, "beacon"):
            if wrong is not None:
                raise wrong
        return tuple(decode_beacon(envelope.payload) for envelope in envelopes)

    def open_receipt(self, message: bytes) -> Receipt:
        """Return a receipt that one of the keys signed."""
        return decode_receipt(self.open(message, "receipt"))

    def open_command(self, message: bytes) -> Command:
        """Return a command that one of the keys signed."""
        return decode_command(self.open(message, "command"))


def sign_beacon(beacon: Beacon, signer: Signer, network: str) -> bytes:
    """Return the signed beacon."""
    payload = {
        0: beacon.number,
        1: beacon.issued_s,
        2: beacon.valid_s,
        3: beacon.block_number,
        4: beacon.block_hash,
        5: beacon.value,
    }
    return cose.sign(cbor.encode(payload), signer, network, "beacon")


def decode_beacon(payload: bytes) -> Beacon:
    """Return the beacon of a payload; Malformed when its value is not that of its block."""
    fields = Fields(cbor.decode(payload), "beacon", required=range(6))
    beacon = Beacon(fields.uint(0), fields.uint(1, U32_MAX), fields.uint(2), fields.uint(3), fields.bstr(4, 32))
    if fields.bstr(5, 32) != beacon.value:
        raise Malformed("beacon.5: not the value of its number and block")
    return beacon


def sign_receipt(receipt: Receipt, signer: Signer, network: str) -> bytes:
    """Return the signed receipt."""
    payload: dict[int, Any] = {
        0: receipt.device,
        1: receipt.next_seq,
        2: receipt.head,
        3: receipt.server_ms,
        4: receipt.nbits,
    }
    if receipt.held:
        payload[5] = list(receipt.held)
    if receipt.verdicts:
        payload[6] = [{0: seq, 1: reason} for seq, reason in receipt.verdicts]
    if receipt.registers:
        payload[7] = {channel: list(values) for channel, values in receipt.registers.items()}
    if receipt.rejection is not None:
        payload[8] = _rejection_value(receipt.rejection)
    return cose.sign(cbor.encode(payload), signer, network, "receipt")


def decode_receipt(payload: bytes) -> Receipt:
    """Return the receipt of a payload."""
    fields = Fields(cbor.decode(payload), "receipt", required=range(5), optional=(5, 6, 7, 8))
    return Receipt(
        device=fields.bstr(0, 16),
        next_seq=fields.uint(1),
        head=fields.bstr(2, 32),
        server_ms=fields.uint(3),
        nbits=fields.uint(4, U32_MAX),
        held=fields.items(5, _seq, least=1) if 5 in fields else (),
        verdicts=fields.items(6, _verdict, least=1) if 6 in fields else (),
        registers=_registers(fields.raw(7)) if 7 in fields else {},
        rejection=_rejection(fields.raw(8)) if 8 in fields else None,
    )


def sign_command(command: Command, signer: Signer, network: str) -> bytes:
    """Return the signed command."""
    payload: dict[int, Any] = {
        0: command.device,
        1: command.number,
        2: command.issued_ms,
        3: command.expires_ms,
        4: int(command.kind),
    }
    if command.arguments:
        payload[5] = dict(command.arguments)
    return cose.sign(cbor.encode(payload), signer, network, "command")


def decode_command(payload: bytes) -> Command:
    """Return the command of a payload; a kind without its arguments is Malformed."""
    fields = Fields(cbor.decode(payload), "command", required=range(5), optional=(5,))
    kind = CommandKind(fields.uint(4, max(CommandKind)))
    keys = _ARGUMENTS[kind]
    if bool(keys) != (5 in fields):
        raise Malformed(f"command.5: kind {int(kind)} takes {len(keys)} arguments")
    arguments = Fields(fields.raw(5), "arguments", required=keys) if keys else None
    return Command(
        device=fields.bstr(0, 16),
        number=fields.uint(1),
        issued_ms=fields.uint(2),
        expires_ms=fields.uint(3),
        kind=kind,
        arguments={key: arguments.uint(key) for key in keys} if arguments else {},
    )


def _seq(value: Any) -> int:
    return cbor.check_integer(value, "seq", 0, U64_MAX)


def _verdict(value: Any) -> tuple[int, int]:
    fields = Fields(value, "verdict", required=range(2))
    return fields.uint(0), fields.uint(1)


def encode_rejection(rejection: Rejection) -> bytes:
    """Return a rejection as ledgers keep it: what a receipt's field 8 holds."""
    return cbor.encode(_rejection_value(rejection))


def decode_rejection(data: bytes) -> Rejection:
    """Return the rejection of such bytes."""
    return _rejection(cbor.decode(data))


def _rejection_value(rejection: Rejection) -> dict[int, Any]:
    value: dict[int, Any] = {0: rejection.until_s, 1: rejection.code}
    if rejection.text:
        value[2] = rejection.text[: cbor.MAX_TEXT]
    return value


def _rejection(value: Any) -> Rejection:
    fields = Fields(value, "rejection", required=range(2), optional=(2,))
    return Rejection(fields.uint(0, U32_MAX), fields.uint(1, U32_MAX), fields.tstr(2) if 2 in fields else "")


def _registers(value: Any) -> dict[int, tuple[int, int, int]]:
    if type(value) is not dict or not value:
        raise Malformed("receipt.7: not a map of registers")
    registers: dict[int, tuple[int, int, int]] = {}
    for channel, triple in value.items():
        if type(triple) is not list or len(triple) != 3:
            raise Malformed("receipt.7: not three registers")
        register, reverse, gap = (_seq(number) for number in triple)
        registers[_seq(channel)] = register, reverse, gap
    return registers
