"""What a line's statement follows from: exactly the inputs that its evidence holds."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Final, NamedTuple

from maxgreen.chain.registry import RegisteredSystem
from maxgreen.protocol.pack import MANIFEST, PackError, canonical_json
from maxgreen.verify.rules import Action, Decision, DeviceRecord, Limits, Rules
from settlement.shapes import (
    DECISIONS_SHAPE,
    DEVICES_SHAPE,
    KEYS_SHAPE,
    LIMITS_SHAPE,
    LINE_SHAPE,
    MANIFEST_SHAPE,
    bounded,
    read_shape,
)
from settlement.sums import Sums

VERSION: Final = 2  # of manifests
WINDOWS: Final = "windows.csv"
WAITING_HEADER: Final = "device,seq,received_ms,t0_ms,digest"
STATES_BEFORE: Final = (9, 10)  # columns of windows.csv: state and dispute at the last close
STATES_AFTER: Final = (11, 13)  # and at this one
_WAITING: Final = "waiting.csv"
_DIGITS: Final = 16


@dataclass(frozen=True)
class ChannelTerms:
    """A channel as registered from a time on: role, peak mW, meter error ppm and mW."""

    from_ms: int
    channel: int
    role: int
    peak_mw: int
    error_ppm: int
    offset_mw: int


@dataclass(frozen=True)
class Party:
    """A device of the settlement: an entry of devices.json."""

    device: bytes
    record: DeviceRecord
    kind: str
    token: int
    channels: tuple[ChannelTerms, ...]
    place: tuple[float, float] | None
    efficiency_ppm: int
    battery_wh: int
    online_required: bool
    key_number: int = 0

    def terms(self, channel: int, t_ms: int) -> ChannelTerms | None:
        """Return a channel's registration valid at a time."""
        history = [terms for terms in self.channels if terms.channel == channel]
        if not history:
            return None
        return history[max(0, bisect_right(history, t_ms, key=lambda terms: terms.from_ms) - 1)]

    def numbers(self, role: int) -> list[int]:
        """Return the channels of a role."""
        return sorted({terms.channel for terms in self.channels if terms.role == role})


@dataclass(frozen=True)
class LineBase:
    """Sums over the windows that are settled for good, before those of this pack."""

    until_s: int
    sums: Sums = field(default_factory=Sums)


class Ahead(NamedTuple):
    """A batch that waits behind a hole: when it came and what it says of its time, ms; None without a clock."""

    seq: int
    received_ms: int
    t0_ms: int | None
    digest: bytes


class Base(NamedTuple):
    """The attestation that an end of a line opened with: unix s, mW·s."""

    time_s: int
    seq: int = 0
    register_mws: int = 0
    key_number: int = 0


class KnownRegister(NamedTuple):
    """What the book knew of an end when the period was closed; mW·s."""

    key_number: int = 0  # that the line had gone on with
    register_mws: int = 0  # of that key
    carried_mws: int = 0  # of the keys before


@dataclass(frozen=True)
class LineTerms:
    """A line, as line.json has it. Registers in mW·s."""

    line: bytes
    miner: int
    miner_channel: int
    node: int
    node_channel: int
    resistance_uohm: int
    loss_ppm: int
    max_loss_ppm: int
    sent_base: Base
    received_base: Base
    base: LineBase
    closed_s: int  # 0 while it is open
    known_sent: KnownRegister
    known_received: KnownRegister
    paid_mws: int
    paid_until_s: int
    acc: int
    epoch: int = 0  # of the lines that there were between these ends


