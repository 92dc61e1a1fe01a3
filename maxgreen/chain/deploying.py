"""Deploying everything: arguments are checked first, each step is noted, and an interrupted deployment goes on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from eth_utils import is_address, to_checksum_address
from eth_utils.abi import function_abi_to_4byte_selector

from maxgreen.chain.client import Chain
from maxgreen.chain.deployment import (
    ADMIN_ROLE,
    MINTER_ROLE,
    NOBODY,
    OPERATOR_ROLE,
    Addresses,
    Deployment,
    Governance,
)
from maxgreen.errors import Fatal, UsageError

_LOCAL_CHAINS: Final = {1337, 31337}
_FLOORS: Final = Governance(voting_delay_s=60, voting_period_s=3_600, timelock_s=3_600)
_LARGEST_S: Final = 366 * 86_400
_GAS: Final = 22_000_000  # what a deployment takes, with room


class Steps:
    """The steps of a deployment that are done, by name, with what they gave; kept in a file as they are taken."""

    def __init__(self, path: Path | None, plan: str) -> None:
        """`plan` says what is deployed, by whom and where; a file of another plan is Fatal."""
        self._path = path
        self._done: dict[str, str] = {}
        if path is None or not path.exists():
            return
        try:
            kept = json.loads(path.read_text())
            was, self._done = kept["plan"], dict(kept["steps"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Fatal(f"{path}: {error}; it keeps the steps of a deployment: move it away to begin anew") from error
        if was != plan:
            raise Fatal(
                f"{path}: an interrupted deployment with other arguments, by another account or on another chain; "
                "repeat its arguments to go on, or move the file away to begin anew"
            )

    def __len__(self) -> int:
        return len(self._done)

    def take(self, name: str, plan: str, step: Callable[[], str]) -> str:
        """Return what a step gave; it is taken unless it is done."""
        if name not in self._done:
            self._done[name] = step()
            if self._path is not None:
                fresh = self._path.with_name(self._path.name + ".new")
                fresh.write_text(json.dumps({"plan": plan, "steps": self._done}, indent=2) + "\n")
                fresh.replace(self._path)
        return self._done[name]

    def forget(self) -> None:
        """The deployment is whole."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def check_arguments(chain: Chain, deployer: str, operator: str, members: Sequence[str], governance: Governance) -> None:
    """UsageError or Fatal when a deployment would fail, or make a DAO that is none; nothing is sent."""
    if not members:
        raise UsageError("--member: at least one; three or more keep the DAO from one person's mistakes")
    for option, address in (("--operator", operator), *(("--member", member) for member in members)):
        if not is_address(address) or address.lower() == NOBODY:
            raise UsageError(f"{option} {address}: not an address (0x and 40 hex digits)")
    if len({member.lower() for member in members}) < len(members):
        raise UsageError("--member: the same address twice; a member has one vote")
    local = chain.is_eth_tester or chain.chain_id in _LOCAL_CHAINS
    for name in ("voting_delay_s", "voting_period_s", "timelock_s"):
        value, floor = getattr(governance, name), 0 if local else getattr(_FLOORS, name)
        if not floor <= value <= _LARGEST_S:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} {value}: expected {floor} to {_LARGEST_S}; members need time to look")
    if not chain.has_p256():
        raise Fatal(
            "this chain has no P-256 precompile at 0x100 (EIP-7951): meters' signatures cannot be checked on it"
        )
    needed = _GAS * chain.gas_price()
    if chain.balance(deployer) < needed:
        raise Fatal(
            f"account {deployer} has {chain.balance(deployer)} wei; deploying takes about {needed}: send it some first"
        )


def deploy(
    chain: Chain,
    deployer: LocalAccount,
    operator: str,
    members: Sequence[str],
    governance: Governance,
    *,
    journal: Path | None = None,
    progress: Callable[[str], object] = lambda _step: None,
) -> Deployment:
    """Deploy everything, give the DAO its badges, and hand the administration to its timelock.

    With a `journal` it goes on where it was interrupted. UsageError and Fatal come before the first transaction.
    """
    check_arguments(chain, deployer.address, operator, members, governance)
    operator, *members = (to_checksum_address(address) for address in (operator, *members))
    arguments = [chain.chain_id, deployer.address, operator, list(members), repr(governance)]
    plan = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()
    steps = Steps(journal, plan)

    def make(name: str, *values: Any) -> Any:
        progress(f"deploying {name}")
        return chain.contract(name, steps.take(name, plan, lambda: chain.deploy(deployer, name, *values).address))

    def do(what: str, function: Any) -> None:
        progress(what)
        steps.take(what, plan, lambda: "0x" + bytes(chain.transact(deployer, function)["transactionHash"]).hex())

    authority = make("Authority", deployer.address)
    badge = make("DaoBadge", authority.address)
    timelock = make("Timelock", governance.timelock_s, [], [NOBODY], deployer.address)
    governor = make(
        "TechGovernor", badge.address, timelock.address, governance.voting_delay_s, governance.voting_period_s
    )
    factory = make("EnergyTokenFactory")
    registry = make("MinerRegistry", authority.address, factory.address)
    settlement = make("EnergySettlement", authority.address, registry.address)
    for role in ("PROPOSER_ROLE", "CANCELLER_ROLE"):
        do(f"timelock: {role}", timelock.functions.grantRole(chain.call(timelock.functions[role]()), governor.address))
    admin = chain.call(timelock.functions.DEFAULT_ADMIN_ROLE())
    do("timelock: its own administrator", timelock.functions.renounceRole(admin, deployer.address))
    for member in members:
        if not chain.call(badge.functions.balanceOf(member)):  # the last step may be done and not noted
            do(f"badge of {member}", badge.functions.grant(member))
    selectors = [
        function_abi_to_4byte_selector(settlement.get_function_by_name(name).abi) for name in ("openLine", "request")
    ]
    if chain.call(authority.functions.hasRole(ADMIN_ROLE, deployer.address))[0]:
        do(
            "operator's functions",
            authority.functions.setTargetFunctionRole(settlement.address, selectors, OPERATOR_ROLE),
        )
        do("operator", authority.functions.grantRole(OPERATOR_ROLE, operator, 0))
        do("minter", authority.functions.grantRole(MINTER_ROLE, settlement.address, 0))
        do("administrator: the timelock", authority.functions.grantRole(ADMIN_ROLE, timelock.address, 0))
        do("administrator: nobody else", authority.functions.renounceRole(ADMIN_ROLE, deployer.address))
    deployment = Deployment(
        chain,
        Addresses(
            chain.chain_id,
            authority.address,
            badge.address,
            timelock.address,
            governor.address,
            registry.address,
            settlement.address,
        ),
    )
    steps.forget()
    return deployment
