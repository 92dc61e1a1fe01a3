"""Housekeeping beside judging: registry, beacons and commands; a thread of its own waits for the chain."""

import logging
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Final

from sqlalchemy import Engine

from ingest.beacons import BeaconIssuer
from ingest.mirror import mirror_devices
from ingest.source import Source
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.registry import RegisteredSystem, each_system
from maxgreen.clock import Clock
from maxgreen.errors import Retryable
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.lease import Lease
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from maxgreen.protocol.keys import Signer

_LOG: Final = logging.getLogger(__name__)
_COMMANDS_EVERY_S: Final = 1.0
_LEASE: Final = "housekeeping"
_SYSTEMS: Final = 20  # read in one step


class Housekeeping:
    """One leader of all ingest services on a ledger does it; one thread calls `step`."""

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
        self._engine = engine
        self._readers = reader(engine)
        self._lease = Lease(engine, _LEASE)
        self._source = source
        self._deployment = deployment
        self._clock = clock
        self._refresh_s = refresh_s
        self._refresh_due = 0.0
        self._systems: Iterator[RegisteredSystem] | None = None  # of the pass through the registry that runs
        self._issuer = BeaconIssuer(deployment.chain, signer, deployment.network)
        self._greet = threading.Event()
        self._commands_due = 0.0
        self._command_again = threading.Event()
        self._command_sent = 0  # the ledger's row

    @property
    def alarm(self) -> str | None:
        """What is wrong with beacons, if anything."""
        return self._issuer.alarm

    def greet(self) -> None:
        """Publish the newest beacon and the waiting commands again: a broker may have lost them."""
        self._greet.set()
        self._command_again.set()

    def step(self) -> None:
        """Look after what is due; Retryable while the ledger is away."""
        if not self._lease.held():
            return
        self._refresh()
        self._issue()
        self._command()

    def stop(self) -> None:
        """Let another take over at once."""
        self._lease.release()

    def _refresh(self) -> None:
        """Read some systems of the registry; a pass through a large one takes many steps, and stops no beacon."""
        if self._systems is None:
            if time.monotonic() < self._refresh_due:
                return
            self._refresh_due = time.monotonic() + self._refresh_s
            self._systems = each_system(self._deployment)
        try:
            some = list(islice(self._systems, _SYSTEMS))  # before the ledger is locked
        except Retryable as error:
            _LOG.warning("registry not read: %s", error)
            self._systems = None
            return
        if not some:
            self._systems = None
            return
        with self._engine.begin() as connection:
            mirror_devices(connection, some)

    def _issue(self) -> None:
        now_s = self._clock.now_ms() // 1000
        if not self._greet.is_set() and not self._issuer.is_due(now_s):
            return
        block = self._issuer.fetch()  # before the ledger is locked
        with self._engine.begin() as connection:
            book = Book(connection)
            issued = self._issuer.issue(book, now_s, block)
            if issued is None and self._greet.is_set():
                issued = book.newest_beacon()
        if issued is not None and self._source.publish(BEACON_TOPIC, issued[1], retain=True):
            self._greet.clear()

    def _command(self) -> None:
        """Send the commands that came into the ledger, and after a connection all that have not expired."""
        if time.monotonic() < self._commands_due:
            return
        self._commands_due = time.monotonic() + _COMMANDS_EVERY_S
        if self._command_again.is_set():
            self._command_again.clear()
            self._command_sent = 0
        now_ms, sent = self._clock.now_ms(), []
        with self._readers.begin() as connection:
            waiting = Book(connection).commands_to_send(now_ms, after=self._command_sent)
        for row in waiting:
            if not self._source.publish(device_topic(row.device, "command"), row.message, retain=False):
                break
            self._command_sent = row.id
            sent.append(row.id)
        if sent:
            with self._engine.begin() as connection:
                Book(connection).set_sent(sent, now_ms)
