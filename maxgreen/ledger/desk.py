"""The desk: what a group of messages is judged against, read at once, and what is to be written, written at once.

Judging itself touches no database: it reads and changes the desk in memory. `write` compares the version of every
chain that was read with the one that is there: where another process was first, nothing is written, and the group is
read and judged again. So two workers, or a worker and a decision, never overwrite each other, on either database.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from maxgreen.ledger.engine import LedgerAwayError, is_passing
from maxgreen.ledger.registry import KnownDevice, Registry
from maxgreen.ledger.schema import REVISION, RULES, batches, chains, counters, devices, evidence, receipts, verdicts
from maxgreen.protocol import cbor
from maxgreen.protocol.reasons import Reason, Rejected, Verdict
from maxgreen.verify.chain import ChainState
from maxgreen.verify.verdict import Judgement

T = TypeVar("T")
EVIDENCE_MESSAGES: Final = 10_000  # kept of one device, and of all that name none
EVIDENCE_BYTES: Final = 64 * 2**20
NOBODY: Final = b""
_DAY_MS: Final = 86_400_000
_PAIRS: Final = 10_000  # values of one statement
_STATES: Final = 2_000  # remembered decoded


class Due(IntEnum):
    """What a chain waits for that nobody sends."""

    NOTHING = 0
    MORE = 1  # some of what waits can take its place, or get a date, now
    DECIDED = 2  # a decision may let it go on
    CONTINUED = 3  # so may one to continue after a halt


class ConflictError(Exception):
    """Another process wrote one of the chains in the meantime."""


@dataclass(slots=True)
class Chain:
    """One device's chain on the desk."""

    known: KnownDevice
    state: ChainState
    version: int = 0  # 0: no row yet
    waiting: int = 0
    waiting_bytes: int = 0
    due: Due = Due.NOTHING
    credited: dict[int, int] = field(default_factory=dict)  # hashes by proof window, the newest ones
    changed: bool = False

    @property
    def device(self) -> bytes:
        """The device id."""
        return self.known.record.device


