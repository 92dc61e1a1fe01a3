"""The evidence pack: a ZIP whose bytes follow from its entries alone (P-PCK-2)."""

import hashlib
import io
import json
import re
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping
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
_RECORD: Final = struct.Struct("<4s5H2I I2H")  # an entry's own header (APPNOTE 4.3.7)
_RECORD_START: Final = b"PK\3\4" + _VERSION.to_bytes(2, "little")
_DIRECTORY_RECORD_BYTES: Final = 46  # before the name (APPNOTE 4.3.12)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_SHOWN: Final = 80  # characters of a name that may be damaged


class PackError(MaxgreenError):
    """A pack that does not hold what it says; the message names the entry."""


def canonical_json(value: Any) -> bytes:
    """Return RFC 8785 JSON."""
    return rfc8785.dumps(value)


def read_canonical(name: str, data: bytes) -> Any:
    """Return the value of an entry that is RFC 8785 JSON; PackError when it is not."""
    try:
        value = json.loads(data)
        again = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{name}: not JSON: {error}") from error
    if again != data:
        raise PackError(f"{name}: not RFC 8785 JSON")
    return value


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
    records = list(_records(data))
    entries = {name: content for _, name, content in records}
    rebuilt = write_pack(entries)
    if rebuilt == data:
        for name in entries:
            if not _NAME.fullmatch(name):
                raise PackError(f"{where}: {name[:_SHOWN]!r} is no name of an entry")
        return entries
    at = next((k for k, (a, b) in enumerate(zip(rebuilt, data, strict=False)) if a != b), min(len(rebuilt), len(data)))
    starts = [start for start, _, _ in records]
    if records:
        last_start, last_name, last_content = records[-1]
        position = last_start + _RECORD.size + len(last_name.encode()) + len(last_content)
        for _, name, _ in records:  # then the directory, in the same order
            starts.append(position)
            position += _DIRECTORY_RECORD_BYTES + len(name.encode())
    names = [name for _, name, _ in records] * 2
    entry = f"at entry {names[bisect_right(starts, at) - 1][:_SHOWN]!r}" if names else "where the first entry should be"
    raise PackError(f"{where}: byte {at}, {entry}, is not as the format has it (P-PCK-2)")


def _records(data: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Yield each entry's start, name and content, as the records in front of the contents tell."""
    start = 0
    while _is_record(data[start : start + _RECORD.size]):
        *_, size, name_size, extra_size = _RECORD.unpack_from(data, start)
        name_end = start + _RECORD.size + name_size
        end = name_end + extra_size + size
        name = data[start + _RECORD.size : name_end].decode(errors="replace")
        yield start, name, data[name_end + extra_size : end]
        start = end


def _is_record(header: bytes) -> bool:
    """Tell a record by its first bytes, of which one may be damaged: its entry should still be named."""
    hits = sum(a == b for a, b in zip(header, _RECORD_START, strict=False))
    return len(header) == _RECORD.size and hits >= len(_RECORD_START) - 1
