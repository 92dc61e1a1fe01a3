"""Readings that wait for a date, on disk, for at most an hour (P-BAT-7)."""

import logging
from dataclasses import replace
from typing import Final

from edge_agent.draft import Happening
from edge_agent.source import Tick
from edge_agent.spool import MediumError, Spool

WAIT_MS: Final = 3_600_000
MOST_WAITING: Final = 36_000  # an hour at 10 Hz: what is sampled faster waits less long
_LOG: Final = logging.getLogger(__name__)

Reading = tuple[Tick, int]
"""A tick and the nominal interval that it was sampled at, ms."""


class Undated:
    """Takes readings and gives them back, in their order, when their date is known, or will not be."""

    def __init__(self, spool: Spool, boot: bytes, seal_ms: int) -> None:
        self._spool = spool
        self._boot = boot
        self._seal_ms = seal_ms
        self._since_ms: int | None = None
        self._waiting: list[Reading] = []
        self._happened: list[Happening] = []
        self._held = 0  # of the waiting readings, so many are in the spool
        self.medium_fault = ""

    @property
    def is_empty(self) -> bool:
        """Whether no reading waits."""
        return not self._waiting

    def event(self, happening: Happening) -> bool:
        """Keep an event among the readings that wait; False when none do."""
        if not self._waiting:
            return False
        self._happened.append(happening)
        return True

    def take(self, tick: Tick, interval_ms: int) -> list[Reading | Happening]:
        """Return the readings that can be added now, and what happened between them; nothing while this one waits."""
        if tick.wall_ms is not None:
            self._since_ms = None
            return [*self._release(tick.wall_ms - tick.boot_ms), (tick, interval_ms)]
        if self._since_ms is None:
            self._since_ms = tick.boot_ms
        if len(self._waiting) >= MOST_WAITING:
            self._since_ms = tick.boot_ms - WAIT_MS
        if tick.boot_ms - self._since_ms >= WAIT_MS:
            return [*self._release(None), (tick, interval_ms)]
        if tick.samples:
            if self._waiting and self._waiting[-1][0].boot_ms // self._seal_ms != tick.boot_ms // self._seal_ms:
                self.hold()
            self._waiting.append((tick, interval_ms))
        return []

    def resume(self, readings: list[Reading]) -> list[Reading | Happening]:
        """Go on with readings of this boot that the spool holds; return those that wait no longer."""
        ready = []
        for tick, interval_ms in readings:
            ready += self.take(tick, interval_ms)
            self._held = len(self._waiting)
        return ready

    def hold(self) -> None:
        """Write down what waits: once in a sealing interval, and at a stop."""
        try:
            self._spool.hold(self._boot, self._waiting[self._held :])
        except MediumError as error:  # they stay in memory, and are written with the next ones
            if not self.medium_fault:
                _LOG.error("%s; readings wait in memory", error)
            self.medium_fault = str(error)
        else:
            self._held = len(self._waiting)
            self.medium_fault = ""

    def rest(self) -> list[Happening]:
        """Return what happened while readings waited, when nothing will date them any more."""
        happened, self._happened = self._happened, []
        return happened

    def _release(self, offset_ms: int | None) -> list[Reading | Happening]:
        if self.is_empty:
            return []
        waiting, self._waiting, self._held, self.medium_fault = self._waiting, [], 0, ""
        happened, self._happened = self._happened, []
        if offset_ms is not None:
            waiting = [(replace(tick, wall_ms=tick.boot_ms + offset_ms), interval_ms) for tick, interval_ms in waiting]
        return sorted([*waiting, *happened], key=_boot_ms)


def _boot_ms(one: Reading | Happening) -> int:
    return one.boot_ms if isinstance(one, Happening) else one[0].boot_ms
