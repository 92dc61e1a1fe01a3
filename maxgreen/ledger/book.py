"""Reading the ledger, and writing what is not judged; a Book lives within one transaction of its caller."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, or_, select, update

from maxgreen.ledger.bulk import Bulk, portions
from maxgreen.ledger.desk import Due
from maxgreen.ledger.registry import KnownDevice, known_device
from maxgreen.ledger.schema import (
    REVISION,
    RULES,
    aside,
    batches,
    beacons,
    chains,
    commands,
    counters,
    decisions,
    devices,
    evidence,
    limits,
    periods,
    positions,
    receipts,
    replaced_periods,
    verdicts,
)
from maxgreen.ledger.writing import next_revision, printable
from maxgreen.protocol.backend import Beacon, Command, decode_beacon
from maxgreen.protocol.cose import parse
from maxgreen.protocol.reasons import DATED, Verdict
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action, Decision, Limits, Rules

_LATE: Final = 1_000  # rows of commands
_RULES_CHANGE: Final = select(counters.c.value).where(counters.c.name == RULES)


class Verbatim(Protocol):
    """Finds the signed bytes of batches that the ledger no longer has."""

    def message(self, connection: Connection, row: Any) -> bytes:
        """Return the bytes of a batch's row."""


class Book:
    """Reads the ledger within one transaction, and writes what is not judged."""

    def __init__(self, connection: Connection, verbatim: "Verbatim | None" = None) -> None:
        """`verbatim` finds the bytes of batches that were pruned; without it these rows have none."""
        self._db, self._verbatim = connection, verbatim

    def _whole(self, row: Any) -> Any:
        """Return a batch's row with its bytes, where they can be had."""
        if row.message or self._verbatim is None:
            return row
        return SimpleNamespace(**{**row._asdict(), "message": self._verbatim.message(self._db, row)})

    @property
    def connection(self) -> Connection:
        """The transaction that it lives in."""
        return self._db

    # devices

    def device(self, device: bytes) -> KnownDevice | None:
        """Return a device, or None when the registry does not have it."""
        row = self._db.execute(select(devices).where(devices.c.device == device)).first()
        return None if row is None else known_device(row.token, row.owner, row.system)

    def all_devices(self) -> list[KnownDevice]:
        """Return every device, by token."""
        rows = self._db.execute(select(devices).order_by(devices.c.token))
        return [known_device(row.token, row.owner, row.system) for row in rows]

    def roles(self, ids: Sequence[bytes]) -> dict[tuple[bytes, int], int]:
        """Return what the channels of some devices measure, as the registry says it: protocol.batch.Role."""
        query = select(devices.c.device, devices.c.system).where(devices.c.device.in_(ids))
        return {
            (bytes(row.device), int(channel["number"])): int(channel["role"])
            for row in self._db.execute(query)
            for channel in json.loads(row.system)["channels"]
        }

    def device_of(self, token: int) -> KnownDevice | None:
        """Return the device whose key counts for a system now."""
        return max(
            (device for device in self.all_devices() if device.token == token),
            key=lambda device: int(device.system.get("key_number", 0)),
            default=None,
        )

    def state(self, device: bytes) -> ChainState | None:
        """Return a device's chain state, or None before its first batch."""
        data = self._db.execute(select(chains.c.state).where(chains.c.device == device)).scalar()
        return None if data is None else ChainState.from_bytes(bytes(data))

    def states(self) -> dict[bytes, ChainState]:
        """Return the chain state of every device that sent something."""
        rows = self._db.execute(select(chains.c.device, chains.c.state))
        return {bytes(device): ChainState.from_bytes(bytes(data)) for device, data in rows}

    # batches

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

    # evidence

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

    # what the view does not take

    def set_aside(self, device: bytes, number: int, text: str) -> None:
        """Note that the view refused a batch (device, seq) or a rejected message (its row)."""
        self._db.execute(delete(aside).where(aside.c.device == device, aside.c.number == number))
        self._db.execute(insert(aside).values(device=device, number=number, text=printable(text)))

    def show_again(self, device: bytes, seq: int) -> None:
        """Give a batch a new revision, so that every reader of changes takes it once more."""
        with Bulk(self._db) as bulk:
            revision = next_revision(bulk, 1)
        row = update(batches).where(batches.c.device == device, batches.c.seq == seq)
        self._db.execute(row.values(revision=revision))

    def all_aside(self, limit: int | None = None) -> list[Any]:
        """Return what the view refused, oldest first."""
        return list(self._db.execute(select(aside).order_by(aside.c.id).limit(limit)))

    def clear_aside(self, ids: list[int]) -> None:
        """Forget that the view refused these."""
        for some in portions(ids):
            self._db.execute(delete(aside).where(aside.c.id.in_(some)))

    # beacons, receipts, decisions, limits

    def add_beacon(self, beacon: Beacon, message: bytes) -> None:
        """Keep a beacon before it is published."""
        self._db.execute(insert(beacons).values(number=beacon.number, issued_s=beacon.issued_s, message=message))

    def newest_beacon(self) -> tuple[Beacon, bytes] | None:
        """Return the newest beacon with its signed message."""
        row = self._db.execute(select(beacons.c.message).order_by(beacons.c.number.desc()).limit(1)).first()
        return (beacon_of(row[0]), bytes(row[0])) if row else None

    def all_beacons(self, *, after: int = -1) -> dict[int, bytes]:
        """Return the signed beacons later than a number."""
        query = select(beacons.c.number, beacons.c.message).where(beacons.c.number > after)
        rows = self._db.execute(query.order_by(beacons.c.number))
        return {int(number): bytes(message) for number, message in rows}

    def receipts_of(self, device: bytes) -> list[bytes]:
        """Return the last receipt of each UTC day."""
        query = select(receipts.c.message).where(receipts.c.device == device).order_by(receipts.c.server_ms)
        return [bytes(message) for message in self._db.execute(query).scalars()]

    def add_command(self, command: Command, who: str, message: bytes) -> None:
        """Keep a command that is to be sent."""
        values = {"device": command.device, "number": command.number, "expires_ms": command.expires_ms}
        self._db.execute(insert(commands).values(**values, who=who, message=message))

    def newest_command(self, device: bytes) -> int | None:
        """Return the highest number that a device was sent."""
        number: int | None = self._db.scalar(select(func.max(commands.c.number)).where(commands.c.device == device))
        return number

    def commands_to_send(self, now_ms: int, *, after: int) -> list[Any]:
        """Return the commands that have not expired, of the rows after `after` and those that were never sent."""
        late = and_(commands.c.id > after - _LATE, commands.c.sent_ms.is_(None))  # committed after a higher number
        waiting = or_(commands.c.id > after, late)
        query = select(commands).where(waiting, commands.c.expires_ms > now_ms)
        return list(self._db.execute(query.order_by(commands.c.id)))

    def set_sent(self, ids: list[int], now_ms: int) -> None:
        """Note that commands were handed to the broker."""
        self._db.execute(update(commands).where(commands.c.id.in_(ids)).values(sent_ms=now_ms))

    def all_commands(self, limit: int = 100, *, device: bytes | None = None) -> list[Any]:
        """Return the newest commands, of all devices or of one, newest first."""
        query = select(commands).order_by(commands.c.id.desc()).limit(limit)
        return list(self._db.execute(query if device is None else query.where(commands.c.device == device)))

    def add_decision(self, decision: Decision) -> None:
        """Record a decision of the operator or the DAO; the worker lets the device's chain go on by it."""
        self._db.execute(insert(decisions).values(**{**asdict(decision), "action": decision.action.value}))
        # another version: whoever judges this chain by the rules of before reads it again
        due = Due.CONTINUED if decision.action is Action.CONTINUE else Due.DECIDED
        decided = {"due": case((chains.c.due > due, chains.c.due), else_=int(due)), "version": chains.c.version + 1}
        self._db.execute(update(chains).where(chains.c.device == decision.device).values(decided))
        self._rules_changed()  # last, as a writer does: chains are locked before counters

    def rules(self, network: str) -> Rules:
        """Return limits, every beacon and decisions as the verifier takes them."""
        found = {number: beacon_of(message) for number, message in self.all_beacons().items()}
        return Rules(network, limits=self.limits(), beacons=found, decisions=self.decisions())

    def decisions(self) -> list[Decision]:
        """Return every recorded decision, oldest first."""
        rows = self._db.execute(select(decisions).order_by(decisions.c.at_ms, decisions.c.id)).mappings()
        return [
            Decision(
                bytes(row["device"]),
                row["from_seq"],
                row["to_seq"],
                Action(row["action"]),
                row["reason"],
                row["who"],
                row["at_ms"],
                row["text"],
            )
            for row in rows
        ]

    def limits(self) -> list[tuple[int, Limits]]:
        """Return the limits by time; the protocol's defaults when none were set."""
        rows = self._db.execute(select(limits).order_by(limits.c.from_ms))
        return [(int(from_ms), Limits.from_json(json.loads(value))) for from_ms, value in rows] or [(0, Limits())]

    def set_limits(self, from_ms: int, value: Limits) -> None:
        """Let limits hold from a time on; nothing is written when they hold already."""
        if self.limits()[-1][1] == value and self._db.execute(select(limits.c.from_ms)).first():
            return
        self._db.execute(delete(limits).where(limits.c.from_ms == from_ms))
        self._db.execute(insert(limits).values(from_ms=from_ms, value=json.dumps(asdict(value))))
        self._rules_changed()

    def rules_change(self) -> int:
        """Return a number that rises with every change of limits or decisions."""
        return int(self._db.execute(_RULES_CHANGE).scalar() or 0)

    def _rules_changed(self) -> None:
        self._db.execute(update(counters).where(counters.c.name == RULES).values(value=counters.c.value + 1))

    # positions

    def position(self, name: str) -> int:
        """Return a reader's position; 0 when it never read."""
        return int(self._db.execute(select(positions.c.value).where(positions.c.name == name)).scalar() or 0)

    def set_position(self, name: str, value: int) -> None:
        """Keep a reader's position."""
        if not self._db.execute(update(positions).where(positions.c.name == name).values(value=value)).rowcount:
            self._db.execute(insert(positions).values(name=name, value=value))

    # periods

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

    def revision(self) -> int:
        """Return the newest verdict's revision."""
        return int(self._db.execute(select(counters.c.value).where(counters.c.name == REVISION)).scalar() or 0)

    def earliest_change(self, device: bytes, revision: int) -> int | None:
        """Return the earliest t0 (ms) among verdicts that changed after `revision`, where it is known to be right."""
        query = select(func.min(batches.c.t0_ms)).where(
            batches.c.device == device, batches.c.revision > revision, _dated()
        )
        found = self._db.execute(query).scalar()
        return None if found is None else int(found)

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


def beacon_of(message: bytes) -> Beacon:
    """Return the beacon of a signed message of our own."""
    return decode_beacon(parse(bytes(message)).payload)


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
