"""Judging in processes of their own, beside each other: the service keeps the connection and divides the devices.

    broker ─▶ MqttSource ─▶ Crew ── groups, by shard ──▶ process: Pipe ─▶ Worker ─▶ ledger
    broker ◀──── Crew ◀── receipts, what was written ──── process ◀───────────┘

Few messages at once are one process's: what a group costs is then had once. Many are divided, by device.

A group is acknowledged to the broker when its process has written it; a process that ends or hangs is begun again and
gets what it had not written. Two that judge one device at once would harm nothing (docs/decisions/0012-the-desk.md).
"""

import hashlib
import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

from ingest.config import IngestSettings
from ingest.metrics import Metrics
from ingest.process import Told, judge
from ingest.source import Source
from ingest.worker import GROUP, LINGER_S, POLL_S
from maxgreen.clock import make_clock
from maxgreen.errors import Retryable
from maxgreen.ledger.desk import NOBODY, Desk, Evidence
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.writing import write
from maxgreen.mqtt import Incoming
from maxgreen.protocol.reasons import Reason, Rejected

_LOG: Final = logging.getLogger(__name__)
_AHEAD: Final = 2  # groups that a process has: one that it judges, and the next
_SILENT_S: Final = 180.0  # a process tells of itself each second, and between two groups
_AGAIN_S: Final = 1.0
_STOP_S: Final = 10.0
_START_S: Final = 20.0
_LATE_S: Final = 20.0
_DEATHS: Final = 2  # over one group, before it is parted
_WAITING_BYTES: Final = 16 * 2**20  # of messages that are not written, before no more are taken
_FEW: Final = 128  # messages at once, that one process judges
_BUSY_S: Final = 0.005
_SLOW_S: Final = 3.0
_SHARD: Final = slice(6, 8)  # of a topic mg/v1/<shard>/…


class Crew:
    """The processes that judge; one thread calls `step`."""

    def __init__(self, settings: IngestSettings, network: str, source: Source, metrics: Metrics) -> None:
        """`source` is the broker's; nothing runs before `start`, or the first `step`."""
        self._source = source
        self._group: list[Incoming] = []  # what came, and waits for its process
        self._divides = False
        self._members = [_Member(settings, network, k, source, metrics) for k in range(settings.processes)]

    def start(self) -> None:
        """Begin the processes, and wait until they judge: before, nothing need come from the broker."""
        ends_s = time.monotonic() + _START_S
        self._look_after()
        while not all(member.told or member.trouble for member in self._members) and time.monotonic() < ends_s:
            time.sleep(POLL_S)
            self._look_after()

    @property
    def alarm(self) -> str | None:
        """What keeps a process from going on, if anything."""
        return next((trouble for member in self._members if (trouble := member.alarm)), None)

    def step(self) -> int:
        """Look after the processes, and hand over what came; return how many messages were handed over."""
        self._look_after()
        if sum(member.waiting_bytes for member in self._members) >= _WAITING_BYTES:
            time.sleep(POLL_S)
            return 0
        if not self._group:
            self._group = self._source.receive(GROUP * len(self._members), POLL_S, LINGER_S)
        if not self._knows_whose():
            time.sleep(_BUSY_S)
            return 0
        group, self._group = self._group, []
        for member, part in self._divided(group):
            member.hand_over(part)
        return len(group)

    def stop(self) -> None:
        """Let the processes write what they have, and end."""
        for member in self._members:
            member.close()
        ends = time.monotonic() + _STOP_S
        for member in self._members:
            member.join(max(0.0, ends - time.monotonic()))

    def _look_after(self) -> None:
        for member in self._members:
            member.look_after()

    def _knows_whose(self) -> bool:
        """Tell whether the group may go: how it is divided changes while no process has anything, for the order.

        Where the first process has the last few and does not finish them, or dies of them, the others do not wait.
        """
        if not any(member.waiting_bytes for member in self._members):
            self._divides = len(self._group) >= _FEW
        elif not self._divides:
            self._divides = self._members[0].is_stuck
            return self._divides
        return True

    def _divided(self, group: Sequence[Incoming]) -> list[tuple["_Member", list[Incoming]]]:
        """Return the messages by process: one device's go to one, in their order."""
        parts: list[list[Incoming]] = [[] for _ in self._members]
        for message in group:
            parts[_shard(message.topic) % len(parts) if self._divides else 0].append(message)
        return [(member, part) for member, part in zip(self._members, parts, strict=True) if part]