@dataclass(frozen=True)
class Inputs:
    """Everything that a line's statement follows from (P-PCK-1)."""

    network: str
    period: str
    until_s: int
    start_s: int
    previous: bytes | None
    parties: tuple[Party, ...]
    line: LineTerms
    rules: Rules
    backend_keys: tuple[bytes, ...]
    segments: Mapping[bytes, tuple[bytes, ...]]  # SHA-256s by device, in the order of its chain
    waiting: Mapping[bytes, tuple[Ahead, ...]]
    windows_before: Mapping[int, tuple[str, str]]  # window: state, dispute

    def keys(self, token: int) -> tuple[Party, ...]:
        """Return the devices behind a token, one for each key that it had, oldest first."""
        return tuple(sorted((p for p in self.parties if p.token == token), key=lambda p: p.key_number))

    def party(self, token: int) -> Party:
        """Return the device behind a token whose key counts last."""
        return self.keys(token)[-1]

    @property
    def head(self) -> dict[str, Any]:
        """What a manifest says beside its files."""
        segments = {device.hex(): [s.hex() for s in found] for device, found in self.segments.items() if found}
        return {
            "version": VERSION,
            "network": self.network,
            "period": self.period,
            "until": self.until_s,
            "start": self.start_s,
            "line": self.line.line.hex(),
            "previous": self.previous.hex() if self.previous else None,
            "segments": segments,
        }

    def entries(self) -> dict[str, bytes]:
        """Return the input entries of the line's evidence, but for manifest and segments."""
        return {
            **self.settings,
            "line.json": canonical_json(line_json(self.line)),
            _WAITING: _waiting_csv(self.waiting),
        }

    @cached_property
    def settings(self) -> Mapping[str, bytes]:
        """The input entries that are the same for every day: devices, limits, decisions, keys."""
        return {
            "devices.json": canonical_json([_party_json(p) for p in sorted(self.parties, key=lambda p: p.device)]),
            "backend.json": canonical_json([key.hex() for key in self.backend_keys]),
            "limits.json": canonical_json([{"from_ms": at, **_limits_json(value)} for at, value in self.rules.limits]),
            "decisions.json": canonical_json([decision_json(d) for d in _sorted_decisions(self.rules.decisions)]),
        }

    @classmethod
    def from_entries(cls, entries: Mapping[str, bytes]) -> "Inputs":
        """Read the inputs of a line's evidence; PackError names the entry that is not as the format has it."""
        manifest = read_manifest(entries)
        rules = Rules(
            manifest["network"],
            limits=[
                (entry["from_ms"], Limits.from_json(entry))
                for entry in read_shape(entries, "limits.json", LIMITS_SHAPE)
            ],
            decisions=read_decisions(entries),
        )
        parties = tuple(_party(entry) for entry in read_shape(entries, "devices.json", DEVICES_SHAPE))
        waiting = _read_waiting(entry(entries, _WAITING))
        devices = {p.device.hex() for p in parties}
        for name in (*manifest["segments"], *(device.hex() for device in waiting)):
            if name not in devices:
                raise PackError(f"{MANIFEST}: device {name} is not in devices.json")
        return cls(
            network=manifest["network"],
            period=manifest["period"],
            until_s=manifest["until"],
            start_s=manifest["start"],
            previous=bytes.fromhex(manifest["previous"]) if manifest["previous"] else None,
            parties=parties,
            line=read_line(entries),
            rules=rules,
            backend_keys=tuple(bytes.fromhex(key) for key in read_shape(entries, "backend.json", KEYS_SHAPE)),
            segments={
                bytes.fromhex(device): tuple(bytes.fromhex(digest) for digest in digests)
                for device, digests in manifest["segments"].items()
            },
            waiting=waiting,
            windows_before=read_states(entries, STATES_BEFORE),
        )


def party_of_system(system: RegisteredSystem) -> Party:
    """Return a device as devices.json has it, from the registry."""
    spec = system.spec
    return Party(
        device=system.record.device,
        record=system.record,
        kind=spec.kind.label,
        token=system.token,
        channels=tuple(
            ChannelTerms(system.since_ms, c.number, c.role, c.peak_mw, c.error_ppm, c.offset_mw)
            for c in sorted(spec.channels, key=lambda c: c.number)
        ),
        place=(spec.place_deci[0] / 10, spec.place_deci[1] / 10) if spec.place_deci else None,
        efficiency_ppm=spec.efficiency_ppm,
        battery_wh=spec.battery_wh,
        online_required=spec.online_required,
        key_number=system.key_number,
    )


def read_manifest(entries: Mapping[str, bytes]) -> Mapping[str, Any]:
    """Return the manifest of a line's evidence; PackError unless it has its shape."""
    manifest: Mapping[str, Any] = read_shape(entries, MANIFEST, MANIFEST_SHAPE)
    return manifest


