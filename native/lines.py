"""Samples as InfluxDB's line protocol, in C; `ingest.view.lines` is the reference."""

from struct import Struct

from native._scrypt import ffi, lib

_LARGEST_MS = 2**43


def sample_lines(
    tags: str, voltage_uv: tuple[int, ...], current_ua: tuple[int, ...], offsets_ms: tuple[int, ...], t0_ms: int
) -> bytes:
    """Return a line for each sample of 32 bits, each with its end; ValueError for a time that is none."""
    count = len(voltage_uv)
    if not len(current_ua) == len(offsets_ms) == count:
        raise ValueError("arrays of different lengths")
    if not 0 <= t0_ms < _LARGEST_MS:
        raise ValueError(f"t0 {t0_ms} ms: expected 0 to 2^43")
    name = tags.encode()
    signed = Struct(f"<{count}i")
    out = ffi.new("char[]", count * (lib.MG_LINE_BYTES + len(name)) + 1)
    size = lib.mg_sample_lines(
        name,
        len(name),
        signed.pack(*voltage_uv),
        signed.pack(*current_ua),
        Struct(f"<{count}I").pack(*offsets_ms),
        count,
        t0_ms,
        out,
    )
    return bytes(ffi.buffer(out, size))
