"""Proof of work: the 80-byte header, compact targets, credit (docs/protocol.md, Proof of work)."""

import hashlib
from functools import lru_cache
from typing import Final

from maxgreen.protocol.reasons import Malformed

HEADER_VERSION: Final = 0x4D470001
HEADER_BYTES: Final = 80
WINDOW_MS: Final = 600_000  # P-POW-4: ten UTC minutes


@lru_cache(1_024)
def target_of(nbits: int) -> int:
    """Return the target of compact `nbits`; Malformed when it has none (P-POW, nBits)."""
    exponent, mantissa = nbits >> 24, nbits & 0x7FFFFF
    if mantissa == 0 or nbits & 0x800000 or exponent < 3:
        raise Malformed(f"nBits {nbits:#010x}: no target")
    target = mantissa << (8 * (exponent - 3))
    if target >= 2**256:
        raise Malformed(f"nBits {nbits:#010x}: a target of 2^256 or more")
    return target


@lru_cache(1_024)
def credit_of(nbits: int) -> int:
    """Return the hashes that one share at `nbits` is credited with: floor(2^256 / (target + 1))."""
    return 2**256 // (target_of(nbits) + 1)


def nbits_of_credit(hashes: int) -> int:
    """Return compact bits whose share costs about `hashes`, never more than 2^256/hashes as target."""
    target = 2**256 // max(1, hashes) - 1
    exponent = (target.bit_length() + 7) // 8
    mantissa = target >> (8 * (exponent - 3))
    if mantissa & 0x800000:
        exponent, mantissa = exponent + 1, mantissa >> 8
    return exponent << 24 | mantissa


def header_prefix(prev: bytes, beacon_value: bytes, device: bytes, issued_s: int, nbits: int) -> bytes:
    """Return the header's first 76 bytes; a nonce, u32 LE, makes it whole."""
    return b"".join(
        (
            HEADER_VERSION.to_bytes(4, "little"),
            prev,
            hashlib.sha256(beacon_value + device).digest(),
            issued_s.to_bytes(4, "little"),
            nbits.to_bytes(4, "little"),
        )
    )


def header(prefix: bytes, nonce: int) -> bytes:
    """Return the 80-byte header of a nonce."""
    return prefix + nonce.to_bytes(4, "little")


def window_of(t_ms: int) -> int:
    """Return the start, in unix seconds, of the proof window that holds `t_ms` (P-POW-4)."""
    return t_ms // WINDOW_MS * (WINDOW_MS // 1000)
