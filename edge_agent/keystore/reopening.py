"""A key in a token or TPM that may go and come back: whoever holds its signer never notices more than a wait."""

import hashlib
import time
from collections.abc import Callable
from typing import Final, Protocol

from maxgreen.errors import Retryable
from maxgreen.protocol.keys import P256_ORDER

AGAIN_S: Final = 1.0  # between two attempts to open it


class Handle(Protocol):
    """An open key."""

    spki: bytes

    def sign_digest(self, digest: bytes) -> tuple[int, int]:
        """Return r and s of ECDSA over a SHA-256 digest; Retryable when the key is away."""
        ...

    def close(self) -> None:
        """Let go of it, whatever state it is in."""
        ...


class ReopeningSigner:
    """Signs with a key that `open_key` opens, and opens it again when it was away."""

    def __init__(self, open_key: Callable[[], Handle]) -> None:
        """Open it; what `open_key` raises is raised."""
        self._open_key = open_key
        self._handle: Handle | None = open_key()
        self.spki = self._handle.spki
        self._again_s = 0.0
        self._failure = ""

    def sign(self, message: bytes) -> bytes:
        """Return r ‖ s with s ≤ n/2 (P-SIG-1); Retryable while the key is away."""
        digest = hashlib.sha256(message).digest()
        if self._handle is not None:
            try:
                return low_s(*self._handle.sign_digest(digest))
            except Retryable:
                self._handle.close()
                self._handle = None
        self._reopen()
        if self._handle is None:
            raise Retryable(self._failure)
        return low_s(*self._handle.sign_digest(digest))

    def _reopen(self) -> None:
        if time.monotonic() < self._again_s:
            return
        self._again_s = time.monotonic() + AGAIN_S
        try:
            handle = self._open_key()
        except Retryable as error:
            self._failure = str(error)
            return
        if handle.spki != self.spki:
            handle.close()
            self._failure = "another key answers in its place"
            return
        self._handle, self._again_s = handle, 0.0


def low_s(r: int, s: int) -> bytes:
    """Return r ‖ s with s ≤ n/2 (P-SIG-1)."""
    return r.to_bytes(32, "big") + min(s, P256_ORDER - s).to_bytes(32, "big")
