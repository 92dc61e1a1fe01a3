"""The worker: receive a group, read its chains, judge it, write it, acknowledge it, send the receipts (P-ING-5)."""

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ingest.judging import Judge, Outcome
from ingest.metrics import Commit, Counting
from ingest.opening import Message, check_all, check_shares_of, named, places_to_ask, read_all
from ingest.receipts import LIST, add_receipts, seqs_waiting
from ingest.source import Source
from maxgreen.clock import Clock
from maxgreen.errors import Retryable
from maxgreen.ledger.desk import NOBODY, Desk, Evidence
from maxgreen.ledger.engine import ConflictError, LedgerAwayError, glance
from maxgreen.ledger.rulings import Rulings
from maxgreen.ledger.shelf import Shelf
from maxgreen.ledger.writing import write
from maxgreen.mqtt import Incoming
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.reasons import Reason, Rejected, Verdict

T = TypeVar("T")
_LOG: Final = logging.getLogger(__name__)
GROUP: Final = 2_304  # of a backlog; whole rounds of every x86-64 scrypt kernel
LINGER_S: Final = 0.025
POLL_S: Final = 0.05
_DUE_EVERY_S: Final = 1.0
_DUE: Final = 8  # chains that go on between two groups
_ASIDE_S: Final = 600.0
_ALARM_S: Final = 3_600.0
_ATTEMPTS: Final = 20


