"""Between ledger and evidence store: cutting chains into segments (verify.segment), forgetting what they hold."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from maxgreen.errors import Fatal
from maxgreen.ledger.batches import chain_rows, dated
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.schema import batches, beacons, chains, segments
from maxgreen.protocol.backend import decode_receipt
from maxgreen.protocol.batch import Batch, SignedBatch, parse_batch
from maxgreen.protocol.cose import parse
from maxgreen.protocol.reasons import Malformed, Reason, Verdict
from maxgreen.store import AbsentError, Store, open_store
from maxgreen.verify.chain import ChainState
from maxgreen.verify.replay import Replay
from maxgreen.verify.rules import DeviceRecord, Rules
from maxgreen.verify.segment import CUT_BYTES, MAX_BATCHES, Segment, Taking, segment_name, without_work

_ASKED: Final = 900  # numbers in one question to the database
_WAITING_BYTES: Final = 128 * 2**20  # that wait for one date; a week of honest batches is a tenth of it
_IDLE: Final = {int(Reason.WEAK_WORK), int(Reason.STALE_WORK)}
_log = logging.getLogger(__name__)
_RECENT: Final = 1_000  # batches of a device whose bytes always stay: pages and commands look at them


class Cut(NamedTuple):
    """A segment as the ledger knows it; times in ms since the epoch, None where none of its batches has any."""

    number: int
    first_seq: int
    next_seq: int
    digest: bytes
    first_ms: int | None
    last_ms: int | None
    state_data: bytes  # ChainState.to_bytes of the chain after it

    @property
    def state(self) -> ChainState:
        """The chain's state after it."""
        return ChainState.from_bytes(self.state_data)

    @property
    def name(self) -> str:
        """What it is called in the store."""
        return segment_name(self.digest)


def cut_segments(
    engine: Engine, store: Store, network: str, devices: Iterable[bytes], reached_ms: int | None = None
) -> int:
    """Keep in the store what the chains of devices took since it was last done; return how many segments are new.

    `reached_ms`: those whose last segment holds a batch of this time or later are left as they are.
    Another process may do so at the same time: what the first one wrote holds. Killed and done again, it goes on.
    """
    count = 0
    with reader(engine).begin() as connection:
        longer = _longer(connection, reached_ms)
    for device in devices:
        while device in longer and (found := _next(engine, store, network, device)) is not None:
            segment, cut = found
            store.put(cut.name, segment.data)
            try:
                with engine.begin() as connection:
                    connection.execute(insert(segments).values(device=device, **_values(cut)))
            except IntegrityError:  # another was first: what it cut is gone on from
                continue
            count += 1
    return count


def _longer(connection: Connection, reached_ms: int | None) -> set[bytes]:
    """Return the devices whose chains go on after their last segment, but for those that were cut so far."""
    newest = func.max(segments.c.next_seq).label("next_seq"), func.max(segments.c.last_ms).label("last_ms")
    last = select(segments.c.device, *newest).group_by(segments.c.device).subquery()
    query = select(chains.c.device).outerjoin(last, last.c.device == chains.c.device)
    behind = query.where(chains.c.next_seq > func.coalesce(last.c.next_seq, 0))
    if reached_ms is not None:
        behind = behind.where(func.coalesce(last.c.last_ms, -1) < reached_ms)
    return {bytes(device) for device in connection.execute(behind).scalars()}


def cuts_of(connection: Connection, device: bytes) -> list[Cut]:
    """Return a device's segments, oldest first."""
    rows = connection.execute(select(segments).where(segments.c.device == device).order_by(segments.c.number))
    return [_cut(row) for row in rows]


def load(store: Store, cut: Cut) -> Segment:
    """Return a segment from the store; Fatal when it is not there, or another one is under its name."""
    try:
        segment = Segment.parse(store.get(cut.name))
    except (AbsentError, Malformed) as error:
        raise Fatal(f"{cut.name}: {error}; restore the evidence store from a backup") from error
    if segment.digest != cut.digest:
        raise Fatal(f"{cut.name}: the evidence store has other bytes under this name; restore it from a backup")
    return segment


