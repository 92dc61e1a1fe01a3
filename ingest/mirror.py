"""The registry as the ledger keeps it, so that a verdict never waits for the chain.

At first every system is read, then what the registry's events say has changed, from the block on that was followed to.
Each time some blocks are read once more: a chain may take its newest ones back.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, Engine

from maxgreen.chain.code import verify
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.chain.registry import RegisteredSystem, changed_tokens, each_key, registrations
from maxgreen.errors import Retryable
from maxgreen.ledger.book import Book
from maxgreen.ledger.registry import KnownDevice, put_devices

_LOG: Final = logging.getLogger(__name__)
_POSITION: Final = "registry"  # the block that was followed to, plus one; 0 before the first reading
_SYSTEMS: Final = 20  # read in one step
_AGAIN: Final = 64  # blocks
_MOST_BLOCKS: Final = 5_000  # asked for at once
_WHOLE_S: Final = 86_400.0  # all of it again


class Registry:
    """Follows the registry; one thread calls `step`."""

    def __init__(self, engine: Engine, deployment: Deployment, *, refresh_s: float) -> None:
        self._engine = engine
        self._deployment = deployment
        self._refresh_s = refresh_s
        self._systems: Iterator[RegisteredSystem] | None = None  # what is being read
        self._verified = False  # that the chain and its code are the deployment's
        self._followed_to = 0  # when that is read
        self._whole_due_s = time.monotonic() + _WHOLE_S
        self._behind = False  # more blocks are to be followed
        self._blocks = _MOST_BLOCKS

    def step(self) -> float:
        """Read some systems of those that are new or may have changed; return how long to pause, s.

        Retryable while chain or ledger are away; Fatal when the chain or its code is another than the deployment's.
        """
        if self._systems is None:
            self._systems = self._begin()
        try:
            some = list(islice(self._systems, _SYSTEMS))  # before the ledger is locked
        except BaseException:
            self._systems = None  # a generator that raised is over
            raise
        with self._engine.begin() as connection:
            changed = mirror_devices(connection, some)
            if len(some) == _SYSTEMS:
                return 0.0
            Book(connection).set_position(_POSITION, self._followed_to)
        self._systems = None
        if changed:
            _LOG.info("registry: %d systems are new or have changed", changed)
        return 0.0 if self._behind else self._refresh_s

    def _begin(self) -> Iterator[RegisteredSystem]:
        newest = self._deployment.chain.newest_block().number
        if not self._verified:
            verify(self._deployment.chain, self._deployment.addresses)
            self._verified = True
        with self._engine.begin() as connection:
            followed_to = Book(connection).position(_POSITION)
        now_s = time.monotonic()
        if not followed_to or followed_to > newest + 1 or now_s >= self._whole_due_s:
            self._whole_due_s = now_s + _WHOLE_S
            self._followed_to, self._behind = newest + 1, False
            return each_key(self._deployment)
        first = max(0, followed_to - min(_AGAIN, self._blocks // 2))
        last = min(newest, first + self._blocks - 1)
        try:
            tokens = changed_tokens(self._deployment, first, last) if first <= last else set()
        except (ChainRefusedError, Retryable) as error:
            self._blocks = max(1, self._blocks // 2)  # servers bound how many blocks or events they give at once
            raise Retryable(str(error)) from error
        self._blocks = min(_MOST_BLOCKS, 2 * self._blocks)
        self._followed_to, self._behind = last + 1, last < newest
        known = registrations(self._deployment)
        return each_key(self._deployment, sorted(token for token in tokens if 0 < token <= known))


def mirror_devices(connection: Connection, systems: Iterable[RegisteredSystem]) -> int:
    """Copy what was read of the registry into the ledger; return how many systems were new or had changed."""
    return put_devices(
        connection,
        [KnownDevice(system.record, system.token, system.owner, system_json(system)) for system in systems],
    )


def system_json(system: RegisteredSystem) -> dict[str, Any]:
    """Return what the ledger keeps of a system."""
    spec = asdict(system.spec)
    return {**spec, "kind": system.spec.kind.label, "since_ms": system.since_ms, "key_number": system.key_number}
