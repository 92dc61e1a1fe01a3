"""The signed batch: what a device measured, worked and attested between two cuts."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import field
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

from maxgreen.protocol import cbor, cose
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.cbor import U32_MAX, Fields
from maxgreen.protocol.keys import SIGNATURE_SIZE, Signer, is_spki, key_id
from maxgreen.protocol.reasons import Malformed
from maxgreen.protocol.work import target_of
from maxgreen.values import value
from native import batch as common

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 65_536
MAX_SAMPLES: Final = 3_600
MAX_INTERVAL_MS: Final = 900_000
MAX_NONCES: Final = 64
# bounds of P-BAT-8: all later arithmetic, database columns and loops can hold what passes them
MAX_SEQ: Final = 2**53 - 1
MAX_WALL_MS: Final = 4_102_444_800_000  # 2100-01-01T00:00:00Z
MAX_BOOT_MS: Final = 10 * 31_557_600_000  # ten years
MAX_CHANNEL: Final = 65_535
MAX_SENSORS: Final = 256
MAX_REGISTER: Final = 2**62 - 1
MAX_INT64: Final = 2**63 - 1
TAG_SINT32_LE: Final = 78  # RFC 8746
TAG_UINT32_LE: Final = 70
_ITEM: Final = 4  # bytes of a number in these arrays
_INTERVAL_AT: Final = 9  # of the numbers that C reads: the interval, then the number of channels


class Role(IntEnum):
    """What a channel measures."""

    GENERATION = 0
    SENT = 1
    RECEIVED = 2
    DELIVERED = 3
    TAKEN_OUT = 4


_ROLE_NAMES: Final = {int(role): role.name.lower() for role in Role}


class EventKind(IntEnum):
    """What happened on the device; other numbers are carried, not understood."""

    BOOT = 0
    TRANSFER_START = 1
    TRANSFER_STOP = 2
    CLOCK_STEP = 3
    SENSOR_FAULT = 4
    SPOOL_LIMIT = 5
    LAST_OF_KEY = 6
    TAMPER = 7
    COMMAND_OBEYED = 8
    COMMAND_REFUSED = 9


@value(frozen=True, slots=True)
class Channel:
    """Samples of one channel and its registers after the last (mW·s, mW·s, ms).

    The samples are kept as they stand in the message: arrays of 32-bit little-endian integers (RFC 8746), voltages in
    µV and currents in µA with a sign, offsets from t0 in ms without one.
    """

    number: int
    role: int
    voltage: bytes = field(repr=False)
    current: bytes = field(repr=False)
    offsets: bytes = field(repr=False)
    register_mws: int
    reverse_mws: int
    gap_ms: int

    @classmethod
    def of(
        cls,
        number: int,
        role: int,
        voltage_uv: Sequence[int],
        current_ua: Sequence[int],
        offsets_ms: Sequence[int],
        registers: tuple[int, int, int],
    ) -> "Channel":
        """Return the channel with these samples; struct.error when one has over 32 bits."""
        return cls(
            number, role, _packed(voltage_uv, "i"), _packed(current_ua, "i"), _packed(offsets_ms, "I"), *registers
        )

    @property
    def voltage_uv(self) -> tuple[int, ...]:
        """The voltages, µV."""
        return _unpacked(self.voltage, "i")

    @property
    def current_ua(self) -> tuple[int, ...]:
        """The currents, µA."""
        return _unpacked(self.current, "i")

    @property
    def offsets_ms(self) -> tuple[int, ...]:
        """The times of the samples from t0, ms."""
        return _unpacked(self.offsets, "I")

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.voltage) // _ITEM

    @property
    def last(self) -> tuple[int, int, int]:
        """The last sample: voltage µV, current µA, offset ms."""
        return (
            int.from_bytes(self.voltage[-_ITEM:], "little", signed=True),
            int.from_bytes(self.current[-_ITEM:], "little", signed=True),
            self.last_offset_ms,
        )

    @property
    def last_offset_ms(self) -> int:
        """The time of the last sample from t0, ms."""
        return int.from_bytes(self.offsets[-_ITEM:], "little")


@value(frozen=True, slots=True)
class Work:
    """Shares found for this batch's key and history: the beacon's number, nBits, ascending nonces."""

    beacon: int
    nbits: int
    nonces: tuple[int, ...]


@value(frozen=True, slots=True)
class Health:
    """The device's state: CPU m°C, throttled bits, spool records, free MiB, tamper switch open, duty ‰."""

    cpu_mdeg: int | None = None
    throttled: int | None = None
    spool_records: int | None = None
    free_mib: int | None = None
    tamper_open: bool | None = None
    duty_permille: int | None = None


