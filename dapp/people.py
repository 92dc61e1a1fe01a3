"""Who somebody is, and what they may see: the chain's roles are the accounts."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from dapp.world import BLOCK_S, OWNED, World
from maxgreen.chain import roles
from maxgreen.errors import Retryable


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks: an address (none: a stranger), the systems that it owns, its roles, and systems shown by links."""

    address: str = ""
    miners: AbstractSet[int] = frozenset()
    nodes: AbstractSet[int] = frozenset()
    member: bool = False
    operator: bool = False
    shared: AbstractSet[int] = frozenset()
    by_token: bool = False  # a script: it reads, and signs nothing

    @property
    def systems(self) -> AbstractSet[int]:
        """The systems that it owns."""
        return self.miners | self.nodes

    def owns(self, system: int) -> bool:
        """Tell whether a system is this person's."""
        return system in self.miners or system in self.nodes

    def may_see(self, system: int) -> bool:
        """Tell whether this person may see what a system measures: a household's profile."""
        return self.owns(system) or self.member or system in self.shared

    def may_look_after(self, system: int) -> bool:
        """Tell whether this person may see how a system's device does: batches, verdicts, commands, no energy."""
        return self.operator or self.member or self.owns(system)


def person(world: World, address: str, shared: AbstractSet[int] = frozenset(), *, by_token: bool = False) -> Person:
    """Return who an address is now."""
    if not address:
        return Person(shared=shared)
    try:
        member, operator = world.memory.get(("roles", address), BLOCK_S, lambda: _roles(world, address))
    except Retryable:  # whose house it is the ledger knows; who is more must wait for the chain
        member = operator = False
    return _made(address, world.owned, (member, operator), shared, by_token=by_token)


def recent_person(world: World, address: str) -> Person | None:
    """Return who an address is where that is remembered; None when ledger or chain must say it."""
    found, owned = world.memory.peek(("roles", address)), world.memory.peek(OWNED)
    return None if found is None or owned is None else _made(address, owned, found)


def _made(
    address: str, owned: Mapping[str, Mapping[int, str]], its_roles: tuple[bool, bool],
    shared: AbstractSet[int] = frozenset(), *, by_token: bool = False,
) -> Person:  # fmt: skip
    own = owned.get(address.lower(), {})
    return Person(
        address,
        frozenset(token for token, kind in own.items() if kind == "miner"),
        frozenset(token for token, kind in own.items() if kind != "miner"),
        *its_roles,
        shared,
        by_token,
    )


def _roles(world: World, address: str) -> tuple[bool, bool]:
    deployment = world.deployment
    badge: Any = deployment.functions("DaoBadge")
    authority: Any = deployment.functions("Authority")
    return (
        bool(deployment.chain.call(badge.balanceOf(address))),
        bool(deployment.chain.call(authority.hasRole(roles.OPERATOR, address))[0]),
    )
