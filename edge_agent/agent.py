"""The agent: ticks in, signed batches out.

One thread owns meter, spool, uplink and relay. Sampling has its own, so that neither the medium nor the network delays
a reading, and mining has its own.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edge_agent import commands, host, status
from edge_agent.board.base import Board, NoBoard
from edge_agent.governor import BudgetSettings, Conditions, pause_reason
from edge_agent.homeassistant import discovery, discovery_topic
from edge_agent.light import pattern
from edge_agent.line import Line
from edge_agent.sealer import Sealer
from edge_agent.source import DelayHistogram, LiveSource, Source, Tick
from edge_agent.spool import Spool
from edge_agent.uplink import Uplink
from edge_agent.windows import ProofWindows
from edge_agent.work import Worker
from maxgreen.clock import Clock, SystemClock
from maxgreen.protocol.backend import Command, CommandKind
from maxgreen.protocol.batch import MAX_INTERVAL_MS, Batch, Birth, EventKind, Health, Role
from maxgreen.protocol.keys import Signer, key_id

_LOG: Final = logging.getLogger(__name__)
_IDLE_S: Final = 0.05
_STATE_EVERY_S: Final = 10.0
_TEND_EVERY_S: Final = 1.0
_DEAD_AFTER_MS: Final = 30_000  # a sensor that failed so long does not keep the service from being ready
_SLOW_MS: Final = 60_000  # sampling interval while the spool is at its limit
_MIN_INTERVAL_MS: Final = 10
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class AgentParts:
    """What an agent is made of; the composition roots put real or virtual parts here."""

    source: Source
    signer: Signer
    spool: Spool
    uplink: Uplink
    worker: Worker | None
    birth: Birth
    network: str
    interval_ms: int
    seal_ms: int
    home_assistant: bool = False
    clock: Clock = field(default_factory=SystemClock)
    board: Board = field(default_factory=NoBoard)
    line_channel: int = 1
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    most_spool_bytes: int = 2**40
    retired: Sequence["Retired"] = ()
    finish_key: bool = False  # a rotation is confirmed: this key's last batch is due


@dataclass(frozen=True, slots=True)
class Retired:
    """An earlier key's spool, and the uplink that delivers what is left of it."""

    spool: Spool
    uplink: Uplink


