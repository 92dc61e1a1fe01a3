"""A loop that outlives its troubles: a dependency that is away is waited for, a bug is logged and tried again."""

import logging
import random
import threading
from collections.abc import Callable
from typing import Final

from maxgreen.errors import Fatal, Retryable

_LOG: Final = logging.getLogger(__name__)
_FIRST_S: Final = 0.5
_MOST_S: Final = 10.0


class Loop:
    """Calls `step` until `stopping`; `step` returns how long to pause, s."""

    def __init__(
        self,
        name: str,
        step: Callable[[], float],
        stopping: threading.Event,
        progress: Callable[[], object] = lambda: None,
        woken: threading.Event | None = None,
    ) -> None:
        """`progress` is called after each step, also after one that must wait; `woken` ends a pause."""
        self.trouble: str | None = None  # what keeps it from going on, for /health/ready
        self._progress = progress
        self.name = name
        self._step = step
        self._stopping = stopping
        self._woken = woken or stopping
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name=self.name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread is not None:
            self._thread.join()

    def run(self) -> None:
        """Run here."""
        patience_s = _FIRST_S
        while not self._stopping.is_set():
            try:
                pause_s = self._step()
            except (Retryable, Fatal) as error:
                self._waits(str(error), error)
            except Exception as error:  # noqa: BLE001 - the service goes on, and says that this part does not
                self._waits(f"{type(error).__name__}: {error}", error, unexpected=True)
            else:
                if self.trouble is not None:
                    _LOG.warning("%s goes on", self.name)
                    self.trouble = None
                patience_s = _FIRST_S
                self._progress()
                if pause_s and self._woken.wait(pause_s) and self._woken is not self._stopping:
                    self._woken.clear()
                continue
            self._progress()
            self._stopping.wait(random.uniform(patience_s / 2, patience_s))
            patience_s = min(2 * patience_s, _MOST_S)

    def _waits(self, text: str, error: Exception, *, unexpected: bool = False) -> None:
        trouble = f"{self.name} waits: {text}"
        if trouble != self.trouble:
            _LOG.warning("%s", trouble, exc_info=error if unexpected else None)
        self.trouble = trouble
