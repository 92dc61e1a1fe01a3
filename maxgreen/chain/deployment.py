"""One deployment: its contracts' addresses, in a file that every service reads."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from eth_utils.abi import function_abi_to_4byte_selector
from web3.contract.contract import Contract

from maxgreen.chain.client import Chain
from maxgreen.errors import Fatal
from maxgreen.protocol.identity import network_name

ADMIN_ROLE: Final = 0
OPERATOR_ROLE: Final = 1
MINTER_ROLE: Final = 2
OPEN_EXECUTOR: Final = "0x0000000000000000000000000000000000000000"


@dataclass(frozen=True)
class Governance:
    """How the DAO decides: voting delay and period, timelock (seconds), quorum (percent of the badges)."""

    voting_delay_s: int = 3_600
    voting_period_s: int = 3 * 86_400
    timelock_s: int = 86_400
    quorum_percent: int = 50


@dataclass(frozen=True)
class Addresses:
    """Where a deployment's contracts are."""

    chain_id: int
    authority: str
    badge: str
    timelock: str
    governor: str
    registry: str
    settlement: str

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
        except (OSError, ValueError, KeyError) as error:
            raise Fatal(f"deployment file {path}: {error}; 'maxgreen chain deploy' writes one") from error


class Deployment:
    """The contracts of one deployment on a chain."""

    def __init__(self, chain: Chain, addresses: Addresses) -> None:
        self.chain = chain
        self.addresses = addresses

    @property
    def network(self) -> str:
        """The deployment's name in every signed message (P-ID-3)."""
        return self.addresses.network

    @cached_property
    def governor(self) -> Contract:
        """TechGovernor."""
        return self.chain.contract("TechGovernor", self.addresses.governor)

    @cached_property
    def registry(self) -> Contract:
        """MinerRegistry."""
        return self.chain.contract("MinerRegistry", self.addresses.registry)

    @cached_property
    def settlement(self) -> Contract:
        """EnergySettlement."""
        return self.chain.contract("EnergySettlement", self.addresses.settlement)

    def energy_token(self, node_token: int) -> Contract:
        """Return the energy token of a storage node."""
        address = self.chain.call(self.registry.functions.energyTokenOf(node_token))
        return self.chain.contract("EnergyToken", address)


def deploy(
    chain: Chain, deployer: LocalAccount, operator: str, members: Sequence[str], governance: Governance
) -> Deployment:
    """Deploy everything, give the DAO its badges, and hand the administration to its timelock."""

    def do(function: Any) -> None:
        chain.transact(deployer, function)

    authority = chain.deploy(deployer, "Authority", deployer.address)
    badge = chain.deploy(deployer, "DaoBadge", authority.address)
    timelock = chain.deploy(deployer, "Timelock", governance.timelock_s, [], [OPEN_EXECUTOR], deployer.address)
    governor = chain.deploy(
        deployer,
        "TechGovernor",
        badge.address,
        timelock.address,
        governance.voting_delay_s,
        governance.voting_period_s,
        governance.quorum_percent,
    )
    factory = chain.deploy(deployer, "EnergyTokenFactory")
    registry = chain.deploy(deployer, "MinerRegistry", authority.address, factory.address)
    settlement = chain.deploy(deployer, "EnergySettlement", authority.address, registry.address)
    for role in ("PROPOSER_ROLE", "CANCELLER_ROLE"):
        do(timelock.functions.grantRole(chain.call(timelock.functions[role]()), governor.address))
    do(timelock.functions.renounceRole(chain.call(timelock.functions.DEFAULT_ADMIN_ROLE()), deployer.address))
    for member in members:
        do(badge.functions.grant(member))
    selectors = [
        function_abi_to_4byte_selector(settlement.get_function_by_name(name).abi) for name in ("openLine", "request")
    ]
    do(authority.functions.setTargetFunctionRole(settlement.address, selectors, OPERATOR_ROLE))
    do(authority.functions.grantRole(OPERATOR_ROLE, operator, 0))
    do(authority.functions.grantRole(MINTER_ROLE, settlement.address, 0))
    do(authority.functions.grantRole(ADMIN_ROLE, timelock.address, 0))
    do(authority.functions.renounceRole(ADMIN_ROLE, deployer.address))
    addresses = Addresses(
        chain.chain_id,
        authority.address,
        badge.address,
        timelock.address,
        governor.address,
        registry.address,
        settlement.address,
    )
    return Deployment(chain, addresses)
