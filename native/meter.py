"""Energy from the samples of one channel, in C; `maxgreen.verify.meter` is the reference."""

from struct import Struct
from typing import NamedTuple

from native._scrypt import ffi, lib


class Sums(NamedTuple):
    """What samples add (0.5e-15 J, µA²·ms, ms), and whether their times rise."""

    forward: int
    reverse: int
    gap_ms: int
    square_current: int
    counted_ms: int
    longest_ms: int
    rises: bool


def measure(
    voltage_uv: tuple[int, ...],
    current_ua: tuple[int, ...],
    offsets_ms: tuple[int, ...],
    t0_boot_ms: int,
    before: tuple[int, int, int] | None,
    *,
    longest_allowed_ms: int,
    dead_band_ua: int,
) -> Sums:
    """Return the sums over samples of 32 bits; `before` is current (µA), power (pW) and boot time of the sample before.

    struct.error when a value does not fit, OverflowError when a time or a limit is over 63 bits.
    """
    count = len(voltage_uv)
    if not len(current_ua) == len(offsets_ms) == count:
        raise ValueError("arrays of different lengths")
    signed = Struct(f"<{count}i")
    growth = ffi.new("mg_growth *")
    rises = lib.mg_measure(
        signed.pack(*voltage_uv),
        signed.pack(*current_ua),
        Struct(f"<{count}I").pack(*offsets_ms),
        count,
        t0_boot_ms,
        ffi.NULL if before is None else ffi.new("mg_sample *", before),
        longest_allowed_ms,
        dead_band_ua,
        growth,
    )
    forward, reverse, square = growth.forward, growth.reverse, growth.square_current
    return Sums(
        forward[0] | forward[1] << 64,
        reverse[0] | reverse[1] << 64,
        growth.gap_ms,
        square[0] | square[1] << 64,
        growth.counted_ms,
        growth.longest_ms,
        bool(rises),
    )
