"""Samples as InfluxDB's line protocol, in C; `ingest.view.lines` is the reference."""

from native._scrypt import ffi, lib

_LARGEST_MS = 2**43


def sample_lines(tags: str, voltage: bytes, current: bytes, offsets: bytes, t0_ms: int) -> bytes:
    """Return a line for each sample, each with its end; ValueError for a time that is none.

    The arrays are a batch's own: µV, µA and ms, 32 bits each, little endian.
    """
    count = len(voltage) // 4
    if not len(current) == len(offsets) == len(voltage):
        raise ValueError("arrays of different lengths")
    if not 0 <= t0_ms < _LARGEST_MS:
        raise ValueError(f"t0 {t0_ms} ms: expected 0 to 2^43")
    name = tags.encode()
    out = ffi.new("char[]", count * (lib.MG_LINE_BYTES + len(name)) + 1)
    size = lib.mg_sample_lines(
        name,
        len(name),
        voltage,
        current,
        offsets,
        count,
        t0_ms,
        out,
    )
    return bytes(ffi.buffer(out, size))