def read_line(entries: Mapping[str, bytes]) -> LineTerms:
    """Return the line of its evidence; PackError unless line.json has its shape."""
    return _line(read_shape(entries, "line.json", LINE_SHAPE))


def read_states(entries: Mapping[str, bytes], columns: tuple[int, int]) -> dict[int, tuple[str, str]]:
    """Return (state, dispute) by window from a line's windows; PackError when they are none."""
    try:
        return states_of(entry(entries, WINDOWS).decode().splitlines()[1:], columns)
    except (ValueError, IndexError) as error:
        raise PackError(f"{WINDOWS}: not the windows of a line: {error}") from error


def states_of(rows: Iterable[str], columns: tuple[int, int]) -> dict[int, tuple[str, str]]:
    """Return (state, dispute) by window from rows of windows.csv."""
    fields = (row.split(",") for row in rows)
    return {int(row[0]): (row[columns[0]], row[columns[1]]) for row in fields}


def read_decisions(entries: Mapping[str, bytes]) -> list[Decision]:
    """Return the decisions of a line's evidence."""
    return [parse_decision(entry) for entry in read_shape(entries, "decisions.json", DECISIONS_SHAPE)]


def entry(entries: Mapping[str, bytes], name: str) -> bytes:
    """Return an entry; PackError when it is missing."""
    if name not in entries:
        raise PackError(f"{name}: missing")
    return entries[name]


def _waiting_csv(waiting: Mapping[bytes, tuple[Ahead, ...]]) -> bytes:
    rows = []
    for device in sorted(waiting):
        for seq, received_ms, t0_ms, digest in waiting[device]:
            rows.append(f"{device.hex()},{seq},{received_ms},{'' if t0_ms is None else t0_ms},{digest.hex()}")
    return "".join(f"{row}\n" for row in (WAITING_HEADER, *rows)).encode()


def _read_waiting(data: bytes) -> dict[bytes, tuple[Ahead, ...]]:
    found: dict[bytes, list[Ahead]] = {}
    try:
        header, *rows = bounded(_WAITING, data).decode("ascii").splitlines()
        if header != WAITING_HEADER:
            raise PackError(f"{_WAITING}: its header is not {WAITING_HEADER}")
        for row in rows:
            device, seq, received_ms, t0_ms, digest = row.split(",")
            if max(map(len, (seq, received_ms, t0_ms))) > _DIGITS or len(device) != 2 * _DIGITS:
                raise PackError(f"{_WAITING}: a number out of bounds")
            ahead = Ahead(int(seq), int(received_ms), int(t0_ms) if t0_ms else None, bytes.fromhex(digest))
            found.setdefault(bytes.fromhex(device), []).append(ahead)
    except ValueError as error:
        raise PackError(f"{_WAITING}: {error}") from error
    return {device: tuple(rows) for device, rows in found.items()}


def _party_json(party: Party) -> dict[str, Any]:
    return {
        "id": party.device.hex(),
        "spki": party.record.spki.hex(),
        "kind": party.kind,
        "token": str(party.token),
        "status": [{"from_ms": at, "status": str(status)} for at, status in party.record.statuses],
        "channels": [
            {
                "from_ms": c.from_ms,
                "channel": c.channel,
                "role": c.role,
                "peak_mw": c.peak_mw,
                "error_ppm": c.error_ppm,
                "offset_mw": c.offset_mw,
            }
            for c in party.channels
        ],
        "latitude": party.place[0] if party.place else None,
        "longitude": party.place[1] if party.place else None,
        "efficiency_ppm": party.efficiency_ppm,
        "battery_wh": party.battery_wh,
        "online_required": party.online_required,
        "key": party.key_number,
        "until_ms": party.record.until_ms,
        "lost": party.record.lost,
        "predecessor": party.record.predecessor.hex() if party.record.predecessor else None,
    }


