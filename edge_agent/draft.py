"""A batch before it has its place in the chain."""

from dataclasses import dataclass
from typing import Final

from edge_agent.source import Tick
from maxgreen.protocol.batch import EventKind
from maxgreen.protocol.reasons import Refusal

ATTESTING: Final = {EventKind.TRANSFER_START, EventKind.TRANSFER_STOP, EventKind.LAST_OF_KEY}  # P-ATT-1


@dataclass(frozen=True, slots=True)
class Happening:
    """An event at an instant, ms since boot, with the number of the command that it is about."""

    kind: EventKind
    boot_ms: int
    command: int | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """What was measured and what happened between two cuts of one boot; without ticks only at a stop."""

    boot: bytes
    interval_ms: int
    wall_offset_ms: int | None  # wall minus boot time, None without a date
    ticks: tuple[Tick, ...]
    happenings: tuple[Happening, ...] = ()
    attesting: bool = False
    stating_birth: bool = False
