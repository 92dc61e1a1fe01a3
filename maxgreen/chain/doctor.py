"""Is a deployment what it should be? Code, roles and parameters; what is odd is named."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from maxgreen.chain.code import code_findings
from maxgreen.chain.deployment import ADMIN_ROLE, MINTER_ROLE, NOBODY, OPERATOR_ROLE, Deployment
from maxgreen.errors import Retryable

_BLOCKS: Final = 10_000  # of logs that are asked for at once
_FEW_MEMBERS: Final = 3
_SHORT_S: Final = 3_600


@dataclass
class Diagnosis:
    """What a deployment is, and what is wrong or odd with it."""

    facts: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def diagnose(deployment: Deployment) -> Diagnosis:
    """Look at everything; what a wrong chain or wrong code would say is not asked."""
    found = Diagnosis()
    found.wrong = code_findings(deployment.chain, deployment.addresses)
    if not found.wrong:
        _governance(deployment, found)
        _roles(deployment, found)
    return found


def _governance(deployment: Deployment, found: Diagnosis) -> None:
    chain, addresses = deployment.chain, deployment.addresses
    governor: Any = deployment.governor.functions
    timelock: Any = chain.contract("Timelock", addresses.timelock).functions
    members = _members(deployment)
    found.facts |= {
        "network": deployment.network,
        "voting_delay_s": int(chain.call(governor.votingDelay())),
        "voting_period_s": int(chain.call(governor.votingPeriod())),
        "timelock_s": int(chain.call(timelock.getMinDelay())),
        "members": members,
        "votes_to_pass": len(members) // 2 + 1,
    }
    for name, address, right in (
        ("votes with", chain.call(governor.token()), addresses.badge),
        ("acts through", chain.call(governor.timelock()), addresses.timelock),
    ):
        if address != right:
            found.wrong.append(f"the governor {name} {address}, not {right}")
    if len(members) < _FEW_MEMBERS:
        found.odd.append(f"{len(members)} members: fewer than {_FEW_MEMBERS} outlast nobody who leaves or loses a key")
    for name in ("voting_period_s", "timelock_s"):
        if found.facts[name] < _SHORT_S:
            found.odd.append(f"{name} is {found.facts[name]}: hardly anybody looks at a proposal in that time")
    proposer, canceller, executor = (
        chain.call(timelock[role]()) for role in ("PROPOSER_ROLE", "CANCELLER_ROLE", "EXECUTOR_ROLE")
    )
    for role, who, named in (
        (proposer, addresses.governor, "the governor does not propose to the timelock"),
        (canceller, addresses.governor, "the governor does not cancel in the timelock"),
        (executor, NOBODY, "not everybody may execute what passed"),
        (chain.call(timelock.DEFAULT_ADMIN_ROLE()), addresses.timelock, "the timelock does not administer itself"),
    ):
        if not chain.call(timelock.hasRole(role, who)):
            found.wrong.append(named)
    held = _held(deployment, chain.contract("Timelock", addresses.timelock), "role", "account")
    right_holders = {
        bytes(proposer): {addresses.governor},
        bytes(canceller): {addresses.governor},
        bytes(executor): {NOBODY},
        bytes(32): {addresses.timelock},
    }
    for role, accounts in held.items():
        for account in accounts - right_holders.get(role, set()):
            found.wrong.append(f"{account} holds role 0x{role.hex()} of the timelock")


def _roles(deployment: Deployment, found: Diagnosis) -> None:
    addresses = deployment.addresses
    held = _held(deployment, deployment.chain.contract("Authority", addresses.authority), "roleId", "account")
    found.facts["operators"] = sorted(held[OPERATOR_ROLE])
    for role, name, right in (
        (ADMIN_ROLE, "administrates", addresses.timelock),
        (MINTER_ROLE, "mints", addresses.settlement),
    ):
        for account in held[role] - {right}:
            found.wrong.append(f"{account} {name} beside {right}")
        if right not in held[role]:
            found.wrong.append(f"{right} does not hold the role that {name}")
    if not held[OPERATOR_ROLE]:
        found.odd.append("nobody is operator: no period can be ordered")
    for role in set(held) - {ADMIN_ROLE, OPERATOR_ROLE, MINTER_ROLE}:
        found.odd.append(f"role {role} is held by {', '.join(sorted(held[role]))}")


def _held(deployment: Deployment, contract: Any, role: str, account: str) -> dict[Any, set[str]]:
    """Return who holds which role, from the contract's events; both managers emit every change."""
    held: dict[Any, set[str]] = defaultdict(set)
    for name, values in _events(deployment, contract):
        if name == "RoleGranted":
            held[values[role]].add(str(values[account]))
        elif name == "RoleRevoked":
            held[values[role]].discard(str(values[account]))
    return held


def _members(deployment: Deployment) -> list[str]:
    """Return who holds a badge."""
    owners: dict[int, str] = {}
    for name, values in _events(deployment, deployment.chain.contract("DaoBadge", deployment.addresses.badge)):
        if name == "Transfer":
            owners[values["tokenId"]] = str(values["to"])
    return sorted(owner for owner in owners.values() if owner != NOBODY)


def _events(deployment: Deployment, contract: Any) -> list[tuple[str, Any]]:
    """Return a contract's events since the chain began: names and values."""
    chain = deployment.chain
    newest = chain.newest_block().number
    found = [
        (str(event["event"]), event["args"])
        for first in range(0, newest + 1, _BLOCKS)
        for event in chain.all_events(contract, first, min(first + _BLOCKS - 1, newest))
    ]
    if not found:
        raise Retryable("the RPC keeps no events that old: ask one that does")
    return found
