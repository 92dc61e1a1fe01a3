"""What is looked after each second: mining, the sampling interval, the light, and what people are told."""

import logging
import time
from typing import Any, Final

from edge_agent import host
from edge_agent.governor import Conditions, Pause, pause_reason
from edge_agent.homeassistant import discovery, discovery_topic
from edge_agent.light import pattern
from edge_agent.obedience import MIN_INTERVAL_MS
from edge_agent.parts import AgentParts
from edge_agent.relay_guard import TRANSFER_INTERVAL_MS, RelayGuard
from edge_agent.report import ChannelReport, Report, Signs, alarms
from edge_agent.sealer import Sealer
from edge_agent.source import Tick
from edge_agent.spool import MediumError
from edge_agent.uplink import Uplink
from edge_agent.windows import ProofWindows
from maxgreen.clock import utc
from maxgreen.protocol.batch import Batch, EventKind, Health, Role
from maxgreen.protocol.keys import key_id

_LOG: Final = logging.getLogger(__name__)
_PUBLISH_EVERY_S: Final = 10.0
_DEAD_AFTER_MS: Final = 30_000  # a sensor that failed so long does not keep the service from being ready
_SLOW_MS: Final = 60_000  # sampling interval while the spool is at its limit
_LEAST_PAUSE_S: Final = 60.0
_LONGEST_PAUSE_S: Final = 1_800.0
_DAY_MS: Final = 86_400_000


