"""Housekeeping beside judging: registry, beacons, commands, months; one leader of all services on a ledger does it.

Each has a thread of its own, so that no chain that hangs keeps a command back.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from sqlalchemy import Engine

from ingest.beacons import BeaconIssuer
from ingest.mirror import Registry
from ingest.source import Source
from maxgreen.chain.deployment import Deployment
from maxgreen.clock import Clock
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.lease import Lease
from maxgreen.ledger.months import make_months
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from maxgreen.protocol.keys import Signer

_LEASE: Final = "housekeeping"
_IDLE_S: Final = 1.0
_BEACONS_EVERY_S: Final = 0.2
_COMMANDS_EVERY_S: Final = 1.0
_MONTHS_EVERY_S: Final = 3_600.0
_LOG: Final = logging.getLogger(__name__)


class Housekeeping:
    """What one leader does; each of `tasks` is called by a thread of its own."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        deployment: Deployment,
        signer: Signer,
        clock: Clock,
        *,
        refresh_s: float,
    ) -> None:
        self._lease = Lease(engine, _LEASE)
        self.registry = Registry(engine, deployment, refresh_s=refresh_s)
        self.beacons = Beacons(engine, source, BeaconIssuer(deployment.chain, signer, deployment.network), clock)
        self.commands = Commands(engine, source, clock)
        self._engine, self._clock = engine, clock

    @property
    def alarm(self) -> str | None:
        """What is wrong with beacons, if anything."""
        return self.beacons.alarm

    def tasks(self) -> dict[str, Callable[[], float]]:
        """Return what is to be called again and again, by name; each returns how long to pause, s."""
        steps = {
            "registry": self.registry.step,
            "beacons": self.beacons.step,
            "commands": self.commands.step,
            "the ledger's months": self._months,
        }
        return {name: self._if_leader(step) for name, step in steps.items()}

    def greet(self) -> None:
        """Publish the newest beacon and the waiting commands again: a broker may have lost them."""
        self.beacons.greet()
        self.commands.greet()

    def stop(self) -> None:
        """Let another take over at once."""
        self._lease.release()

    def _months(self) -> float:
        for name in make_months(self._engine, self._clock.now_ms()):
            _LOG.info("the ledger has a partition more: %s", name)
        return _MONTHS_EVERY_S

    def _if_leader(self, step: Callable[[], float]) -> Callable[[], float]:
        return lambda: step() if self._lease.held() else _IDLE_S


class Beacons:
    """Publishes a beacon when one is due."""

    def __init__(self, engine: Engine, source: Source, issuer: BeaconIssuer, clock: Clock) -> None:
        self._engine, self._source, self._issuer, self._clock = engine, source, issuer, clock
        self._greet = threading.Event()

    @property
    def alarm(self) -> str | None:
        """Why there is no beacon, if there is none."""
        return self._issuer.alarm

    def greet(self) -> None:
        """Publish the newest one again."""
        self._greet.set()

    def step(self) -> float:
        """Issue what is due; return how long to pause, s. Retryable while the ledger is away."""
        now_s = self._clock.now_ms() // 1000
        if not self._greet.is_set() and not self._issuer.is_due(now_s):
            return _BEACONS_EVERY_S
        block = self._issuer.fetch()  # before the ledger is locked
        with self._engine.begin() as connection:
            book = Book(connection)
            issued = self._issuer.issue(book, now_s, block)
            if issued is None and self._greet.is_set():
                issued = book.newest_beacon()
        if issued is not None and self._source.publish(BEACON_TOPIC, issued[1], retain=True):
            self._greet.clear()
        return _BEACONS_EVERY_S


class Commands:
    """Sends the commands that came into the ledger, and after a connection all that have not expired."""

    def __init__(self, engine: Engine, source: Source, clock: Clock) -> None:
        self._engine, self._readers, self._source, self._clock = engine, reader(engine), source, clock
        self._again = threading.Event()
        self._sent = 0  # the ledger's row

    def greet(self) -> None:
        """Send all that have not expired again."""
        self._again.set()

    def step(self) -> float:
        """Send what waits; return how long to pause, s. Retryable while the ledger is away."""
        if self._again.is_set():
            self._again.clear()
            self._sent = 0
        now_ms, sent = self._clock.now_ms(), []
        with self._readers.begin() as connection:
            waiting = Book(connection).commands_to_send(now_ms, after=self._sent)
        for row in waiting:
            if not self._source.publish(device_topic(row.device, "command"), row.message, retain=False):
                break
            self._sent = max(self._sent, row.id)
            sent.append(row.id)
        if sent:
            with self._engine.begin() as connection:
                Book(connection).set_sent(sent, now_ms)
        return _COMMANDS_EVERY_S
