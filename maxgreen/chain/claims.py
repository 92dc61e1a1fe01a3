"""Claims as an order.json has them: all that anybody needs to claim a line."""

import json
from collections.abc import Mapping
from typing import Any

from maxgreen.chain.orders import Claim, Closing
from maxgreen.errors import UsageError
from maxgreen.protocol.attestation import Attestation


def claim_json(claim: Claim) -> dict[str, Any]:
    """Return a claim as order.json has it."""
    return {
        "line": claim.line.hex(),
        "payable_total_mws": str(claim.payable_total_mws),
        "manifest": claim.manifest.hex(),
        "proof": [sibling.hex() for sibling in claim.proof],
        "sent": attestation_json(claim.sent),
        "received": attestation_json(claim.received),
        "closings": [
            {
                "miner_end": closing.miner_end,
                "key": closing.key_number,
                "attestation": attestation_json(closing.attestation) if closing.attestation else None,
            }
            for closing in claim.closings
        ],
    }


def parse_claims(data: bytes) -> list[Claim]:
    """Read the claims of an order.json; UsageError when it is none."""
    try:
        return [
            Claim(
                line=bytes.fromhex(value["line"]),
                payable_total_mws=int(value["payable_total_mws"]),
                manifest=bytes.fromhex(value["manifest"]),
                proof=tuple(bytes.fromhex(sibling) for sibling in value["proof"]),
                sent=parse_attestation(value["sent"]),
                received=parse_attestation(value["received"]),
                closings=tuple(
                    Closing(
                        bool(closing["miner_end"]),
                        int(closing["key"]),
                        parse_attestation(closing["attestation"]) if closing["attestation"] else None,
                    )
                    for closing in value["closings"]
                ),
            )
            for value in json.loads(data)["claims"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            "not the order.json of a period; the operator gives it, and each evidence pack has one"
        ) from error


def attestation_json(attestation: Attestation) -> dict[str, Any]:
    """Return an attestation as packs have it."""
    return {
        "channel": attestation.channel,
        "time": attestation.unix_s,
        "register": str(attestation.register_mws),
        "seq": attestation.seq,
        "signature": attestation.signature.hex(),
    }


def parse_attestation(value: Mapping[str, Any]) -> Attestation:
    """Read such an attestation; KeyError, TypeError or ValueError when it is none."""
    signature = bytes.fromhex(value["signature"])
    return Attestation(value["channel"], value["time"], int(value["register"]), value["seq"], signature)