class StoredBytes:
    """The signed bytes of batches that were pruned: from the segments that hold them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._digest = b""
        self._messages: dict[bytes, bytes] = {}  # of the segment that was asked for last, by SHA-256

    def message(self, connection: Connection, row: Any) -> bytes:
        """Return the bytes of a batch's row; Fatal when the store has lost them."""
        place = (segments.c.device == row.device, segments.c.first_seq <= row.seq, segments.c.next_seq > row.seq)
        found = connection.execute(select(segments).where(*place)).first()
        if found is None:
            raise Fatal(f"device {bytes(row.device).hex()} seq {row.seq}: no bytes, and no segment has them")
        cut = _cut(found)
        if cut.digest != self._digest:
            held = (taking.message for taking in load(self._store, cut).batches)
            self._messages = {hashlib.sha256(message).digest(): message for message in held}
            self._digest = cut.digest
        if bytes(row.digest) not in self._messages:
            raise Fatal(f"device {bytes(row.device).hex()} seq {row.seq}: {cut.name} does not have it")
        return self._messages[bytes(row.digest)]


def verbatim_of(evidence: str) -> StoredBytes | None:
    """Return what finds pruned bytes in the evidence store of the settings; None without one."""
    return StoredBytes(open_store(evidence)) if evidence else None


def prune(
    engine: Engine, store: Store, devices: Iterable[bytes], before_ms: int, *, dry_run: bool = False
) -> tuple[int, int]:
    """Forget the bytes of batches that came before a time and that segments hold; return how many, and of what size.

    Each segment is read from the store and compared first. What may be judged again (suspended), and the newest
    batches of a device, keep theirs.
    """
    count = size = 0
    for device in devices:
        with reader(engine).begin() as connection:
            cuts = cuts_of(connection, device)
        newest = cuts[-1].next_seq - _RECENT if cuts else 0
        for cut in cuts:
            if cut.next_seq > newest:
                break
            own = (
                *chain_rows(device, cut.first_seq, cut.next_seq),
                batches.c.received_ms < before_ms,
                batches.c.verdict != Verdict.HELD.value,
                func.length(batches.c.message) > 0,
            )
            with reader(engine).begin() as connection:
                rows = {int(r.seq): (bytes(r.digest), int(r.size)) for r in connection.execute(_sized(own))}
            if not rows:
                continue
            held = {hashlib.sha256(taking.message).digest() for taking in load(store, cut).batches}
            if missing := [seq for seq, (digest, _) in rows.items() if digest not in held]:
                raise Fatal(
                    f"{cut.name}: it does not have seq {missing[0]} of device {device.hex()}; nothing of it was pruned"
                )
            count, size = count + len(rows), size + sum(one for _, one in rows.values())
            if not dry_run:
                with engine.begin() as connection:
                    connection.execute(update(batches).where(*own).values(message=b""))
    return count, size


def _sized(own: tuple[Any, ...]) -> Any:
    return select(batches.c.seq, batches.c.digest, func.length(batches.c.message).label("size")).where(*own)


def _next(engine: Engine, store: Store, network: str, device: bytes) -> tuple[Segment, Cut] | None:
    """Return the segment that is to be cut next, if the chain went on."""
    with reader(engine).begin() as connection:
        book = Book(connection, StoredBytes(store))
        newest = select(segments).where(segments.c.device == device).order_by(segments.c.number.desc()).limit(1)
        row = connection.execute(newest).first()
        last = None if row is None else _cut(row)
        start = ChainState.start(network) if last is None else last.state
        known, state = book.device(device), book.state(device)
        if known is None or state is None:
            return None
        # where batches wait for a date at the end of the chain, the segment ends before them
        until = state.next_seq if state.undated_from is None else state.undated_from
        most = _most(connection, device, start.next_seq, until)
        rows = list(book.chain_between(device, start.next_seq, until, most))
        rules = cache(lambda: book.rules(network))  # of all beacons: seldom needed
        predecessor = _predecessor(book, known.record, rows, rules)
        end = _leads_to(rows, state)
        if end is None:
            judge = partial(_first_part, start, known.record, rules(), predecessor)
            part, end = judge(rows)
            if not part and rows and rows[-1].seq + 1 < until:  # all of these waited for a date
                if _bytes_between(connection, device, start.next_seq, until) > _WAITING_BYTES:
                    _log.warning("device %s: too much waits for a date to be kept as evidence", device.hex())
                    return None
                rows = list(book.chain_between(device, start.next_seq, until))
                part, end = judge(rows)
            rows = part
        if not rows:
            return None
        signed = [_looked_at(row).batch for row in rows]
        segment = Segment(
            network,
            device,
            None if last is None else last.digest,
            start,
            predecessor,
            tuple(Taking(bytes(r.message), r.received_ms, bool(r.skipped_to), r.remark in _IDLE) for r in rows),
            tuple(_beacons(connection, signed)),
            tuple(_receipts(book, device, start.next_seq, end.next_seq)),
        )
        times = [row.t0_ms for row in rows if row.t0_ms is not None and dated(row)]
        number = 0 if last is None else last.number + 1
        first_ms, last_ms = min(times, default=None), max(times, default=None)
        return segment, Cut(number, rows[0].seq, end.next_seq, segment.digest, first_ms, last_ms, end.to_bytes())


