"""COSE_Sign1 with ES256, the one envelope of the protocol (RFC 9052; P-ID-3, P-SIG-1)."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from maxgreen.protocol import cbor
from maxgreen.protocol.keys import SIGNATURE_SIZE, Signer, Verifier, key_id, verify_group
from maxgreen.protocol.reasons import BadSignature, Malformed
from maxgreen.values import value

MessageType = Literal["batch", "beacon", "receipt", "command", "statement"]
COSE_SIGN1: Final = 18
ES256: Final = -7
KEY_ID_SIZE: Final = 16


@value(frozen=True, slots=True)
class Envelope:
    """A COSE_Sign1 whose form was checked and whose signature was not."""

    key_id: bytes
    payload: bytes
    signature: bytes

    def check(self, verifier: Verifier, network: str, kind: MessageType) -> None:
        """Raise BadSignature unless `verifier` signed this payload for this deployment and purpose."""
        if verifier.key_id != self.key_id:
            raise BadSignature("the key id names another key")
        if not verifier.verifies(to_be_signed(self.key_id, self.payload, network, kind), self.signature):
            raise _not_the_keys(network, kind)


def check_group(
    signed: Sequence[tuple[Envelope, Verifier]], network: str, kind: MessageType
) -> list[BadSignature | None]:
    """Return of each envelope what `check` with its key raises."""
    answers = verify_group(
        [
            (verifier, to_be_signed(envelope.key_id, envelope.payload, network, kind), envelope.signature)
            for envelope, verifier in signed
        ]
    )
    return [
        None if good and verifier.key_id == envelope.key_id else _not_the_keys(network, kind)
        for good, (envelope, verifier) in zip(answers, signed, strict=True)
    ]


def _not_the_keys(network: str, kind: MessageType) -> BadSignature:
    return BadSignature(f"the signature is not the key's over a {kind} for {network}")


def external_aad(network: str, kind: MessageType) -> bytes:
    """Return UTF-8(network) ‖ 0x00 ‖ type (P-ID-3)."""
    return network.encode() + b"\0" + kind.encode()


def network_digest(network: str) -> bytes:
    """Return SHA-256(network): prev at seq 0, and part of attestations and possession proofs."""
    return hashlib.sha256(network.encode()).digest()


_PROTECTED: Final = cbor.encode({1: ES256, 4: bytes(KEY_ID_SIZE)})[:-KEY_ID_SIZE]
_SIGNATURE1: Final = b"\x84" + cbor.encode("Signature1")  # an array of four, and its first item
_SIGN1: Final = cbor.encode(cbor.tag(COSE_SIGN1, [0, 0, 0, 0]))[:-4]  # the tag, and an array of four
_EMPTY_MAP: Final = cbor.encode({})


def protected_header(signer_id: bytes) -> bytes:
    """Return the encoded `{1: -7, 4: key id}`."""
    return _PROTECTED + signer_id


def to_be_signed(signer_id: bytes, payload: bytes, network: str, kind: MessageType) -> bytes:
    """Return the Sig_structure of RFC 9052 §4.4."""
    return b"".join(
        (
            _SIGNATURE1,
            cbor.byte_string(protected_header(signer_id)),
            cbor.byte_string(external_aad(network, kind)),
            cbor.byte_string(payload),
        )
    )


def sign(payload: bytes, signer: Signer, network: str, kind: MessageType, *, detached: bool = False) -> bytes:
    """Return the signed message; `detached` leaves the payload out (statement.cose)."""
    signer_id = key_id(signer.spki)
    signature = signer.sign(to_be_signed(signer_id, payload, network, kind))
    return _message(signer_id, None if detached else payload, signature)


def _message(signer_id: bytes, payload: bytes | None, signature: bytes) -> bytes:
    return b"".join(
        (
            _SIGN1,
            cbor.byte_string(protected_header(signer_id)),
            _EMPTY_MAP,
            cbor.encode(None) if payload is None else cbor.byte_string(payload),
            cbor.byte_string(signature),
        )
    )


def parse(message: bytes, *, detached_payload: bytes | None = None) -> Envelope:
    """Return the envelope of `message`; Malformed when its form is not exactly P-SIG-1's."""
    body: Any = cbor.tagged(cbor.read(message), COSE_SIGN1, "message")
    if not isinstance(body, tuple) or len(body) != 4:  # cbor2 makes what stands behind a tag immutable
        raise Malformed("message: not an array of four")
    protected = cbor.check_bytes(body[0], "protected header")
    if len(protected) != len(_PROTECTED) + KEY_ID_SIZE or not protected.startswith(_PROTECTED):
        raise Malformed("protected header: not {1: -7, 4: key id of 16 bytes}, encoded deterministically")
    signer_id = protected[-KEY_ID_SIZE:]
    if not isinstance(body[1], Mapping) or body[1]:
        raise Malformed("unprotected header: not empty")
    if detached_payload is None:
        payload = cbor.check_bytes(body[2], "payload")
    elif body[2] is None:
        payload = detached_payload
    else:
        raise Malformed("payload: not detached")
    signature = cbor.check_bytes(body[3], "signature", SIGNATURE_SIZE)
    if _message(signer_id, body[2], signature) != message:
        raise Malformed("message: not deterministic CBOR (RFC 8949 §4.2.1)")
    return Envelope(signer_id, payload, signature)
