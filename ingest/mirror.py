"""The registry as the ledger keeps it, so that a verdict never waits for the chain."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from maxgreen.chain.deployment import Deployment
from maxgreen.chain.registry import RegisteredSystem, read_systems
from maxgreen.ledger.book import Book


def mirror_devices(book: Book, systems: Mapping[Any, RegisteredSystem]) -> int:
    """Copy what was read of the registry into the ledger; return how many systems there are."""
    for system in systems.values():
        book.put_device(system.record, system.token, system.owner, system_json(system))
    return len(systems)


def refresh_devices(book: Book, deployment: Deployment) -> int:
    """Read the registry and copy it into the ledger; return how many systems there are."""
    return mirror_devices(book, read_systems(deployment))


def system_json(system: RegisteredSystem) -> dict[str, Any]:
    """Return what the ledger keeps of a system."""
    spec = asdict(system.spec)
    return {**spec, "kind": system.spec.kind.label, "since_ms": system.since_ms}