@value(frozen=True, slots=True)
class Event:
    """Something that happened `offset_ms` from t0."""

    kind: int
    offset_ms: int
    command: int | None = None
    refusal: int | None = None  # reasons.Refusal


@value(frozen=True, slots=True)
class Sensor:
    """A channel's sensor: part, shunt µΩ, dead band µA, full scale µV and µA, calibration id."""

    channel: int
    role: int
    part: str
    shunt_uohm: int
    dead_band_ua: int
    full_scale_uv: int
    full_scale_ua: int
    calibration: str


@value(frozen=True, slots=True)
class Birth:
    """What a boot states of itself; key_store is 0 file, 1 PKCS#11, 2 TPM; hash_rate in 1/s."""

    spki: bytes
    sensors: tuple[Sensor, ...]
    software: str
    software_sha256: bytes
    hardware: str
    key_store: int
    kernel: str | None = None
    hash_rate: int | None = None
    _by_channel: dict[int, Sensor] = field(init=False, compare=False, repr=False)
    encoded: bytes = field(default=b"", init=False, compare=False, repr=False)  # by encode_birth, once it was asked

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_channel", {sensor.channel: sensor for sensor in self.sensors})

    def sensor(self, channel: int) -> Sensor | None:
        """Return the sensor of a channel."""
        return self._by_channel.get(channel)


@value(frozen=True, slots=True)
class Batch:
    """One link of a device's chain. t0 in ms since the epoch and since boot; the interval in ms."""

    seq: int
    prev: bytes
    boot: bytes
    t0_ms: int
    t0_boot_ms: int
    synchronised: bool
    interval_ms: int
    channels: tuple[Channel, ...] = ()
    clock_error_ms: int | None = None
    work: Work | None = None
    health: Health | None = None
    events: tuple[Event, ...] = ()
    attestations: tuple[Attestation, ...] = ()
    birth: Birth | None = None
    succeeds: tuple[bytes, bytes] | None = None  # old device id, head of its chain
    last_offset_ms: int = field(init=False, compare=False)  # of the last sample of all channels; 0 without samples

    def __post_init__(self) -> None:
        last = max([channel.last_offset_ms for channel in self.channels], default=0)
        object.__setattr__(self, "last_offset_ms", last)

    def channel(self, number: int) -> Channel | None:
        """Return a channel by its number."""
        return next((channel for channel in self.channels if channel.number == number), None)


@value(frozen=True, slots=True)
class SignedBatch:
    """A batch with the envelope it came in; the signature is not checked yet."""

    message: bytes = field(repr=False)
    envelope: cose.Envelope = field(repr=False)
    batch: Batch
    digest: bytes  # SHA-256 of the message: the next batch's `prev`


def sign_batch(batch: Batch, signer: Signer, network: str) -> bytes:
    """Return the signed batch; ValueError when it would be over P-BAT-1's size."""
    message = cose.sign(encode_batch(batch), signer, network, "batch")
    if len(message) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a signed batch of {len(message)} bytes is over {MAX_MESSAGE_BYTES}")
    return message


def parse_batch(message: bytes) -> SignedBatch:
    """Return the batch of a signed message; Malformed when any byte breaks the format."""
    numbers = common.read(message)
    if numbers is not None:
        return _common_batch(message, numbers)
    return parse_any_batch(message)


def role_name(role: int) -> str:
    """Return what a channel measures, in a word: `sent`; of a role that is not known yet its number."""
    return _ROLE_NAMES.get(role) or str(role)


def channels_of(message: bytes) -> tuple[Channel, ...]:
    """Return the channels of a signed message that was parsed before."""
    return contents_of(message)[0]


def contents_of(message: bytes) -> tuple[tuple[Channel, ...], "tuple[Event, ...]"]:
    """Return the channels and events of a signed message that was parsed before."""
    numbers = common.read(message)
    if numbers is not None:  # the form that most batches have: without events
        return _common_channels(message, numbers), ()
    batch = parse_any_batch(message).batch
    return batch.channels, batch.events


def parse_any_batch(message: bytes) -> SignedBatch:
    """Return what `parse_batch` returns: the reference, for every form that a batch may have."""
    envelope = cose.parse(message)
    batch = decode_batch(envelope.payload)
    if batch.birth is not None and key_id(batch.birth.spki) != envelope.key_id:
        raise Malformed("birth.0: not the signing key")
    return SignedBatch(message, envelope, batch, hashlib.sha256(message).digest())


