"""The evidence pack: a ZIP whose bytes follow from its entries alone (P-PCK-2)."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import rfc8785

from maxgreen.errors import MaxgreenError

MANIFEST: Final = "manifest.json"
ORDER: Final = "order.json"
_UNLISTED: Final = {MANIFEST, ORDER}
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_VERSION: Final = 20
_MODE: Final = 0o100644 << 16


class PackError(MaxgreenError):
    """A pack that does not hold what it says; the message names the entry."""


def canonical_json(value: Any) -> bytes:
    """Return RFC 8785 JSON."""
    return rfc8785.dumps(value)


def manifest_bytes(
    network: str, period: str, until_s: int, previous: bytes | None, entries: Mapping[str, bytes]
) -> bytes:
    """Return manifest.json over every entry but itself and order.json."""
    return canonical_json(
        {
            "version": 1,
            "network": network,
            "period": period,
            "until": until_s,
            "previous": previous.hex() if previous else None,
            "files": {
                name: hashlib.sha256(data).hexdigest() for name, data in entries.items() if name not in _UNLISTED
            },
        }
    )


def write_pack(entries: Mapping[str, bytes]) -> bytes:
    """Return the ZIP archive: stored, sorted, without times or extra fields."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX
            info.create_version = info.extract_version = _VERSION
            info.external_attr = _MODE
            archive.writestr(info, entries[name])
    return buffer.getvalue()


def read_pack(path: Path) -> dict[str, bytes]:
    """Return the entries of a pack's file; PackError as `parse_pack`."""
    try:
        return parse_pack(path.read_bytes(), str(path))
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}") from error


def parse_pack(data: bytes, where: str) -> dict[str, bytes]:
    """Return a pack's entries; PackError unless it is, byte for byte, the archive of its entries."""
    entries: dict[str, bytes] = {}
    name = "the central directory"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            for name in names:
                entries[name] = archive.read(name)
    except Exception as error:  # a damaged archive raises whatever its bytes ask for
        raise PackError(f"{where}: {name}: not readable: {error}") from error
    rebuilt = write_pack(entries)
    if len(names) != len(entries) or rebuilt != data:
        raise PackError(f"{where}: {_first_difference(rebuilt, data)}")
    return entries


def _first_difference(rebuilt: bytes, data: bytes) -> str:
    """Say near which entry an archive differs from the one form that its entries have."""
    at = next((k for k, (a, b) in enumerate(zip(rebuilt, data, strict=False)) if a != b), min(len(rebuilt), len(data)))
    with zipfile.ZipFile(io.BytesIO(rebuilt)) as archive:
        before = [info.filename for info in archive.infolist() if info.header_offset <= at]
    entry = before[-1] if before else "the first entry"
    return f"byte {at}, at entry {entry}, is not as the format has it (P-PCK-2)"