class _Checks(ThreadPoolExecutor):
    """Threads that check parts of a group beside each other; one part, or one thread, is the caller's own work."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "checks")
        self._is_one = threads == 1

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **_options: Any) -> Iterator[T]:
        """Return what `map` returns."""
        parts = [list(values) for values in iterables]
        return map(fn, *parts) if self._is_one or len(parts[0]) < 2 else super().map(fn, *parts)


class Worker:
    """Judges messages; one thread calls `step`. What it could not write it judges again at the next call."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        network: str,
        signer: Signer,
        clock: Clock,
        counting: Counting,
        *,
        threads: int | None = None,
    ) -> None:
        """Signatures and shares are checked on `threads`: as many as the machine has processors."""
        self._engine = engine
        self._readers = glance(engine)
        self._source = source
        self._network = network
        self._signer = signer
        self._clock = clock
        self._counting = counting
        self._shelf = Shelf(self._readers, network)
        self._rulings = Rulings(self._readers, network)
        self._pool = _Checks(threads or os.cpu_count() or 1)
        self._group: Sequence[Incoming] = ()
        self._due_at = 0.0
        self._aside: dict[bytes, float] = {}  # chains that broke us, until when
        self._alarm = ""
        self._alarm_until = 0.0

    @property
    def alarm(self) -> str | None:
        """What broke ingest within the last hour, if anything."""
        return self._alarm if time.monotonic() < self._alarm_until else None

    def _raise_alarm(self, text: str) -> None:
        self._alarm, self._alarm_until = text, time.monotonic() + _ALARM_S

    def step(self) -> int:
        """Judge what came, and let chains that are due go on; return how many messages were judged.

        Retryable when the ledger is away: the messages stay here, and are not acknowledged.
        """
        if not self._group:
            self._group = self._source.receive(GROUP, POLL_S, LINGER_S)
        group = self._group
        if group:
            self._judge_guarded(group)
            self._source.acknowledge(group)
            self._group = ()
        if time.monotonic() >= self._due_at:
            due = self._shelf.due(_DUE, self._set_aside_until(time.monotonic()))
            for device in due:
                self._go_on(device)
            self._due_at = time.monotonic() + (0.0 if due else _DUE_EVERY_S)
        return len(group)

    def start(self) -> None:
        """Nothing is to be begun."""

    def stop(self) -> None:
        """End the threads that check; no `step` comes any more."""
        self._pool.shutdown()

    def _go_on(self, device: bytes) -> None:
        """Let a chain that is due go on; one that breaks us waits a while, and the others go on."""
        try:
            self._commit((), [device])
        except Retryable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, other chains go on
            self._aside[device] = time.monotonic() + _ASIDE_S
            _LOG.exception("device %s: its waiting batches broke ingest", device.hex())
            self._raise_alarm(
                f"device {device.hex()}: its waiting batches broke ingest ({type(error).__name__}): report it"
            )

    def _set_aside_until(self, now_s: float) -> list[bytes]:
        self._aside = {device: until for device, until in self._aside.items() if until > now_s}
        return list(self._aside)

    def _judge_guarded(self, group: Sequence[Message]) -> None:
        """Judge a group; a message that breaks us is set aside, and the others are judged."""
        try:
            self._commit(group, ())
        except Retryable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a sender found, the others are served
            if len(group) > 1:
                middle = len(group) // 2
                self._judge_guarded(group[:middle])
                self._judge_guarded(group[middle:])
                return
            if self.alarm is None:  # said once: more of its kind may come
                _LOG.exception("a message broke ingest and is kept as evidence: %.200r", group[0].topic)
            self._set_aside(group[0], error)
            self._raise_alarm(f"a message broke ingest ({type(error).__name__}): see /api/evidence, and report it")

    def _set_aside(self, message: Message, error: Exception) -> None:
        rejected = Rejected(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error!s:.200}")
        desk = Desk(evidence=[Evidence(rejected, message.topic, message.payload, self._clock.now_ms(), NOBODY, None)])
        self._write(desk)
        self._counting.add(Commit({(Verdict.REJECTED.value, Reason.INTERNAL_ERROR.label): 1}, transactions=1))

    def _commit(self, group: Sequence[Message], due: Sequence[bytes]) -> None:
        """Judge and write a group, as often as another process is first; then send its receipts."""
        now_ms = self._clock.now_ms()
        for attempt in range(_ATTEMPTS):
            try:
                desk, outcomes = self._judge(group, due, now_ms)
                self._write(desk)
            except PoolTimeoutError as error:
                raise LedgerAwayError("every connection to the ledger's database is in use") from error
            except ConflictError:
                self._counting.add(Commit(conflicts=1))
                time.sleep(random.uniform(0, 0.005 * attempt))
                continue
            break
        else:
            raise RuntimeError(f"the ledger refused a group {_ATTEMPTS} times: is its integrity damaged?")
        self._shelf.remember(desk)
        for device, _, message in desk.receipts:
            self._source.publish(device_topic(device, "receipt"), message, retain=True)
        counts = Counter((outcome.verdict.value, outcome.reason.label) for outcome in outcomes)
        self._counting.add(Commit(counts, transactions=0 if desk.is_empty else 1, at_ms=now_ms))

    def _judge(self, group: Sequence[Message], due: Sequence[bytes], now_ms: int) -> tuple[Desk, list[Outcome]]:
        read = read_all(group)
        beacons = {
            signed.batch.work.beacon for signed in read if not isinstance(signed, Rejected) and signed.batch.work
        }
        with self._readers.begin() as connection:
            known, change = self._shelf.known(connection, named(read) | set(due))
            rules = self._rulings.rules(connection, beacons, change=change)
        desk = Desk(known)
        desk.rules_change = self._rulings.change
        opened = check_all(
            group,
            read,
            lambda device: desk.chains[device].record if device in desk.chains else None,
            self._network,
            now_ms,
            self._pool,
        )
        desk.kept.update(self._shelf.kept(places_to_ask(desk, opened)))
        judge = Judge(desk, self._shelf, rules, check_shares_of(opened, rules, self._pool))
        was_due = [device for device, chain in desk.chains.items() if chain.due]  # another process may have been first
        for chain in desk.chains.values():
            if chain.due:
                judge.go_on(chain)
        outcomes = [judge.handle(message, one, now_ms) for message, one in zip(group, opened, strict=True)]
        deserving = [outcome.device for outcome in outcomes if outcome.device is not None]
        deserving = list(dict.fromkeys([*deserving, *was_due]))
        waiting = self._shelf.seqs_waiting(
            {device: desk.chains[device].state.next_seq for device in deserving if desk.chains[device].waiting}, LIST
        )
        limits = rules.limits_at(now_ms)
        add_receipts(desk, judge, deserving, seqs_waiting(desk, waiting), limits, self._signer, self._network, now_ms)
        return desk, outcomes

    def _write(self, desk: Desk) -> None:
        if not desk.is_empty:
            write(self._engine, desk)
