"""scrypt(N=1024, r=1, p=1) of 80-byte headers: hash, verify, mine. Every call releases the GIL.

Headers are n x 80 bytes, digests and targets n x 32 bytes; as integers both are little endian.
"""

import threading
from typing import Any, Final

from native._scrypt import ffi, lib
from native.kernels import HASH_BYTES, HEADER_BYTES, checked, chosen, new_context

PREFIX_BYTES: Final = 76
LAST_NONCE: Final = 2**32 - 1

_FOUND: Final = 1


def hash_many(headers: bytes, *, kernel: str | None = None) -> bytes:
    """Return the digests of headers; ValueError when their size is not a multiple of 80."""
    count = _count(headers, HEADER_BYTES, "headers")
    digests = bytearray(count * HASH_BYTES)
    lib.mg_hash_many(_context(kernel), ffi.from_buffer(headers), count, ffi.from_buffer(digests))
    return bytes(digests)


def verify_many(headers: bytes, targets: bytes, *, kernel: str | None = None) -> bytes:
    """Return one byte per header: 1 when its digest is at most its target, else 0."""
    count = _count(headers, HEADER_BYTES, "headers")
    if _count(targets, HASH_BYTES, "targets") != count:
        raise ValueError(f"{len(targets) // HASH_BYTES} targets for {count} headers")
    verdicts = bytearray(count)
    lib.mg_verify_many(
        _context(kernel), ffi.from_buffer(headers), ffi.from_buffer(targets), count, ffi.from_buffer(verdicts)
    )
    return bytes(verdicts)


class Miner:
    """Mines one header prefix; one thread mines, any thread may stop it, set its duty or read its progress."""

    def __init__(self, prefix: bytes, target: int, *, duty: float = 1.0, kernel: str | None = None) -> None:
        """Take the header's first 76 bytes, the target and the share of one core to use, 0 < duty ≤ 1."""
        if len(prefix) != PREFIX_BYTES:
            raise ValueError(f"a header prefix has {PREFIX_BYTES} bytes, not {len(prefix)}")
        self._prefix = prefix
        self._target = target.to_bytes(HASH_BYTES, "little")
        self._context = new_context(kernel or chosen())
        self._next = 0
        self._mining = threading.Lock()
        self.set_duty(duty)

    @property
    def hashes(self) -> int:
        """Hashes computed so far."""
        return int(lib.mg_hashes(self._context))

    @property
    def next_nonce(self) -> int:
        """The first nonce not tried yet; 2^32 when none is left."""
        return self._next

    def set_duty(self, duty: float) -> None:
        """Set the share of one core to use."""
        if not 0 < duty <= 1:
            raise ValueError(f"duty {duty}: expected 0 < duty ≤ 1")
        lib.mg_set_duty(self._context, round(duty * 1000))

    def stop(self) -> None:
        """End a `find` that runs, and every later one until `resume`, within milliseconds."""
        lib.mg_stop(self._context, 1)

    def resume(self) -> None:
        """Let `find` run again after `stop`."""
        lib.mg_stop(self._context, 0)

    def find(self, first: int | None = None, last: int = LAST_NONCE) -> int | None:
        """Return the next nonce from `first` (or where the last call ended) to `last` that meets the target.

        None when the range is done or `stop` was called. RuntimeError when another thread is in `find`.
        """
        if not self._mining.acquire(blocking=False):
            raise RuntimeError("this miner is in use by another thread; make one miner per thread")
        try:
            start = self._next if first is None else first
            if start > last:
                return None
            nonce, following = ffi.new("uint32_t *"), ffi.new("uint64_t *", start)
            outcome = lib.mg_mine(self._context, self._prefix, self._target, start, last, nonce, following)
            self._next = int(following[0])
            return int(nonce[0]) if outcome == _FOUND else None
        finally:
            self._mining.release()


def _count(data: bytes, size: int, name: str) -> int:
    count, rest = divmod(len(data), size)
    if rest:
        raise ValueError(f"{name}: {len(data)} bytes are not a multiple of {size}")
    return count


_contexts = threading.local()


def _context(kernel: str | None) -> Any:
    """Return this thread's context for a kernel; a context is never shared between threads."""
    name = checked(kernel) if kernel else chosen()
    contexts: dict[str, Any] = _contexts.__dict__
    if name not in contexts:
        contexts[name] = new_context(name)
    return contexts[name]