def _most(connection: Connection, device: bytes, first: int, until: int) -> int:
    """Return how many batches a segment has: as many as it may by their number and their bytes."""
    sizes = select(func.length(batches.c.message)).where(*chain_rows(device, first, until))
    query = sizes.order_by(batches.c.seq).limit(MAX_BATCHES)
    size = count = 0
    for one in connection.execute(query).scalars():
        size += int(one)
        if count and size > CUT_BYTES:
            break
        count += 1
    return count


def _bytes_between(connection: Connection, device: bytes, first: int, until: int) -> int:
    sizes = func.sum(func.length(batches.c.message))
    return int(connection.execute(select(sizes).where(*chain_rows(device, first, until))).scalar() or 0)


def _looked_at(row: Any) -> SignedBatch:
    """Return a batch with the work that was looked at when it was judged: beacons that came later change nothing."""
    signed = parse_batch(bytes(row.message))
    return without_work(signed) if row.remark in _IDLE else signed


def _predecessor(
    book: Book, record: DeviceRecord, rows: Sequence[Any], rules: Callable[[], Rules]
) -> ChainState | None:
    """Return the chain that the first of these rows succeeds (field 14), as it was then."""
    succeeds = parse_batch(bytes(rows[0].message)).batch.succeeds if rows else None
    before = None if succeeds is None or record.predecessor is None else book.device(record.predecessor)
    if succeeds is None or before is None:
        return None
    device = before.record.device
    state = book.state(device)
    if state is not None and state.head != succeeds[1]:  # it went on since, by a decision
        reached = [cut.state for cut in cuts_of(book.connection, device)]
        last = book.seq_of(device, succeeds[1])
        start = max(
            (one for one in reached if last is not None and one.next_seq <= last + 1),
            key=lambda one: one.next_seq,
            default=ChainState.start(rules().network),
        )
        chain = Replay(start, before.record, rules())
        for row in book.chain_between(device, start.next_seq, -1 if last is None else last + 1):
            chain.take(_looked_at(row), row.received_ms, skipped_to=bool(row.skipped_to))
        state = chain.state
    return None if state is None else replace(state, halted=False, undated_from=None)


def _leads_to(rows: Sequence[Any], state: ChainState) -> ChainState | None:
    """Return the chain's state when it is the one after these rows.

    Where it was halted, it went on by a decision: what is taken after it sees it so.
    """
    whole = rows and rows[-1].seq + 1 == state.next_seq and state.undated_from is None
    return replace(state, halted=False) if whole else None


def _first_part(
    start: ChainState, record: DeviceRecord, rules: Rules, predecessor: ChainState | None, rows: Sequence[Any]
) -> tuple[list[Any], ChainState]:
    """Return the rows up to the last one after which none waits for a date, and the chain's state there."""
    chain, kept, state = Replay(start, record, rules), 0, start
    for number, row in enumerate(rows, 1):
        signed = _looked_at(row)
        before = predecessor if signed.batch.succeeds is not None else None
        chain.take(signed, row.received_ms, skipped_to=bool(row.skipped_to), predecessor=before)
        if chain.state.undated_from is None:
            kept, state = number, chain.state
    return list(rows[:kept]), state


def _beacons(connection: Connection, signed: Sequence[Batch]) -> Iterator[bytes]:
    """Yield the signed beacons that batches name, ascending."""
    numbers = sorted({batch.work.beacon for batch in signed if batch.work is not None})
    for start in range(0, len(numbers), _ASKED):
        query = select(beacons.c.message).where(beacons.c.number.in_(numbers[start : start + _ASKED]))
        yield from map(bytes, connection.execute(query.order_by(beacons.c.number)).scalars())


def _receipts(book: Book, device: bytes, first_seq: int, next_seq: int) -> Iterator[bytes]:
    """Yield the receipts of days that end in first < next seq ≤ the segment's end."""
    for message in book.receipts_of(device):
        if first_seq < decode_receipt(parse(message).payload).next_seq <= next_seq:
            yield message


def _values(cut: Cut) -> dict[str, Any]:
    values = cut._asdict()
    return {"state": values.pop("state_data"), **values}


def _cut(row: Any) -> Cut:
    return Cut(row.number, row.first_seq, row.next_seq, bytes(row.digest), row.first_ms, row.last_ms, bytes(row.state))
