"""Closed periods, and how far readers of the ledger got."""

from typing import Any

from sqlalchemy import delete, insert, select, update

from maxgreen.ledger.schema import RULES, counters, periods, positions, replaced_periods
from maxgreen.ledger.subject import Subject


class Periods(Subject):
    """Closed periods, and the positions of readers."""

    def position(self, name: str) -> int:
        """Return a reader's position; 0 when it never read."""
        return int(self._db.execute(select(positions.c.value).where(positions.c.name == name)).scalar() or 0)

    def set_position(self, name: str, value: int) -> None:
        """Keep a reader's position."""
        if not self._db.execute(update(positions).where(positions.c.name == name).values(value=value)).rowcount:
            self._db.execute(insert(positions).values(name=name, value=value))

    def period(self, until_s: int) -> Any:
        """Return a closed period, or None."""
        return self._db.execute(select(periods).where(periods.c.until_s == until_s)).first()

    def newest_period(self) -> Any:
        """Return the closed period that ends last, or None."""
        return self._db.execute(select(periods).order_by(periods.c.until_s.desc()).limit(1)).first()

    def period_before(self, until_s: int) -> Any:
        """Return the last closed period that ends before, or None."""
        query = select(periods).where(periods.c.until_s < until_s).order_by(periods.c.until_s.desc()).limit(1)
        return self._db.execute(query).first()

    def period_after(self, until_s: int) -> Any:
        """Return a closed period that ends later, or None."""
        return self._db.execute(select(periods).where(periods.c.until_s > until_s).limit(1)).first()

    def add_period(
        self, until_s: int, period: str, run: bytes, document: str, claims: str, closed_ms: int, revision: int
    ) -> None:
        """Keep a closed period, with the revision that it was made from: its document never changes."""
        values = {"until_s": until_s, "period": period, "run": run, "document": document, "claims": claims}
        self._db.execute(insert(periods).values(**values, closed_ms=closed_ms, revision=revision))

    def lock_periods(self) -> None:
        """Let nobody else close a period until the commit."""
        self._db.execute(update(counters).where(counters.c.name == RULES).values(value=counters.c.value))

    def replace_period(self, until_s: int, run: bytes, replaced_ms: int) -> bool:
        """Set a closed period aside for a revision; False when it is not this run's any more."""
        old = self._db.execute(
            select(periods).where(periods.c.until_s == until_s, periods.c.run == run).with_for_update()
        ).first()
        if old is None:
            return False
        kept = {"run": old.run, "until_s": until_s, "period": old.period, "document": old.document}
        self._db.execute(insert(replaced_periods).values(**kept, closed_ms=old.closed_ms, replaced_ms=replaced_ms))
        self._db.execute(delete(periods).where(periods.c.until_s == until_s))
        return True

    def replaced(self, until_s: int) -> list[Any]:
        """Return the closes of a period that revisions took the place of, oldest first."""
        query = select(replaced_periods).where(replaced_periods.c.until_s == until_s)
        return list(self._db.execute(query.order_by(replaced_periods.c.replaced_ms)))
