"""A judging process: a worker whose broker is a pipe to the service (`ingest.crew`)."""

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from ingest.config import IngestSettings
from ingest.loop import Loop
from ingest.metrics import Commit
from ingest.worker import Worker
from maxgreen.clock import make_clock
from maxgreen.keyfile import load_key_file
from maxgreen.ledger.engine import open_engine
from maxgreen.mqtt import Incoming
from maxgreen.service import collect_seldom, log_to_stderr

_TELL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """What a process says: whether a group is written, the receipts of it, what was counted, what is wrong."""

    group_done: bool
    receipts: tuple[tuple[str, bytes], ...]
    commits: tuple[Commit, ...]
    trouble: str | None


class _Pipe:
    """The broker as a process sees it: groups come and receipts go over a pipe. Counts go with them."""

    def __init__(self, pipe: Connection) -> None:
        self.trouble: Callable[[], str | None] = lambda: None
        self.ended = threading.Event()  # the service wants no more, or is no more
        self._pipe = pipe
        self._groups: queue.SimpleQueue[list[Incoming]] = queue.SimpleQueue()
        self._receipts: list[tuple[str, bytes]] = []
        self._commits: list[Commit] = []
        self._tell_at_s = 0.0

    alarm = None

    def start(self) -> None:
        """Begin to listen to the service."""
        threading.Thread(target=self._listen, name="pipe", daemon=True).start()

    def stop(self) -> None:
        """Nothing is left to do."""

    def receive(self, _most: int, wait_s: float, _linger_s: float) -> list[Incoming]:
        """Return the next group; the service has formed it."""
        try:
            group = self._groups.get(timeout=wait_s)
        except queue.Empty:
            return []
        if not group:
            self.ended.set()
        return group

    def acknowledge(self, _deliveries: Sequence[Incoming]) -> None:
        """Tell that the group is written."""
        self._tell(group_done=True)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Keep a receipt for the next time that something is told."""
        self._receipts.append((topic, payload))
        return retain

    def add(self, commit: Commit) -> None:
        """Keep counts for the next time that something is told."""
        self._commits.append(commit)

    def tell(self) -> None:
        """Tell what there is; at least once a second that we are."""
        if self._receipts or time.monotonic() >= self._tell_at_s:
            self._tell(group_done=False)

    def _tell(self, *, group_done: bool) -> None:
        told = Told(group_done, tuple(self._receipts), tuple(self._commits), self.trouble())
        self._receipts.clear()
        self._commits.clear()
        self._tell_at_s = time.monotonic() + _TELL_S
        with suppress(OSError):
            self._pipe.send(told)

    def _listen(self) -> None:
        try:
            while group := self._pipe.recv():
                self._groups.put([Incoming(topic, payload) for topic, payload in group])
        except (EOFError, OSError):  # the service is no more
            self.ended.set()
        if self.trouble():  # what waits for a ledger that is away comes again
            self.ended.set()
        self._groups.put([])


def judge(settings: IngestSettings, network: str, pipe: Connection) -> None:
    """Judge what comes over the pipe until the service says so, or ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the service says when
    log_to_stderr()
    collect_seldom()
    source = _Pipe(pipe)
    source.start()
    threads = max(1, (os.cpu_count() or 1) // settings.processes)
    worker: Worker | None = None

    def step() -> float:
        nonlocal worker
        if worker is None:  # the ledger may be away
            signer, clock = load_key_file(settings.key_file), make_clock(settings.clock_file)
            worker = Worker(open_engine(settings.ledger), source, network, signer, clock, source, threads=threads)
        worker.step()
        return 0.0

    loop = Loop("judging", step, source.ended, source.tell)
    source.trouble = lambda: loop.trouble or (worker.alarm if worker else None)
    loop.run()
