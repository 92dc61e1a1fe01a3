"""The projector: copies what changed in the ledger into the view, with a position that the ledger keeps."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Engine

from ingest.config import InfluxSettings
from ingest.view.lines import batch_text, rejected_line
from ingest.view.sink import MAX_LINES, BadLinesError, Sink, TooLargeError, TooOldError, patiently, target_of
from maxgreen.errors import Retryable
from maxgreen.ledger.batches import Verbatim
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader

_LOG: Final = logging.getLogger(__name__)
RUNNING: Final = "influx"
REBUILDING: Final = "influx-rebuild"
_EVIDENCE: Final = "-evidence"
_BATCHES: Final = 4_000
_BESIDE: Final = 3  # requests at once
_TRIES: Final = 32  # requests to find bad lines among those of one step; then what is left is set aside whole
_PATIENCE: Final = 4  # failures of the database before it is given half as much


def running(settings: InfluxSettings) -> str:
    """Return the position of the service for a database."""
    return f"{RUNNING}:{target_of(settings)}"


def rebuilding(settings: InfluxSettings) -> str:
    """Return the position of a rebuild of a database."""
    return f"{REBUILDING}:{target_of(settings)}"


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the ledger and its lines: what is written, or set aside, as one."""

    at: int  # where it stands among what its position counts: its revision, or the evidence's id
    device: bytes  # empty for a rejected message
    number: int  # its seq, or the evidence's id
    text: bytes
    lines: int


def _batch(row: Any) -> Item:
    return Item(int(row.revision), bytes(row.device), int(row.seq), *batch_text(row))


def _rejected(row: Any) -> Item:
    return Item(int(row.id), b"", int(row.id), rejected_line(row).encode(), 1)


class _Attempt:
    """The requests of one step: after the first that fails, or that is not ours to make, no other begins."""

    def __init__(self, write: Callable[[Sequence[Item]], list[tuple[Item, str]]], may: Callable[[], bool]) -> None:
        self._write = write
        self._may = may
        self._failure: Exception | None = None

    def write(self, part: Sequence[Item]) -> list[tuple[Item, str]]:
        """Write a part, as long as nothing failed."""
        if self._failure is None and not self._may():
            self._failure = Retryable("it is not this service that writes the view now")
        if self._failure is not None:
            raise self._failure
        try:
            return self._write(part)
        except Exception as error:
            self._failure = error
            raise


