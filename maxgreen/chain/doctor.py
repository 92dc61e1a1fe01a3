"""Is a deployment what it should be? Code, roles and parameters; what is odd is named."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from maxgreen.chain import roles
from maxgreen.chain.client import LOG_SPAN
from maxgreen.chain.code import code_findings
from maxgreen.chain.deploying import selector_of
from maxgreen.chain.deployment import NOBODY, Deployment
from maxgreen.errors import Retryable
from maxgreen.units import counted

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
    members = _members(deployment)
    found.facts |= {
        "network": deployment.network,
        "voting_delay_s": int(chain.call(governor.votingDelay())),
        "voting_period_s": int(chain.call(governor.votingPeriod())),
        "timelock_s": int(chain.call(deployment.functions("Timelock").getMinDelay())),
        "members": members,
        "votes_to_pass": len(members) // 2 + 1,
    }
    if len(members) < _FEW_MEMBERS:
        found.odd.append(
            f"{counted(len(members), 'member')}: a DAO of fewer than {_FEW_MEMBERS} does not survive one who leaves or "
            "loses a key"
        )
    for name in ("voting_period_s", "timelock_s"):
        if found.facts[name] < _SHORT_S:
            found.odd.append(f"{name} is {found.facts[name]}: hardly anybody looks at a proposal in that time")
    for name, lock, votes in (
        ("TechGovernor", "Timelock", addresses.badge),
        ("ModuleGovernor", "ModuleTimelock", addresses.electorate),
    ):
        functions = deployment.functions(name)
        for what, address, right in (
            ("votes with", chain.call(functions.token()), votes),
            ("acts through", chain.call(functions.timelock()), deployment.address_of(lock)),
        ):
            if address != right:
                found.wrong.append(f"{name} {what} {address}, not {right}")
        _timelock(deployment, found, lock, deployment.address_of(name))


def _timelock(deployment: Deployment, found: Diagnosis, name: str, governor: str) -> None:
    """The governor alone proposes, cancels and executes; the timelock administers itself."""
    chain, address = deployment.chain, deployment.address_of(name)
    functions = deployment.functions(name)
    right_holders = {
        bytes(chain.call(functions[role]())): {governor}
        for role in ("PROPOSER_ROLE", "CANCELLER_ROLE", "EXECUTOR_ROLE")
    } | {bytes(32): {address}}
    held = _held(deployment, chain.contract(name, address), "role", "account")
    for role in held.keys() | right_holders.keys():
        right = right_holders.get(role, set())
        for account in held[role] - right:
            found.wrong.append(f"{account} holds role 0x{role.hex()} of {name}")
        for account in right - held[role]:
            found.wrong.append(f"{account} does not hold role 0x{role.hex()} of {name}")


def _roles(deployment: Deployment, found: Diagnosis) -> None:
    chain, addresses = deployment.chain, deployment.addresses
    contract = chain.contract("Authority", addresses.authority)
    authority: Any = contract.functions
    held = _held(deployment, contract, "roleId", "account")
    found.facts["operators"] = sorted(held[roles.OPERATOR])
    right_holders = {roles.ADMIN: {addresses.timelock}}
    right_holders |= {role: set(map(deployment.address_of, names)) for role, names in roles.HOLDERS.items()}
    for role, right in right_holders.items():
        for account in held[role] - right:
            found.wrong.append(f"{account} holds the role {roles.NAMES[role]} beside {', '.join(sorted(right))}")
        for account in right - held[role]:
            found.wrong.append(f"{account} does not hold the role {roles.NAMES[role]}")
    writer = str(chain.call(deployment.line_book.functions.writer()))
    if writer != addresses.settlement:
        found.wrong.append(f"{writer} writes the line book, not {addresses.settlement}")
    if not held[roles.OPERATOR]:
        found.odd.append("nobody is operator: no period can be ordered")
    for role in set(held) - set(right_holders) - {roles.OPERATOR}:
        found.odd.append(f"role {role} is held by {', '.join(sorted(held[role]))}")
    now_s = chain.now_s()
    for right_ in roles.RIGHTS:
        target = deployment.address_of(right_.target)
        for name in right_.functions:
            selector = selector_of(right_.contract, name)
            role = int(chain.call(authority.getTargetFunctionRole(target, selector)))
            if role != right_.role:
                is_for = roles.NAMES.get(role, str(role))
                found.wrong.append(f"{right_.contract}.{name} is for {is_for}, not for {roles.NAMES[right_.role]}")
            if chain.call(authority.stoppedUntil(target, selector)) > now_s:
                found.odd.append(f"the guardian stopped {right_.contract}.{name}")
    guardian = str(chain.call(authority.guardian()))
    found.facts["guardian"] = "" if guardian == NOBODY else guardian


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
        for first in range(0, newest + 1, LOG_SPAN)
        for event in chain.all_events(contract, first, min(first + LOG_SPAN - 1, newest))
    ]
    if not found:
        raise Retryable("the RPC keeps no events that old: ask one that does")
    return found
