"""Is the code on a chain ours? The runtime code of an artefact with the values of its immutable variables filled in."""

from typing import Any, Final

from eth_abi.abi import encode as abi_encode
from eth_utils import keccak

from maxgreen.chain.artifacts import artifact
from maxgreen.chain.client import Chain
from maxgreen.chain.deployment import FIELDS, Addresses
from maxgreen.errors import Fatal
from maxgreen.protocol.cose import network_digest

_EIP712_NAMES: Final = {
    "DaoBadge": "MaxCoin Technical DAO",
    "TechGovernor": "MaxCoin Technical DAO",
    "EnergyToken": "MaxCoin Energy",
    "Deca": "DECA",
    "MaxCoin": "MaxCoin",
    "CarbonToken": "Carbon Token",
    "Electorate": "MaxCoin Electorate",
    "ModuleGovernor": "MaxCoin Modules",
}
_EIP712_VERSION: Final = "1"
_DOMAIN: Final = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_WORD: Final = 32


def verify(chain: Chain, addresses: Addresses) -> None:
    """Fatal when a chain is another one than a deployment's, or has other code than ours at its addresses."""
    for finding in code_findings(chain, addresses):
        raise Fatal(f"{finding}; is it the right deployment file and RPC, and this version of maxgreen?")


def code_findings(chain: Chain, addresses: Addresses) -> list[str]:
    """Return what is wrong with the chain's id and with the contracts' code, a sentence each."""
    if chain.chain_id != addresses.chain_id:
        return [f"the RPC is of chain {chain.chain_id}, the deployment of chain {addresses.chain_id}"]
    findings = []
    for name, field in FIELDS.items():
        address = getattr(addresses, field)
        code = chain.code(address)
        if not code:
            findings.append(f"there is no contract at {address}, where {name} should be")
        elif code != runtime(name, addresses):
            findings.append(f"the code at {address} is not that of {name}")
    return findings


def runtime(name: str, addresses: Addresses) -> bytes:
    """Return the code that a contract of a deployment has."""
    made = artifact(name)
    filled = bytearray.fromhex(made["runtime"][2:])
    values = _immutables(name, addresses)
    for variable, places in made["immutables"].items():
        for at in places:
            filled[at : at + _WORD] = values[variable]
    return bytes(filled)


def _immutables(name: str, addresses: Addresses) -> dict[str, bytes]:
    digest = network_digest(addresses.network)
    values: dict[str, bytes] = {
        "authority": _address(addresses.authority),
        "registry": _address(addresses.registry),
        "book": _address(addresses.line_book),
        "energyTokenCode": _address(addresses.energy_token),
        "_implementation": _address(addresses.energy_token),
        "_manager": _address(addresses.authority),
        "networkDigest": digest,
        "_networkDigest": digest,
        "_token": _address(addresses.electorate if name == "ModuleGovernor" else addresses.badge),
        "badge": _address(addresses.badge),
        "vault": _address(addresses.timelock),
    }
    for variable, address in (("deca", addresses.deca), ("maxCoin", addresses.max_coin), ("carbon", addresses.carbon)):
        values[variable] = values[f"_{variable}"] = _address(address)
    if name in _EIP712_NAMES:
        title = _EIP712_NAMES[name]
        here = _address(getattr(addresses, FIELDS[name]))
        chain_id = addresses.chain_id.to_bytes(_WORD, "big")
        hashed, version = keccak(text=title), keccak(text=_EIP712_VERSION)
        values |= {
            "_cachedThis": here,
            "_cachedChainId": chain_id,
            "_cachedDomainSeparator": keccak(abi_encode(["bytes32"] * 5, [_DOMAIN, hashed, version, chain_id, here])),
            "_hashedName": hashed,
            "_hashedVersion": version,
            "_name": _short_string(title),
            "_version": _short_string(_EIP712_VERSION),
        }
    return values


def _address(address: str) -> bytes:
    return bytes.fromhex(address[2:]).rjust(_WORD, b"\0")


def _short_string(text: str) -> bytes:
    """OpenZeppelin's ShortString: the text, and its length in the last byte."""
    data: Any = text.encode()
    return bytes(data.ljust(_WORD - 1, b"\0") + bytes([len(data)]))
