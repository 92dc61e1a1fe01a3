"""P-256 keys and ES256 signatures: device ids, low s, r ‖ s (P-ID-2, P-SIG-1)."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from native import p256

P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
HALF_ORDER: Final = P256_ORDER // 2
# SubjectPublicKeyInfo of a P-256 key up to the point: named curve, uncompressed (P-ID-2)
SPKI_PREFIX: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
SPKI_SIZE: Final = 91
SIGNATURE_SIZE: Final = 64
_KEYS: Final = 4_096  # OpenSSL's form of a key is 2 kB
_DETERMINISTIC: Final = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class Signer(Protocol):
    """A signing key that never leaves its store."""

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER, 91 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return r ‖ s (64 bytes, s ≤ n/2) over SHA-256 of `message`."""
        ...


class MemorySigner:
    """A P-256 key in memory; signatures are deterministic (RFC 6979)."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def from_secret(cls, secret: int) -> "MemorySigner":
        """Derive the key from its secret number: for test vectors only."""
        return cls(ec.derive_private_key(secret, ec.SECP256R1()))

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER, 91 bytes."""
        return self._spki

    def sign(self, message: bytes) -> bytes:
        """Return r ‖ s (64 bytes, s ≤ n/2) over SHA-256 of `message`."""
        der = self._key.sign(message, _DETERMINISTIC)
        r, s = decode_dss_signature(der)
        return r.to_bytes(32, "big") + min(s, P256_ORDER - s).to_bytes(32, "big")


class Verifier:
    """A P-256 public key that checks signatures (P-SIG-1)."""

    __slots__ = ("_spki", "key_id")

    def __init__(self, spki: bytes) -> None:
        """Take the 91-byte SubjectPublicKeyInfo; ValueError when it is not a point of P-256."""
        if not is_spki(spki):
            raise ValueError("not a SubjectPublicKeyInfo of a P-256 key: named curve, uncompressed point, 91 bytes")
        _public_key(spki)
        self.key_id = key_id(spki)
        self._spki = spki

    def job(self, message: bytes, signature: bytes) -> bytes | None:
        """Return what `native.p256` checks; None for a signature of another size."""
        if len(signature) != SIGNATURE_SIZE:
            return None
        return signature + hashlib.sha256(message).digest() + self._spki[len(SPKI_PREFIX) :]

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Tell whether r ‖ s is a low-s ES256 signature of `message`."""
        if len(signature) != SIGNATURE_SIZE:
            return False
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        if not (0 < r < P256_ORDER and 0 < s <= HALF_ORDER):
            return False
        try:
            _public_key(self._spki).verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@lru_cache(_KEYS)
def _public_key(spki: bytes) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), spki[len(SPKI_PREFIX) - 1 :])


def verify_group(signed: Sequence[tuple[Verifier, bytes, bytes]]) -> list[bool]:
    """Tell of each (key, message, signature) what `verifies` tells; in groups of eight where the processor can.

    What a group check refuses is checked once more by itself.
    """
    jobs = [verifier.job(message, signature) for verifier, message, signature in signed]
    answers = iter(p256.verify_many([job for job in jobs if job is not None]) or bytes(len(jobs)))
    return [
        job is not None and (next(answers) == 1 or verifier.verifies(message, signature))
        for job, (verifier, message, signature) in zip(jobs, signed, strict=True)
    ]


def key_id(spki: bytes) -> bytes:
    """Return the 16-byte id of a key: a device id or a backend key id (P-ID-2)."""
    return hashlib.sha256(spki).digest()[:16]


def is_spki(data: bytes) -> bool:
    """Tell whether `data` has the one DER form that P-ID-2 allows (the point itself is not checked)."""
    return len(data) == SPKI_SIZE and data.startswith(SPKI_PREFIX)


def public_point(spki: bytes) -> tuple[int, int]:
    """Return the affine x and y that a contract keeps of a key."""
    point = spki[len(SPKI_PREFIX) :]
    return int.from_bytes(point[:32], "big"), int.from_bytes(point[32:], "big")
