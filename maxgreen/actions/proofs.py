"""What a device signed for its owner (`maxgreen agent prove`), checked before anything is sent."""

from collections.abc import Mapping
from typing import Any

from maxgreen.chain.deployment import Deployment
from maxgreen.chain.registry import nonce_of
from maxgreen.errors import UsageError
from maxgreen.protocol.keys import key_id
from maxgreen.protocol.system import SystemSpec


def read_proof(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a proof's values; KeyError, TypeError or ValueError when it is none."""
    return {
        **{name: value[name] for name in ("network", "owner", "nonce", "system")},
        "spki": bytes.fromhex(value["public_key"]),
        "signature": bytes.fromhex(value["signature"]),
        "hand_over": bytes.fromhex(value.get("hand_over", "")),
    }


def check_proof(deployment: Deployment, owner: str, spec: SystemSpec, proof: Mapping[str, Any], where: str) -> None:
    """Pass when a proof is of this network, owner, system and turn; UsageError says which of them it is not of."""
    wanted = {
        "network": deployment.network,
        "owner": owner,
        "nonce": nonce_of(deployment, key_id(proof["spki"])),
        "system": spec.digest.hex(),
    }
    for name, right in wanted.items():
        if str(proof[name]).lower() != str(right).lower():
            raise UsageError(
                f"proof{where}: the device signed for {name} {proof[name]}, but it is {right}; run again: "
                f"maxgreen agent prove {owner} --system FILE --nonce {wanted['nonce']}"
            )