class Agent:
    """Runs one device."""

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        self._stopping = threading.Event()
        self._state_due = 0.0
        self._tend_due = 0.0
        self._introduced = 0
        self._latest: Tick | None = None
        self._power_mw: dict[int, int] = {}
        self._seen: set[int] = set()
        self._first_tick_ms: int | None = None
        self._sealed_s = time.monotonic()
        self._tamper_open: bool | None = None
        self._day_begin: tuple[int, dict[int, int]] = (-1, {})
        self._pause: str | None = None
        self._slow = False  # the spool was at its limit, and is not empty yet
        self._wanted_interval_ms = parts.interval_ms
        self._windows = ProofWindows()
        self.key_finished = False
        self._show: Callable[[], None] = lambda: None
        self._progress: Callable[[], None] = lambda: None
        worker = parts.worker
        self.sealer = Sealer(
            parts.spool,
            parts.signer,
            parts.network,
            parts.birth,
            parts.source.boot_id,
            interval_ms=parts.interval_ms,
            seal_ms=parts.seal_ms,
            harvest=worker.harvest if worker else lambda _prev: None,
            health=self._health,
            sealed=self._note_sealed,
        )
        self.line = Line(parts.board, parts.line_channel, parts.birth, self.sealer.event)
        self.status: status.Status = self._status()

    @property
    def device(self) -> bytes:
        """The device id."""
        return key_id(self._parts.signer.spki)

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

    def ticks(self) -> Iterator[Tick]:
        """Yield the source's ticks that are not sealed yet."""
        return self._parts.source.ticks(self.sealer.tip.last_boot_ms)

    def take(self, tick: Tick) -> None:
        """Meter a round of readings."""
        self._latest = tick
        if self._first_tick_ms is None:
            self._first_tick_ms = tick.boot_ms
        self._seen |= tick.samples.keys()
        self.sealer.take(tick)
        self.line.take(tick, self.sealer.interval_ms)
        for channel in tick.faults:
            self._power_mw.pop(channel, None)
        for channel, sample in tick.samples.items():
            self._power_mw[channel] = sample.power_pw(0) // 10**9
        if self._parts.finish_key and not self.key_finished:
            self.key_finished = self.sealer.finish_key(tick.boot_ms, without=tick.faults if self._was_patient else ())
            if self.key_finished:
                self.stop()
        self.exchange()

    def exchange(self, timeout_s: float = 0) -> None:
        """Send and receive what there is; waits up to `timeout_s` for a message."""
        parts = self._parts
        uplink, worker = parts.uplink, parts.worker
        uplink.dated = self._is_dated
        uplink.process(timeout_s)
        for retired in parts.retired:
            retired.uplink.process()
        for command in uplink.commands:
            self._obey(command)
        uplink.commands.clear()
        if worker is not None:
            for beacon in uplink.beacons:
                worker.take_beacon(beacon)
            if uplink.receipt is not None:
                worker.take_nbits(uplink.receipt.nbits)
            worker.follow(self.sealer.tip.head)
        uplink.beacons.clear()
        self.line.check(parts.source.boot_ms())
        if time.monotonic() >= self._tend_due:
            self._tend_due = time.monotonic() + _TEND_EVERY_S
            self._tend()
        self._show_light()
        if uplink.connected and time.monotonic() >= self._state_due:
            self._state_due = time.monotonic() + _STATE_EVERY_S
            if parts.home_assistant and self._introduced != uplink.sessions:
                uplink.publish_retained(discovery_topic(self.device), discovery(self.device, parts.birth))
                self._introduced = uplink.sessions  # a broker may have lost what it retained
            uplink.publish_json("status", {"status": "online", "boot": parts.source.boot_id.hex()})
            uplink.publish_json("state", self.state())

    def state(self) -> dict[str, object]:
        """Return power W, energy kWh, temperature °C and spool depth, for people."""
        tip = self.sealer.tip
        return {
            "power_w": {str(n): power / 1000 for n, power in self._power_mw.items()},
            "energy_kwh": {str(n): meter.register_mws / 3.6e9 for n, meter in tip.meters.items()},
            "cpu_c": None if (mdeg := host.cpu_mdeg()) is None else mdeg / 1000,
            "spool": self._parts.spool.waiting(),
            "seq": tip.next_seq,
        }

    @property
    def is_well(self) -> bool:
        """Whether every channel gave a sample (or failed for half a minute) and batches are sealed in their time."""
        if self._latest is None:
            return False
        silence_ms = self._parts.source.boot_ms() - self._latest.boot_ms
        if silence_ms > 60_000 + 2 * self.sealer.interval_ms:
            return False
        channels = {sensor.channel for sensor in self._parts.birth.sensors}
        if not (channels <= self._seen or self._was_patient):
            return False
        excused = (
            self._latest.wall_ms is None
            or not self._latest.samples
            or bool(self.sealer.medium_fault or self.sealer.key_fault)
        )
        patience_s = 60 + 3 * max(self._parts.seal_ms, self.sealer.interval_ms) / 1000
        return excused or time.monotonic() - self._sealed_s < patience_s

    def start(self) -> None:
        """Begin to connect and to mine."""
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
    ) -> None:
        """Run until the source ends or `stop` is called, then seal and say goodbye.

        `progress` is called after each round of readings while all is well, `show` when the status is a new one;
        `linger` stays connected after the source's end.
        """
        self._show, self._progress = show, progress
        worker = self._parts.worker
        self.start()
        try:
            while worker is not None and worker.lacks_beacon and not self._stopping.is_set():
                self.exchange(_IDLE_S)
            for tick in self._sampled() if self._parts.source.is_live else self.ticks():
                self.take(tick)
                self._tell_progress()
                if self._stopping.is_set() and not self._parts.source.is_live:
                    break
            self.sealer.stop()
            while not self._stopping.is_set() and (linger or not self._parts.uplink.delivered):
                self.exchange(_IDLE_S)
        finally:
            self.close()

    def _sampled(self) -> Iterator[Tick]:
        """Yield the ticks that a thread of their own reads; sends and receives while there is none."""
        arrived: queue.SimpleQueue[Tick | Exception] = queue.SimpleQueue()

        def sample() -> None:
            try:
                for tick in self.ticks():
                    arrived.put(tick)
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
            yield found

    def _tell_progress(self) -> None:
        if self.is_well:
            self._progress()

    def stop(self) -> None:
        """Ask `run` to end; any thread or signal handler may call it."""
        self._stopping.set()

    def close(self) -> None:
        """Open the relay, seal what is open, end mining and close the connections."""
        parts = self._parts
        try:
            self.line.open("the agent stops", parts.source.boot_ms())
            self.sealer.stop()
            parts.uplink.process()  # the last batch may still go; commands that come now are not obeyed
            if parts.worker is not None:
                parts.worker.stop()
            parts.uplink.stop(parts.source.boot_id)
            for retired in parts.retired:
                retired.uplink.stop(None)
                retired.spool.close()
            parts.spool.close()
        finally:
            parts.board.release()

    def _obey(self, command: Command) -> None:
        """Obey a command that its backend signed, once, in its time (P-CMD-1)."""
        refused = commands.refusal(
            command,
            device=self.device,
            last_number=self._parts.spool.obeyed(),
            now_ms=self._parts.clock.now_ms(),
            synchronised=self._is_dated,
        ) or self._impossible(command)
        if refused:
            _LOG.warning("command %d is not obeyed: %s", command.number, refused)
            return
        boot_ms = self._parts.source.boot_ms()
        if command.kind is CommandKind.STOP_TRANSFER:  # opening needs no note: doing it twice does no harm
            self.line.obey(command, boot_ms)
        try:
            self._parts.spool.obey(command.number)
        except sqlite3.OperationalError as error:  # obeyed without a note, a restart would obey it again
            _LOG.warning("command %d is not obeyed: spool: %s", command.number, error)
            return
        match command.kind:
            case CommandKind.START_TRANSFER:
                self.line.obey(command, boot_ms)
            case CommandKind.SEND_REGISTERS:
                self.sealer.state_birth()
            case CommandKind.SAMPLING_INTERVAL:
                self._wanted_interval_ms = command.arguments[0]
                self._choose_interval()

    def _impossible(self, command: Command) -> str | None:
        match command.kind:
            case CommandKind.START_TRANSFER | CommandKind.STOP_TRANSFER:
                return self.line.refusal(command, self._parts.source.boot_ms())
            case CommandKind.SAMPLING_INTERVAL if not _MIN_INTERVAL_MS <= command.arguments[0] <= MAX_INTERVAL_MS:
                return f"an interval of {command.arguments[0]} ms is outside {_MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}"
        return None

    @property
    def _was_patient(self) -> bool:
        """Whether every sensor had its time to answer: one that fails now is dead."""
        if self._latest is None or self._first_tick_ms is None:
            return False
        return self._latest.boot_ms - self._first_tick_ms >= _DEAD_AFTER_MS

    @property
    def _is_dated(self) -> bool:
        return self._latest is not None and self._latest.wall_ms is not None

    def _tend(self) -> None:
        """Look after what changes slowly: heat, budget, tamper switch, room in the spool, the status."""
        parts = self._parts
        if parts.worker is not None:
            self._pause = pause_reason(parts.budget, self._conditions(), paused=parts.worker.paused)
            parts.worker.pause(self._pause)
            if self._pause and self._is_dated:
                self._windows.paused(parts.clock.now_ms(), self._pause)
        was_open, self._tamper_open = self._tamper_open, parts.board.tamper_open()
        if self._tamper_open and not was_open:
            self.line.open("the case was opened", parts.source.boot_ms())
            self.sealer.event(EventKind.TAMPER, parts.source.boot_ms())
            _LOG.warning("the case was opened")
        self._choose_interval()
        self.status = self._status()
        self._show()

    def _choose_interval(self) -> None:
        """Sample as often as is wished; less often while the spool is at its limit, where nothing is dropped.

        While the key does not sign, the interval stays, and is chosen again later.
        """
        spool, was_slow, before = self._parts.spool, self._slow, self.sealer.interval_ms
        self._slow = spool.used_bytes() > self._parts.most_spool_bytes or (was_slow and spool.waiting() > 1)
        interval_ms = max(self._wanted_interval_ms, _SLOW_MS) if self._slow else self._wanted_interval_ms
        if self._slow != was_slow:
            _LOG.warning(
                "spool: %s; sampling every %g s", "at its limit" if self._slow else "has room again", interval_ms / 1000
            )
        why = EventKind.SPOOL_LIMIT if self._slow and not was_slow else None
        self.sealer.set_interval(interval_ms, self._parts.source.boot_ms(), why)
        if self.sealer.interval_ms != before:
            self._parts.source.set_interval(interval_ms)

    def _conditions(self) -> Conditions:
        generation = [
            self._power_mw[sensor.channel]
            for sensor in self._parts.birth.sensors
            if sensor.role == Role.GENERATION and sensor.channel in self._power_mw
        ]
        battery = self._latest.samples.get(self._parts.budget.battery_channel) if self._latest else None
        return Conditions(
            host.cpu_mdeg(),
            host.throttled(),
            sum(generation) if generation else None,
            battery.voltage_uv if battery else None,
        )

    def _show_light(self) -> None:
        self._parts.board.light(
            on=pattern(
                alarm=bool(self._alarms()),
                fault=bool(self._latest and self._latest.faults),
                dated=self._is_dated,
                connected=self._parts.uplink.connected,
                transferring=self.line.transfer is not None,
            ).lit(time.monotonic_ns() // 10**6)
        )

    def _alarms(self) -> list[str]:
        found = []
        if self._parts.uplink.alarm:
            found.append(self._parts.uplink.alarm)
        if self._parts.uplink.missing:
            found.append(self._parts.uplink.missing)
        if self.sealer.key_fault:
            found.append(f"signing key: {self.sealer.key_fault}; readings wait in memory")
        if self.sealer.medium_fault:
            found.append(f"spool: {self.sealer.medium_fault}; readings wait in memory: free space, or check the medium")
        if self._tamper_open:
            found.append("the case is open")
        return found

    def _note_sealed(self, batch: Batch) -> None:
        self._sealed_s = time.monotonic()
        self._windows.sealed(batch)

    def _health(self) -> Health:
        """Return the device's state for a batch."""
        worker = self._parts.worker
        return Health(
            cpu_mdeg=host.cpu_mdeg(),
            throttled=host.throttled(),
            spool_records=self._parts.spool.waiting(),
            free_mib=host.free_mib(self._parts.spool.path.parent),
            tamper_open=self._tamper_open,
            duty_permille=None if worker is None else worker.duty_permille,
        )

    def _status(self) -> dict[str, Any]:
        """Return all that an owner may want to know (docs/agent.md)."""
        parts, tip = self._parts, self.sealer.tip
        receipt, alarms = parts.uplink.receipt, self._alarms()
        registers = {number: meter.register_mws for number, meter in tip.meters.items()}
        day = parts.clock.now_ms() // _DAY_MS if self._is_dated else -1
        if day != self._day_begin[0]:
            self._day_begin = day, registers | parts.spool.registers_before(day * _DAY_MS)
        begin = self._day_begin[1]
        channels = {}
        for sensor in parts.birth.sensors:
            number = sensor.channel
            register = registers.get(number, 0)
            power_mw = self._power_mw.get(number)
            channels[str(number)] = {
                "role": Role(sensor.role).name.lower(),
                "power_w": None if power_mw is None else power_mw / 1000,
                "energy_j": register / 1000,
                "today_wh": (register - begin.get(number, 0)) / 3.6e6,
            }
        transfer = self.line.transfer
        return {
            "device": self.device.hex(),
            "channels": channels,
            "seq": tip.next_seq,
            "waiting": parts.spool.waiting() + sum(retired.spool.waiting() for retired in parts.retired),
            "stalled": self.sealer.stalled,
            "spool_bytes": parts.spool.used_bytes(),
            "receipt": {"next_seq": receipt.next_seq, "server_ms": receipt.server_ms} if receipt else None,
            "connected": parts.uplink.connected,
            "synchronised": self._is_dated,
            "cpu_c": None if (mdeg := host.cpu_mdeg()) is None else mdeg / 1000,
            "mining": "off" if parts.worker is None else f"pauses: {self._pause}" if self._pause else "on",
            "mining_paused": None if parts.worker is None else bool(self._pause),
            "interval_ms": self.sealer.interval_ms,
            "transfer": f"command {transfer.command} on channel {transfer.channel}" if transfer else None,
            "proof_windows": self._windows.report(),
            "alarms": alarms,
            "alarmed": bool(alarms),
        }
