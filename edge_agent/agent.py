"""The agent: ticks in, signed batches out. This module is its life from start to close.

thread      owns                         hands on
sampling    sensors                      ticks: to the relay's guard at once, and to the main loop
relay       relay, case switch, light    what happened: to the main loop
mqtt        the socket                   notices: to the main loop; stop commands: to the guard at once
mining      the scrypt kernel            shares: taken when a batch is signed
main        meter, key, medium           batches: to the broker
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from edge_agent.draft import Happening
from edge_agent.obedience import Obedience
from edge_agent.parts import AgentParts, Retired
from edge_agent.relay_guard import RelayGuard
from edge_agent.report import Report
from edge_agent.sealer import Sealer
from edge_agent.source import DelayHistogram, LiveSource, Tick
from edge_agent.supervisor import Supervisor
from maxgreen.protocol.batch import EventKind
from maxgreen.protocol.keys import key_id
from maxgreen.protocol.reasons import Refusal

__all__ = ["Agent", "AgentParts", "Retired"]
_LOG: Final = logging.getLogger(__name__)
_IDLE_S: Final = 0.05
_TEND_EVERY_S: Final = 1.0
_MOST_ARRIVED: Final = 100_000  # rounds of readings that wait for the main loop


class Agent:
    """Runs one device."""

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        self._stopping = threading.Event()
        self._tend_due_s = 0.0
        self._show: Callable[[], None] = lambda: None
        self._progress: Callable[[], None] = lambda: None
        self._alive: Callable[[bool], None] = lambda _transferring: None
        self.key_finished = False
        self._happened: list[Happening] = []
        self.guard = RelayGuard(
            parts.board,
            parts.line_channel,
            parts.birth,
            parts.source.boot_ms,
            alive=self._guarded,
            stopping=self._stopping,
        )
        self.supervisor = Supervisor(parts, self.guard)
        self.sealer = self.supervisor.sealer = Sealer(
            parts.spool,
            parts.signer,
            parts.network,
            parts.birth,
            parts.source.boot_id,
            interval_ms=parts.interval_ms,
            seal_ms=parts.seal_ms,
            harvest=parts.worker.harvest if parts.worker else lambda _prev: None,
            health=self.supervisor.health,
            sealed=self.supervisor.sealed,
        )
        self.obedience = Obedience(
            self.device,
            parts.uplink.keys,
            parts.spool,
            self.guard,
            parts.clock,
            boot_ms=parts.source.boot_ms,
            before_transfer=lambda: self.supervisor.choose_interval(transferring=True),
            state_birth=self.sealer.state_birth,
            want_interval=self.supervisor.want_interval,
            is_dated=lambda: self.supervisor.is_dated,
            tell=self._tell_fate,
        )
        parts.uplink.listen(self.obedience.hear)
        self.supervisor.report = self.supervisor.look()

    @property
    def device(self) -> bytes:
        """The device id."""
        return key_id(self._parts.signer.spki)

    @property
    def report(self) -> Report:
        """The newest report."""
        return self.supervisor.report

    @property
    def delays(self) -> DelayHistogram | None:
        """How late readings began; None for a replay."""
        source = self._parts.source
        return source.delays if isinstance(source, LiveSource) else None

    @property
    def waiting(self) -> int:
        """How many sealed batches have no receipt."""
        return self._parts.spool.waiting()

    @property
    def can_mine(self) -> bool:
        """Whether a beacon came, where shares are waited for."""
        return self._parts.worker is None or not self._parts.worker.lacks_beacon

    @property
    def is_well(self) -> bool:
        """Whether the agent measures and seals as it should."""
        return self.supervisor.is_well

    def ticks(self) -> Iterator[Tick]:
        """Yield the source's ticks that are not sealed yet."""
        return self._parts.source.ticks(self.sealer.tip.last_boot_ms)

    def take(self, tick: Tick) -> None:
        """Guard the line by a round of readings, seal it, and exchange messages."""
        self._measured(tick)
        self._seal(tick)
        self.exchange()

    def exchange(self, timeout_s: float = 0, *, up_to_ms: int | None = None) -> None:
        """Write, send and receive what there is, a bounded part of it; waits up to `timeout_s` for a message.

        `up_to_ms`: readings later than that wait to be sealed, and with them what happened.
        """
        parts, uplink, worker = self._parts, self._parts.uplink, self._parts.worker
        self.guard.attended()
        self.guard.check()
        self.sealer.work()
        uplink.dated = self.supervisor.is_dated
        uplink.process(timeout_s)
        for retired in parts.retired:
            retired.uplink.dated = uplink.dated
            retired.uplink.process()
            retired.uplink.beacons.clear()
            retired.uplink.commands.clear()
        commands, uplink.commands = uplink.commands, []
        for command in commands:
            self.obedience.obey(command)
        self._note_happened(up_to_ms)
        beacons, uplink.beacons = uplink.beacons, []
        if worker is not None:
            for beacon in beacons[-1:]:
                worker.take_beacon(beacon)
            if uplink.receipt is not None:
                worker.take_nbits(uplink.receipt.nbits)
            worker.follow(self.sealer.tip.head)
        if time.monotonic() >= self._tend_due_s:
            self._tend_due_s = time.monotonic() + _TEND_EVERY_S
            self.supervisor.tend()
            self._show()

    def start(self) -> None:
        """Begin to watch the line, to connect and to mine."""
        self.guard.start()
        for uplink in (self._parts.uplink, *(retired.uplink for retired in self._parts.retired)):
            uplink.start()
        if self._parts.worker is not None:
            self._parts.worker.start()

    def run(
        self,
        *,
        linger: bool = False,
        progress: Callable[[], None] = lambda: None,
        show: Callable[[], None] = lambda: None,
        alive: Callable[[bool], None] = lambda _transferring: None,
    ) -> None:
        """Run until the source ends or `stop` is called, then seal and say goodbye.

        `progress` is called after each round of readings while all is well, `show` when the report is a new one,
        `alive(whether a transfer runs)` by the relay's guard; `linger` stays connected after the source's end.
        """
        self._show, self._progress, self._alive = show, progress, alive
        worker = self._parts.worker
        try:
            self.start()
            while worker is not None and worker.lacks_beacon and not self._stopping.is_set():
                self.exchange(_IDLE_S)
            if self._parts.source.is_live:
                self._run_live()
            else:
                self._replay()
            self._end_transfer()
            self.sealer.stop()
            while not self._stopping.is_set() and (linger or not self._parts.uplink.delivered):
                self.exchange(_IDLE_S)
        finally:
            self.close()

    def stop(self) -> None:
        """Ask `run` to end; any thread or signal handler may call it."""
        self._stopping.set()
        self._parts.uplink.wake()

    def close(self) -> None:
        """Open the relay, seal what is open, end mining and close the connections."""
        parts = self._parts
        self._end_transfer()
        self.guard.close()
        self.sealer.stop()
        parts.uplink.process()  # the last batch may still go; commands that come now are not obeyed
        if parts.worker is not None:
            parts.worker.stop()
        parts.uplink.stop(parts.source.boot_id)
        for retired in parts.retired:
            retired.uplink.stop(None)
            retired.spool.close()
        parts.spool.close()

    def _replay(self) -> None:
        for tick in self.ticks():
            self.take(tick)
            self._tell_progress()
            if self._stopping.is_set():
                break

    def _run_live(self) -> None:
        """Seal what the sampling thread reads; write, send and receive in between."""
        arrived: queue.SimpleQueue[Tick | Exception] = queue.SimpleQueue()

        def sample() -> None:
            try:
                for tick in self.ticks():
                    self._measured(tick)
                    if arrived.qsize() < _MOST_ARRIVED:
                        arrived.put(tick)
                    else:
                        self.sealer.outbox.lost_ticks += 1
                    if self._stopping.is_set():
                        return
            except Exception as error:  # noqa: BLE001 - raised again where it can end the agent
                arrived.put(error)

        threading.Thread(target=sample, name="sampling", daemon=True).start()
        while not (self._stopping.is_set() and arrived.empty()):
            try:
                found = arrived.get_nowait()
            except queue.Empty:
                self.exchange(_IDLE_S)
                self._tell_progress()  # a reading may be due in a quarter of an hour only
                continue
            if isinstance(found, Exception):
                raise found
            self._seal(found)
            self.exchange(up_to_ms=None if arrived.empty() else found.boot_ms)
            self._tell_progress()

    def _measured(self, tick: Tick) -> None:
        """Tell at once who must not wait for the medium."""
        self.guard.measured(tick, self.sealer.interval_ms)
        self.supervisor.newest = tick

    def _seal(self, tick: Tick) -> None:
        self._note_happened(tick.boot_ms - 1)
        self.supervisor.measured(tick)
        self.sealer.take(tick)
        if self._parts.finish_key and not self.key_finished:
            dead = tick.faults if self.supervisor.was_patient else ()
            self.key_finished = self.sealer.finish_key(tick.boot_ms, without=dead)
            if self.key_finished:
                self.stop()

    def _note_happened(self, up_to_ms: int | None) -> None:
        """Write what happened at the line into the chain, between the readings that it lay between."""
        self._happened += self.guard.happened()
        while self._happened and (up_to_ms is None or self._happened[0].boot_ms <= up_to_ms):
            happening = self._happened.pop(0)
            self.sealer.event(happening.kind, happening.boot_ms, happening.command, happening.refusal)

    def _tell_fate(self, kind: EventKind, command: int, refusal: Refusal | None) -> None:
        self._happened += self.guard.happened()  # what it led to comes first
        self._happened.append(Happening(kind, self._parts.source.boot_ms(), command, refusal))

    def _end_transfer(self) -> None:
        self.guard.stop("the agent stops")
        self._note_happened(None)

    def _guarded(self, transferring: bool) -> None:
        self._alive(transferring)

    def _tell_progress(self) -> None:
        if self.is_well:
            self._progress()
