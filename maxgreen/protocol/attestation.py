"""Register readings, possession and hand-over proofs that a contract can check (P-ATT-1, P-ID-5, P-ID-6)."""

from dataclasses import dataclass
from typing import Final

from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import Signer, Verifier, key_id

ATTESTATION_PREFIX: Final = b"MGATT1\0\0"
POSSESSION_PREFIX: Final = b"MGPOP2\0\0"
HAND_OVER_PREFIX: Final = b"MGROT1\0\0"


@dataclass(frozen=True, slots=True)
class Attestation:
    """A channel's register at one instant: unix seconds, mW·s, the seq of the carrying batch; r ‖ s."""

    channel: int
    unix_s: int
    register_mws: int
    seq: int
    signature: bytes

    def verified_by(self, verifier: Verifier, network: str) -> bool:
        """Tell whether the device signed this reading for this deployment."""
        message = attestation_message(network, verifier.key_id, self.channel, self.unix_s, self.register_mws, self.seq)
        return verifier.verifies(message, self.signature)


def attestation_message(network: str, device: bytes, channel: int, unix_s: int, register_mws: int, seq: int) -> bytes:
    """Return the 88 bytes that an attestation signs; numbers are u64 big-endian."""
    numbers = b"".join(number.to_bytes(8, "big") for number in (channel, unix_s, register_mws, seq))
    return ATTESTATION_PREFIX + network_digest(network) + device + numbers


def attest(signer: Signer, network: str, channel: int, unix_s: int, register_mws: int, seq: int) -> Attestation:
    """Sign a register reading."""
    message = attestation_message(network, key_id(signer.spki), channel, unix_s, register_mws, seq)
    return Attestation(channel, unix_s, register_mws, seq, signer.sign(message))


def possession_message(network: str, device: bytes, owner: bytes, nonce: int, content: bytes) -> bytes:
    """Return the bytes by which a device applies for an owner (P-ID-5).

    `owner` is a 20-byte address, `nonce` counts the device's applications before, `content` is the system's digest.
    """
    if len(owner) != 20 or len(content) != 32:
        raise ValueError("an owner's address has 20 bytes, a content's digest 32")
    return POSSESSION_PREFIX + network_digest(network) + device + owner + nonce.to_bytes(8, "big") + content


def prove_possession(signer: Signer, network: str, owner: bytes, nonce: int, content: bytes) -> bytes:
    """Return r ‖ s over the possession message."""
    return signer.sign(possession_message(network, key_id(signer.spki), owner, nonce, content))


def hand_over_message(network: str, old_device: bytes, new_device: bytes) -> bytes:
    """Return the bytes by which a key gives its place to another one (P-ID-6)."""
    return HAND_OVER_PREFIX + network_digest(network) + old_device + new_device


def hand_over(signer: Signer, network: str, new_device: bytes) -> bytes:
    """Return r ‖ s of the old key over the hand-over message."""
    return signer.sign(hand_over_message(network, key_id(signer.spki), new_device))


def prove_fraud(first: Attestation, second: Attestation, verifier: Verifier, network: str) -> bool:
    """Tell whether two attestations of a device prove that it signed two histories (P-ATT-2)."""
    same_place = (first.channel, first.seq) == (second.channel, second.seq)
    differ = (first.unix_s, first.register_mws) != (second.unix_s, second.register_mws)
    return same_place and differ and all(a.verified_by(verifier, network) for a in (first, second))