def _common_batch(message: bytes, numbers: list[int]) -> SignedBatch:
    """Return the batch whose numbers were read in C (native/batch.h)."""
    (
        payload, size, seq, prev, boot, t0_ms, t0_boot_ms, synchronised, clock_error_ms, interval_ms, channels, nonces,
        beacon, nbits, has_health, *health,
    ) = numbers[: common.HEAD_VALUES]  # fmt: skip
    nonces_at = common.HEAD_VALUES + channels * common.CHANNEL_VALUES
    batch = Batch(
        seq,
        message[prev : prev + 32],
        message[boot : boot + 16],
        t0_ms,
        t0_boot_ms,
        synchronised == 1,
        interval_ms,
        _common_channels(message, numbers),
        None if clock_error_ms < 0 else clock_error_ms,
        Work(beacon, nbits, tuple(numbers[nonces_at:])) if nonces else None,
        None if has_health < 0 else _common_health(has_health, health),
    )
    envelope = cose.Envelope(message[8:24], message[payload : payload + size], message[-SIGNATURE_SIZE:])
    return SignedBatch(message, envelope, batch, hashlib.sha256(message).digest())


def _common_channels(message: bytes, numbers: list[int]) -> tuple[Channel, ...]:
    interval_ms, channels = numbers[_INTERVAL_AT : _INTERVAL_AT + 2]
    read = []
    end = common.HEAD_VALUES
    for _ in range(channels):
        begin, end = end, end + common.CHANNEL_VALUES
        number, role, count, voltage, current, offsets, register_mws, reverse_mws, gap_ms = numbers[begin:end]
        width = _ITEM * count
        read.append(
            Channel(
                number,
                role,
                message[voltage : voltage + width],
                message[current : current + width],
                message[offsets : offsets + width] if offsets else _grid(count, interval_ms),
                register_mws,
                reverse_mws,
                gap_ms,
            )
        )
    return tuple(read)


def _common_health(there: int, values: list[int]) -> Health:
    cpu, throttled, spool, free, tamper, duty = (value if there >> k & 1 else None for k, value in enumerate(values))
    return Health(cpu, throttled, spool, free, None if tamper is None else tamper == 1, duty)


def encode_batch(batch: Batch) -> bytes:
    """Return the deterministic payload of `batch`."""
    clock: dict[int, Any] = {0: batch.synchronised}
    if batch.clock_error_ms is not None:
        clock[1] = batch.clock_error_ms
    value: dict[int, Any] = {
        0: VERSION,
        1: batch.seq,
        2: batch.prev,
        3: batch.boot,
        4: batch.t0_ms,
        5: batch.t0_boot_ms,
        6: clock,
        7: batch.interval_ms,
        8: [_encode_channel(channel, batch.interval_ms) for channel in batch.channels],
    }
    if batch.work is not None:
        value[9] = {0: batch.work.beacon, 1: batch.work.nbits, 2: list(batch.work.nonces)}
    if batch.health is not None:
        value[10] = _encode_health(batch.health)
    if batch.events:
        value[11] = [_drop_none({0: e.kind, 1: e.offset_ms, 2: e.command, 3: e.refusal}) for e in batch.events]
    if batch.attestations:
        value[12] = [
            {0: a.channel, 1: a.unix_s, 2: a.register_mws, 3: a.seq, 4: a.signature} for a in batch.attestations
        ]
    if batch.birth is not None:
        value[13] = birth_value(batch.birth)
    if batch.succeeds is not None:
        value[14] = {0: batch.succeeds[0], 1: batch.succeeds[1]}
    return cbor.encode(value)


def decode_batch(payload: bytes) -> Batch:
    """Return the batch of `payload`; Malformed when it breaks a rule of the format."""
    fields = Fields(cbor.decode(payload), "batch", required=range(9), optional=(9, 10, 11, 12, 13, 14))
    fields.integer(0, VERSION, VERSION)
    clock = Fields(fields.raw(6), "clock", required=range(1), optional=(1,))
    interval_ms = fields.uint(7, MAX_INTERVAL_MS)
    channels = fields.items(8, lambda value: _decode_channel(value, interval_ms), most=MAX_SENSORS)
    numbers = [channel.number for channel in channels]
    if numbers != sorted(set(numbers)):
        raise Malformed("batch.8: channel numbers do not ascend")
    if channels and not any(0 in channel.offsets_ms for channel in channels):
        raise Malformed("batch.4: t0 is not the earliest sample")
    batch = Batch(
        seq=fields.uint(1, MAX_SEQ),
        prev=fields.bstr(2, 32),
        boot=fields.bstr(3, 16),
        t0_ms=fields.uint(4, MAX_WALL_MS),
        t0_boot_ms=fields.uint(5, MAX_BOOT_MS),
        synchronised=clock.boolean(0),
        clock_error_ms=clock.uint(1, U32_MAX) if 1 in clock else None,
        interval_ms=interval_ms,
        channels=channels,
        work=_decode_work(fields.raw(9)) if 9 in fields else None,
        health=_decode_health(fields.raw(10)) if 10 in fields else None,
        events=fields.items(11, _decode_event, least=1) if 11 in fields else (),
        attestations=fields.items(12, _decode_attestation, least=1) if 12 in fields else (),
        birth=_decode_birth(fields.raw(13)) if 13 in fields else None,
        succeeds=_decode_succession(fields.raw(14)) if 14 in fields else None,
    )
    if batch.succeeds is not None and batch.seq != 0:
        raise Malformed("batch.14: only at seq 0")
    return batch


