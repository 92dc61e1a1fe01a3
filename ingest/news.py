"""A line of the log that says what was rejected."""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from maxgreen.protocol.reasons import Verdict

_EVERY_S: Final = 60.0
_MOST_REASONS: Final = 5
_FINE: Final = {Verdict.ACCEPTED, Verdict.DUPLICATE}
_LOG: Final = logging.getLogger(__name__)


class News:
    """Says in the log what was rejected, at most once a minute; one thread calls `step`."""

    def __init__(self, judged: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """`judged` returns the counts so far."""
        self._judged = judged
        self._said: Mapping[tuple[str, str], int] = {}

    def step(self) -> float:
        """Say what is new; return how long to pause, s."""
        counts = self._judged()
        new = {labels: count - self._said.get(labels, 0) for labels, count in counts.items()}
        self._said = counts
        bad = sorted(((n, v, r) for (v, r), n in new.items() if n and v not in _FINE), reverse=True)
        if bad:
            texts = [f"{count} {verdict} ({reason})" for count, verdict, reason in bad[:_MOST_REASONS]]
            fine = sum(count for (verdict, _), count in new.items() if verdict in _FINE)
            more = " and others" if len(bad) > _MOST_REASONS else ""
            _LOG.warning("in the last minute: %s%s; %d accepted or known", ", ".join(texts), more, fine)
        return _EVERY_S
