"""Deploying everything: arguments are checked first, each step is noted, and an interrupted deployment goes on."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from eth_utils import is_address, to_checksum_address
from eth_utils.abi import function_abi_to_4byte_selector

from maxgreen.chain import roles
from maxgreen.chain.artifacts import artifact
from maxgreen.chain.client import LOCAL_CHAINS, Chain
from maxgreen.chain.deployment import FIELDS, NOBODY, Addresses, Deployment, Governance
from maxgreen.errors import Fatal, UsageError

_FLOORS: Final = Governance(voting_delay_s=60, voting_period_s=3_600, timelock_s=3_600)
_LARGEST_S: Final = 366 * 86_400
GUARDIAN_TERM_S: Final = 365 * 86_400
GRACE_S: Final = 14 * 86_400  # TechGovernor.GRACE_SECONDS
ORDER_LIFE_S: Final = 60 * 86_400  # EnergySettlement.orderLife, as it begins
_GAS: Final = 42_000_000  # what a deployment takes, with room


def selector_of(contract: str, function: str) -> bytes:
    """Return the 4-byte selector of a contract's function."""
    [abi] = [entry for entry in artifact(contract)["abi"] if entry.get("name") == function]
    return bytes(function_abi_to_4byte_selector(abi))


def _role_calls(authority: Any, made: Mapping[str, Any], operator: str) -> list[Any]:
    """Return the calls that set up roles.py."""
    functions, calls = authority.functions, []
    for right in roles.RIGHTS:
        target = made[right.target].address
        selectors = [selector_of(right.contract, name) for name in right.functions]
        calls.append(functions.setTargetFunctionRole(target, selectors, right.role))
        if right.stoppable:
            calls.append(functions.setStoppable(target, selectors, True))
    calls.append(functions.grantRole(roles.OPERATOR, operator, 0))
    for role, holders in roles.HOLDERS.items():
        calls += [functions.grantRole(role, made[name].address, 0) for name in holders]
    return calls


def multicall(contract: Any, calls: Sequence[Any]) -> Any:
    """Return one call that makes all of a contract's (OpenZeppelin's Multicall): all of them, or none."""
    return contract.functions.multicall([bytes.fromhex(call._encode_transaction_data()[2:]) for call in calls])  # noqa: SLF001


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


def check_arguments(
    chain: Chain,
    deployer: str,
    operator: str,
    members: Sequence[str],
    governance: Governance,
    guardian: str | None = None,
) -> None:
    """UsageError or Fatal when a deployment would fail, or make a DAO that is none; nothing is sent."""
    if not members:
        raise UsageError("--member: at least one; three or more keep the DAO from one person's mistakes")
    named = [("--operator", operator), *(("--member", member) for member in members)]
    for option, address in [*named, *([("--guardian", guardian)] if guardian is not None else [])]:
        if not is_address(address) or address.lower() == NOBODY:
            raise UsageError(f"{option} {address}: not an address (0x and 40 hex digits)")
    if len({member.lower() for member in members}) < len(members):
        raise UsageError("--member: the same address twice; a member has one vote")
    local = chain.is_eth_tester or chain.chain_id in LOCAL_CHAINS
    for name in ("voting_delay_s", "voting_period_s", "timelock_s"):
        value, floor = getattr(governance, name), 0 if local else getattr(_FLOORS, name)
        if not floor <= value <= _LARGEST_S:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} {value}: expected {floor} to {_LARGEST_S} s; members need time to look")
    decided_s = governance.voting_delay_s + governance.voting_period_s + governance.timelock_s + GRACE_S
    if decided_s >= ORDER_LIFE_S:
        raise UsageError(
            f"delay, vote, timelock and {GRACE_S} s of grace take {decided_s} s; an order lapses after "
            f"{ORDER_LIFE_S} s: take a shorter vote or timelock"
        )
    if not chain.has_p256():
        raise Fatal(
            "this chain has no P-256 precompile at 0x100 (EIP-7951): meters' signatures cannot be checked on it"
        )
    needed = _GAS * chain.gas_price()
    if chain.balance(deployer) < needed:
        raise Fatal(
            f"account {deployer} has {chain.balance(deployer)} wei; deploying takes about {needed} wei: "
            "send it some first"
        )


