"""ABI and bytecode of the contracts, compiled from contracts/src (`make contracts`)."""

import json
from functools import cache
from importlib.resources import files
from typing import Any, Final

CONTRACTS: Final = (
    "Authority",
    "DaoBadge",
    "Timelock",
    "TechGovernor",
    "MinerRegistry",
    "EnergyToken",
    "LineBook",
    "EnergySettlement",
    "Deca",
    "MaxCoin",
    "CarbonToken",
    "Rewards",
    "EnergyPool",
    "EnergyPools",
    "EnergyExchange",
    "Electorate",
    "ModuleTimelock",
    "ModuleGovernor",
    "ModuleRegistry",
)


@cache
def artifact(name: str) -> dict[str, Any]:
    """Return `{"abi": [...], "bytecode": "0x…"}` of a contract."""
    text = files("maxgreen.chain").joinpath("artifacts", f"{name}.json").read_text()
    value: dict[str, Any] = json.loads(text)
    return value


@cache
def errors_by_selector() -> dict[bytes, dict[str, Any]]:
    """Return the ABI entry of every custom error of every contract, by its 4-byte selector."""
    from eth_utils import keccak  # noqa: PLC0415 - only where a chain is used

    found: dict[bytes, dict[str, Any]] = {}
    for name in CONTRACTS:
        for entry in artifact(name)["abi"]:
            if entry["type"] == "error":
                types = ",".join(parameter["type"] for parameter in entry["inputs"])
                found[keccak(text=f"{entry['name']}({types})")[:4]] = entry
    return found
