"""Ticks of readings: live sensors on an absolute schedule, or a replayed trace."""

import ctypes
import hashlib
import logging
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from edge_agent.sensors.base import Electrical, Sensor, SensorError
from edge_agent.sensors.trace import Trace
from maxgreen.clock import Clock
from maxgreen.protocol.work import WINDOW_MS
from maxgreen.verify.meter import Sample

_LOG: Final = logging.getLogger(__name__)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_REPLAY_BOOT_MS: Final = 60_000  # a replayed trace begins this long after its boot
_STA_UNSYNC: Final = 0x0040
_TIME_ERROR: Final = 5
MIN_STEP_MS: Final = 10  # between two readings, whatever is asked for


@dataclass(frozen=True, slots=True)
class Tick:
    """One round of readings. wall_ms is None while the clock is not synchronised."""

    wall_ms: int | None
    boot_ms: int
    samples: Mapping[int, Sample]
    clock_error_ms: int | None = None
    faults: tuple[int, ...] = ()  # channels whose sensor failed


class Source(Protocol):
    """Where ticks come from."""

    @property
    def boot_id(self) -> bytes:
        """The boot that the ticks belong to, 16 bytes."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether ticks come by themselves, in real time: then nothing may keep their reader waiting."""
        ...

    def ticks(self, after_boot_ms: int) -> Iterator[Tick]:
        """Yield the ticks later than `after_boot_ms` of this boot, as they come."""
        ...

    def boot_ms(self) -> int:
        """Return the time now, ms since boot."""
        ...

    def set_interval(self, interval_ms: int) -> None:
        """Read at another interval from the next tick on."""
        ...


@dataclass
class DelayHistogram:
    """How long after its slot each reading began: counts up to each bound, ms, the last one without."""

    bounds_ms: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100, 1_000)
    counts: list[int] = field(default_factory=lambda: [0] * 10)
    sum_ms: int = 0

    def add(self, delay_ms: int) -> None:
        """Count one reading."""
        self.counts[bisect_left(self.bounds_ms, delay_ms)] += 1
        self.sum_ms += delay_ms


