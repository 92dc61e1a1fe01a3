"""Leases: what only one process does at a time, and another takes over when it ends or hangs."""

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import IntegrityError

from maxgreen.errors import Retryable
from maxgreen.ledger.schema import leases

TERM_S: Final = 15.0
_RENEW_S: Final = 5.0
_ASK_S: Final = 1.0


def short(name: str) -> str:
    """Return 16 hex digits for a name of any length."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


class Lease:
    """A lease by name; its holder renews it, and nobody else takes it before its term ended.

    Terms are counted by the holder's and the taker's monotonic clocks, so that a step of the wall clock gives no lease
    away: a taker watches the row for a whole term and takes it when it did not move.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._holder = f"{_machine()}:{os.getpid()}:{secrets.token_hex(6)}"
        self._lock = threading.Lock()
        self._renewed_s: float | None = None  # when we last had it for sure
        self._ask_at_s = 0.0
        self._seen: tuple[str, int] | None = None
        self._seen_since_s = 0.0

    def held(self, for_s: float = 0.0) -> bool:
        """Tell whether it is ours, and stays so for a while; asks about once a second, or every five while it is."""
        with self._lock:
            now_s = time.monotonic()
            if now_s >= self._ask_at_s:
                ours = self._ask(now_s)
                self._renewed_s = now_s if ours else None
                self._ask_at_s = now_s + (_RENEW_S if ours else _ASK_S)
            return self._renewed_s is not None and time.monotonic() + for_s < self._renewed_s + TERM_S

    @property
    def other(self) -> str:
        """Who else has it, as far as we have seen; empty where nobody does."""
        if self._seen is None or self._renewed_s is not None:
            return ""
        machine, process, _ = self._seen[0].rsplit(":", 2)
        return f"process {process} of {'this' if machine == _machine() else 'another'} machine"

    def release(self) -> None:
        """Give it up; where the ledger is away, its term ends by itself."""
        self._renewed_s = None
        self._ask_at_s = 0.0
        with suppress(Retryable), self._engine.begin() as connection:
            connection.execute(delete(leases).where(leases.c.name == self._name, leases.c.holder == self._holder))

    def _ask(self, now_s: float) -> bool:
        mine = leases.c.name == self._name
        try:
            with self._engine.begin() as connection:
                row = connection.execute(select(leases.c.holder, leases.c.renewals).where(mine)).first()
                if row is None:
                    connection.execute(leases.insert().values(name=self._name, holder=self._holder, renewals=1))
                    return True
                seen = (str(row.holder), int(row.renewals))
                if seen[0] != self._holder and not _ended(seen[0]):
                    if seen != self._seen:
                        self._seen, self._seen_since_s = seen, now_s
                        return False
                    if now_s < self._seen_since_s + TERM_S:
                        return False
                taken = update(leases).where(mine, leases.c.holder == seen[0], leases.c.renewals == seen[1])
                return bool(connection.execute(taken.values(holder=self._holder, renewals=seen[1] + 1)).rowcount)
        except IntegrityError:  # another took it in this moment
            return False


def living(holders: Iterable[str]) -> list[str]:
    """Return which of these holders of leases are processes of this machine that live."""
    parted = [holder.rsplit(":", 2) for holder in holders if not _ended(holder)]
    return sorted({f"process {process}" for machine, process, _ in parted if machine == _machine()})


def _ended(holder: str) -> bool:
    """Tell whether a holder was a process of this machine that is no more."""
    machine, process, _ = holder.rsplit(":", 2)
    return machine == _machine() and not Path(f"/proc/{process}").exists()


def _machine() -> str:
    """Return what process ids belong to: a boot of a machine (host names repeat), and the namespace of the ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    except OSError:
        return secrets.token_hex(8)  # nobody's: whoever wants to take over waits for the term's end
    return f"{boot[:24]}:{namespace}"
