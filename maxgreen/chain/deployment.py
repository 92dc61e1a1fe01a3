"""One deployment: its contracts' addresses, in a file that every service reads."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from web3.contract.contract import Contract

from maxgreen.chain.client import Chain
from maxgreen.errors import Fatal, UsageError
from maxgreen.protocol.identity import network_name

# Of a contract's field in a deployment file.
FIELDS: Final = {
    "Authority": "authority",
    "DaoBadge": "badge",
    "Timelock": "timelock",
    "TechGovernor": "governor",
    "EnergyToken": "energy_token",
    "MinerRegistry": "registry",
    "LineBook": "line_book",
    "EnergySettlement": "settlement",
    "Deca": "deca",
    "MaxCoin": "max_coin",
    "CarbonToken": "carbon",
    "Rewards": "rewards",
    "EnergyPools": "pools",
    "EnergyExchange": "exchange",
    "Electorate": "electorate",
    "ModuleTimelock": "module_timelock",
    "ModuleGovernor": "module_governor",
    "ModuleRegistry": "modules",
}
NOBODY: Final = "0x0000000000000000000000000000000000000000"


@dataclass(frozen=True)
class Governance:
    """How the DAO decides: voting delay and period, timelock, s. A majority of all badges passes a proposal."""

    voting_delay_s: int = 3_600
    voting_period_s: int = 3 * 86_400
    timelock_s: int = 86_400


@dataclass(frozen=True)
class Addresses:
    """Where a deployment's contracts are."""

    chain_id: int
    authority: str
    badge: str
    timelock: str
    governor: str
    energy_token: str  # the code that the nodes' tokens share
    registry: str
    line_book: str
    settlement: str
    deca: str
    max_coin: str
    carbon: str
    rewards: str
    pools: str
    exchange: str
    electorate: str
    module_timelock: str
    module_governor: str
    modules: str

    @property
    def network(self) -> str:
        """The deployment's name in every signed message (P-ID-3)."""
        return network_name(self.chain_id, self.registry)

    def save(self, path: Path) -> None:
        """Write the addresses as JSON."""
        path.write_text(json.dumps({**asdict(self), "network": self.network}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Addresses":
        """Read such a file; Fatal when it is none."""
        try:
            value = json.loads(path.read_text())
            return cls(**{name: value[name] for name in cls.__dataclass_fields__})
        except OSError as error:
            raise Fatal(f"deployment file {path}: {error.strerror}; 'maxgreen chain deploy' writes one") from error
        except (ValueError, KeyError, TypeError) as error:
            what = f"it says nothing of {error}" if isinstance(error, KeyError) else "it is no JSON object"
            raise Fatal(f"deployment file {path}: {what}; 'maxgreen chain deploy' writes one") from error


class Deployment:
    """The contracts of one deployment on a chain."""

    def __init__(self, chain: Chain, addresses: Addresses) -> None:
        self.chain = chain
        self.addresses = addresses
        self.found: dict[str, tuple[str, int]] = {}  # our contracts by address, and of which node they are

    @property
    def network(self) -> str:
        """The deployment's name in every signed message (P-ID-3)."""
        return self.addresses.network

    def address_of(self, name: str) -> str:
        """Return where a contract of ours is."""
        return str(getattr(self.addresses, FIELDS[name]))

    def functions(self, name: str) -> Any:
        """Return the functions of a contract of ours."""
        return self.chain.contract(name, self.address_of(name)).functions

    @cached_property
    def governor(self) -> Contract:
        """TechGovernor."""
        return self.chain.contract("TechGovernor", self.addresses.governor)

    @cached_property
    def registry(self) -> Contract:
        """MinerRegistry."""
        return self.chain.contract("MinerRegistry", self.addresses.registry)

    @cached_property
    def line_book(self) -> Contract:
        """LineBook."""
        return self.chain.contract("LineBook", self.addresses.line_book)

    @cached_property
    def settlement(self) -> Contract:
        """EnergySettlement."""
        return self.chain.contract("EnergySettlement", self.addresses.settlement)

    def energy_token(self, node_token: int) -> Contract:
        """Return the energy token of a storage node; UsageError when it is none."""
        address = self.chain.call(self.registry.functions.energyTokenOf(node_token))
        if address == NOBODY:
            raise UsageError(f"system {node_token} is no storage node: it has no energy token")
        return self.chain.contract("EnergyToken", address)