class LiveSource:
    """Sensors polled at every multiple of the interval since the start, on CLOCK_BOOTTIME."""

    is_live: Final = True

    def __init__(self, sensors: Mapping[int, Sensor], *, interval_ms: int) -> None:
        self._sensors = sensors
        self._interval_ms = interval_ms
        self._changed = threading.Event()
        self.delays = DelayHistogram()

    def boot_ms(self) -> int:
        """Return the time now, ms since boot."""
        return _boot_ms()

    def set_interval(self, interval_ms: int) -> None:
        """Read at once, and at another interval from then on."""
        self._interval_ms = interval_ms
        self._changed.set()

    @property
    def boot_id(self) -> bytes:
        """The kernel's boot id."""
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))

    def ticks(self, after_boot_ms: int) -> Iterator[Tick]:  # noqa: ARG002 - live readings are always later
        """Yield a tick per interval; a slot that was missed is left out, never made up."""
        due_ms = _boot_ms()
        failed: set[int] = set()
        while True:
            samples: dict[int, Sample] = {}
            faults: list[int] = []
            for channel, sensor in self._sensors.items():
                read_ms = _boot_ms()
                self.delays.add(read_ms - due_ms)
                # within 1 ms of the grid a time is the grid's (P-BAT-4)
                stamp_ms = due_ms if abs(read_ms - due_ms) <= 1 else read_ms
                reading = _read(channel, sensor, failed)
                if reading is None:
                    faults.append(channel)
                else:
                    samples[channel] = Sample(reading.voltage_uv, reading.current_ua, stamp_ms)
            synchronised, error_ms = kernel_clock()
            wall_ms = due_ms + (time.time_ns() // 1_000_000 - _boot_ms()) if synchronised else None
            yield Tick(wall_ms, due_ms, samples, error_ms, tuple(faults))
            last_ms, interval_ms = due_ms, self._interval_ms
            due_ms += interval_ms * (max(0, _boot_ms() - due_ms) // interval_ms + 1)
            if self._changed.wait(max(0, due_ms - _boot_ms()) / 1000):
                self._changed.clear()
                # at once, but never at the instant of a reading that there is (P-BAT-6)
                latest_ms = max((sample.boot_ms for sample in samples.values()), default=last_ms)
                due_ms = max(_boot_ms(), latest_ms + MIN_STEP_MS)
                time.sleep(max(0, due_ms - _boot_ms()) / 1000)


class ReplaySource:
    """A trace as if it were measured now; the clock is moved along, so `speed` 0 takes no time."""

    is_live: Final = False

    def __init__(
        self, trace: Trace, channels: Mapping[int, tuple[str | None, int]], *, clock: Clock, speed: float = 0
    ) -> None:
        """Map channel numbers to (trace channel, line resistance µΩ)."""
        self._clock = clock
        self._speed = speed
        self._start_ms = min(trace.channel(name)[0].t_ms for name, _ in channels.values())
        self._name = f"{trace.path.name}:{self._start_ms}"
        self._now_ms = _REPLAY_BOOT_MS
        self._rounds: dict[int, dict[int, Electrical]] = {}
        for number, (name, resistance_uohm) in channels.items():
            for point in trace.channel(name):
                self._rounds.setdefault(point.t_ms, {})[number] = far_end(point.reading, resistance_uohm)

    def boot_ms(self) -> int:
        """Return the time of the newest tick, ms since boot."""
        return self._now_ms

    def set_interval(self, interval_ms: int) -> None:
        """Do nothing: a trace has the interval that it was measured at."""

    @property
    def boot_id(self) -> bytes:
        """An id made from the trace: every replay of it is the same boot."""
        return hashlib.sha256(self._name.encode()).digest()[:16]

    def ticks(self, after_boot_ms: int) -> Iterator[Tick]:
        """Yield the trace's rows later than `after_boot_ms`."""
        before_ms: int | None = None
        for t_ms in sorted(self._rounds):
            boot_ms = t_ms - self._start_ms + _REPLAY_BOOT_MS
            if boot_ms <= after_boot_ms:
                continue
            if before_ms is not None and t_ms - before_ms > 2 * WINDOW_MS:
                # nothing is measured for a while: the open batch closes in its time, not when the trace goes on
                self._clock.sleep_until(before_ms + WINDOW_MS)
                yield Tick(before_ms + WINDOW_MS, boot_ms - (t_ms - before_ms) + WINDOW_MS, {})
            if self._speed and before_ms is not None:
                time.sleep((t_ms - before_ms) / 1000 / self._speed)
            before_ms = t_ms
            self._clock.sleep_until(t_ms)
            self._now_ms = boot_ms
            samples = {n: Sample(e.voltage_uv, e.current_ua, boot_ms) for n, e in self._rounds[t_ms].items()}
            yield Tick(t_ms, boot_ms, samples)


def far_end(reading: Electrical, resistance_uohm: int) -> Electrical:
    """Return what arrives at the far end of a line: the same current at the voltage that is left."""
    drop_uv = reading.current_ua * resistance_uohm // 1_000_000
    return Electrical(reading.voltage_uv - drop_uv, reading.current_ua)


def kernel_clock() -> tuple[bool, int | None]:
    """Return whether the kernel's clock is synchronised, and its estimated error in ms (adjtimex)."""
    state = _Timex()
    result = _LIBC.adjtimex(ctypes.byref(state))
    if result < 0:
        _say_no_clock(os.strerror(ctypes.get_errno()))
    synchronised = 0 <= result < _TIME_ERROR and not state.status & _STA_UNSYNC
    return synchronised, state.esterror // 1000 if synchronised else None


@cache
def _say_no_clock(error: str) -> None:
    _LOG.error("the kernel does not say whether its clock is synchronised: %s; nothing gets a date", error)


class _Timex(ctypes.Structure):
    """The head of struct timex (adjtimex(2)); the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_byte * 256),
    )


_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _within_range(reading: Electrical) -> Electrical:
    """Return a reading that the protocol can carry (32 bits)."""
    if not all(-(2**31) < value < 2**31 for value in (reading.voltage_uv, reading.current_ua)):
        raise SensorError(f"{reading.current_ua / 1e6:g} A is no current; check shunt_uohm and offset_ua")
    return reading


def _boot_ms() -> int:
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)


def _read(channel: int, sensor: Sensor, failed: set[int]) -> Electrical | None:
    """Read with one retry; a fault is logged once when it comes and once when it is over."""
    try:
        try:
            reading = _within_range(sensor.read())
        except SensorError:
            reading = _within_range(sensor.read())
    except SensorError as error:
        if channel not in failed:
            failed.add(channel)
            _LOG.warning("channel %d lost: %s", channel, error)
        return None
    if channel in failed:
        failed.remove(channel)
        _LOG.warning("channel %d is back", channel)
    return reading
