"""A line as an earlier period closed it: what a later close goes on from.

The evidence says it. A close also notes it in the ledger, shorter: for each day its sums and whether a window with
energy is still unpaid, and how windows stood from the first such day on. Where that is not enough, evidence is read.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from maxgreen.chain.orders import Line
from maxgreen.ledger.book import Book
from maxgreen.store import Store
from maxgreen.verify.rules import Decision
from settlement.days import Account
from settlement.inputs import (
    STATES_AFTER,
    LineBase,
    decision_json,
    parse_decision,
    read_decisions,
    read_line,
    read_manifest,
    read_states,
    states_of,
)
from settlement.packs import line_entries
from settlement.statement import LineOutcome, read_windows
from settlement.sums import Sums
from settlement.windows import DAY_S, sums_of

States = Mapping[int, tuple[str, str]]  # state and dispute by window


@dataclass(frozen=True)
class Before:
    """A line as an earlier period closed it."""

    manifest: bytes  # its SHA-256
    revision: int  # of the newest verdict then
    start_s: int
    until_s: int
    trouble: bool
    base: LineBase
    sums: Mapping[int, Sums]  # by day, its midnight: of what counted
    unpaid: frozenset[int]  # days with energy that did not count
    states: States  # of all windows, or of those from the first unpaid day on
    whole: bool  # whether these are all
    decisions: frozenset[Decision]

    @classmethod
    def of(cls, entries: Mapping[str, bytes], manifest: bytes, revision: int, *, trouble: bool) -> "Before":
        """Return what a line's evidence of an earlier period says."""
        head, windows = read_manifest(entries), read_windows(entries)
        days = {day * DAY_S: list(own) for day, own in groupby(windows, key=lambda w: w.window_s // DAY_S)}
        return cls(
            manifest,
            revision,
            int(head["start"]),
            int(head["until"]),
            trouble,
            read_line(entries).base,
            {day_s: sums_of(own) for day_s, own in days.items()},
            frozenset(w.window_s // DAY_S * DAY_S for w in windows if not w.counts and w.measured.has_energy),
            read_states(entries, STATES_AFTER),
            True,
            frozenset(read_decisions(entries)),
        )

    def base_at(self, start_s: int) -> LineBase:
        """Return the base after the days before a midnight are settled for good."""
        return LineBase(start_s, sum((sums for day, sums in self.sums.items() if day < start_s), self.base.sums))

    def tells(self, start_s: int) -> bool:
        """Whether it is known how every window from a midnight on stood."""
        return self.whole or start_s >= min(self.unpaid, default=self.until_s)


def note_of(outcome: LineOutcome, account: Account) -> bytes:
    """Return what the ledger notes of a close."""
    inputs = outcome.inputs
    unpaid_s = min((day.day_s for day in account.days if day.is_unpaid), default=inputs.until_s)
    days = [
        (day.day_s, _amounts(day.sums), day.is_unpaid, day.rows if day.day_s >= unpaid_s else "")
        for day in account.days
    ]
    value = [
        inputs.start_s,
        inputs.until_s,
        inputs.line.base.until_s,
        _amounts(inputs.line.base.sums),
        [decision_json(decision) for decision in inputs.rules.decisions],
        days,
    ]
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def read_note(note: bytes, manifest: bytes, revision: int) -> Before:
    """Read what the ledger notes of a close without trouble."""
    start_s, until_s, base_s, base_sums, decisions, days = json.loads(zlib.decompress(note))
    return Before(
        manifest,
        revision,
        start_s,
        until_s,
        False,
        LineBase(base_s, Sums(*base_sums)),
        {day_s: Sums(*sums) for day_s, sums, _, _ in days},
        frozenset(day_s for day_s, _, is_unpaid, _ in days if is_unpaid),
        states_of((row for *_, rows in days for row in rows.splitlines()), STATES_AFTER),
        False,
        frozenset(map(parse_decision, decisions)),
    )


def _amounts(sums: Sums) -> tuple[int, ...]:
    return sums.sent_mws, sums.received_mws, sums.expected_mws, sums.error_mws, sums.matched_mws


class Past(NamedTuple):
    """A period that is closed: SHA-256 of its run, the revision that it follows from, its statements by line."""

    run: bytes
    revision: int
    by_line: Mapping[str, Mapping[str, Any]]

    @classmethod
    def before(cls, book: Book, until_s: int) -> "Past | None":
        """Return the last period that was closed before one that ends so."""
        row = book.period_before(until_s)
        if row is None:
            return None
        lines = json.loads(row.document)["lines"]
        return cls(bytes(row.run), int(row.revision), {one["line"]: one for one in lines})


class Befores:
    """Lines as the last period closed them."""

    def __init__(self, store: Store, past: Past | None, book: Book, lines: Sequence[Line]) -> None:
        """`lines`: those that will be asked for."""
        self._store, self._past = store, past
        self._notes = book.line_notes([line.ends.line_id for line in lines]) if past else {}

    def noted(self, line: Line) -> Before | None:
        """Return a line as the ledger notes it, else as its evidence says; None when it was not there."""
        said = self._said(line)
        manifest, note = self._notes.get(line.ends.line_id, (b"", b""))
        if said is None or self._past is None or said["trouble"] or said["manifest"] != manifest.hex():
            return self.whole(line)
        return read_note(note, manifest, self._past.revision)

    def whole(self, line: Line) -> Before | None:
        """Return a line as its evidence says; None when it was not there."""
        said = self._said(line)
        if said is None or self._past is None:
            return None
        manifest = bytes.fromhex(said["manifest"])
        return Before.of(
            line_entries(self._store, manifest), manifest, self._past.revision, trouble=bool(said["trouble"])
        )

    def _said(self, line: Line) -> Mapping[str, Any] | None:
        return None if self._past is None else self._past.by_line.get(line.ends.line_id.hex())
