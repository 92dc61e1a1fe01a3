"""Proof windows of the last day: which hold shares, and what a pause costs (P-POW-4)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from maxgreen.clock import utc
from maxgreen.protocol.batch import Batch
from maxgreen.protocol.work import WINDOW_MS

KEPT: Final = 144  # a day


@dataclass(slots=True)
class _Window:
    shares: int = 0
    pause: str = ""


class ProofWindows:
    """Shares and pauses by proof window; what ingest credits may be less."""

    def __init__(self) -> None:
        self._windows: dict[int, _Window] = {}

    def sealed(self, batch: Batch) -> None:
        """Count the shares of a batch in the window of its t0."""
        if batch.synchronised:
            self._at(batch.t0_ms).shares += len(batch.work.nonces) if batch.work else 0

    def paused(self, now_ms: int, reason: str) -> None:
        """Note that mining pauses."""
        self._at(now_ms).pause = reason

    def report(self) -> dict[str, Any]:
        """Return how many windows hold shares, and those that will not count as online, with the reason known.

        A window without shares still counts when both its neighbours have some.
        """
        online = {start: window.shares > 0 for start, window in self._windows.items()}
        lost = [start for start in self._closed() if not online[start] and not self._bridged(start, online)]
        return {
            "windows": len(self._windows),
            "with_shares": sum(online.values()),
            "lost": [
                {"start": utc(start), "why": self._windows[start].pause or "no share was found"} for start in lost
            ],
        }

    def _closed(self) -> Iterable[int]:
        return sorted(self._windows)[:-2]  # the newest may get shares yet, and the one before it a neighbour

    def _bridged(self, start: int, online: dict[int, bool]) -> bool:
        return online.get(start - WINDOW_MS, False) and online.get(start + WINDOW_MS, False)

    def _at(self, t_ms: int) -> _Window:
        start = t_ms // WINDOW_MS * WINDOW_MS
        found = self._windows.setdefault(start, _Window())
        while len(self._windows) > KEPT:
            del self._windows[min(self._windows)]
        return found
