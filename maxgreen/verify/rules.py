"""What a verdict depends on beside the bytes: limits, device records, beacons, decisions (P-ING-1)."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

from maxgreen.protocol.backend import Beacon
from maxgreen.protocol.keys import Verifier, key_id
from maxgreen.protocol.work import target_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of docs/protocol.md, valid from one instant; seconds, ppm, millidegrees."""

    future_s: int = 300
    late_s: int = 604_800
    grace_s: int = 86_400
    shares_per_window: int = 10
    capacity_ppm: int = 1_250_000
    stuck_s: int = 3_600
    pow_nbits_min: int = 0x1F400000
    beacon_valid_s: int = 600
    close_days: int = 7
    beacon_every_s: int = 60
    night_mdeg: int = -6_000
    behind_s: int = 300
    edge_ms: int = 60_000
    unmetered_ppm: int = 50_000

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Limits":
        """Read an entry of limits.json; unknown names are left out, absent ones keep their default."""
        return cls(**{f.name: int(value[f.name]) for f in fields(cls) if f.name in value})


class Status(StrEnum):
    """A device's standing in the registry."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A registered device: its key, its statuses by time, what its channels are, the device before and after it."""

    spki: bytes
    statuses: tuple[tuple[int, str], ...]  # from_ms, status; ascending
    roles: tuple[tuple[int, int], ...] = ()  # channel, role; a channel that is not here never counts
    predecessor: bytes | None = None  # the device that it replaces
    until_ms: int | None = None  # from then on the device that replaces it counts
    lost: bool = False  # the DAO replaced it: what comes from then on proves nothing
    device: bytes = field(init=False, compare=False)  # its id
    verifier: Verifier = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", key_id(self.spki))
        object.__setattr__(self, "verifier", Verifier(self.spki))

    def known_at(self, t_ms: int) -> bool:
        """Tell whether the registry had the device at `t_ms`."""
        return bool(self.statuses) and self.statuses[0][0] <= t_ms

    @property
    def since_ms(self) -> int:
        """When the registry had the device first, ms: nothing that was measured before counts."""
        return self.statuses[0][0]

    def counts(self, t0_ms: int, received_ms: int) -> bool:
        """Tell whether what was measured at a time, and came at another one, counts (P-ING-6)."""
        if t0_ms < self.since_ms or (self.until_ms is not None and t0_ms >= self.until_ms):
            return False
        return not self.lost or self.until_ms is None or received_ms < self.until_ms

    def role(self, channel: int) -> int | None:
        """Return what the registry calls a channel; None when it is not registered."""
        return next((role for number, role in self.roles if number == channel), None)

    def status_at(self, t_ms: int) -> str:
        """Return the status at `t_ms`; what was measured before the registration has its first status."""
        return valid_at(self.statuses, t_ms)


class Action(StrEnum):
    """What a recorded decision does."""

    SKIP = "skip"
    RELEASE = "release"
    REJECT = "reject"
    REINSTATE = "reinstate"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True)
class Decision:
    """A recorded decision of the operator or the DAO about a device's batches from_seq..to_seq."""

    device: bytes
    from_seq: int
    to_seq: int
    action: Action
    reason: str
    who: str
    at_ms: int
    text: str

    @property
    def reasons(self) -> frozenset[int]:
        """The numbers of the reasons that it names; what is no number is none."""
        return frozenset(int(word) for word in self.reason.split() if word.isascii() and word.isdigit())

    def covers(self, seq: int) -> bool:
        """Tell whether the decision speaks of a batch."""
        return self.from_seq <= seq <= self.to_seq


class Rules:
    """Limits by time, beacons by number, decisions: one deployment's answers for the verifier."""

    def __init__(
        self,
        network: str,
        *,
        limits: Sequence[tuple[int, Limits]] = ((0, Limits()),),
        beacons: Mapping[int, Beacon] | None = None,
        decisions: Sequence[Decision] = (),
    ) -> None:
        """Take limits as (from_ms, limits), ascending."""
        self.network = network
        self.limits = tuple(limits)
        self.beacons: Mapping[int, Beacon] = {} if beacons is None else beacons
        self.decisions = tuple(decisions)
        self._decided: dict[bytes, list[Decision]] = {}
        for decision in self.decisions:
            self._decided.setdefault(decision.device, []).append(decision)

    def limits_at(self, received_ms: int) -> Limits:
        """Return the limits valid at an arrival time."""
        return valid_at(self.limits, received_ms)

    def decided(self, device: bytes, seq: int, action: Action) -> bool:
        """Tell whether a decision of this kind speaks of a batch."""
        return any(d.action is action and d.covers(seq) for d in self._decided.get(device, ()))

    def released(self, device: bytes, seq: int) -> frozenset[int]:
        """Return the numbers of the reasons that decisions lift from the window of a batch."""
        return frozenset(
            number
            for d in self._decided.get(device, ())
            if d.action is Action.RELEASE and d.covers(seq)
            for number in d.reasons
        )

    def skip_targets(self, device: bytes, next_seq: int) -> list[int]:
        """Return the seqs at which a chain that waits for `next_seq` may go on (P-ING-4), ascending."""
        targets = {
            d.to_seq
            for d in self._decided.get(device, ())
            if d.action is Action.SKIP and d.from_seq <= next_seq < d.to_seq
        }
        return sorted(targets)


def valid_at(history: Sequence[tuple[int, T]], t_ms: int) -> T:
    """Return the entry of a (from_ms, value) history valid at `t_ms`; the first one also before it."""
    if history[-1][0] <= t_ms:
        return history[-1][1]
    index = bisect_right(history, t_ms, key=lambda entry: entry[0])
    return history[max(0, index - 1)][1]


def is_easier(nbits: int, least: int) -> bool:
    """Tell whether a target is easier than the least work that credits (P-POW-2, weak_work)."""
    return target_of(nbits) > target_of(least)