def birth_value(birth: Birth) -> dict[int, Any]:
    """Return the CBOR map of a birth."""
    value: dict[int, Any] = {
        0: birth.spki,
        1: [
            {
                0: s.channel,
                1: s.role,
                2: s.part,
                3: s.shunt_uohm,
                4: s.dead_band_ua,
                5: s.full_scale_uv,
                6: s.full_scale_ua,
                7: s.calibration,
            }
            for s in birth.sensors
        ],
        2: birth.software,
        3: birth.software_sha256,
        4: birth.hardware,
        5: birth.key_store,
    }
    if birth.kernel is not None:
        value[6] = {0: birth.kernel, 1: birth.hash_rate or 0}
    return value


def encode_birth(birth: Birth) -> bytes:
    """Return the deterministic encoding of a birth, as packs keep it."""
    if not birth.encoded:
        object.__setattr__(birth, "encoded", cbor.encode(birth_value(birth)))
    return birth.encoded


def decode_birth(data: bytes) -> Birth:
    """Return the birth of such an encoding."""
    birth = _decode_birth(cbor.decode(data))
    object.__setattr__(birth, "encoded", data)
    return birth


def known_birth(data: bytes) -> Birth:
    """Return the birth of an encoding of our own: what `decode_birth` returns, with nothing checked again."""
    spki, sensors, software, software_sha256, hardware, key_store, *kernel = cbor.read(data).values()
    made = tuple(Sensor(*sensor.values()) for sensor in sensors)
    birth = Birth(spki, made, software, software_sha256, hardware, key_store, *(kernel[0].values() if kernel else ()))
    object.__setattr__(birth, "encoded", data)
    return birth


def _encode_channel(channel: Channel, interval_ms: int) -> dict[int, Any]:
    value: dict[int, Any] = {
        0: channel.number,
        1: channel.role,
        2: cbor.tag(TAG_SINT32_LE, channel.voltage),
        3: cbor.tag(TAG_SINT32_LE, channel.current),
        5: channel.register_mws,
        6: channel.reverse_mws,
        7: channel.gap_ms,
    }
    if channel.offsets != _grid(channel.count, interval_ms):
        value[4] = cbor.tag(TAG_UINT32_LE, channel.offsets)
    return value


def _decode_channel(value: Any, interval_ms: int) -> Channel:
    fields = Fields(value, "channel", required=(0, 1, 2, 3, 5, 6, 7), optional=(4,))
    voltage = _decode_array(fields.raw(2), "channel.2", TAG_SINT32_LE)
    current = _decode_array(fields.raw(3), "channel.3", TAG_SINT32_LE)
    count = len(voltage) // _ITEM
    if not 1 <= count <= MAX_SAMPLES:
        raise Malformed(f"channel: {count} samples, expected 1..{MAX_SAMPLES} (P-BAT-1)")
    grid = _grid(count, interval_ms)
    offsets = _decode_array(fields.raw(4), "channel.4", TAG_UINT32_LE) if 4 in fields else grid
    if not len(current) == len(offsets) == len(voltage):
        raise Malformed("channel: arrays of different lengths")
    if 4 in fields and offsets == grid:
        raise Malformed("channel.4: offsets on the grid must be absent")
    return Channel(
        number=fields.uint(0, MAX_CHANNEL),
        role=fields.uint(1, 4),
        voltage=voltage,
        current=current,
        offsets=offsets,
        register_mws=fields.uint(5, MAX_REGISTER),
        reverse_mws=fields.uint(6, MAX_REGISTER),
        gap_ms=fields.uint(7, MAX_REGISTER),
    )


@lru_cache(maxsize=256)
def _grid(count: int, interval_ms: int) -> bytes:
    """Return the offsets of samples that came in time."""
    return _packed(range(0, count * interval_ms, interval_ms) if interval_ms else (0,) * count, "I")


