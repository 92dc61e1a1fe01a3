"""Writes the interfaces of what wallets are asked to sign into dapp/web/src/abi.js, from the contracts' artefacts."""

import json
import sys
from pathlib import Path

from maxgreen.chain.artifacts import artifact

SIGNED = {
    "MinerRegistry": ("applyFor", "rotateKey", "requestKey", "setRecord"),
    "EnergySettlement": ("claim", "collect", "nextKey", "showClosing", "proveFraud", "withdraw"),
    "LineBook": ("agreeToClose",),
    "EnergyPool": ("deposit", "swap", "redeem", "redeemIn"),
    "EnergyExchange": (
        "requestStorage", "requestTakeOut", "answerStorage", "decline", "accept", "finish", "confirm", "settle",
        "withdraw",
    ),
    "TechGovernor": ("propose", "castVoteWithReason", "queue", "execute"),
    "ModuleGovernor": ("propose", "castVoteWithReason", "queue", "execute"),
    "Electorate": ("refresh",),
    "Rewards": ("sweep",),
    **dict.fromkeys(("EnergyToken", "Deca", "MaxCoin", "CarbonToken"), ("approve",)),
}  # fmt: skip
TARGET = Path(__file__).parent.parent / "dapp/web/src/abi.js"


def slim(entry: dict) -> dict:
    """Return an input without what only compilers read."""
    kept = {name: entry[name] for name in ("name", "type") if name in entry}
    if "components" in entry:
        kept["components"] = [slim(component) for component in entry["components"]]
    return kept


def text() -> str:
    """Return the module."""
    abi = {
        contract: [
            {
                "type": "function", "name": entry["name"], "stateMutability": entry["stateMutability"],
                "inputs": [slim(one) for one in entry["inputs"]], "outputs": [],
            }
            for entry in artifact(contract)["abi"]
            if entry["type"] == "function" and entry["name"] in functions
        ]
        for contract, functions in SIGNED.items()
    }  # fmt: skip
    return f"// Made by scripts/web_abi.py.\nexport const ABI = {json.dumps(abi, separators=(',', ':'))};\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        if TARGET.read_text() != text():
            sys.exit("dapp/web/src/abi.js is not what the contracts' artefacts say: run scripts/web build")
    else:
        TARGET.write_text(text())
