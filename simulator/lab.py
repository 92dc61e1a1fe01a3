"""Hand-made chains of batches, honest and hostile, for tests, test vectors and attacks."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from maxgreen.protocol import cose
from maxgreen.protocol.attestation import attest
from maxgreen.protocol.backend import Beacon
from maxgreen.protocol.batch import Batch, Birth, Channel, Role, Sensor, Work, sign_batch
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.protocol.work import header_prefix, target_of
from maxgreen.verify.meter import MeterState, Sample, advance
from maxgreen.verify.rules import DeviceRecord, Status
from native.scrypt import Miner

NETWORK: Final = "eip155:31337:0x5fbdb2315678afecb367f032d93f642f64180aa3"
T0_MS: Final = 1_767_225_600_000  # 2026-01-01T00:00:00Z
BOOT: Final = bytes(range(16))
EASY: Final = 0x207FFFFF  # two hashes a share


def sensor(channel: int, role: Role) -> Sensor:
    """Return the description of an INA219 on a 0.1 Ω shunt."""
    return Sensor(channel, int(role), "INA219", 100_000, 5_000, 26_000_000, 3_200_000, "none")


@dataclass
class Lab:
    """A device whose batches are made by hand; every field of the next one can be changed."""

    secret: int = 1
    roles: tuple[Role, ...] = (Role.GENERATION, Role.SENT)
    interval_ms: int = 1_000
    network: str = NETWORK
    seq: int = 0
    head: bytes = b""
    boot: bytes = BOOT
    boot_ms: int = 60_000
    wall_offset_ms: int = T0_MS - 60_000
    born: bool = False
    meters: dict[int, MeterState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.signer = MemorySigner.from_secret(self.secret)
        self.head = self.head or cose.network_digest(self.network)

    @property
    def device(self) -> bytes:
        """The device id."""
        return key_id(self.signer.spki)

    @property
    def birth(self) -> Birth:
        """What the device states of itself."""
        sensors = tuple(sensor(number, role) for number, role in enumerate(self.roles))
        return Birth(self.signer.spki, sensors, "maxgreen/0.1.0", bytes(32), "Raspberry Pi 5", 0)

    def record(self, *, status: Sequence[tuple[int, str]] = ((0, Status.ACTIVE),)) -> DeviceRecord:
        """Return the device's registration."""
        return DeviceRecord(self.signer.spki, tuple(status), tuple((n, int(role)) for n, role in enumerate(self.roles)))

    def reboot(self, boot: bytes, *, wall_ms: int) -> None:
        """Begin another boot at a wall time."""
        self.boot, self.boot_ms, self.wall_offset_ms, self.born = boot, 1_000, wall_ms - 1_000, False
        self.meters = {n: replace(m, last=None, last_power_pw=0) for n, m in self.meters.items()}

    def batch(
        self,
        readings: Iterable[tuple[int, int]] = ((18_000_000, 1_000_000),) * 10,
        *,
        others: Mapping[int, Sequence[tuple[int, int]]] = MappingProxyType({}),
        **changes: Any,
    ) -> Batch:
        """Return the next honest batch, with changes: (µV, µA) per interval, the same on every channel but `others`."""
        values = list(readings)
        channels = []
        for number, role in enumerate(self.roles if values else ()):
            own = others.get(number, values)
            samples = [Sample(v, i, self.boot_ms + k * self.interval_ms) for k, (v, i) in enumerate(own)]
            meter = advance(
                self.meters.get(number, MeterState()), samples, interval_ms=self.interval_ms, dead_band_ua=5_000
            )
            self.meters[number] = meter
            channels.append(
                Channel.of(
                    number,
                    int(role),
                    [v for v, _ in own],
                    [i for _, i in own],
                    [k * self.interval_ms for k in range(len(own))],
                    (meter.register_mws, meter.reverse_mws, meter.gap_ms),
                )
            )
        made = Batch(
            seq=self.seq,
            prev=self.head,
            boot=self.boot,
            t0_ms=self.boot_ms + self.wall_offset_ms,
            t0_boot_ms=self.boot_ms,
            synchronised=True,
            interval_ms=self.interval_ms,
            channels=tuple(channels),
            birth=None if self.born else self.birth,
        )
        self.boot_ms += len(values) * self.interval_ms
        self.born = True
        return replace(made, **changes)

    def sign(self, batch: Batch, *, network: str | None = None) -> bytes:
        """Sign a batch and go on from it."""
        message = sign_batch(batch, self.signer, network or self.network)
        self.seq, self.head = batch.seq + 1, hashlib.sha256(message).digest()
        return message

    def next(self, readings: Iterable[tuple[int, int]] = ((18_000_000, 1_000_000),) * 10, **changes: Any) -> bytes:
        """Return the next batch, signed."""
        return self.sign(self.batch(readings, **changes))

    def attested(self, batch: Batch) -> Batch:
        """Return a batch with an attestation of every channel."""
        attestations = tuple(
            attest(
                self.signer,
                self.network,
                c.number,
                (batch.t0_ms + c.last_offset_ms) // 1000,
                c.register_mws,
                batch.seq,
            )
            for c in batch.channels
        )
        return replace(batch, attestations=attestations)

    def work(self, beacon: Beacon, *, nbits: int = EASY, shares: int = 2, prev: bytes | None = None) -> Work:
        """Mine shares for the next batch."""
        prefix = header_prefix(prev or self.head, beacon.value, self.device, beacon.issued_s, nbits)
        miner = Miner(prefix, target_of(nbits))
        nonces = [nonce for _ in range(shares) if (nonce := miner.find()) is not None]
        return Work(beacon.number, nbits, tuple(nonces))


def beacon(number: int = 7, issued_s: int = T0_MS // 1000 - 60, valid_s: int = 600) -> Beacon:
    """Return a beacon issued a minute before the lab's first batch."""
    return Beacon(number, issued_s, valid_s, 1_234, hashlib.sha256(b"block").digest())
