"""Samples into signed batches: where a batch is cut, and what it holds (P-BAT-3 to P-BAT-7, P-ATT-1)."""

import hashlib
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from edge_agent.source import Tick
from edge_agent.spool import ChainTip, Spool
from maxgreen.errors import Retryable
from maxgreen.protocol.attestation import Attestation, attest
from maxgreen.protocol.batch import (
    MAX_SAMPLES,
    Batch,
    Birth,
    Channel,
    Event,
    EventKind,
    Health,
    Work,
    encode_birth,
    sign_batch,
)
from maxgreen.protocol.keys import Signer
from maxgreen.verify.meter import MeterState, Sample, advance

UNSYNCHRONISED_WAIT_MS: Final = 3_600_000  # P-BAT-7: then samples are sealed without a date
STEP_TOLERANCE_MS: Final = 500  # wall against boot time; more is a clock step
_HOUR_MS: Final = 3_600_000
# Two channels of 3,600 samples stay below 65,536 bytes; more channels are cut earlier.
_MAX_TOTAL_SAMPLES: Final = 5_000
_MAX_STALLED: Final = 100_000  # ticks in memory while the medium takes nothing: a day at 1 Hz
_LOG: Final = logging.getLogger(__name__)
_ATTESTING: Final = {EventKind.TRANSFER_START, EventKind.TRANSFER_STOP, EventKind.LAST_OF_KEY}


@dataclass(frozen=True, slots=True)
class Happening:
    """An event at an instant, ms since boot, with the number of the command that asked for it."""

    kind: EventKind
    boot_ms: int
    command: int | None = None


@dataclass(slots=True)
class _Open:
    """The batch that collects ticks now."""

    ticks: list[Tick] = field(default_factory=list)
    events: list["Happening"] = field(default_factory=list)

    @property
    def first(self) -> Tick:
        return self.ticks[0]

    @property
    def wall_offset_ms(self) -> int | None:
        """Wall minus boot time, None without a date."""
        return None if self.first.wall_ms is None else self.first.wall_ms - self.first.boot_ms

    def samples(self) -> dict[int, list[Sample]]:
        """Samples by channel."""
        found: dict[int, list[Sample]] = {}
        for tick in self.ticks:
            for channel, sample in tick.samples.items():
                found.setdefault(channel, []).append(sample)
        return found