def deploy(
    chain: Chain,
    deployer: LocalAccount,
    operator: str,
    members: Sequence[str],
    governance: Governance,
    *,
    guardian: str | None = None,
    journal: Path | None = None,
    progress: Callable[[str], object] = lambda _step: None,
) -> Deployment:
    """Deploy everything, give the DAO its badges, and hand the administration to its timelock.

    With a `journal` it goes on where it was interrupted. UsageError and Fatal come before the first transaction.
    """
    check_arguments(chain, deployer.address, operator, members, governance, guardian)
    operator, *members = (to_checksum_address(address) for address in (operator, *members))
    arguments = [chain.chain_id, deployer.address, operator, list(members), repr(governance), guardian]
    plan = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()
    steps = Steps(journal, plan)

    made: dict[str, Any] = {}

    def make(name: str, *values: Any) -> Any:
        progress(f"deploying {name}")
        address = steps.take(name, plan, lambda: chain.deploy(deployer, name, *values).address)
        made[name] = chain.contract(name, address)
        return made[name]

    def do(what: str, function: Any) -> None:
        progress(what)
        steps.take(what, plan, lambda: "0x" + bytes(chain.transact(deployer, function)["transactionHash"]).hex())

    authority = make("Authority", deployer.address)
    badge = make("DaoBadge", authority.address)
    timelock = make("Timelock", governance.timelock_s, [], [], deployer.address)
    times = (governance.voting_delay_s, governance.voting_period_s)
    governor = make("TechGovernor", badge.address, timelock.address, authority.address, *times)
    energy_token = make("EnergyToken", authority.address)
    registry = make("MinerRegistry", authority.address, energy_token.address)
    book = make("LineBook", authority.address, registry.address)
    settlement = make("EnergySettlement", authority.address, registry.address, book.address)
    coins = [make(name, authority.address).address for name in ("Deca", "MaxCoin", "CarbonToken")]
    make("Rewards", authority.address, book.address, *coins, timelock.address)
    make("EnergyPools", authority.address, registry.address, *coins)
    make("EnergyExchange", authority.address, registry.address, coins[-1])
    for member in members:
        if not chain.call(badge.functions.balanceOf(member)):  # the last step may be done and not noted
            do(f"badge of {member}", badge.functions.grant(member))
    electorate = make("Electorate", badge.address, registry.address, members)
    module_timelock = make("ModuleTimelock", governance.timelock_s, [], [], deployer.address)
    module_governor = make("ModuleGovernor", electorate.address, module_timelock.address, authority.address, *times)
    make("ModuleRegistry", authority.address)
    for lock, decides, whose in (
        (timelock, governor, "timelock"),
        (module_timelock, module_governor, "module timelock"),
    ):
        for name in ("PROPOSER_ROLE", "CANCELLER_ROLE", "EXECUTOR_ROLE"):
            do(f"{whose}: {name}", lock.functions.grantRole(chain.call(lock.functions[name]()), decides.address))
        admin = chain.call(lock.functions.DEFAULT_ADMIN_ROLE())
        do(f"{whose}: its own administrator", lock.functions.renounceRole(admin, deployer.address))
    if chain.call(authority.functions.hasRole(roles.ADMIN, deployer.address))[0]:
        do("line book: its writer", book.functions.setWriter(settlement.address))
        do("roles", multicall(authority, _role_calls(authority, made, operator)))
        calls = [authority.functions.grantRole(roles.ADMIN, timelock.address, 0)]
        if guardian is not None:
            until = chain.newest_block().time_s + GUARDIAN_TERM_S
            calls.append(authority.functions.setGuardian(to_checksum_address(guardian), until))
        calls.append(authority.functions.renounceRole(roles.ADMIN, deployer.address))
        do("administrator: the timelock, and nobody else", multicall(authority, calls))
    addresses = Addresses(chain.chain_id, **{FIELDS[name]: contract.address for name, contract in made.items()})
    deployment = Deployment(chain, addresses)
    steps.forget()
    return deployment