class Projector:
    """One reader of the ledger's changes; `name` is that of its position."""

    def __init__(
        self,
        engine: Engine,
        sink: Sink,
        name: str = RUNNING,
        may_write: Callable[[], bool] = lambda: True,
        verbatim: Verbatim | None = None,
    ) -> None:
        """`may_write` is asked before each request: two writers would write what is old over what is new.

        `verbatim` finds the bytes of batches that were pruned.
        """
        self._verbatim = verbatim
        self._may_write = may_write
        self._engine = engine
        self._readers = reader(engine)
        self._sink = sink
        self._name = name
        self._failures = 0
        self._tries = _TRIES
        self._written: set[tuple[bytes, int]] = set()  # by the last step

    def step(self) -> int:
        """Project some changes; return how many. The position moves only after the write.

        Retryable and Fatal when the database is away or does not let us in: then nothing moved.
        """
        with self._readers.begin() as connection:
            book = Book(connection, self._verbatim)
            rows = book.changed_since(book.position(self._name), _BATCHES)
            rejected = book.evidence_after(book.position(self._name + _EVIDENCE), _BATCHES)
        self._written = {(bytes(row.device), int(row.seq)) for row in rows}
        if not rows and not rejected:
            return 0
        self._project(map(_batch, rows), self._name)
        self._project(map(_rejected, rejected), self._name + _EVIDENCE)
        return max(len(rows), len(rejected))

    def _project(self, items: Iterable[Item], position: str) -> None:
        """Write items in parts, some at once; the position moves to the end of those that are written whole."""
        self._tries = _TRIES
        written: int | None = None
        refused: list[tuple[Item, str]] = []
        try:
            # at the end of the pool nothing is under way any more: what is old never comes after what is new
            with ThreadPoolExecutor(_BESIDE if self._failures < _PATIENCE else 1, "view") as pool:
                # lines are made while others are written
                attempt = _Attempt(self._write, self._may_write)
                writing = [(part[-1].at, pool.submit(attempt.write, part)) for part in _parts(items, self._most())]
                try:
                    for at, one in writing:
                        refused += one.result()
                        written = at
                finally:
                    for _, one in writing:
                        one.cancel()
            self._failures = 0
        except Retryable:
            self._failures = 1 if written is not None else self._failures + 1
            raise
        finally:
            if written is not None and self._may_write():
                with self._engine.begin() as connection:
                    book = Book(connection)
                    for item, text in refused:
                        book.set_aside(item.device, item.number, text)
                    book.set_position(position, written)

    def _most(self) -> int:
        """Return how many lines a request has: fewer where they fail again and again: one may be the cause."""
        return MAX_LINES if self._failures < _PATIENCE else max(1, MAX_LINES >> (self._failures - _PATIENCE + 1))

    def rebuild(self, *, afresh: bool = False, progress: Callable[[int], object] = lambda _count: None) -> int:
        """Fill a view from the whole ledger, also beside the running service; return how many rows were written.

        It goes on where it was interrupted; `afresh` begins again. A database that is away is waited for.
        """
        if afresh:
            self.forget()
        count = 0
        while True:
            step = patiently(self.step)
            count += step
            progress(count)
            if step < _BATCHES and not self._overtaken():  # what changes from now on the service writes
                self.forget()
                return count

    def _overtaken(self) -> bool:
        """Tell whether a row changed while it was written: then the service may have written the newer one first."""
        with self._readers.begin() as connection:
            book = Book(connection)
            newer = book.changed_since(book.position(self._name), _BATCHES)
        return len(newer) == _BATCHES or any((bytes(row.device), int(row.seq)) in self._written for row in newer)

    def forget(self) -> None:
        """Begin at the ledger's beginning at the next step."""
        with self._engine.begin() as connection:
            book = Book(connection)
            book.set_position(self._name, 0)
            book.set_position(self._name + _EVIDENCE, 0)

    def replay(self) -> tuple[int, int]:
        """Let what was set aside be written again; return how many batches the service will write, and now were.

        A batch gets a new revision, so that the service writes its newest verdict in its turn; rejected messages, which
        never change, are written here.
        """
        with self._readers.begin() as connection:
            book = Book(connection)
            aside = book.all_aside()
            rejected = [
                found for row in aside if not row.device and (found := book.evidence_at(row.number)) is not None
            ]
        refused = self._write([_rejected(row) for row in rejected]) if rejected else []
        with self._engine.begin() as connection:
            book = Book(connection)
            book.clear_aside([row.id for row in aside])
            batches = [row for row in aside if row.device]
            random.shuffle(batches)  # other neighbours: what was set aside with a bad one is not again
            for row in batches:
                book.show_again(bytes(row.device), int(row.number))
            for item, text in refused:
                book.set_aside(item.device, item.number, text)
        return len(batches), len(rejected) - len(refused)

    def _write(self, items: Sequence[Item]) -> list[tuple[Item, str]]:
        """Write items; return those that the database refuses for what they are."""
        try:
            self._sink.write(b"\n".join([item.text for item in items]))
        except TooOldError as error:
            _LOG.info("not in the view, the database keeps nothing that old: %s", error)
        except TooLargeError as error:
            if len(items) == 1:
                _LOG.error("a batch is too large for InfluxDB and is set aside: maxgreen ingest aside")
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
        return self._write(items[:middle]) + self._write(items[middle:])


def _parts(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """Cut items into parts of at most so many lines; an item stays whole."""
    part: list[Item] = []
    size = 0
    for item in items:
        if part and size + item.lines > most:
            yield part
            part, size = [], 0
        part.append(item)
        size += item.lines
    if part:
        yield part
