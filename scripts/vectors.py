"""Writes docs/vectors/*.json, so that another implementation can be checked; --check compares instead."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from maxgreen.chain.merkle import BATCH_LEAF, MerkleTree, leaf_hash
from maxgreen.protocol import cose
from maxgreen.protocol.attestation import (
    attest,
    attestation_message,
    hand_over,
    hand_over_message,
    possession_message,
    prove_possession,
)
from maxgreen.protocol.backend import Command, CommandKind, Receipt, Rejection, sign_beacon, sign_command, sign_receipt
from maxgreen.protocol.batch import MAX_MESSAGE_BYTES, Event, Health, parse_batch
from maxgreen.protocol.cose import parse
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec
from maxgreen.protocol.work import header, header_prefix, target_of
from native.scrypt import hash_many
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon

FOLDER = Path(__file__).parent.parent / "docs" / "vectors"
BACKEND = MemorySigner.from_secret(2)


def signed(kind: cose.MessageType, secret: int, message: bytes) -> dict[str, Any]:
    """Return a signed message with everything that leads to it."""
    envelope = parse(message)
    return {
        "network": NETWORK,
        "secret": f"{secret:064x}",
        "key_id": envelope.key_id.hex(),
        "payload": envelope.payload.hex(),
        "to_be_signed": cose.to_be_signed(envelope.key_id, envelope.payload, NETWORK, kind).hex(),
        "signature": envelope.signature.hex(),
        "message": message.hex(),
        "sha256": hashlib.sha256(message).hexdigest(),
    }


def messages() -> dict[str, Any]:
    """One example of every message."""
    lab = Lab()
    challenge = beacon()
    batch = lab.attested(lab.batch())
    batch = replace(
        batch,
        clock_error_ms=3,
        work=lab.work(challenge),
        health=Health(48_000, 0, 1, 900, False, 500),
        events=(Event(0, 0), Event(1, 9_000, 4), Event(9, 9_500, 5, 7)),
    )
    receipt = Receipt(
        lab.device, 1, hashlib.sha256(b"head").digest(), T0_MS, EASY, (3,), ((0, 0),), {0: (1, 2, 3)},
        Rejection(T0_MS // 1000, 63, "the loss is not explained"),
    )  # fmt: skip
    command = Command(lab.device, 9, T0_MS, T0_MS + 60_000, CommandKind.START_TRANSFER, {0: 1, 1: 60, 2: 1000})
    applicant = bytes(range(20))
    channels = (ChannelSpec(0, 0, 250_000, 5_000, 0), ChannelSpec(1, 1, 250_000, 5_000, 0))
    system = SystemSpec(Kind.MINER, channels, place_deci=(351, -1066), uri="https://example.org/roof")
    reading = attest(lab.signer, NETWORK, 1, 1_767_225_609, 162_000, 0)
    return {
        "keys": {
            "secret": f"{lab.secret:064x}",
            "spki": lab.signer.spki.hex(),
            "device_id": lab.device.hex(),
            "backend_secret": f"{2:064x}",
            "backend_key_id": key_id(BACKEND.spki).hex(),
        },
        "batch": signed("batch", 1, lab.sign(batch)),
        "beacon": signed("beacon", 2, sign_beacon(challenge, BACKEND, NETWORK)),
        "receipt": signed("receipt", 2, sign_receipt(receipt, BACKEND, NETWORK)),
        "command": signed("command", 2, sign_command(command, BACKEND, NETWORK)),
        "statement": {"detached": cose.sign(b"{}", BACKEND, NETWORK, "statement", detached=True).hex()},
        "attestation": {
            "bytes": attestation_message(NETWORK, lab.device, 1, 1_767_225_609, 162_000, 0).hex(),
            "signature": reading.signature.hex(),
        },
        "possession": {
            "owner": applicant.hex(),
            "nonce": 0,
            "system_digest": system.digest.hex(),
            "bytes": possession_message(NETWORK, lab.device, applicant, 0, system.digest).hex(),
            "signature": prove_possession(lab.signer, NETWORK, applicant, 0, system.digest).hex(),
        },
        "hand_over": {
            "new_device_id": key_id(BACKEND.spki).hex(),
            "bytes": hand_over_message(NETWORK, lab.device, key_id(BACKEND.spki)).hex(),
            "signature": hand_over(lab.signer, NETWORK, key_id(BACKEND.spki)).hex(),
        },
    }


def work() -> dict[str, Any]:
    """A header with its hash, and a Merkle tree with proofs."""
    lab, challenge = Lab(), beacon()
    prefix = header_prefix(lab.head, challenge.value, lab.device, challenge.issued_s, EASY)
    whole = header(prefix, 5)
    leaves = [hashlib.sha256(bytes([k])).digest() for k in range(5)]
    tree = MerkleTree.of(BATCH_LEAF, [(leaf,) for leaf in leaves])
    return {
        "header": whole.hex(),
        "scrypt": hash_many(whole).hex(),
        "target": f"{target_of(EASY):064x}",
        "merkle": {
            "leaves": [leaf.hex() for leaf in leaves],
            "hashes": [leaf_hash(BATCH_LEAF, (leaf,)).hex() for leaf in leaves],
            "root": tree.root.hex(),
            "proofs": [[sibling.hex() for sibling in tree.proof(k)] for k in range(5)],
        },
    }


def case(reason: int, received_ms: int, *sent: bytes, **context: Any) -> dict[str, Any]:
    """Messages of one device in the order of arrival; the last has the reason."""
    return {"reason": reason, "received_ms": received_ms, "messages": [m.hex() for m in sent], **context}


def reasons() -> dict[str, Any]:
    """One example of every reason of P-ING-3, each on a chain of its own."""
    later = T0_MS + 3_600_000
    found: dict[str, Any] = {"network": NETWORK, "spki": Lab().signer.spki.hex()}
    cases: dict[str, Any] = {}
    cases["accepted"] = case(0, later, Lab().next())
    cases["oversize"] = case(1, later, bytes(MAX_MESSAGE_BYTES + 1))
    cases["malformed"] = case(2, later, b"\x00")
    cases["unknown_device"] = case(3, later, Lab(secret=9).next())
    cases["bad_signature"] = case(4, later, Lab().sign(Lab().batch(), network="eip155:1:0x" + 40 * "0"))
    lab = Lab()
    cases["equivocation"] = case(5, later, lab.next(), Lab().next([(1, 6_000)]))
    lab = Lab()
    lab.next()
    cases["gap_before"] = case(6, later, lab.next())
    lab = Lab()
    cases["chain_break"] = case(7, later, lab.next(), lab.next(prev=bytes(32)))
    lab = Lab()
    cases["time_overlap"] = case(8, later, lab.next(), lab.next(t0_boot_ms=60_000))
    cases["future_time"] = case(9, T0_MS - 600_000, Lab().next())
    cases["clock_unsynchronised"] = case(10, later, Lab().next(synchronised=False))
    cases["suspended_device"] = case(11, later, Lab().next(), status=[[0, "suspended"]])
    lab = Lab()
    first = lab.next()
    lab.meters.clear()
    cases["register_regression"] = case(12, later, first, lab.next([(1, 6_000)]))
    lab = Lab()
    batch = lab.batch()
    wrong = tuple(replace(c, register_mws=c.register_mws + 1) for c in batch.channels)
    cases["register_mismatch"] = case(13, later, lab.sign(replace(batch, channels=wrong)))
    lab = Lab()
    shares = lab.work(beacon(), nbits=0x1F400000, shares=1)
    bad = replace(shares, nonces=((shares.nonces[0] + 1) % 2**32,))
    cases["bad_work"] = case(14, later, lab.next(work=bad))
    lab = Lab()
    attested = lab.attested(lab.batch())
    forged = replace(attested.attestations[0], unix_s=1)
    cases["bad_attestation"] = case(15, later, lab.sign(replace(attested, attestations=(forged,))))
    cases["birth_missing"] = case(16, later, Lab(born=True).next())
    cases["crosses_window"] = case(18, later, Lab(wall_offset_ms=T0_MS - 60_000 + 591_000).next())
    cases["wrong_role"] = case(19, later, Lab().next(), roles=[[0, 0], [1, 2]])
    found["beacon"] = sign_beacon(beacon(), BACKEND, NETWORK).hex()
    found["cases"] = cases
    return found


def main() -> int:
    """Write the files, or compare them."""
    files = {"messages": messages(), "work": work(), "reasons": reasons()}
    stale = []
    for name, value in files.items():
        path = FOLDER / f"{name}.json"
        text = json.dumps(value, indent=1) + "\n"
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(str(path.name))
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    assert parse_batch(bytes.fromhex(files["messages"]["batch"]["message"])).batch.seq == 0
    print(f"stale: {', '.join(stale)}; run: make vectors" if stale else f"{len(files)} vector files are right")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
