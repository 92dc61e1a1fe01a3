"""ES256 signatures in groups: eight at a time where the processor can (AVX-512 IFMA), None where it cannot."""

import logging
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, Final

JOB_BYTES: Final = 160
_LOG: Final = logging.getLogger(__name__)
# RFC 6979, A.2.5: P-256, SHA-256 of "sample", with the low s
_KNOWN: Final = bytes.fromhex(
    "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
    "0834e36ad29a83bf2bc9385e491d6099c8fdf9d1ed67aa7ea5f51f93782857a9"
    "af2bdbe1aa9b6ec1e2ade1d694f41fc71a831d0268e9891562113d8a62add1bf"
    "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
    "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
)


def verify_many(jobs: Sequence[bytes]) -> bytes | None:
    """Return one byte a job: 1 when the signature is the key's and low, else 0; None when this machine cannot.

    A job is r, s, the SHA-256 digest and the key's x and y, 32 bytes each, big endian; the key must be on the curve.
    """
    library = _library()
    return None if library is None else _verified(library, b"".join(jobs))


def is_there() -> bool:
    """Tell whether this machine checks signatures in groups."""
    return _library() is not None


@cache
def _library() -> Any:
    try:
        library = import_module("native._p256")  # built where its own library is at hand
    except ImportError:
        return None
    if not library.lib.mg_p256_supported():
        return None
    wrong = _KNOWN[:159] + bytes([_KNOWN[159] ^ 1])  # another key: not even a point
    forged = _KNOWN[:95] + bytes([_KNOWN[95] ^ 1]) + _KNOWN[96:]
    answers = _verified(library, b"".join([_KNOWN, forged] * 4 + [wrong]))
    if answers == bytes([1, 0] * 4 + [0]):
        return library
    _LOG.warning("the group check of signatures fails its self-test and is not used; please report your processor")
    return None


def _verified(library: Any, jobs: bytes) -> bytes:
    count, rest = divmod(len(jobs), JOB_BYTES)
    if rest:
        raise ValueError(f"jobs of {JOB_BYTES} bytes each")
    ok = bytearray(count)
    library.lib.mg_p256_verify(library.ffi.from_buffer(jobs), count, library.ffi.from_buffer(ok))
    return bytes(ok)