def _party(value: Mapping[str, Any]) -> Party:
    statuses = tuple((status["from_ms"], status["status"]) for status in value["status"])
    channels = tuple(ChannelTerms(**channel) for channel in value["channels"])
    return Party(
        device=bytes.fromhex(value["id"]),
        record=DeviceRecord(
            bytes.fromhex(value["spki"]),
            statuses,
            tuple((c.channel, c.role) for c in channels),
            bytes.fromhex(value["predecessor"]) if value["predecessor"] else None,
            value["until_ms"],
            value["lost"],
        ),
        kind=value["kind"],
        token=int(value["token"]),
        channels=channels,
        place=None if value["latitude"] is None else (float(value["latitude"]), float(value["longitude"])),
        efficiency_ppm=value["efficiency_ppm"],
        battery_wh=value["battery_wh"],
        online_required=value["online_required"],
        key_number=value["key"],
    )


def line_json(line: LineTerms) -> dict[str, Any]:
    """Return a line as line.json has it."""
    base = line.base
    return {
        "id": line.line.hex(),
        "miner": str(line.miner),
        "miner_channel": line.miner_channel,
        "node": str(line.node),
        "node_channel": line.node_channel,
        "epoch": line.epoch,
        "resistance_uohm": line.resistance_uohm,
        "loss_ppm": line.loss_ppm,
        "max_loss_ppm": line.max_loss_ppm,
        "opened": {"sent": _opened_json(line.sent_base), "received": _opened_json(line.received_base)},
        "base": {"until": base.until_s, **{name: str(value) for name, value in asdict(base.sums).items()}},
        "closed": line.closed_s,
        "known": {"sent": _known_json(line.known_sent), "received": _known_json(line.known_received)},
        "paid_mws": str(line.paid_mws),
        "paid_until": line.paid_until_s,
        "acc": str(line.acc),
    }


def _line(value: Mapping[str, Any]) -> LineTerms:
    opened, base = value["opened"], value["base"]
    return LineTerms(
        line=bytes.fromhex(value["id"]),
        miner=int(value["miner"]),
        miner_channel=value["miner_channel"],
        node=int(value["node"]),
        node_channel=value["node_channel"],
        resistance_uohm=value["resistance_uohm"],
        loss_ppm=value["loss_ppm"],
        max_loss_ppm=value["max_loss_ppm"],
        sent_base=_opened(opened["sent"]),
        received_base=_opened(opened["received"]),
        base=LineBase(base["until"], Sums(**{f.name: int(base[f.name]) for f in fields(Sums)})),
        closed_s=value["closed"],
        known_sent=_known(value["known"]["sent"]),
        known_received=_known(value["known"]["received"]),
        paid_mws=int(value["paid_mws"]),
        paid_until_s=value["paid_until"],
        acc=int(value["acc"]),
        epoch=value["epoch"],
    )


def _opened_json(base: Base) -> dict[str, Any]:
    return {"time": base.time_s, "seq": base.seq, "register": str(base.register_mws), "key": base.key_number}


def _opened(value: Mapping[str, Any]) -> Base:
    return Base(value["time"], value["seq"], int(value["register"]), value["key"])


def _known_json(known: KnownRegister) -> dict[str, Any]:
    return {"key": known.key_number, "register": str(known.register_mws), "carried": str(known.carried_mws)}


def _known(value: Mapping[str, Any]) -> KnownRegister:
    return KnownRegister(value["key"], int(value["register"]), int(value["carried"]))


def _limits_json(limits: Limits) -> dict[str, int]:
    return {name: getattr(limits, name) for name in Limits.__dataclass_fields__}


def _sorted_decisions(decisions: tuple[Decision, ...]) -> list[Decision]:
    return sorted(decisions, key=lambda d: (d.device, d.at_ms))


def decision_json(decision: Decision) -> dict[str, Any]:
    """Return a decision as packs and statements have it."""
    return {
        "device": decision.device.hex(),
        "from_seq": decision.from_seq,
        "to_seq": decision.to_seq,
        "action": decision.action.value,
        "reason": decision.reason,
        "who": decision.who,
        "at_ms": decision.at_ms,
        "text": decision.text,
    }


def parse_decision(value: Mapping[str, Any]) -> Decision:
    """Read such a decision."""
    return Decision(
        bytes.fromhex(value["device"]),
        value["from_seq"],
        value["to_seq"],
        Action(value["action"]),
        value["reason"],
        value["who"],
        value["at_ms"],
        value["text"],
    )