class Sealer:
    """Collects ticks of one boot and seals batches into the spool.

    The first tick that has every channel is sealed alone, by a transfer start with an attestation: it opens lines.
    Ticks without a date wait in the spool, unsealed, for at most an hour (P-BAT-7).
    """

    def __init__(
        self,
        spool: Spool,
        signer: Signer,
        network: str,
        birth: Birth,
        boot_id: bytes,
        *,
        interval_ms: int,
        seal_ms: int,
        harvest: Callable[[bytes], Work | None],
        health: Callable[[], Health | None] = lambda: None,
        sealed: Callable[[Batch], None] = lambda _batch: None,
    ) -> None:
        """`harvest(prev)` returns the shares found for the batch that follows `prev`; `sealed` hears of each batch."""
        self._sealed = sealed
        self._spool = spool
        self._signer = signer
        self._network = network
        self._birth = birth
        self._interval_ms = interval_ms
        self._seal_ms = seal_ms
        self._harvest = harvest
        self._health = health
        self._open: _Open | None = None
        self._channels = {sensor.channel for sensor in birth.sensors}
        self._wall_offset_ms: int | None = None
        self._undated_since_ms: int | None = None
        self._waiting: list[Tick] = []
        self._faulty: set[int] = set()
        self._stalled: deque[Tick] = deque()
        self._due: bool | None = None  # a batch that no key signed yet: whether with attestations
        self.key_fault = ""
        self._wanted_ms = interval_ms
        self._unwritten: deque[tuple[bytes, ChainTip]] = deque()  # sealed, and not yet on the medium
        self._pending: list[Happening] = []
        self.medium_fault = ""
        self._tip = spool.tip
        self._held = 0  # of the waiting ticks, so many are in the spool
        self._enter_boots(boot_id)

    @property
    def tip(self) -> ChainTip:
        """The chain's tip as this boot sees it."""
        return self._tip

    @property
    def stalled(self) -> int:
        """How many rounds of readings wait in memory because the medium took no batch."""
        return len(self._stalled)

    @property
    def interval_ms(self) -> int:
        """The nominal sampling interval."""
        return self._wanted_ms

    def set_interval(self, interval_ms: int, boot_ms: int, why: EventKind | None = None) -> None:
        """Sample at another interval from the next batch on (P-BAT-4 holds one interval per batch).

        While the key does not sign, `interval_ms` stays what it was.
        """
        if interval_ms == self._wanted_ms:
            return
        if why is not None:
            self.event(why, boot_ms)
        if self._try_seal():
            self._wanted_ms = interval_ms

    def take(self, tick: Tick) -> None:
        """Add a round of readings; seals what was open when the tick lies beyond its cut.

        While the medium takes nothing (full, read-only), rounds wait in memory, and are sealed as they came.
        """
        self._stalled.append(tick)
        if len(self._stalled) > _MAX_STALLED:
            self._stalled.popleft()  # a gap, and the meter counts it as one
        while self._stalled:
            tick = self._stalled[0]
            try:
                if self._due is not None:
                    self._seal(attesting=self._due)
                if not self._write():
                    return
                self._take(tick)
            except Retryable as error:
                self._note_key_fault(error)
                if self._open is None or self._open.ticks[-1].boot_ms != tick.boot_ms:
                    return  # it is taken again when the key signs
            self._stalled.popleft()

    def _try_seal(self, *, attesting: bool = False) -> bool:
        """Seal what is open; False while the key does not sign: then it is sealed as soon as it does."""
        try:
            self._seal(attesting=attesting)
        except Retryable as error:
            self._note_key_fault(error)
            return False
        return True

    def _note_key_fault(self, error: Retryable) -> None:
        if not self.key_fault:
            _LOG.error("signing key: %s; readings wait in memory", error)
        self.key_fault = str(error)

    def _take(self, tick: Tick) -> None:
        if self._tip.closed:
            return
        self._note_faults(tick)
        self._follow_clock(tick)
        if tick.wall_ms is not None:
            self._undated_since_ms = None
            self._release(tick.wall_ms - tick.boot_ms)
        elif self._undated_since_ms is None:
            self._undated_since_ms = tick.boot_ms
        if self._undated_since_ms is not None:
            if tick.boot_ms - self._undated_since_ms < UNSYNCHRONISED_WAIT_MS:
                self._wait(tick)
                return
            self._release(None)
        self._add(tick)

    def event(self, kind: EventKind, boot_ms: int, command: int | None = None) -> None:
        """Note an event; it closes the batch (P-BAT-5), with attestations where P-ATT-1 wants them."""
        happening = Happening(kind, boot_ms, command)
        if self._open is None:
            self._pending.append(happening)
            return
        self._open.events.append(happening)
        self._try_seal(attesting=kind in _ATTESTING)

    def state_birth(self) -> None:
        """State birth and registers in a batch at once (command 2)."""
        self._tip = replace(self._tip, birth=b"")
        self._try_seal()

    def finish_key(self, boot_ms: int, without: Iterable[int] = ()) -> bool:
        """Seal this key's last batch, with its channels attested (event 6); False while one has no sample.

        `without`: channels whose sensor is dead, so that a key can be replaced before it is repaired.
        """
        if self._open is None or self._open.first.wall_ms is None:
            return False
        if self._channels - self._open.samples().keys() - set(without):
            return False
        self.event(EventKind.LAST_OF_KEY, boot_ms)
        return self._tip.closed

    def stop(self) -> None:
        """Seal what is open, with the attestations of a clean stop (P-ATT-1); what waits for a date waits on disk."""
        self._hold()
        self._try_seal(attesting=True)

    def _enter_boots(self, boot_id: bytes) -> None:
        """Take what waits in the spool: an earlier boot's ticks will never have a date, this boot's may."""
        waiting_boot, waiting = self._spool.held_ticks()
        if waiting_boot not in {b"", boot_id}:
            self._enter(waiting_boot)
            for tick in waiting:
                self._add(tick)
            self._seal()
            waiting = []
        self._enter(boot_id)
        for tick in waiting:
            self.take(tick)

    def _enter(self, boot: bytes) -> None:
        self._booted = self._tip.boot != boot  # the first batch of a boot says so
        self._tip = self._tip.entered(boot)  # not the spool's: a batch may wait for the medium

    def _note_faults(self, tick: Tick) -> None:
        """Note that a sensor failed, once until it is back."""
        if set(tick.faults) - self._faulty:
            self.event(EventKind.SENSOR_FAULT, tick.boot_ms)
        self._faulty = set(tick.faults)

    def _wait(self, tick: Tick) -> None:
        """Keep a tick without a date; once in a sealing interval, what waits is written down."""
        if not tick.samples:
            return
        self._seal()
        if self._waiting and self._waiting[-1].boot_ms // self._seal_ms != tick.boot_ms // self._seal_ms:
            self._hold()
        self._waiting.append(tick)

    def _hold(self) -> None:
        try:
            self._spool.hold(self._tip.boot, self._waiting[self._held :])
        except sqlite3.OperationalError as error:
            self.medium_fault = str(error)  # they stay in memory, and are written with the next ones
        else:
            self._held = len(self._waiting)

    def _release(self, offset_ms: int | None) -> None:
        """Cut what waited like other ticks, with its date when there is one (P-BAT-7)."""
        waiting, self._waiting, self._held = self._waiting, [], 0
        for tick in waiting:
            self._add(tick if offset_ms is None else replace(tick, wall_ms=tick.boot_ms + offset_ms))

    def _add(self, tick: Tick) -> None:
        if self._open is not None and self._is_cut_before(self._open, tick):
            self._seal(next_wall_ms=tick.wall_ms, attesting=not tick.samples)
        if not tick.samples:
            return
        if self._open is None:
            boot = [Happening(EventKind.BOOT, tick.boot_ms)] if self._booted else []
            self._open = _Open([tick], boot + self._pending)
            shortened = self._wanted_ms < self._interval_ms
            if not shortened:
                self._interval_ms = self._wanted_ms
            attesting = any(happening.kind in _ATTESTING for happening in self._pending)
            self._booted, self._pending = False, []
            if attesting or shortened:
                # the segment that ends here began at the longer interval, and is counted by it
                self._seal(attesting=attesting)
                self._interval_ms = self._wanted_ms
                return
        else:
            self._open.ticks.append(tick)
        if not self._tip.opened and tick.wall_ms is not None and self._channels <= self._open.samples().keys():
            self.event(EventKind.TRANSFER_START, tick.boot_ms)

    def _follow_clock(self, tick: Tick) -> None:
        """Close the batch on a clock step (P-BAT-6)."""
        if tick.wall_ms is None:
            return
        offset_ms = tick.wall_ms - tick.boot_ms
        if self._wall_offset_ms is not None and abs(offset_ms - self._wall_offset_ms) > STEP_TOLERANCE_MS:
            self.event(EventKind.CLOCK_STEP, tick.boot_ms)
        self._wall_offset_ms = offset_ms

    def _is_cut_before(self, batch: _Open, tick: Tick) -> bool:
        """Tell whether the batch closes before this tick (P-BAT-5, P-BAT-7)."""
        if len(batch.ticks) >= min(MAX_SAMPLES, _MAX_TOTAL_SAMPLES // len(self._channels)):
            return True
        first = batch.first
        if first.wall_ms is None or tick.wall_ms is None:
            undated = first.wall_ms is None and tick.wall_ms is None
            return not undated or first.boot_ms // self._seal_ms != tick.boot_ms // self._seal_ms
        return first.wall_ms // self._seal_ms != tick.wall_ms // self._seal_ms

    def _seal(self, *, next_wall_ms: int | None = None, attesting: bool = False) -> None:
        """Sign what is open and commit it with the registers that follow from it."""
        if self._open is None:
            return
        opened, self._due = self._open, attesting
        all_samples = opened.samples()
        tip = self._tip
        meters = dict(tip.meters)
        t0_boot_ms = min(samples[0].boot_ms for samples in all_samples.values())
        wall_offset_ms = opened.wall_offset_ms
        channels = []
        for sensor in sorted(self._birth.sensors, key=lambda s: s.channel):
            samples = all_samples.get(sensor.channel)
            if not samples:
                continue
            meters[sensor.channel] = meter = advance(
                meters.get(sensor.channel, MeterState()),
                samples,
                interval_ms=self._interval_ms,
                dead_band_ua=sensor.dead_band_ua,
            )
            channels.append(
                Channel(
                    sensor.channel,
                    sensor.role,
                    tuple(s.voltage_uv for s in samples),
                    tuple(s.current_ua for s in samples),
                    tuple(s.boot_ms - t0_boot_ms for s in samples),
                    meter.register_mws,
                    meter.reverse_mws,
                    meter.gap_ms,
                )
            )
        birth_digest = hashlib.sha256(encode_birth(self._birth)).digest()
        batch = Batch(
            seq=tip.next_seq,
            prev=tip.head,
            boot=tip.boot,
            t0_ms=0 if wall_offset_ms is None else t0_boot_ms + wall_offset_ms,
            t0_boot_ms=t0_boot_ms,
            synchronised=wall_offset_ms is not None,
            clock_error_ms=opened.first.clock_error_ms,
            interval_ms=self._interval_ms,
            channels=tuple(channels),
            work=self._harvest(tip.head),
            health=self._health(),
            events=tuple(Event(int(e.kind), e.boot_ms - t0_boot_ms, e.command) for e in opened.events),
            birth=self._birth if birth_digest != tip.birth else None,
            succeeds=self._spool.predecessor if tip.next_seq == 0 else None,
        )
        hour = -1 if wall_offset_ms is None else (batch.t0_ms + batch.last_offset_ms) // _HOUR_MS
        next_hour = hour if next_wall_ms is None else next_wall_ms // _HOUR_MS
        if wall_offset_ms is not None and (attesting or next_hour != hour):
            batch = replace(batch, attestations=tuple(self._attestations(batch)))
        message = sign_batch(batch, self._signer, self._network)
        self._open, self._due, self.key_fault = None, None, ""
        happened = {happening.kind for happening in opened.events}
        self._tip = replace(
            tip,
            next_seq=tip.next_seq + 1,
            head=hashlib.sha256(message).digest(),
            birth=birth_digest,
            opened=tip.opened or EventKind.TRANSFER_START in happened,
            closed=EventKind.LAST_OF_KEY in happened,
            meters=meters,
        )
        self._unwritten.append((message, self._tip))
        self._write()
        self._sealed(batch)

    def _write(self) -> bool:
        """Commit what was sealed; False while the medium does not take it (said once)."""
        try:
            while self._unwritten:
                self._spool.append(*self._unwritten[0])
                self._unwritten.popleft()
        except sqlite3.OperationalError as error:
            if not self.medium_fault:
                _LOG.error("spool: %s; readings wait in memory; free some space, or check the medium", error)
            self.medium_fault = str(error)
            return False
        if self.medium_fault:
            _LOG.warning("spool: batches are written again")
        self.medium_fault = ""
        return True

    def _attestations(self, batch: Batch) -> list[Attestation]:
        return [
            attest(
                self._signer,
                self._network,
                channel.number,
                (batch.t0_ms + channel.offsets_ms[-1]) // 1000,
                channel.register_mws,
                batch.seq,
            )
            for channel in batch.channels
        ]
