"""What took no place in the ledger: rejected messages, and what the view refused."""

from typing import Any

from sqlalchemy import delete, insert, select

from maxgreen.ledger.bulk import portions
from maxgreen.ledger.schema import aside, evidence
from maxgreen.ledger.subject import Subject
from maxgreen.ledger.writing import printable


class RejectedMessages(Subject):
    """Rejected messages, and what the view did not take."""

    def all_evidence(self, limit: int = 100) -> list[Any]:
        """Return the newest rejected messages."""
        return list(self._db.execute(select(evidence).order_by(evidence.c.id.desc()).limit(limit)))

    def evidence_after(self, number: int, limit: int) -> list[Any]:
        """Return rejected messages that came after the row `number`, in that order."""
        query = select(evidence).where(evidence.c.id > number).order_by(evidence.c.id).limit(limit)
        return list(self._db.execute(query))

    def evidence_at(self, number: int) -> Any:
        """Return a rejected message by its row, or None."""
        return self._db.execute(select(evidence).where(evidence.c.id == number)).first()

    def set_aside(self, device: bytes, number: int, text: str) -> None:
        """Note that the view refused a batch (device, seq) or a rejected message (its row)."""
        self._db.execute(delete(aside).where(aside.c.device == device, aside.c.number == number))
        self._db.execute(insert(aside).values(device=device, number=number, text=printable(text)))

    def all_aside(self, limit: int | None = None) -> list[Any]:
        """Return what the view refused, oldest first."""
        return list(self._db.execute(select(aside).order_by(aside.c.id).limit(limit)))

    def clear_aside(self, ids: list[int]) -> None:
        """Forget that the view refused these."""
        for some in portions(ids):
            self._db.execute(delete(aside).where(aside.c.id.in_(some)))
