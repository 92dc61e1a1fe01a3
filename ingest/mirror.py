"""The registry as the ledger keeps it, so that a verdict never waits for the chain."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from maxgreen.chain.registry import RegisteredSystem
from maxgreen.ledger.registry import KnownDevice, put_devices


def mirror_devices(connection: Connection, systems: Iterable[RegisteredSystem]) -> int:
    """Copy what was read of the registry into the ledger; return how many systems were new or had changed."""
    return put_devices(
        connection,
        [KnownDevice(system.record, system.token, system.owner, system_json(system)) for system in systems],
    )


def system_json(system: RegisteredSystem) -> dict[str, Any]:
    """Return what the ledger keeps of a system."""
    spec = asdict(system.spec)
    return {**spec, "kind": system.spec.kind.label, "since_ms": system.since_ms}