class Supervisor:
    """Decides by what it sees; the agent tells it of each tick and each batch."""

    def __init__(self, parts: AgentParts, guard: RelayGuard) -> None:
        self._parts = parts
        self._guard = guard
        self._device = key_id(parts.signer.spki)
        self.newest: Tick | None = None  # as measured; `_latest` is the newest that was handed to the sealer
        self._latest: Tick | None = None
        self._first_tick_ms: int | None = None
        self._power_mw: dict[int, int] = {}
        self._seen: set[int] = set()
        self._failing_ms: dict[int, int] = {}  # channel: since when, boot time
        self._sealed_s = time.monotonic()
        self._day_begin: tuple[int, dict[int, int]] = (-1, {})
        self._pause: Pause | None = None
        self._pause_s = _LEAST_PAUSE_S
        self._pause_ends_s = float("-inf")
        self._used = 0
        self._medium_fault = ""
        self._slow = False  # the spool was at its limit, and is not empty yet
        self._wanted_interval_ms = parts.interval_ms
        self._publish_due_s = 0.0
        self._introduced = 0
        self._windows = ProofWindows()
        self.sealer: Sealer  # the agent sets it: it needs `health` and `sealed` first
        self.report: Report

    @property
    def is_dated(self) -> bool:
        """Whether the clock is synchronised."""
        return self.newest is not None and self.newest.wall_ms is not None

    @property
    def was_patient(self) -> bool:
        """Whether every sensor had its time to answer: one that fails now is dead."""
        if self._first_tick_ms is None:
            return False
        return self._parts.source.boot_ms() - self._first_tick_ms >= _DEAD_AFTER_MS

    @property
    def is_well(self) -> bool:
        """Whether every channel gave a sample (or failed for half a minute) and batches are sealed in their time."""
        if self._latest is None:
            return False
        silence_ms = self._parts.source.boot_ms() - self._latest.boot_ms
        if silence_ms > 60_000 + 2 * self.sealer.interval_ms:
            return False
        channels = {sensor.channel for sensor in self._parts.birth.sensors}
        if not (channels <= self._seen or self.was_patient):
            return False
        excused = (
            self._latest.wall_ms is None
            or not self._latest.samples
            or bool(self.sealer.medium_fault or self.sealer.key_fault or self.sealer.stalled)
        )
        patience_s = 60 + 3 * max(self._parts.seal_ms, self.sealer.interval_ms) / 1000
        return excused or time.monotonic() - self._sealed_s < patience_s

    def measured(self, tick: Tick) -> None:
        """Note a round of readings."""
        self._latest = self.newest = tick
        if self._first_tick_ms is None:
            self._first_tick_ms = tick.boot_ms
        self._seen |= tick.samples.keys()
        for channel in tick.faults:
            self._power_mw.pop(channel, None)
            self._failing_ms.setdefault(channel, tick.boot_ms)
        for channel, sample in tick.samples.items():
            self._power_mw[channel] = sample.power_pw(0) // 10**9
            self._failing_ms.pop(channel, None)

    def sealed(self, batch: Batch) -> None:
        """Note a batch that is in the spool."""
        self._sealed_s = time.monotonic()
        self._windows.sealed(batch)

    def health(self) -> Health:
        """Return the device's state for a batch."""
        worker = self._parts.worker
        return Health(
            cpu_mdeg=host.cpu_mdeg(),
            throttled=host.throttled(),
            spool_records=self._parts.spool.waiting(),
            free_mib=host.free_mib(self._parts.spool.path.parent),
            tamper_open=self._guard.tamper_open,
            duty_permille=None if worker is None else worker.duty_permille,
        )

    def want_interval(self, interval_ms: int) -> None:
        """Sample at another interval from now on."""
        self._wanted_interval_ms = interval_ms
        self.choose_interval()

    def choose_interval(self, *, transferring: bool | None = None) -> None:
        """Sample as often as is wished: at least each second in a transfer, less often with a spool at its limit."""
        spool, was_slow = self._parts.spool, self._slow
        self._slow = self._used_bytes() > self._parts.most_spool_bytes or (was_slow and spool.waiting() > 1)
        interval_ms = max(self._wanted_interval_ms, _SLOW_MS) if self._slow else self._wanted_interval_ms
        if self._guard.transfer is not None if transferring is None else transferring:
            interval_ms = min(interval_ms, max(MIN_INTERVAL_MS, TRANSFER_INTERVAL_MS))
        if self._slow != was_slow:
            _LOG.warning(
                "spool: %s; sampling every %g s", "at its limit" if self._slow else "has room again", interval_ms / 1000
            )
        if self._slow and not was_slow:
            self.sealer.event(EventKind.SPOOL_LIMIT, self._parts.source.boot_ms())
        if interval_ms != self.sealer.interval_ms:
            self.sealer.set_interval(interval_ms)
            self._parts.source.set_interval(interval_ms)

    def _used_bytes(self) -> int:
        """Return how much the spool uses; what it was when it could be read last, while it can't."""
        try:
            self._used = self._parts.spool.used_bytes()
        except MediumError as error:
            self._medium_fault = str(error)
        else:
            self._medium_fault = ""
        return self._used

    def tend(self) -> None:
        """Look after what changes slowly, and make a new report."""
        parts = self._parts
        if parts.worker is not None:
            self._govern(time.monotonic())
        self.choose_interval()
        self.report = self.look()
        self._guard.show(
            pattern(
                alarm=any(alarm.code != "sensor" for alarm in self.report.alarms),
                fault=bool(self._dead_since()),
                dated=self.is_dated,
                connected=parts.uplink.connected,
                transferring=self._guard.transfer is not None,
            )
        )
        self._publish(time.monotonic())

    def _govern(self, now_s: float) -> None:
        """Let mining pause and go on; a pause lasts a minute at least, so that a passing cloud does not make many."""
        worker = self._parts.worker
        if worker is None:
            return
        pause = pause_reason(self._parts.budget, self._conditions(), since=self._pause)
        if pause is not None and self._pause is None:
            # soon after the last one: whatever is weak needs longer
            again = now_s - self._pause_ends_s < self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S) if again else _LEAST_PAUSE_S
            self._pause_ends_s = now_s + self._pause_s
        if pause is None and self._pause is not None and now_s >= self._pause_ends_s:
            self._pause, self._pause_ends_s = None, now_s
        elif pause is not None:
            self._pause = pause
        worker.pause(self._pause.text if self._pause else None)
        if self._pause and self.is_dated:
            self._windows.paused(self._parts.clock.now_ms(), self._pause.text)

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

    def _dead_since(self) -> dict[int, int]:
        """Return since when, in boot time, each channel gives no reading; a sampler that hangs gives none at all."""
        if self.newest is not None:
            silent_since = self.newest.boot_ms + 2 * self.sealer.interval_ms
            if self._parts.source.is_live and self._parts.source.boot_ms() > silent_since:
                return {sensor.channel: silent_since for sensor in self._parts.birth.sensors} | self._failing_ms
        return self._failing_ms

    def _publish(self, now_s: float) -> None:
        """Tell people on the broker: who this is at each connection, and how it is every ten seconds."""
        parts, uplink = self._parts, self._parts.uplink
        if not uplink.connected:
            return
        if self._introduced != uplink.sessions:  # a broker may have lost what it retained
            online = uplink.publish_json("status", {"status": "online", "boot": parts.source.boot_id.hex()})
            if parts.home_assistant:
                description = discovery(self._device, parts.birth)
                online = uplink.publish_retained(discovery_topic(self._device), description) and online
            if online:
                self._introduced = uplink.sessions
                self._publish_due_s = now_s
        if now_s >= self._publish_due_s and uplink.publish_json("state", self.report.to_home_assistant()):
            self._publish_due_s = now_s + _PUBLISH_EVERY_S

    def _signs(self) -> Signs:
        parts, sealer = self._parts, self.sealer
        uplinks: list[Uplink] = [parts.uplink, *(retired.uplink for retired in parts.retired)]

        def first(name: str) -> Any:
            return next((found for uplink in uplinks if (found := getattr(uplink, name))), None)

        now_ms = parts.source.boot_ms()
        return Signs(
            device=self._device.hex(),
            contradiction=first("alarm"),
            missing=first("missing"),
            damaged=[seq for uplink in uplinks for seq in uplink.damaged],
            earlier_key="; ".join(parts.undeliverable),
            unknown_key=first("unknown_key"),
            denied=first("deaf") or first("denied"),
            refused=first("refused"),
            unanswered_s=parts.uplink.unanswered_s,
            ever_answered=parts.uplink.receipt is not None,
            rejected=parts.uplink.rejected,
            not_paid=parts.uplink.receipt.rejection if parts.uplink.receipt is not None else None,
            key_fault=sealer.key_fault,
            medium_fault=sealer.medium_fault or parts.uplink.medium_fault or self._medium_fault,
            lost_ticks=sealer.outbox.lost_ticks,
            mining_fault=parts.worker.fault if parts.worker is not None else "",
            board_fault=self._guard.fault,
            case_open=bool(self._guard.tamper_open),
            dead_s={channel: (now_ms - since) / 1000 for channel, since in self._dead_since().items()},
        )

    def look(self) -> Report:
        """Return all that an owner may want to know (docs/agent.md)."""
        parts, tip = self._parts, self.sealer.tip
        now_ms, receipt, transfer = parts.clock.now_ms(), parts.uplink.receipt, self._guard.transfer
        registers = {number: meter.register_mws for number, meter in tip.meters.items()}
        day = now_ms // _DAY_MS if self.is_dated else -1
        if day != self._day_begin[0]:
            self._day_begin = day, registers | parts.spool.registers_before(day * _DAY_MS)
        begin, dead = self._day_begin[1], self._dead_since()
        channels = {}
        for sensor in parts.birth.sensors:
            register, power_mw = registers.get(sensor.channel, 0), self._power_mw.get(sensor.channel)
            if sensor.channel in dead:
                power_mw = None
            channels[sensor.channel] = ChannelReport(
                role=Role(sensor.role).name.lower(),
                power_w=None if power_mw is None else power_mw / 1000,
                energy_j=register / 1000,
                today_wh=(register - begin.get(sensor.channel, 0)) / 3.6e6,
            )
        return Report(
            time=utc(now_ms),
            boot_ms=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 10**6,
            device=self._device.hex(),
            channels=channels,
            seq=tip.next_seq,
            waiting=parts.spool.waiting() + sum(retired.spool.waiting() for retired in parts.retired),
            stalled=self.sealer.stalled,
            spool_bytes=self._used_bytes(),
            receipt={"next_seq": receipt.next_seq, "server_ms": receipt.server_ms} if receipt else None,
            connected=parts.uplink.connected,
            synchronised=self.is_dated,
            cpu_c=None if (mdeg := host.cpu_mdeg()) is None else mdeg / 1000,
            mining="off" if parts.worker is None else f"pauses: {self._pause.text}" if self._pause else "on",
            mining_paused=None if parts.worker is None else bool(self._pause),
            interval_ms=self.sealer.interval_ms,
            transfer=f"command {transfer.command} on channel {transfer.channel}" if transfer else None,
            proof_windows=self._windows.report(),
            alarms=alarms(self._signs()),
        )