class Kept(NamedTuple):
    """A batch as the ledger keeps it."""

    seq: int
    message: bytes
    received_ms: int
    reason: Reason
    state_before: bytes | None = None
    skipped_to: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A batch that is new to the ledger: with its judgement in the chain, or without one ahead of it."""

    device: bytes
    seq: int
    digest: bytes
    message: bytes
    received_ms: int
    judgement: Judgement | None
    state_before: bytes | None
    reason: Reason = Reason.GAP_BEFORE  # of one that waits


@dataclass(frozen=True, slots=True)
class Evidence:
    """A message that was rejected before it took a place."""

    error: Rejected
    topic: str
    message: bytes
    received_ms: int
    device: bytes
    seq: int | None


@dataclass(slots=True)
class Desk:
    """The chains of a group's devices, what is kept under the seqs that it names, and what it changes."""

    chains: dict[bytes, Chain] = field(default_factory=dict)
    kept: dict[tuple[bytes, int], bytes] = field(default_factory=dict)  # SHA-256 by place
    rows: dict[tuple[bytes, int], Row] = field(default_factory=dict)
    judged: dict[tuple[bytes, int], tuple[Judgement, bytes | None]] = field(default_factory=dict)
    removed: dict[tuple[bytes, int], Reason] = field(default_factory=dict)  # and for what they waited
    evidence: list[Evidence] = field(default_factory=list)
    receipts: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # device, server time, message
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    rules_change: int | None = None  # of the rules that it was judged by

    def add(self, row: Row) -> None:
        """Keep a new batch."""
        place = (row.device, row.seq)
        self.rows[place] = row
        self.kept[place] = row.digest
        self.counts[_counted(row.judgement, row.reason)] += 1

    def judge(self, device: bytes, was: Reason, judgement: Judgement, state_before: bytes | None) -> None:
        """Give a batch that is held its place, or its verdict; `was` is the reason for which it was held."""
        place = (device, judgement.seq)
        row = self.rows.get(place)
        self.counts[Verdict.HELD.value, int(was)] -= 1
        self.counts[_counted(judgement, Reason.NONE)] += 1
        if row is None:
            self.judged[place] = (judgement, state_before)
        else:
            self.rows[place] = Row(
                row.device, row.seq, row.digest, row.message, row.received_ms, judgement, state_before
            )

    def remove(self, device: bytes, seq: int, was: Reason) -> None:
        """Take a batch that waits out of its place."""
        place = (device, seq)
        self.counts[Verdict.HELD.value, int(was)] -= 1
        self.kept.pop(place, None)
        if self.rows.pop(place, None) is None:
            self.removed[place] = was

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is to be written."""
        return not (self.rows or self.judged or self.removed or self.evidence or self.receipts or self._changed())

    def _changed(self) -> list[Chain]:
        return sorted((chain for chain in self.chains.values() if chain.changed), key=lambda chain: chain.device)


class Shelf:
    """Reads what judging needs of a database."""

    def __init__(self, engine: Engine, registry: Registry, network: str) -> None:
        """`engine` is one for readers."""
        self._engine = engine
        self._registry = registry
        self._start = ChainState.start(network)
        self._states: OrderedDict[bytes, tuple[int, ChainState]] = OrderedDict()  # by device, with the row's version

    def known(self, ids: Collection[bytes]) -> dict[bytes, Chain]:
        """Return the chains of the devices that are registered."""
        query = select(
            devices, chains.c.version, chains.c.state, chains.c.waiting, chains.c.waiting_bytes, chains.c.due,
            chains.c.credited,
        ).join(chains, chains.c.device == devices.c.device, isouter=True)  # fmt: skip
        found: dict[bytes, Chain] = {}
        with self._engine.begin() as connection:
            for some in _portions(list(ids)):
                for row in connection.execute(query.where(devices.c.device.in_(some))):
                    known = self._registry.known(row)
                    found[known.record.device] = (
                        Chain(known, self._start)
                        if row.version is None
                        else Chain(
                            known,
                            self._state(row),
                            int(row.version),
                            row.waiting,
                            int(row.waiting_bytes),
                            Due(row.due),
                            dict(cbor.decode(row.credited)),
                        )
                    )
        return found

    def kept(self, places: Collection[tuple[bytes, int]]) -> dict[tuple[bytes, int], bytes]:
        """Return the SHA-256 of the messages that hold these places."""
        if not places:
            return {}
        query = select(batches.c.device, batches.c.seq, batches.c.digest)
        found = {}
        with self._engine.begin() as connection:
            for some in _portions(list(places)):
                for device, seq, digest in connection.execute(
                    query.where(tuple_(batches.c.device, batches.c.seq).in_(some))
                ):
                    found[bytes(device), int(seq)] = bytes(digest)
        return found

    def waiting(self, device: bytes, from_seq: int, limit: int) -> list[Kept]:
        """Return batches that wait ahead of the chain, lowest seq first."""
        return self._batches(device, from_seq, limit, ~batches.c.in_chain)

    def undated(self, device: bytes, from_seq: int, limit: int) -> list[Kept]:
        """Return batches that wait for the date of their boot."""
        wanted = and_(batches.c.in_chain, batches.c.reason == int(Reason.CLOCK_UNSYNCHRONISED))
        return self._batches(device, from_seq, limit, wanted)

    def suspended(self, device: bytes, limit: int) -> list[Kept]:
        """Return batches in the chain that are held since the device was suspended."""
        wanted = and_(batches.c.in_chain, batches.c.reason == int(Reason.SUSPENDED_DEVICE))
        return self._batches(device, 0, limit, wanted)

    def seqs_waiting(self, from_seqs: Mapping[bytes, int], each: int) -> dict[bytes, list[int]]:
        """Return the first seqs that wait from a seq on, by device."""
        found: dict[bytes, list[int]] = {}
        if not from_seqs:
            return found
        asked = or_(*[and_(batches.c.device == device, batches.c.seq >= seq) for device, seq in from_seqs.items()])
        number = func.row_number().over(partition_by=batches.c.device, order_by=batches.c.seq).label("number")
        numbered = select(batches.c.device, batches.c.seq, number).where(~batches.c.in_chain, asked).subquery()
        with self._engine.begin() as connection:
            query = select(numbered.c.device, numbered.c.seq).where(numbered.c.number <= each)
            for device, seq in connection.execute(query.order_by(numbered.c.seq)):
                found.setdefault(bytes(device), []).append(int(seq))
        return found

    def due(self, limit: int, without: Collection[bytes] = ()) -> list[bytes]:
        """Return devices whose waiting batches can be judged now, but for some."""
        query = select(chains.c.device).where(chains.c.due > 0, chains.c.device.not_in(list(without))).limit(limit)
        with self._engine.begin() as connection:
            return [bytes(device) for device in connection.execute(query).scalars()]

    def _batches(self, device: bytes, from_seq: int, limit: int, wanted: Any) -> list[Kept]:
        query = (
            select(
                batches.c.seq,
                batches.c.message,
                batches.c.received_ms,
                batches.c.reason,
                batches.c.state_before,
                batches.c.skipped_to,
            )
            .where(batches.c.device == device, batches.c.seq >= from_seq, wanted)
            .order_by(batches.c.seq)
            .limit(limit)
        )
        with self._engine.begin() as connection:
            return [
                Kept(
                    int(row.seq),
                    bytes(row.message),
                    int(row.received_ms),
                    Reason(row.reason),
                    None if row.state_before is None else bytes(row.state_before),
                    row.skipped_to,
                )
                for row in connection.execute(query)
            ]

    def _state(self, row: Any) -> ChainState:
        """Return the state of a row; the newest ones are remembered, since a version is written once."""
        version, state = self._states.get(bytes(row.device), (0, self._start))
        return state if version == row.version else ChainState.from_bytes(bytes(row.state))

    def remember(self, desk: Desk) -> None:
        """Know the states that were written, so that they need not be decoded again."""
        for chain in desk.chains.values():
            if chain.changed:
                self._states[chain.device] = (chain.version + 1, chain.state)
                self._states.move_to_end(chain.device)
        while len(self._states) > _STATES:
            self._states.popitem(last=False)


def write(engine: Engine, desk: Desk) -> int:
    """Write a desk in one transaction and return its last revision; ConflictError when another was first."""
    try:
        with engine.begin() as connection:
            return _write(connection, desk)
    except IntegrityError as error:
        raise ConflictError(str(error.orig)) from error


_CHAIN: Final = ("version", "next_seq", "state", "waiting", "waiting_bytes", "due", "credited")
_JUDGED: Final = (
    "in_chain", "verdict", "reason", "remark", "t0_ms", "shares", "hashes", "skipped_to", "state_before", "revision",
)  # fmt: skip
_ROW: Final = ("device", "seq", "digest", "message", "received_ms", *_JUDGED)


def _write(connection: Connection, desk: Desk) -> int:
    changed = desk._changed()  # noqa: SLF001 - its own module
    old = [(*_chain_values(chain), chain.device, chain.version) for chain in changed if chain.version]
    new = [(chain.device, *_chain_values(chain)) for chain in changed if not chain.version]
    if old and _update_many(connection, "chains", _CHAIN, ("device", "version"), old) != len(old):
        raise ConflictError
    if new:
        _insert_many(connection, "chains", ("device", *_CHAIN), new)
    count = len(desk.rows) + len(desk.judged)
    if desk.removed:
        _remove(connection, desk)
    # also of evidence alone: its rows are read in the order of their numbers
    last = next_revision(connection, count, desk.rules_change) if count or desk.evidence else 0
    revisions = iter(range(last - count + 1, last + 1))
    if desk.rows:
        rows = [
            (
                row.device, row.seq, row.digest, row.message, row.received_ms,
                *_judged_values(row.judgement, row.reason, row.state_before, next(revisions)),
            )
            for row in desk.rows.values()
        ]  # fmt: skip
        _insert_many(connection, "batches", _ROW, rows)
    if desk.judged:
        judged = [
            (*_judged_values(judgement, Reason.NONE, before, next(revisions)), device, seq)
            for (device, seq), (judgement, before) in desk.judged.items()
        ]
        _update_many(connection, "batches", _JUDGED, ("device", "seq"), judged)
    if desk.evidence:
        _add_evidence(connection, desk)
    moved = [
        {"verdict": verdict, "reason": reason, "count": number}
        for (verdict, reason), number in sorted(desk.counts.items())
        if number
    ]
    if moved:
        _upsert(connection, verdicts, moved, add="count")
    if desk.receipts:
        _upsert(
            connection,
            receipts,
            [
                {"device": device, "day": server_ms // _DAY_MS, "server_ms": server_ms, "message": message}
                for device, server_ms, message in sorted(desk.receipts)
            ],
            newest="server_ms",
        )
    return last


def next_revision(connection: Connection, count: int, rules_change: int | None = None) -> int:
    """Take `count` revisions and return the last; until the commit no other transaction takes any.

    So whoever sees a revision sees every one below it. ConflictError when the rules have changed since `rules_change`;
    until the commit nobody changes them.
    """
    more = case((counters.c.name == REVISION, count), else_=0)
    taken = update(counters).where(counters.c.name.in_([REVISION, RULES])).values(value=counters.c.value + more)
    values = {
        str(name): int(value) for name, value in connection.execute(taken.returning(counters.c.name, counters.c.value))
    }
    if rules_change is not None and values[RULES] != rules_change:
        raise ConflictError("the rules have changed")
    return values[REVISION]


def _remove(connection: Connection, desk: Desk) -> None:
    for device, seq in desk.removed:
        gone = connection.execute(
            delete(batches).where(batches.c.device == device, batches.c.seq == seq, ~batches.c.in_chain)
        )
        if gone.rowcount != 1:
            raise ConflictError("a batch that waited is not there")


def _chain_values(chain: Chain) -> tuple[Any, ...]:
    state = chain.state
    return (
        chain.version + 1,
        state.next_seq,
        state.to_bytes(),
        chain.waiting,
        chain.waiting_bytes,
        int(chain.due),
        cbor.encode(chain.credited),
    )


def _judged_values(
    judgement: Judgement | None, reason: Reason, state_before: bytes | None, revision: int
) -> tuple[Any, ...]:
    if judgement is None:
        return False, Verdict.HELD.value, int(reason), 0, None, 0, "0", False, state_before, revision
    return (
        True,
        judgement.verdict.value,
        int(judgement.reason),
        int(judgement.remark),
        judgement.t0_ms,
        judgement.shares,
        str(judgement.hashes),
        judgement.skipped_to,
        state_before,
        revision,
    )


def _insert_many(connection: Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows by the quickest way that the database's driver has."""
    names = ", ".join(columns)
    if connection.dialect.name == "postgresql":
        _copy(connection, f"COPY {table} ({names}) FROM STDIN", rows)
        return
    marks = ", ".join("?" * len(columns))
    statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 - names of this module
    connection.exec_driver_sql(statement, list(rows))