class _Member:
    """One process, as the service sees it. What waits for it, it gets in turn, two groups at a time."""

    def __init__(self, settings: IngestSettings, network: str, number: int, source: Source, metrics: Metrics) -> None:
        self.trouble: str | None = None
        self.told = False
        self._settings, self._network, self._number = settings, network, number
        self._source, self._metrics = source, metrics
        self.waiting_bytes = 0  # of the messages that are not written
        self._room = threading.Condition()  # guards this, and the next four
        self._groups: deque[list[Incoming]] = deque()  # what is not written, oldest first
        self._sent = 0  # so many of them the process has
        self._pipe: Connection | None = None
        self._ending = False
        self._deaths = 0  # in a row, with the same group under way
        self._since_s = 0.0  # when it last got a group while it had none, or finished one
        self._process: multiprocessing.process.BaseProcess | None = None
        self._heard_s = 0.0
        self._begin_at_s = 0.0

    @property
    def alarm(self) -> str | None:
        """What is wrong with the process, if anything."""
        if self.trouble is None and self._sent and self.silent_s > _LATE_S:
            return f"judging process {self._number} has not been heard for {self.silent_s:.0f} s"
        return self.trouble

    @property
    def is_stuck(self) -> bool:
        """Whether it has had a group for long, or ended over it."""
        return bool(self._deaths) or time.monotonic() - self._since_s > _SLOW_S

    @property
    def silent_s(self) -> float:
        """How long the process has told nothing, s."""
        return time.monotonic() - self._heard_s

    def look_after(self) -> None:
        """Begin the process, and again when it ended or hangs."""
        now_s, hangs = time.monotonic(), False
        if self._process is not None and self._process.is_alive():
            if self.silent_s < _SILENT_S:
                return
            self._process.kill()
            self._process.join()
            hangs = True
        if self._process is not None:
            self.trouble = f"judging process {self._number} ended (status {self._process.exitcode}); it is begun again"
            _LOG.error("%s", self.trouble)
            self._process, self._begin_at_s = None, now_s + _AGAIN_S
            self._mourn(hangs=hangs)
        if now_s >= self._begin_at_s:
            self._begin()

    def hand_over(self, part: list[Incoming]) -> None:
        """Let the process have messages in their turn; those that wait become one group."""
        with self._room:
            if not self._groups:
                self._since_s = time.monotonic()
            if self._sent < len(self._groups) and len(self._groups[-1]) + len(part) <= GROUP:
                self._groups[-1] = self._groups[-1] + part
            else:
                self._groups.append(part)
            self.waiting_bytes += _size(part)
            self._room.notify()

    def close(self) -> None:
        """Tell the process to end when it has written what it has."""
        with self._room:
            self._ending = True
            self._room.notify()

    def join(self, patience_s: float) -> None:
        """Wait for its end, and enforce it."""
        if self._process is not None:
            self._process.join(patience_s)
            self._process.kill()
            self._process.join()

    def _mourn(self, *, hangs: bool) -> None:
        """Part the group that processes ended over, again and again, until the message that ends them stands alone."""
        with self._room:
            self._pipe = None
            self._room.notify()
            self._deaths = self._deaths + 1 if self._sent else 0
            self._sent = 0
            if self._deaths < _DEATHS or (hangs and len(self._groups[0]) == 1):  # it may wait for others
                return
            group = self._groups.popleft()
            if len(group) > 1:
                middle = len(group) // 2
                self._groups.extendleft([group[middle:], group[:middle]])
                return
            self._deaths = 0
            self.waiting_bytes -= _size(group)
        _LOG.error(
            "a message ends whoever judges it; it is not judged: topic %.200r, %d bytes, SHA-256 %s",
            group[0].topic,
            len(group[0].payload),
            hashlib.sha256(group[0].payload).hexdigest(),
        )
        self._set_aside(group[0])
        self._source.acknowledge(group)

    def _set_aside(self, message: Incoming) -> None:
        """Keep a message as evidence that was not judged; where the ledger is away, the log has said which it is."""
        error = Rejected(Reason.INTERNAL_ERROR, "a process that judged it ended")
        now_ms = make_clock(self._settings.clock_file).now_ms()
        with suppress(Retryable):
            desk = Desk(evidence=[Evidence(error, message.topic, message.payload, now_ms, NOBODY, None)])
            write(open_engine(self._settings.ledger), desk)

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=judge, args=(self._settings, self._network, theirs), name=f"judging {self._number}", daemon=True
        )
        self._process.start()
        theirs.close()
        self._heard_s = time.monotonic()
        with self._room:
            self._pipe, self._sent = pipe, 0
        for run in (self._talk, self._listen):
            threading.Thread(target=run, args=(pipe,), name="crew", daemon=True).start()

    def _talk(self, pipe: Connection) -> None:
        """Send one process its groups; it may block here as long as it likes, nobody waits."""
        with suppress(OSError):
            while True:
                with self._room:
                    while pipe is self._pipe and not (self._may_send() or self._ending):
                        self._room.wait()
                    if pipe is not self._pipe:
                        return
                    ending = not self._may_send()
                    if not ending:
                        group = self._groups[self._sent]
                        self._sent += 1
                if ending:
                    pipe.send([])
                    return
                pipe.send([(message.topic, message.payload) for message in group])

    def _may_send(self) -> bool:
        return self._sent < min(_AHEAD, len(self._groups))

    def _listen(self, pipe: Connection) -> None:
        """Hear one process until its end."""
        with suppress(EOFError, OSError):
            while True:
                told: Told = pipe.recv()
                with self._room:
                    if pipe is not self._pipe:
                        return  # of one that was given up
                    self._heard_s = time.monotonic()
                    self.trouble = told.trouble
                    self.told = True
                    if told.group_done:
                        self._sent -= 1
                        self._deaths = 0
                        self._since_s = time.monotonic()
                        written = self._groups.popleft()
                        self.waiting_bytes -= _size(written)
                        self._source.acknowledge(written)
                        self._room.notify()
                for topic, payload in told.receipts:
                    self._source.publish(topic, payload, retain=True)
                for commit in told.commits:
                    self._metrics.add(commit)


def _size(group: Sequence[Incoming]) -> int:
    return sum([len(message.payload) for message in group])


def _shard(topic: str) -> int:
    """Return the shard of a topic; of one that has none, 0: whoever judges it says what is wrong."""
    try:
        return int(topic[_SHARD], 16)
    except ValueError:
        return 0
