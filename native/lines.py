"""Samples, and the means of their minutes, as InfluxDB's line protocol, in C; `ingest.view.lines` is the reference.

The arrays are a batch's own: µV, µA and ms, 32 bits each, little endian. Each line comes with its end.
"""

from typing import Any

from native._scrypt import ffi, lib

_LARGEST_MS = 2**43


def sample_lines(tags: str, voltage: bytes, current: bytes, offsets: bytes, t0_ms: int) -> bytes:
    """Return a line for each sample; ValueError for a time that is none."""
    name, out = _room(tags, voltage, current, offsets, t0_ms)
    size = lib.mg_sample_lines(name, len(name), voltage, current, offsets, len(voltage) // 4, t0_ms, out)
    return bytes(ffi.buffer(out, size))


def minute_lines(tags: str, voltage: bytes, current: bytes, offsets: bytes, t0_ms: int, mark_ns: int) -> bytes:
    """Return a line for each UTC minute: samples and their means, at its start and `mark_ns` (less than a minute)."""
    name, out = _room(tags, voltage, current, offsets, t0_ms)
    size = lib.mg_minute_lines(name, len(name), voltage, current, offsets, len(voltage) // 4, t0_ms, mark_ns, out)
    return bytes(ffi.buffer(out, size))


def _room(tags: str, voltage: bytes, current: bytes, offsets: bytes, t0_ms: int) -> tuple[bytes, Any]:
    """Return the tags and a place for the lines of these samples; ValueError when they are none."""
    count = len(voltage) // 4
    if not len(current) == len(offsets) == len(voltage):
        raise ValueError("arrays of different lengths")
    if not 0 <= t0_ms < _LARGEST_MS:
        raise ValueError(f"t0 {t0_ms} ms: expected 0 to 2^43")
    name = tags.encode()
    return name, ffi.new("char[]", count * (lib.MG_LINE_BYTES + len(name)) + 1)
