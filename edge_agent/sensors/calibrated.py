"""A sensor corrected by what a reference instrument said."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from edge_agent.sensors.base import Electrical, Sensor


class CalibratedSensor:
    """Current times (1 + gain), plus an offset; voltage as read."""

    def __init__(self, sensor: Sensor, *, gain_ppm: int, offset_ua: int) -> None:
        self._sensor = sensor
        self._gain_ppm = gain_ppm
        self._offset_ua = offset_ua

    @property
    def part(self) -> str:
        """The chip, as a birth names it."""
        return self._sensor.part

    @property
    def full_scale(self) -> Electrical:
        """The largest voltage and current that it reads."""
        return self._sensor.full_scale

    def read(self) -> Electrical:
        """Return one corrected reading, or raise SensorError."""
        reading = self._sensor.read()
        current_ua = reading.current_ua + reading.current_ua * self._gain_ppm // 1_000_000 + self._offset_ua
        return Electrical(reading.voltage_uv, current_ua)


def correction(low: tuple[int, int], high: tuple[int, int]) -> tuple[int, int]:
    """Return (gain ppm, offset µA) from two points of (read µA, true µA); ValueError when they are too near."""
    span = high[0] - low[0]
    if abs(span) < 10_000:
        raise ValueError("the two points must be at least 10 mA apart, as read")
    gain_ppm = round(((high[1] - low[1]) / span - 1) * 1_000_000)
    offset_ua = round(low[1] - low[0] * (1 + gain_ppm / 1_000_000))
    return gain_ppm, offset_ua


def calibration_id(points: Sequence[tuple[int, int]], at_s: float) -> str:
    """Return the id that a birth states: the day, and a digest of what was compared."""
    day = datetime.fromtimestamp(at_s, UTC).strftime("%Y%m%d")
    return f"{day}-{hashlib.sha256(repr(list(points)).encode()).hexdigest()[:8]}"
