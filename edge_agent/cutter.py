"""Where batches are cut: at UTC multiples, on events, before a batch is full (P-BAT-5 to P-BAT-7)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from edge_agent.chain_tip import ChainTip
from edge_agent.draft import ATTESTING, Draft, Happening
from edge_agent.source import Tick
from maxgreen.protocol.batch import MAX_MESSAGE_BYTES, MAX_SAMPLES, Birth, EventKind, encode_birth
from maxgreen.verify.meter import Sample

STEP_TOLERANCE_MS: Final = 500  # wall against boot time; more is a clock step
_HOUR_MS: Final = 3_600_000
_SAMPLE_BYTES: Final = 12  # voltage, current, offset
_CHANNEL_BYTES: Final = 200  # registers, tags and an attestation
_REST_BYTES: Final = 2_500  # envelope, 64 nonces, health, events
_MOST_PENDING: Final = 50  # events that wait for a reading
# sensors that flap for days, or commands while nothing is read, make no more of them
_SPARE: Final = {
    EventKind.SENSOR_FAULT, EventKind.CLOCK_STEP, EventKind.COMMAND_OBEYED, EventKind.COMMAND_REFUSED,
}  # fmt: skip


@dataclass(slots=True)
class _Open:
    """What is collected now."""

    ticks: list[Tick]
    happenings: list[Happening] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def add(self, tick: Tick) -> None:
        self.ticks.append(tick)
        self.seen |= tick.samples.keys()


class Cutter:
    """Collects the ticks of one boot into drafts; each method returns those that are complete by it.

    The first tick that has every channel is cut alone, by a transfer start with an attestation: it opens lines.
    """

    def __init__(self, birth: Birth, boot: bytes, tip: ChainTip, *, interval_ms: int, seal_ms: int) -> None:
        self._boot = boot
        self._seal_ms = seal_ms
        self._interval_ms = self._wanted_ms = interval_ms
        self._channels = {sensor.channel for sensor in birth.sensors}
        self._most_ticks = _most_ticks(birth)
        self._opened, self._closed = tip.opened, tip.closed
        self._booted = tip.boot != boot  # the first batch of a boot says so
        tip = tip.entered(boot)
        self._last_ms = {n: meter.last.boot_ms for n, meter in tip.meters.items() if meter.last}
        self._open: _Open | None = None
        self._pending: list[Happening] = []
        self._faulty: set[int] = set()
        self._wall_offset_ms: int | None = None  # of the newest tick
        self._known_offset_ms: int | None = None  # of the newest one with a date
        self._stating_birth = False
        self._transferring = False
        self._last_hour: int | None = None  # of the newest reading with a date
        self._owing = False  # an hour ended while nothing was open: the next cut is attested (P-ATT-1)

    @property
    def interval_ms(self) -> int:
        """The nominal sampling interval."""
        return self._wanted_ms

    def observe(self, tick: Tick) -> list[Draft]:
        """Note a sensor that failed, once until it is back, and a clock that stepped (P-BAT-6)."""
        drafts = []
        if set(tick.faults) - self._faulty:
            drafts += self.event(Happening(EventKind.SENSOR_FAULT, tick.boot_ms))
        self._faulty = set(tick.faults)
        if tick.wall_ms is not None:
            offset_ms = tick.wall_ms - tick.boot_ms
            if self._known_offset_ms is not None and abs(offset_ms - self._known_offset_ms) > STEP_TOLERANCE_MS:
                drafts += self.event(Happening(EventKind.CLOCK_STEP, tick.boot_ms))
            self._known_offset_ms = offset_ms
        self._wall_offset_ms = None if tick.wall_ms is None else self._known_offset_ms
        return drafts

    def add(self, tick: Tick) -> list[Draft]:
        """Add a round of readings; one without any closes what lies before it in time."""
        return [draft for part in self._parts(tick) for draft in self._add(part)]

    def _add(self, tick: Tick) -> list[Draft]:
        if self._closed:
            return []
        drafts: list[Draft] = []
        if self._open is not None and self._is_cut_before(self._open, tick):
            drafts += self.cut(attesting=not tick.samples or self._ends_an_hour(self._open, tick.wall_ms))
        tick = self._later(tick)
        if not tick.samples:
            return drafts
        hour = None if tick.wall_ms is None else tick.wall_ms // _HOUR_MS
        if self._open is None and not drafts and self._last_hour is not None and hour is not None:
            self._owing = self._owing or hour > self._last_hour
        self._last_hour = hour if hour is not None else self._last_hour
        if self._open is None:
            return drafts + self._begin(tick)
        self._open.add(tick)
        return drafts + self._open_lines(tick)

    def event(self, happening: Happening) -> list[Draft]:
        """Note an event; it closes the batch (P-BAT-5), with attestations where P-ATT-1 wants them."""
        if self._open is None:
            if happening.kind in _SPARE and len(self._pending) >= _MOST_PENDING:
                return []
            self._pending.append(happening)
            return []
        self._open.happenings.append(happening)
        return self.cut(attesting=happening.kind in ATTESTING)

    def set_interval(self, interval_ms: int) -> list[Draft]:
        """Sample at another interval from the next batch on (P-BAT-4 holds one interval per batch)."""
        if interval_ms == self._wanted_ms:
            return []
        drafts = self.cut()
        self._wanted_ms = interval_ms
        return drafts

    def state_birth(self) -> list[Draft]:
        """State birth and registers at once, with attestations (command 2): in the open batch, or the next one."""
        self._stating_birth = True
        return self.cut(attesting=True)

    def finish(self, boot_ms: int, without: Iterable[int] = ()) -> list[Draft]:
        """Cut this key's last batch when every channel is in it (event 6); nothing is added afterwards.

        `without`: channels whose sensor is dead, so that a key can be replaced before it is repaired.
        """
        if self._open is None or self._open.ticks[0].wall_ms is None:
            return []
        if self._channels - self._open.seen - set(without):
            return []
        drafts = self.event(Happening(EventKind.LAST_OF_KEY, boot_ms))
        self._closed = True
        return drafts

    def cut(self, *, attesting: bool = False) -> list[Draft]:
        """Close what is open."""
        if self._open is None:
            return []
        opened, self._open = self._open, None
        stating, self._stating_birth = self._stating_birth, False
        first = opened.ticks[0]
        offset_ms = None if first.wall_ms is None else first.wall_ms - first.boot_ms
        # in a transfer always: the line may be silent when it ends
        attesting = attesting or self._transferring or (self._owing and offset_ms is not None)
        self._owing = self._owing and not attesting
        kinds = {happening.kind for happening in opened.happenings if happening.command is not None}
        if EventKind.TRANSFER_START in kinds:
            self._transferring = True
        if EventKind.TRANSFER_STOP in kinds:
            self._transferring = False
        ticks, happenings = tuple(opened.ticks), tuple(opened.happenings)
        return [Draft(self._boot, self._interval_ms, offset_ms, ticks, happenings, attesting, stating)]

    def end(self) -> list[Draft]:
        """Close what is open at a stop, with attestations; what happened after the last reading is a batch alone."""
        drafts = self.cut(attesting=True)
        pending, self._pending = self._pending, []
        if pending and not self._closed:
            drafts.append(Draft(self._boot, self._interval_ms, self._wall_offset_ms, (), tuple(pending)))
        return drafts

    def _begin(self, tick: Tick) -> list[Draft]:
        boot = [Happening(EventKind.BOOT, tick.boot_ms)] if self._booted else []
        self._open = _Open([], boot + self._pending)
        self._open.add(tick)
        attesting = self._stating_birth or any(happening.kind in ATTESTING for happening in self._pending)
        self._booted, self._pending = False, []
        # where the interval was shortened the segment that ends here began at the longer one, and is counted by it
        shortened = self._wanted_ms < self._interval_ms
        if not shortened:
            self._interval_ms = self._wanted_ms
        if not (attesting or shortened):
            return self._open_lines(tick)
        drafts = self.cut(attesting=attesting)
        self._interval_ms = self._wanted_ms
        return drafts

    def _open_lines(self, tick: Tick) -> list[Draft]:
        if self._opened or tick.wall_ms is None or self._open is None or not self._channels <= self._open.seen:
            return []
        self._opened = True
        return self.event(Happening(EventKind.TRANSFER_START, tick.boot_ms))

    def _parts(self, tick: Tick) -> list[Tick]:
        """Part a round whose readings lie on both sides of a cut: each belongs where its own time is (P-BAT-5)."""
        if tick.wall_ms is None or not tick.samples:
            return [tick]
        offset_ms = tick.wall_ms - tick.boot_ms
        parts: dict[int, dict[int, Sample]] = {}
        for channel, sample in tick.samples.items():
            parts.setdefault((sample.boot_ms + offset_ms) // self._seal_ms, {})[channel] = sample
        firsts = [(min(sample.boot_ms for sample in samples.values()), samples) for samples in parts.values()]
        return [
            replace(tick, wall_ms=first_ms + offset_ms, boot_ms=first_ms, samples=samples)
            for first_ms, samples in sorted(firsts, key=lambda first: first[0])
        ]

    def _later(self, tick: Tick) -> Tick:
        """Leave out what is not later than the sample before it (P-BAT-6), and what no channel of the birth read."""
        samples = {
            n: s for n, s in tick.samples.items() if n in self._channels and s.boot_ms > self._last_ms.get(n, -1)
        }
        self._last_ms |= {n: s.boot_ms for n, s in samples.items()}
        return tick if len(samples) == len(tick.samples) else replace(tick, samples=samples)

    def _is_cut_before(self, batch: _Open, tick: Tick) -> bool:
        """Tell whether the batch closes before this tick (P-BAT-5, P-BAT-7)."""
        if len(batch.ticks) >= self._most_ticks:
            return True
        first = batch.ticks[0]
        if first.wall_ms is None or tick.wall_ms is None:
            undated = first.wall_ms is None and tick.wall_ms is None
            return not undated or first.boot_ms // self._seal_ms != tick.boot_ms // self._seal_ms
        seal = first.wall_ms // self._seal_ms
        # by its own clock, and by that of the batch, which dates it: a clock that is slewed lies between them
        last_ms = max((sample.boot_ms for sample in tick.samples.values()), default=tick.boot_ms)
        dated_ms = first.wall_ms - first.boot_ms + last_ms
        return tick.wall_ms // self._seal_ms != seal or dated_ms // self._seal_ms != seal

    @staticmethod
    def _ends_an_hour(batch: _Open, next_wall_ms: int | None) -> bool:
        last = batch.ticks[-1].wall_ms
        return last is not None and next_wall_ms is not None and last // _HOUR_MS != next_wall_ms // _HOUR_MS


def _most_ticks(birth: Birth) -> int:
    """Return how many rounds of readings surely fit into a batch (P-BAT-1)."""
    channels = len(birth.sensors)
    room = MAX_MESSAGE_BYTES - _REST_BYTES - len(encode_birth(birth)) - channels * _CHANNEL_BYTES
    return max(1, min(MAX_SAMPLES, room // (_SAMPLE_BYTES * channels)))
