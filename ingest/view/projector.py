"""The projector: copies what changed in the ledger into the view, with a position that the ledger keeps."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine

from ingest.view.lines import batch_text, rejected_line
from ingest.view.sink import MAX_LINES, BadLinesError, Sink, TooLargeError, TooOldError
from maxgreen.errors import Retryable
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader

_LOG: Final = logging.getLogger(__name__)
RUNNING: Final = "influx"
REBUILDING: Final = "influx-rebuild"
_EVIDENCE: Final = "-evidence"
_BATCHES: Final = 500
_TRIES: Final = 32  # requests to find bad lines among those of one step; then what is left is set aside whole
_PATIENCE: Final = 4  # failures of the database before it is given half as much
_RETRY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the ledger and its lines: what is written, or set aside, as one."""

    device: bytes  # empty for a rejected message
    number: int  # its seq, or the evidence's id
    text: str
    lines: int


class Projector:
    """One reader of the ledger's changes; `name` is that of its position."""

    def __init__(self, engine: Engine, sink: Sink, name: str = RUNNING) -> None:
        self._engine = engine
        self._readers = reader(engine)
        self._sink = sink
        self._name = name
        self._failures = 0
        self._tries = 0

    def step(self) -> int:
        """Project some changes; return how many. The position moves only after the write.

        Retryable and Fatal when the database is away or does not let us in: then nothing moved.
        """
        with self._readers.begin() as connection:
            book = Book(connection)
            rows = book.changed_since(book.position(self._name), _BATCHES)
            rejected = book.evidence_after(book.position(self._name + _EVIDENCE), _BATCHES)
        if not rows and not rejected:
            return 0
        items = [Item(bytes(row.device), int(row.seq), *batch_text(row)) for row in rows]
        items += [Item(b"", int(row.id), rejected_line(row), 1) for row in rejected]
        refused = self._write(items)
        with self._engine.begin() as connection:
            book = Book(connection)
            for item, text in refused:
                book.set_aside(item.device, item.number, text)
            if rows:
                book.set_position(self._name, rows[-1].revision)
            if rejected:
                book.set_position(self._name + _EVIDENCE, rejected[-1].id)
        return len(items)

    def rebuild(self, *, afresh: bool = False, progress: Callable[[int], object] = lambda _count: None) -> int:
        """Fill a view from the whole ledger, also beside the running service; return how many rows were written.

        It goes on where it was interrupted; `afresh` begins again. A database that is away is waited for.
        """
        if afresh:
            self.forget()
        count = 0
        while True:
            try:
                step = self.step()
            except Retryable as error:
                _LOG.warning("waiting: %s", error)
                time.sleep(_RETRY_S)
                continue
            if not step:
                self.forget()
                return count
            count += step
            progress(count)

    def forget(self) -> None:
        """Begin at the ledger's beginning at the next step."""
        with self._engine.begin() as connection:
            book = Book(connection)
            book.set_position(self._name, 0)
            book.set_position(self._name + _EVIDENCE, 0)

    def replay(self) -> tuple[int, int]:
        """Write again what was set aside; return how many rows were written, and how many still are refused."""
        with self._readers.begin() as connection:
            book = Book(connection)
            aside = book.all_aside()
            items = []
            for row in aside:
                device, number = bytes(row.device), int(row.number)
                found = book.batch(device, number) if device else book.evidence_at(number)
                if found is not None:
                    text, lines = batch_text(found) if device else (rejected_line(found), 1)
                    items.append(Item(device, number, text, lines))
        refused = self._write(items)
        with self._engine.begin() as connection:
            book = Book(connection)
            book.clear_aside([row.id for row in aside])
            for item, text in refused:
                book.set_aside(item.device, item.number, text)
        return len(items) - len(refused), len(refused)

    def _write(self, items: Sequence[Item]) -> list[tuple[Item, str]]:
        """Write items; return those that the database refuses for what they are."""
        self._tries = _TRIES
        most = MAX_LINES
        if self._failures >= _PATIENCE:  # a request that fails again and again may be the cause
            most = max(1, MAX_LINES >> (self._failures - _PATIENCE + 1))
        refused: list[tuple[Item, str]] = []
        try:
            for part in _parts(items, most):
                refused += self._write_part(part)
        except Retryable:
            self._failures += 1
            raise
        self._failures = 0
        return refused

    def _write_part(self, items: Sequence[Item]) -> list[tuple[Item, str]]:
        try:
            self._sink.write("\n".join(item.text for item in items))
        except TooOldError as error:
            _LOG.info("not in the view, the database keeps nothing that old: %s", error)
        except TooLargeError as error:
            if len(items) == 1:
                return [(items[0], str(error))]
            return self._halves(items)
        except BadLinesError as error:
            if len(items) == 1 or self._tries <= 0:
                _LOG.error("%d rows set aside (%s): maxgreen ingest aside", len(items), error)
                return [(item, str(error)) for item in items]
            self._tries -= 2
            return self._halves(items)
        return []

    def _halves(self, items: Sequence[Item]) -> list[tuple[Item, str]]:
        middle = len(items) // 2
        return self._write_part(items[:middle]) + self._write_part(items[middle:])


def _parts(items: Sequence[Item], most: int) -> list[list[Item]]:
    """Cut items into parts of at most so many lines; an item stays whole."""
    parts: list[list[Item]] = []
    size = most
    for item in items:
        if size + item.lines > most or not parts:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += item.lines
    return parts
