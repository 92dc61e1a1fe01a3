"""Names of networks, devices and topics (P-ID-2..4)."""

import re
from typing import Final

from maxgreen.protocol.reasons import Malformed

ROOT: Final = "mg/v1"
BEACON_TOPIC: Final = f"{ROOT}/beacon"
_NETWORK: Final = re.compile(r"eip155:[0-9]{1,32}:0x[0-9a-f]{40}")
_TOPIC: Final = re.compile(rf"{ROOT}/([0-9a-f]{{2}})/([0-9a-f]{{32}})/([a-z]+)")


def network_name(chain_id: int, registry: str) -> str:
    """Return the CAIP-10 id of a deployment's first miner registry, lower case (P-ID-3)."""
    return f"eip155:{chain_id}:{registry.lower()}"


def check_network(network: str) -> str:
    """Return `network` when it is such an id; ValueError otherwise."""
    if not _NETWORK.fullmatch(network):
        raise ValueError(f"network {network!r}: expected eip155:<chain id>:0x<registry, 40 lower-case hex digits>")
    return network


def device_topic(device: bytes, channel: str) -> str:
    """Return `mg/v1/<shard>/<device>/<channel>`."""
    name = device.hex()
    return f"{ROOT}/{name[:2]}/{name}/{channel}"


def parse_topic(topic: str) -> tuple[bytes, str]:
    """Return device id and channel of a device topic; Malformed when it is none."""
    match = _TOPIC.fullmatch(topic)
    if match is None or match[2][:2] != match[1]:
        raise Malformed(f"topic {topic[:100]!r}: not {ROOT}/<shard>/<device>/<channel>")
    return bytes.fromhex(match[2]), match[3]
