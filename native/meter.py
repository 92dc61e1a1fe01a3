"""Energy from the samples of one channel, in C; `maxgreen.verify.meter` is the reference."""

from native._scrypt import ffi, lib


def measure(
    voltage: bytes,
    current: bytes,
    offsets: bytes,
    t0_boot_ms: int,
    before: tuple[int, int, int] | None,
    *,
    longest_allowed_ms: int,
    dead_band_ua: int,
) -> tuple[int, int, int, int, int, int, bool]:
    """Return what samples add: energy forward and in reverse, gap, square current, time counted, longest segment.

    Units are 0.5e-15 J, µA²·ms and ms; the last value tells whether their times rise. `before` is current (µA), power
    (pW) and boot time (ms) of the sample before; the arrays are a batch's own: µV, µA and ms, 32 bits each,
    little endian. OverflowError when a time or a limit is over 63 bits.
    """
    if not len(current) == len(offsets) == len(voltage):
        raise ValueError("arrays of different lengths")
    sums = ffi.new("uint64_t[]", lib.MG_SUMS)
    rises = lib.mg_measure(
        voltage,
        current,
        offsets,
        len(voltage) // 4,
        t0_boot_ms,
        ffi.NULL if before is None else before,
        longest_allowed_ms,
        dead_band_ua,
        sums,
    )
    low, high, low_reverse, high_reverse, low_square, high_square, gap_ms, counted_ms, longest_ms = ffi.unpack(
        sums, lib.MG_SUMS
    )
    return (
        low | high << 64,
        low_reverse | high_reverse << 64,
        gap_ms,
        low_square | high_square << 64,
        counted_ms,
        longest_ms,
        rises == 1,
    )
