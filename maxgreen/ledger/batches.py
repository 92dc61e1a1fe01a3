"""The batches in the ledger: read, and shown again."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from maxgreen.ledger.bulk import Bulk, portions
from maxgreen.ledger.schema import REVISION, batches, counters, verdicts
from maxgreen.ledger.subject import Subject
from maxgreen.ledger.writing import next_revision
from maxgreen.protocol.reasons import DATED, Verdict


class Verbatim(Protocol):
    """Finds the signed bytes of batches that the ledger no longer has."""

    def message(self, connection: Connection, row: Any) -> bytes:
        """Return the bytes of a batch's row."""


class Batches(Subject):
    """Batches by their place, by their change, by what waits."""

    def __init__(self, connection: Connection, verbatim: "Verbatim | None" = None) -> None:
        """`verbatim` finds the bytes of batches that were pruned; without it these rows have none."""
        super().__init__(connection)
        self._verbatim = verbatim

    def _whole(self, row: Any) -> Any:
        """Return a batch's row with its bytes, where they can be had."""
        if row.message or self._verbatim is None:
            return row
        return SimpleNamespace(**{**row._asdict(), "message": self._verbatim.message(self._db, row)})

    def batch(self, device: bytes, seq: int) -> Any:
        """Return the row of a batch, or None."""
        return self._db.execute(select(batches).where(batches.c.device == device, batches.c.seq == seq)).first()

    def chain_of(self, device: bytes, *, from_seq: int = 0) -> Iterator[Any]:
        """Yield the rows of a device's chain, ascending seq."""
        query = select(batches).where(batches.c.device == device, batches.c.in_chain, batches.c.seq >= from_seq)
        yield from map(self._whole, self._db.execute(query.order_by(batches.c.seq)))

    def chain_between(self, device: bytes, first: int, until: int, most: int | None = None) -> Iterator[Any]:
        """Yield the rows of a device's chain with first ≤ seq < until, ascending; the first `most` of them."""
        query = select(batches).where(*chain_rows(device, first, until)).order_by(batches.c.seq).limit(most)
        yield from map(self._whole, self._db.execute(query))

    def recent_batches(self, device: bytes, limit: int) -> list[Any]:
        """Return a device's newest batches, newest first."""
        query = select(batches).where(batches.c.device == device).order_by(batches.c.seq.desc()).limit(limit)
        return list(self._db.execute(query))

    def kept_from(self, device: bytes, from_seq: int, limit: int) -> list[Any]:
        """Return a device's batches from a seq on, in the chain or ahead of it."""
        query = select(batches).where(batches.c.device == device, batches.c.seq >= from_seq)
        return list(map(self._whole, self._db.execute(query.order_by(batches.c.seq).limit(limit))))

    def changed_since(self, revision: int, limit: int) -> list[Any]:
        """Return batches whose verdict changed after `revision`, in that order."""
        query = select(batches).where(batches.c.revision > revision).order_by(batches.c.revision).limit(limit)
        return list(map(self._whole, self._db.execute(query)))

    def verdict_counts(self) -> dict[tuple[str, int], int]:
        """Return how many messages have each (verdict, reason)."""
        return {
            (str(verdict), int(reason)): int(count)
            for verdict, reason, count in self._db.execute(select(verdicts))
            if count
        }

    def revision(self) -> int:
        """Return the newest verdict's revision."""
        return int(self._db.execute(select(counters.c.value).where(counters.c.name == REVISION)).scalar() or 0)

    def earliest_changes(self, devices: Sequence[bytes], revision: int) -> dict[bytes, int]:
        """Return the earliest t0 (ms) among verdicts that changed after `revision`, where it is known to be right.

        By device; one without any is left out.
        """
        found: dict[bytes, int] = {}
        for some in portions(devices):
            own = (batches.c.device.in_(some), batches.c.revision > revision, _dated())
            query = select(batches.c.device, func.min(batches.c.t0_ms)).where(*own).group_by(batches.c.device)
            found |= {bytes(device): int(t0_ms) for device, t0_ms in self._db.execute(query) if t0_ms is not None}
        return found

    def earliest_of(self, device: bytes, first: int, last: int) -> int | None:
        """Return the earliest t0 (ms) among the batches with first ≤ seq ≤ last, where it is known to be right."""
        query = select(func.min(batches.c.t0_ms)).where(
            batches.c.device == device, batches.c.seq >= first, batches.c.seq <= last, _dated()
        )
        found = self._db.execute(query).scalar()
        return None if found is None else int(found)

    def seq_of(self, device: bytes, digest: bytes) -> int | None:
        """Return the seq of a device's batch by its SHA-256."""
        found = select(batches.c.seq).where(batches.c.device == device, batches.c.digest == digest)
        seq: int | None = self._db.scalar(found)
        return seq

    def ahead_of(self, device: bytes, seq: int) -> list[Any]:
        """Return the batches from a seq on that wait for a place in the chain, ascending."""
        waits = (batches.c.device == device, batches.c.seq >= seq, ~batches.c.in_chain)
        return list(self._db.execute(select(batches).where(*waits).order_by(batches.c.seq)))

    def show_again(self, device: bytes, seq: int) -> None:
        """Give a batch a new revision, so that every reader of changes takes it once more."""
        with Bulk(self._db) as bulk:
            revision = next_revision(bulk, 1)
        row = update(batches).where(batches.c.device == device, batches.c.seq == seq)
        self._db.execute(row.values(revision=revision))


def chain_rows(device: bytes, first: int, until: int) -> tuple[ColumnElement[bool], ...]:
    """Return what tells the rows of a device's chain with first ≤ seq < until."""
    return (batches.c.device == device, batches.c.in_chain, batches.c.seq >= first, batches.c.seq < until)


def dated(row: Any) -> bool:
    """Tell whether a batch's row is known to be of its t0: accepted, suspended, or rejected after it was judged."""
    suspended = row.verdict == Verdict.HELD.value and row.in_chain
    return row.verdict == Verdict.ACCEPTED.value or suspended or row.reason in DATED


def _dated() -> ColumnElement[bool]:
    """Tell which batches are known to be of their t0: accepted, suspended, or rejected after it was judged."""
    suspended = and_(batches.c.verdict == Verdict.HELD.value, batches.c.in_chain)
    rejected = batches.c.reason.in_([int(reason) for reason in DATED])
    return or_(batches.c.verdict == Verdict.ACCEPTED.value, suspended, rejected)