def _copy(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Copy rows into PostgreSQL; its driver's errors become what SQLAlchemy's would."""
    import psycopg  # noqa: PLC0415 - only where PostgreSQL is used

    cursor: Any = connection.connection.cursor()
    try:
        with cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.IntegrityError as error:
        raise ConflictError(str(error)) from error
    except psycopg.Error as error:
        away = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) or is_passing(error.sqlstate)
        raise (LedgerAwayError(f"the ledger's database: {error}") if away else error) from error


def _update_many(
    connection: Connection, table: str, columns: Sequence[str], keys: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> int:
    """Update rows, given as values of `columns` and `keys`; return how many there were."""
    mark = "%s" if connection.dialect.name == "postgresql" else "?"
    values = ", ".join(f"{name} = {mark}" for name in columns)
    where = " AND ".join(f"{name} = {mark}" for name in keys)
    statement = f"UPDATE {table} SET {values} WHERE {where}"  # noqa: S608 - names of this module
    return connection.exec_driver_sql(statement, list(rows)).rowcount


def _counted(judgement: Judgement | None, reason: Reason) -> tuple[str, int]:
    if judgement is None:
        return Verdict.HELD.value, int(reason)
    return judgement.verdict.value, int(judgement.reason)


def _add_evidence(connection: Connection, desk: Desk) -> None:
    """Keep rejected messages, the same bytes once, and of each device only the newest ones."""
    fresh = {(hashlib.sha256(item.message).digest(), item.device): item for item in desk.evidence}
    known = select(evidence.c.digest, evidence.c.device)
    for digest, device in connection.execute(known.where(evidence.c.digest.in_([digest for digest, _ in fresh]))):
        fresh.pop((bytes(digest), bytes(device)), None)
    if not fresh:
        return
    senders = sorted({item.device for item in fresh.values()})
    so_far = dict.fromkeys(senders, (0, 0))
    totals = select(evidence.c.device, func.max(evidence.c.number), func.max(evidence.c.bytes))
    for device, number, size in connection.execute(
        totals.where(evidence.c.device.in_(senders)).group_by(evidence.c.device)
    ):
        so_far[bytes(device)] = (int(number), int(size))
    rows = []
    for (digest, _), item in fresh.items():
        number, size = so_far[item.device]
        so_far[item.device] = number, size = number + 1, size + len(item.message)
        rows.append(
            {
                "reason": int(item.error.reason),
                "text": printable(str(item.error)),
                "topic": printable(item.topic),
                "device": item.device,
                "number": number,
                "bytes": size,
                "seq": None if item.seq is None else str(item.seq),
                "digest": digest,
                "message": item.message,
                "received_ms": item.received_ms,
            }
        )
        desk.counts[Verdict.REJECTED.value, int(item.error.reason)] += 1
    connection.execute(insert(evidence), rows)
    old = or_(
        evidence.c.number <= bindparam("last_number") - EVIDENCE_MESSAGES,
        evidence.c.bytes <= bindparam("last_bytes") - EVIDENCE_BYTES,
    )
    connection.execute(
        delete(evidence).where(evidence.c.device == bindparam("at_device"), old),
        [{"at_device": device, "last_number": number, "last_bytes": size} for device, (number, size) in so_far.items()],
    )


def printable(text: str) -> str:
    """Return text as every database takes it: no NUL, no surrogate."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _upsert(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, add: str = "", newest: str = ""
) -> None:
    """Insert rows, or replace what their keys have; `add` is added to, and what has a higher `newest` stays."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    values = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys}
    if add:
        values[add] = table.c[add] + statement.excluded[add]
    newer = table.c[newest] <= statement.excluded[newest] if newest else None
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values, where=newer), list(rows))


def _portions(items: list[T]) -> Iterable[list[T]]:
    for start in range(0, len(items), _PAIRS):
        yield items[start : start + _PAIRS]
