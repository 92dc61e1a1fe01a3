"""Who may call what: the one table that a deployment sets, the doctor checks and the tests walk."""

from dataclasses import dataclass
from typing import Final

ADMIN: Final = 0
OPERATOR: Final = 1
SETTLEMENT: Final = 2
EXCHANGE: Final = 3
REGISTRY: Final = 4
GOVERNOR: Final = 5
REWARDS: Final = 6
MODULES: Final = 7
PUBLIC: Final = 2**64 - 1  # AccessManager's: everybody, as long as nothing is stopped

NAMES: Final = {
    ADMIN: "DAO",
    OPERATOR: "operator",
    SETTLEMENT: "settlement",
    EXCHANGE: "exchange",
    REGISTRY: "registry",
    GOVERNOR: "governor",
    REWARDS: "rewards",
    MODULES: "module vote",
    PUBLIC: "everybody",
}


@dataclass(frozen=True, slots=True)
class Right:
    """A role may call these functions of a contract; `stoppable` ones the guardian may stop.

    `at` is the contract that stands for it: pools have the rights of their factory's address.
    """

    role: int
    contract: str
    functions: tuple[str, ...]
    stoppable: bool = False
    at: str = ""

    @property
    def target(self) -> str:
        """The contract whose address has the right."""
        return self.at or self.contract


# What is not here and restricted belongs to the administrator: the DAO's timelock.
RIGHTS: Final = (
    Right(OPERATOR, "EnergySettlement", ("post", "withdraw")),
    Right(OPERATOR, "MinerRegistry", ("setRecord",)),
    Right(SETTLEMENT, "EnergyToken", ("mint",), stoppable=True),
    Right(SETTLEMENT, "MinerRegistry", ("suspendForFraud",)),
    Right(EXCHANGE, "EnergyToken", ("burn",)),
    Right(EXCHANGE, "MinerRegistry", ("recordConsumption",)),
    Right(REGISTRY, "Authority", ("setImplementation",)),
    Right(GOVERNOR, "DaoBadge", ("seen",)),
    Right(REWARDS, "Deca", ("mint",), stoppable=True),
    Right(REWARDS, "MaxCoin", ("mint",), stoppable=True),
    Right(REWARDS, "CarbonToken", ("mint",), stoppable=True),
    Right(MODULES, "ModuleRegistry", ("set",)),
    Right(PUBLIC, "EnergySettlement", ("claim", "collect"), stoppable=True),
    Right(PUBLIC, "Rewards", ("sweep",), stoppable=True),
    Right(PUBLIC, "EnergyPool", ("swap", "deposit", "redeemIn"), stoppable=True, at="EnergyPools"),
    Right(PUBLIC, "EnergyExchange", ("requestTakeOut", "accept", "finish", "confirm", "settle"), stoppable=True),
    Right(PUBLIC, "EnergySettlement", ("openLine", "nextKey", "showClosing", "proveFraud")),
)
# Which contracts hold a role after a deployment; --operator is the operator, the DAO's timelock the administrator.
HOLDERS: Final[dict[int, tuple[str, ...]]] = {
    SETTLEMENT: ("EnergySettlement",),
    EXCHANGE: ("EnergyExchange",),
    REGISTRY: ("MinerRegistry", "EnergyPools"),
    GOVERNOR: ("TechGovernor", "ModuleGovernor"),
    REWARDS: ("Rewards",),
    MODULES: ("ModuleTimelock",),
}
