"""The evidence pack: a ZIP whose bytes follow from its entries alone (P-PCK-2)."""

import hashlib
import io
import json
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import rfc8785

from maxgreen.errors import MaxgreenError

MANIFEST: Final = "manifest.json"
ORDER: Final = "order.json"
RUN: Final = "run.json"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_VERSION: Final = 20
_MODE: Final = 0o100644 << 16
_RECORD: Final = struct.Struct("<4s5H2I I2H")  # an entry's own header (APPNOTE 4.3.7)
_RECORD_START: Final = b"PK\3\4" + _VERSION.to_bytes(2, "little")
_DIRECTORY: Final = struct.Struct("<4s6H3I5H2I")  # before the name (APPNOTE 4.3.12); ends in the entry's start
_END: Final = struct.Struct("<4s4H2IH")  # of the archive (APPNOTE 4.3.16)
_MOST: Final = 65_535  # entries
_MOST_BYTES: Final = 2**32 - 1
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_SHOWN: Final = 80  # characters of a name that may be damaged


Archive = bytes | mmap.mmap


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


def manifest_bytes(head: Mapping[str, Any], entries: Mapping[str, bytes]) -> bytes:
    """Return manifest.json: what it says beside its files, and the SHA-256 of every entry but itself."""
    files = {name: hashlib.sha256(data).hexdigest() for name, data in entries.items() if name != MANIFEST}
    return canonical_json({**head, "files": files})


def write_pack(entries: Mapping[str, bytes]) -> bytes:
    """Return the ZIP archive: stored, sorted, without times or extra fields."""
    buffer = io.BytesIO()
    _write(buffer, {name: lambda data=data: data for name, data in entries.items()})  # type: ignore[misc]
    return buffer.getvalue()


def save_pack(path: Path, parts: Mapping[str, Callable[[], bytes]]) -> None:
    """Write such an archive to a file, whole or not at all; each part is asked for when it is its turn.

    PackError when it would be larger than an archive may be.
    """
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("wb") as file:
            _write(file, parts)
        if len(parts) > _MOST or fresh.stat().st_size > _MOST_BYTES:
            raise PackError(f"over {_MOST} entries, or 4 GiB: ask for one line's, or give the store")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _write(file: IO[bytes], parts: Mapping[str, Callable[[], bytes]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(parts):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX
            info.create_version = info.extract_version = _VERSION
            info.external_attr = _MODE
            archive.writestr(info, parts[name]())


class Entries(Mapping[str, bytes]):
    """The entries of an archive, read where they stand."""

    def __init__(self, data: Archive, places: Mapping[str, tuple[int, int]]) -> None:
        """`places`: from where to where each entry's content stands."""
        self._data, self._places = data, places

    def __getitem__(self, name: str) -> bytes:
        begin, end = self._places[name]
        return self._data[begin:end]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_pack(path: Path) -> Entries:
    """Return the entries of a pack's file, which is not read into memory; PackError as `parse_pack`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return parse_pack(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"", str(path))
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}") from error


def parse_pack(data: Archive, where: str) -> Entries:
    """Return a pack's entries; PackError unless it is, byte for byte, the archive of its entries."""
    places: dict[str, tuple[int, int]] = {}
    directory: list[tuple[str, bytes]] = []
    position, last = 0, ""
    for start, name, begin, end in _records(data):
        own, listed = _parts(name, data[begin:end], start)
        _compare(where, data, start, [(name, own)])
        if name <= last or not _NAME.fullmatch(name):
            raise PackError(f"{where}: at entry {name[:_SHOWN]!r}: no name of an entry, or not in its place (P-PCK-2)")
        directory.append((name, listed))
        places[name] = begin, end
        position, last = end, name
    size = sum(len(listed) for _, listed in directory)
    count = len(directory)
    if count > _MOST or position + size > _MOST_BYTES:
        raise PackError(f"{where}: over {_MOST} entries, or 4 GiB: ask for one line's, or audit the store")
    ending = (directory[-1][0] if directory else "", _END.pack(b"PK\5\6", 0, 0, count, count, size, position, 0))
    _compare(where, data, position, [*directory, ending])
    if len(data) > position + size + _END.size:
        at = position + size + _END.size
        raise PackError(f"{where}: byte {at}, after the archive's end, is not as the format has it (P-PCK-2)")
    return Entries(data, places)


def _parts(name: str, content: bytes, start: int) -> tuple[bytes, bytes]:
    """Return an entry as it stands in an archive: with its own header at `start`, and in the directory."""
    alone = write_pack({name: content})
    own = len(alone) - _END.size - _DIRECTORY.size - len(name.encode())
    listed = alone[own : len(alone) - _END.size]
    return alone[:own], listed[: _DIRECTORY.size - 4] + start.to_bytes(4, "little") + listed[_DIRECTORY.size :]


def _compare(where: str, data: Archive, start: int, expected: Sequence[tuple[str, bytes]]) -> None:
    """PackError names the first byte from `start` on that is not the expected one, and its entry."""
    for name, part in expected:
        found = data[start : start + len(part)]
        if found != part:
            pairs = enumerate(zip(part, found, strict=False))
            at = start + next((k for k, (want, have) in pairs if want != have), min(len(part), len(found)))
            entry = f"at entry {name[:_SHOWN]!r}" if name else "where the first entry should be"
            raise PackError(f"{where}: byte {at}, {entry}, is not as the format has it (P-PCK-2)")
        start += len(part)


def _records(data: Archive) -> Iterator[tuple[int, str, int, int]]:
    """Yield each entry's start and name, and from where to where its content stands, as its own header tells."""
    start = 0
    while _is_record(data[start : start + _RECORD.size]) and start < _MOST_BYTES:
        *_, size, name_size, extra_size = _RECORD.unpack_from(data, start)
        name_end = start + _RECORD.size + name_size
        begin = name_end + extra_size
        end = min(begin + size, len(data))
        yield start, data[start + _RECORD.size : name_end].decode(errors="replace"), min(begin, end), end
        start = end


def _is_record(header: bytes) -> bool:
    """Tell a record by its first bytes, of which one may be damaged: its entry should still be named."""
    hits = sum(a == b for a, b in zip(header, _RECORD_START, strict=False))
    return len(header) == _RECORD.size and hits >= len(_RECORD_START) - 1
