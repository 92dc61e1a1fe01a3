"""What an applicant states of a clean energy system, and the digest of it that its device signs (P-ID-5)."""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from maxgreen.errors import UsageError

_PREFIX: Final = b"MGSYS1\0\0"
_ROLES: Final = {"generation": 0, "sent": 1, "received": 2, "delivered": 3}
_MOST_CHANNELS: Final = 16
_MOST_URI_BYTES: Final = 512


class Kind(IntEnum):
    """What a system is."""

    MINER = 0
    STORAGE_NODE = 1

    @property
    def label(self) -> str:
        """The kind as packs write it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """A metered channel: role, peak power mW, meter error ppm and mW."""

    number: int
    role: int
    peak_mw: int
    error_ppm: int
    offset_mw: int


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """What an applicant states; latitude and longitude in tenths of a degree, None when no place is given."""

    kind: Kind
    channels: tuple[ChannelSpec, ...]
    place_deci: tuple[int, int] | None = None
    efficiency_ppm: int = 1_000_000
    battery_wh: int = 0
    online_required: bool = False
    uri: str = ""

    @property
    def digest(self) -> bytes:
        """SHA-256 over all fields, 32 bytes (P-ID-5)."""
        latitude, longitude = self.place_deci or (0, 0)
        parts = [
            _PREFIX,
            bytes([self.kind, self.place_deci is not None]),
            latitude.to_bytes(2, "big", signed=True),
            longitude.to_bytes(2, "big", signed=True),
            self.efficiency_ppm.to_bytes(4, "big"),
            self.battery_wh.to_bytes(8, "big"),
            bytes([self.online_required, len(self.channels)]),
        ]
        for c in self.channels:
            parts.append(c.number.to_bytes(8, "big") + bytes([c.role]) + c.peak_mw.to_bytes(8, "big"))
            parts.append(c.error_ppm.to_bytes(4, "big") + c.offset_mw.to_bytes(4, "big"))
        return hashlib.sha256(b"".join(parts) + self.uri.encode()).digest()


def read_system(file: Path) -> SystemSpec:
    """Read a system file (TOML); UsageError says why it cannot be read, or names the field that is wrong."""
    try:
        return parse_system(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"system file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"system file {file}: not UTF-8 text; save it as UTF-8") from error


def parse_system(text: str) -> SystemSpec:
    """Read the text of a system file; UsageError names the field that is not as it should be."""
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"system file: {error}") from error
    known = {"kind", "place", "efficiency_percent", "battery_wh", "online_required", "uri", "channels"}
    for name in set(value) - known:
        raise UsageError(f"system file: {name}: not a field; the fields are {', '.join(sorted(known))}")
    kinds = {kind.label: kind for kind in Kind}
    if value.get("kind") not in kinds:
        raise UsageError(f'system file: kind: expected "{" or ".join(kinds)}"')
    channels = value.get("channels", [])
    if not isinstance(channels, list) or not 1 <= len(channels) <= _MOST_CHANNELS:
        raise UsageError(f"system file: [[channels]]: expected 1 to {_MOST_CHANNELS}")
    specs = tuple(_channel(channel) for channel in channels)
    if len({spec.number for spec in specs}) < len(specs):
        raise UsageError("system file: [[channels]]: a number twice")
    uri = value.get("uri", "")
    if not isinstance(uri, str) or len(uri.encode()) > _MOST_URI_BYTES:
        raise UsageError(f"system file: uri: expected a text of at most {_MOST_URI_BYTES} bytes")
    online = value.get("online_required", False)
    if not isinstance(online, bool):
        raise UsageError("system file: online_required: expected true or false")
    return SystemSpec(
        kind=kinds[value["kind"]],
        channels=specs,
        place_deci=_place(value.get("place")),
        efficiency_ppm=round(_number(value, "efficiency_percent", 0.0001, 100, default=100) * 10_000),
        battery_wh=round(_number(value, "battery_wh", 0, 2**63, default=0)),
        online_required=online,
        uri=uri,
    )


def _channel(value: Any) -> ChannelSpec:
    if not isinstance(value, dict):
        raise UsageError("system file: [[channels]]: expected tables")
    for name in set(value) - {"number", "role", "peak_w", "error_percent", "offset_mw"}:
        raise UsageError(f"system file: channels: {name}: not a field of a channel")
    if value.get("role") not in _ROLES:
        raise UsageError(f"system file: channels: role: expected one of {', '.join(_ROLES)}")
    return ChannelSpec(
        number=round(_number(value, "number", 0, 2**32)),
        role=_ROLES[value["role"]],
        peak_mw=round(_number(value, "peak_w", 0.001, 10**12) * 1000),
        error_ppm=round(_number(value, "error_percent", 0, 100, default=0.5) * 10_000),
        offset_mw=round(_number(value, "offset_mw", 0, 2**31, default=0)),
    )


def _place(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(x, int | float) for x in value)
    if not numbers or not (abs(value[0]) <= 90 and abs(value[1]) <= 180):
        raise UsageError("system file: place: expected [latitude, longitude] in degrees, north and east positive")
    return round(value[0] * 10), round(value[1] * 10)


def _number(value: Mapping[str, Any], name: str, least: float, most: float, default: float | None = None) -> float:
    found = value.get(name, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or not least <= found <= most:
        raise UsageError(f"system file: {name}: expected a number from {least:g} to {most:g}")
    return found
