"""What every sensor offers."""

from dataclasses import dataclass
from typing import Protocol

from maxgreen.errors import MaxgreenError


class SensorError(MaxgreenError):
    """A sensor gave no reading; the next one may come."""


@dataclass(frozen=True, slots=True)
class Electrical:
    """What a sensor reads: µV, and µA positive in the channel's direction."""

    voltage_uv: int
    current_ua: int


class Sensor(Protocol):
    """One channel's sensor."""

    @property
    def part(self) -> str:
        """The chip, as a birth names it."""
        ...

    @property
    def full_scale(self) -> Electrical:
        """The largest voltage and current that it reads."""
        ...

    def read(self) -> Electrical:
        """Return one reading, or raise SensorError."""
        ...