def _decode_array(value: Any, name: str, number: int) -> bytes:
    data = cbor.check_bytes(cbor.tagged(value, number, name), name)
    if len(data) % _ITEM:
        raise Malformed(f"{name}: {len(data)} bytes, not a multiple of {_ITEM}")
    return data


def _packed(values: Sequence[int], code: str) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


def _unpacked(data: bytes, code: str) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // _ITEM}{code}", data)


def _decode_work(value: Any) -> Work:
    fields = Fields(value, "work", required=range(3))
    nbits = fields.uint(1, U32_MAX)
    target_of(nbits)
    nonces = fields.items(2, lambda nonce: cbor.check_integer(nonce, "work.2", 0, U32_MAX), 1, MAX_NONCES)
    if list(nonces) != sorted(set(nonces)):
        raise Malformed("work.2: nonces do not ascend (P-POW-2)")
    return Work(fields.uint(0, MAX_SEQ), nbits, nonces)


def _encode_health(health: Health) -> dict[int, Any]:
    return _drop_none(
        {
            0: health.cpu_mdeg,
            1: health.throttled,
            2: health.spool_records,
            3: health.free_mib,
            4: health.tamper_open,
            5: health.duty_permille,
        }
    )


def _decode_health(value: Any) -> Health:
    fields = Fields(value, "health", required=(), optional=(0, 1, 2, 3, 4, 5))
    return Health(
        cpu_mdeg=fields.integer(0) if 0 in fields else None,
        throttled=fields.uint(1, MAX_INT64) if 1 in fields else None,
        spool_records=fields.uint(2, MAX_INT64) if 2 in fields else None,
        free_mib=fields.uint(3, MAX_INT64) if 3 in fields else None,
        tamper_open=fields.boolean(4) if 4 in fields else None,
        duty_permille=fields.uint(5, MAX_INT64) if 5 in fields else None,
    )


def _decode_event(value: Any) -> Event:
    fields = Fields(value, "event", required=range(2), optional=(2, 3))
    # an event may lie before t0: a reading came long after it
    offset_ms = fields.integer(1, -MAX_BOOT_MS, MAX_BOOT_MS)
    return Event(
        fields.uint(0, MAX_CHANNEL),
        offset_ms,
        fields.uint(2, MAX_INT64) if 2 in fields else None,
        fields.uint(3, MAX_CHANNEL) if 3 in fields else None,
    )


def _decode_attestation(value: Any) -> Attestation:
    fields = Fields(value, "attestation", required=range(5))
    return Attestation(
        fields.uint(0, MAX_CHANNEL),
        fields.uint(1, MAX_WALL_MS // 1000),
        fields.uint(2, MAX_REGISTER),
        fields.uint(3, MAX_SEQ),
        fields.bstr(4, SIGNATURE_SIZE),
    )


def _decode_birth(value: Any) -> Birth:
    fields = Fields(value, "birth", required=range(6), optional=(6,))
    spki = fields.bstr(0)
    if not is_spki(spki):
        raise Malformed("birth.0: not a SubjectPublicKeyInfo of a P-256 key")
    kernel = Fields(fields.raw(6), "kernel", required=range(2)) if 6 in fields else None
    sensors = fields.items(1, _decode_sensor, 1, MAX_SENSORS)
    if len({sensor.channel for sensor in sensors}) != len(sensors):
        raise Malformed("birth.1: a channel twice")
    return Birth(
        spki=spki,
        sensors=sensors,
        software=fields.tstr(2),
        software_sha256=fields.bstr(3, 32),
        hardware=fields.tstr(4),
        key_store=fields.uint(5, 2),
        kernel=kernel.tstr(0) if kernel else None,
        hash_rate=kernel.uint(1, MAX_INT64) if kernel else None,
    )


def _decode_sensor(value: Any) -> Sensor:
    fields = Fields(value, "sensor", required=range(8))
    return Sensor(
        channel=fields.uint(0, MAX_CHANNEL),
        role=fields.uint(1, 4),
        part=fields.tstr(2),
        shunt_uohm=fields.uint(3, MAX_INT64),
        dead_band_ua=fields.uint(4, MAX_INT64),
        full_scale_uv=fields.uint(5, MAX_INT64),
        full_scale_ua=fields.uint(6, MAX_INT64),
        calibration=fields.tstr(7),
    )


def _decode_succession(value: Any) -> tuple[bytes, bytes]:
    fields = Fields(value, "succession", required=range(2))
    return fields.bstr(0, 16), fields.bstr(1, 32)


def _drop_none(value: dict[int, Any]) -> dict[int, Any]:
    return {key: element for key, element in value.items() if element is not None}
