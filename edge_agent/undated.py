"""Readings that wait for a date, on disk, for at most an hour (P-BAT-7)."""

import logging
from dataclasses import replace
from typing import Final

from edge_agent.draft import Happening
from edge_agent.source import Tick
from edge_agent.spool import MediumError, Spool

WAIT_MS: Final = 3_600_000
_LOG: Final = logging.getLogger(__name__)


class Undated:
    """Takes ticks and gives them back when their date is known, or will not be."""

    def __init__(self, spool: Spool, boot: bytes, seal_ms: int) -> None:
        self._spool = spool
        self._boot = boot
        self._seal_ms = seal_ms
        self._since_ms: int | None = None
        self._waiting: list[Tick] = []
        self._happened: list[Happening] = []
        self._held = 0  # of the waiting ticks, so many are in the spool
        self.medium_fault = ""

    def event(self, happening: Happening) -> bool:
        """Keep an event among the readings that wait; False when none do."""
        if not self._waiting:
            return False
        self._happened.append(happening)
        return True

    def take(self, tick: Tick) -> list[Tick | Happening]:
        """Return the ticks that can be added now, and what happened between them; nothing while this one waits."""
        if tick.wall_ms is not None:
            self._since_ms = None
            return [*self._release(tick.wall_ms - tick.boot_ms), tick]
        if self._since_ms is None:
            self._since_ms = tick.boot_ms
        if tick.boot_ms - self._since_ms >= WAIT_MS:
            return [*self._release(None), tick]
        if tick.samples:
            if self._waiting and self._waiting[-1].boot_ms // self._seal_ms != tick.boot_ms // self._seal_ms:
                self.hold()
            self._waiting.append(tick)
        return []

    def resume(self, ticks: list[Tick]) -> None:
        """Go on with ticks of this boot that the spool holds."""
        for tick in ticks:
            self.take(tick)
        self._held = len(self._waiting)

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

    def _release(self, offset_ms: int | None) -> list[Tick | Happening]:
        waiting, self._waiting, self._held, self.medium_fault = self._waiting, [], 0, ""
        happened, self._happened = self._happened, []
        if offset_ms is not None:
            waiting = [replace(tick, wall_ms=tick.boot_ms + offset_ms) for tick in waiting]
        return sorted([*waiting, *happened], key=lambda one: one.boot_ms)

    def rest(self) -> list[Happening]:
        """Return what happened while readings waited, when nothing will date them any more."""
        happened, self._happened = self._happened, []
        return happened
