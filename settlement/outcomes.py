"""What a line comes to in a period: the sum of its days, derived ahead or now; or of all its evidence at once."""

import logging

from sqlalchemy import Engine

from maxgreen.errors import Fatal
from maxgreen.ledger.book import Book
from maxgreen.protocol.pack import PackError
from maxgreen.store import AbsentError, Store
from maxgreen.verify.segment import segment_name
from settlement.days import Account
from settlement.evidence import Evidence, Judge
from settlement.gather import Gathered
from settlement.inputs import Inputs
from settlement.kept_days import (
    Fingerprint,
    KeptDay,
    account_of_days,
    day_inputs,
    decode_day,
    derive_day,
    encode_day,
)
from settlement.statement import LineResult, derive
from settlement.windows import DAY_S

_log = logging.getLogger(__name__)


class Outcomes:
    """Derives lines one after the other; their days are kept in the ledger."""

    def __init__(self, engine: Engine, store: Store) -> None:
        """`engine` writes line-days; `store` has the segments."""
        self._engine, self._store = engine, store
        self._judge = Judge(self._segment)

    def account(self, book: Book, gathered: Gathered) -> Account | None:
        """Return what a line's days come to; None where it does not follow from them. Fatal as `whole`."""
        if not gathered.by_days:
            return None
        return account_of_days(gathered.inputs, self.days(book, gathered)[0], gathered.days)

    def whole(self, inputs: Inputs) -> LineResult:
        """Return what a line comes to, by all of its evidence. Fatal where the store has lost it."""
        evidence = self._evidence(inputs)
        for device, text in evidence.troubles.items():
            _log.error("line %s: device %s: %s", inputs.line.line.hex(), device.hex(), text)
        return derive(inputs, evidence)

    def days(self, book: Book, gathered: Gathered) -> tuple[dict[int, KeptDay], int]:
        """Return a line's days, by their midnight; and how many were not kept, or not as they are, and are so now."""
        inputs, line = gathered.inputs, gathered.inputs.line.line
        fingerprint, found, fresh = Fingerprint(inputs), {}, []
        kept = book.line_days(line, inputs.start_s // DAY_S, inputs.until_s // DAY_S)
        for day_s, segments in gathered.days.items():
            wanted = fingerprint.of(day_s, segments)
            known, data = kept.get(day_s // DAY_S, (b"", b""))
            if known == wanted:
                found[day_s] = decode_day(data)
                continue
            of_day = day_inputs(inputs, day_s, segments)
            found[day_s] = derive_day(of_day, self._evidence(of_day))
            fresh.append((line, day_s // DAY_S, wanted, encode_day(found[day_s])))
        if fresh:
            with self._engine.begin() as connection:
                Book(connection).keep_line_days(fresh)
        return found, len(fresh)

    def _segment(self, digest: bytes) -> bytes:
        try:
            return self._store.get(segment_name(digest))
        except AbsentError as error:
            raise Fatal(f"{error}; restore the evidence store from a backup, or name the one that has it") from error

    def _evidence(self, inputs: Inputs) -> Evidence:
        """Judge a line's segments; Fatal where the store has other bytes than were put there."""
        try:
            return self._judge.evidence(inputs)
        except PackError as error:
            raise Fatal(f"the evidence store: {error}; restore it from a backup") from error
