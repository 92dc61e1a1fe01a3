"""Line-days: what settlement derived of one line for one UTC day, and from what."""

from collections.abc import Sequence

from sqlalchemy import delete, select

from maxgreen.ledger.bulk import NEW, Bulk, portions
from maxgreen.ledger.schema import line_days, line_notes
from maxgreen.ledger.subject import Subject


class LineDays(Subject):
    """Line-days, whose content is settlement's; days are counted since the epoch."""

    def line_days(self, line: bytes, first: int, end: int) -> dict[int, tuple[bytes, bytes]]:
        """Return what is kept of a line's days, first ≤ day < end: SHA-256 of what it follows from, and what it is."""
        where = (line_days.c.line == line, line_days.c.day >= first, line_days.c.day < end)
        rows = self._db.execute(select(line_days.c.day, line_days.c.inputs, line_days.c.value).where(*where))
        return {day: (bytes(inputs), bytes(value)) for day, inputs, value in rows}

    def keep_line_days(self, rows: Sequence[tuple[bytes, int, bytes, bytes]]) -> None:
        """Keep line-days: line, day, SHA-256 of what it follows from, and what it is; an older one goes."""
        with Bulk(self._db) as bulk:
            bulk.upsert(line_days, {"inputs": NEW, "value": NEW}, rows)

    def line_notes(self, lines: Sequence[bytes]) -> dict[bytes, tuple[bytes, bytes]]:
        """Return by line what its last close noted: SHA-256 of the manifest that it made, and the note."""
        found: dict[bytes, tuple[bytes, bytes]] = {}
        for some in portions(lines):
            rows = self._db.execute(select(line_notes).where(line_notes.c.line.in_(some)))
            found |= {bytes(row.line): (bytes(row.manifest), bytes(row.value)) for row in rows}
        return found

    def note_lines(self, rows: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Keep what a close notes of lines: line, SHA-256 of its manifest, note; what an earlier one noted goes."""
        with Bulk(self._db) as bulk:
            bulk.upsert(line_notes, {"manifest": NEW, "value": NEW}, rows)

    def forget_line_days(self, before: int) -> None:
        """Forget the days before one: their periods are closed."""
        self._db.execute(delete(line_days).where(line_days.c.day < before))
