"""A batch before it has its place in the chain."""

from dataclasses import dataclass
from typing import Final

from edge_agent.source import Tick
from maxgreen.protocol.batch import EventKind

ATTESTING: Final = {EventKind.TRANSFER_START, EventKind.TRANSFER_STOP, EventKind.LAST_OF_KEY}  # P-ATT-1


@dataclass(frozen=True, slots=True)
class Happening:
    """An event at an instant, ms since boot, with the number of the command that asked for it."""

    kind: EventKind
    boot_ms: int
    command: int | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """What was measured and what happened between two cuts of one boot; never without ticks."""

    boot: bytes
    interval_ms: int
    ticks: tuple[Tick, ...]
    happenings: tuple[Happening, ...] = ()
    attesting: bool = False
    stating_birth: bool = False

    @property
    def wall_offset_ms(self) -> int | None:
        """Wall minus boot time, None without a date."""
        first = self.ticks[0]
        return None if first.wall_ms is None else first.wall_ms - first.boot_ms
