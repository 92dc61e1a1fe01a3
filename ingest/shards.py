"""Which parts of the fleet this service judges, where several machines share a broker and a ledger.

The 256 shards of the topics are divided into parts; who judges a part holds its lease. A service takes free parts up to
its share, and gives up what is more when another service begins. Two that judge one device for a moment harm nothing
(docs/decisions/0012-the-desk.md).
"""

import secrets
import time
from typing import Final

from sqlalchemy import Engine, delete, select

from maxgreen.errors import Retryable
from maxgreen.ledger.lease import TERM_S, Lease
from maxgreen.ledger.schema import leases

PARTS: Final = 16
SHARDS: Final = 256
_MEMBER: Final = "ingest-member:"
_PART: Final = "ingest-part:"


def shards_of(part: int) -> list[str]:
    """Return the shards of a part, as topics write them."""
    size = SHARDS // PARTS
    return [f"{shard:02x}" for shard in range(part * size, (part + 1) * size)]


def share_of(members: int) -> int:
    """Return how many parts one of so many services may hold."""
    return -(-PARTS // max(1, members))


class Shards:
    """The parts that this service holds; one thread calls `step`, about once a second."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._name = f"{_MEMBER}{secrets.token_hex(8)}"
        self._member = Lease(engine, self._name)
        self._leases = [Lease(engine, f"{_PART}{part:02d}") for part in range(PARTS)]
        self._held: frozenset[int] = frozenset()
        self._renewed_s = time.monotonic()
        self._heard: dict[str, tuple[int, float]] = {}  # other services: renewals, and since when so many

    def step(self) -> frozenset[int]:
        """Renew what is held, give up or take parts, and return those that are held.

        Of a ledger that is away they are given up after a term: others may reach it, and hold them now.
        """
        try:
            self._member.held()
            share = share_of(1 + self._others())
            held = [part for part in sorted(self._held) if self._leases[part].held()]
            for part in held[share:]:
                self._leases[part].release()
            held = held[:share]
            for part, lease in enumerate(self._leases):
                if len(held) < share and part not in held and part not in self._held and lease.held():
                    held.append(part)
            self._held = frozenset(held)
            self._renewed_s = time.monotonic()
        except Retryable:
            if time.monotonic() > self._renewed_s + TERM_S:
                self._held = frozenset()
        return self._held

    def release(self) -> None:
        """Give everything up, so that others take over at once."""
        for part in self._held:
            self._leases[part].release()
        self._member.release()
        self._held = frozenset()

    def _others(self) -> int:
        """Return how many other services live: their leases are renewed."""
        query = select(leases.c.name, leases.c.renewals).where(leases.c.name.like(f"{_MEMBER}%"))
        with self._engine.begin() as connection:
            rows = {str(name): int(renewals) for name, renewals in connection.execute(query) if name != self._name}
            now_s = time.monotonic()
            for name, renewals in rows.items():
                if name not in self._heard or self._heard[name][0] != renewals:
                    self._heard[name] = renewals, now_s
            self._heard = {name: self._heard[name] for name in rows}
            gone = [name for name, (_, since_s) in self._heard.items() if now_s > since_s + TERM_S]
            if gone:
                connection.execute(delete(leases).where(leases.c.name.in_(gone)))
        return len(rows) - len(gone)
