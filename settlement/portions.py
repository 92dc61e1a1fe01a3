"""Lines in portions, by as many processes as are asked for; each has connections of its own to the ledger."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Engine

from maxgreen.chain.orders import Line
from maxgreen.ledger.engine import close, open_engine
from settlement.engines import Processes

R = TypeVar("R")
_LINES: Final = 64  # in a portion: half a second's work where their days are kept
_numbers: Final = itertools.count()


class _Work(NamedTuple):
    """What is done with each portion; processes inherit it, so that no key goes through a pipe."""

    process: int
    engine: Engine
    work: Callable[[Engine, Sequence[Line]], Any]


_works: Final[dict[int, _Work]] = {}


def in_portions(
    engine: Engine, processes: int, work: Callable[[Engine, Sequence[Line]], R], lines: Sequence[Line]
) -> Iterator[R]:
    """Yield what `work` makes of each portion of lines; those of a node come together, since they share its evidence.

    `processes`: 0 for as many as the machine has processors.
    """
    ordered = sorted(lines, key=lambda line: (line.ends.node_token, line.ends.line_id))
    number = next(_numbers)
    _works[number] = _Work(os.getpid(), engine, work)
    portions = [(number, ordered[start : start + _LINES]) for start in range(0, len(ordered), _LINES)]
    count = max(1, min(processes or os.cpu_count() or 1, len(portions)))
    if count > 1:
        close(engine)  # no process inherits a connection
    try:
        with Processes(count) as pool:
            yield from pool.run(_do, portions)
    finally:
        del _works[number]


def _do(portion: tuple[int, Sequence[Line]]) -> Any:
    number, lines = portion
    process, engine, work = _works[number]
    own = engine if process == os.getpid() else _own(engine.url.render_as_string(hide_password=False))
    return work(own, lines)


@cache
def _own(url: str) -> Engine:
    return open_engine(url)
