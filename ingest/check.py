"""Is the ledger whole? Every message by its digest, every chain judged again, counters and sums made again."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from maxgreen.errors import UsageError
from maxgreen.ledger.batches import Verbatim
from maxgreen.ledger.book import Book
from maxgreen.ledger.bulk import Bulk
from maxgreen.ledger.engine import reader
from maxgreen.ledger.rulings import Rulings
from maxgreen.ledger.schema import REVISION, batches, chains, counters, verdicts
from maxgreen.ledger.sums import read_sums, replace_sums
from maxgreen.ledger.writing import next_revision
from maxgreen.protocol.batch import SignedBatch, parse_batch
from maxgreen.protocol.reasons import Reason, Rejected, Verdict
from maxgreen.verify.chain import ChainState
from maxgreen.verify.replay import Replay
from maxgreen.verify.rules import DeviceRecord, Rules
from maxgreen.verify.sums import Sums
from maxgreen.verify.verdict import Judgement, verdict_of

_MOST_WINDOW_S: Final = 2**40
# of messages that took no place: what was rejected is trimmed, so its count cannot be counted again
_NO_PLACE: Final = {
    Reason.OVERSIZE, Reason.MALFORMED, Reason.UNKNOWN_DEVICE, Reason.BAD_SIGNATURE, Reason.EQUIVOCATION,
    Reason.CHAIN_BREAK, Reason.REGISTER_REGRESSION, Reason.INTERNAL_ERROR,
}  # fmt: skip


_OTHER_BYTES: Final = "the message is not the one that was kept (its SHA-256 is another)"
_NO_BYTES: Final = "its bytes were pruned; name the store that has them in the settings (evidence)"


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found: damages, verdicts that would be others today, and counters and sums that were wrong."""

    devices: int
    batches: int
    damages: tuple[str, ...]
    differing: tuple[str, ...]  # since a decision, or a status of the registry, came after they were judged
    counters: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing but a later decision changes anything."""
        return not self.damages and not self.counters


def check(
    engine: Engine,
    network: str,
    verbatim: Verbatim | None = None,
    *,
    repair: bool = False,
    progress: Callable[[int], object] = lambda _count: None,
) -> Checked:
    """Check a ledger, also beside the running service; `repair` makes counters and sums again, while it is stopped.

    `verbatim` finds the bytes of batches that were pruned.
    """
    readers = reader(engine)
    damages: list[str] = []
    differing: list[str] = []
    wrong: list[str] = []
    wrong_sums: dict[bytes, Sums] = {}
    count = devices = 0
    with readers.begin() as connection:
        book = Book(connection, verbatim)
        revision = book.revision()
        rules = Rulings(readers, network).rules(connection)
        known = {device.record.device: device.record for device in book.all_devices()}
        states = _states(connection)
        for device, record in known.items():
            devices += 1
            sums, damaged = Sums(), False
            for number, kind, text in _chain(book, record, states.get(device), rules, sums):
                count = count + 1 if kind == "" else count
                if kind:
                    damaged = damaged or kind == "damage"
                    (damages if kind == "damage" else differing).append(f"device {device.hex()} seq {number}: {text}")
            if not damaged and (
                text := _sums_differ(sums, read_sums(connection, device, -_MOST_WINDOW_S, _MOST_WINDOW_S))
            ):
                wrong.append(f"device {device.hex()}: {text}")
                wrong_sums[device] = sums
            progress(count)
        wrong += _counters(connection)
    if repair and wrong and not damages:  # what is damaged may be what was counted rightly
        with engine.begin() as connection:
            with Bulk(connection) as bulk:
                taken = next_revision(bulk, 1 + len(wrong_sums))
            if taken != revision + 1 + len(wrong_sums):
                raise UsageError(
                    "the ledger changed while it was checked: stop every service that writes it, and check again"
                )
            _count_again(connection)
            for number, (device, sums) in enumerate(wrong_sums.items(), revision + 2):
                replace_sums(connection, device, sums, number)
    return Checked(devices, count, tuple(damages), tuple(differing), tuple(wrong))


def _states(connection: Connection) -> dict[bytes, tuple[int, ChainState | None]]:
    """Return where every chain stands, by its row's number and by its state; None for a state that is none."""
    found: dict[bytes, tuple[int, ChainState | None]] = {}
    for device, next_seq, data in connection.execute(select(chains.c.device, chains.c.next_seq, chains.c.state)):
        try:
            found[bytes(device)] = int(next_seq), ChainState.from_bytes(bytes(data))
        except Exception:  # noqa: BLE001 - whatever its bytes are now
            found[bytes(device)] = int(next_seq), None
    return found


class _DamageError(Exception):
    """A chain cannot be judged any further."""

    def __init__(self, seq: int, text: str) -> None:
        super().__init__(text)
        self.seq = seq


def _chain(
    book: Book, record: DeviceRecord, stands: tuple[int, ChainState | None] | None, rules: Rules, sums: Sums
) -> Iterator[tuple[int, str, str]]:
    """Yield (seq, "", "") for each batch of a chain, and (seq, kind, text) for what is wrong with it.

    What its batches add up to, with the verdicts that they have, is added to `sums`.
    """
    replay = Replay(ChainState.start(rules.network), record, rules)
    said: dict[int, Any] = {}
    judged: dict[int, Judgement] = {}
    try:
        for row in book.chain_of(record.device):
            yield row.seq, "", ""
            signed = _signed(row, record, replay.state, rules.network)
            said[row.seq] = (row.reason, row.t0_ms, row.shares, int(row.hashes))
            for judgement in replay.take(signed, row.received_ms, skipped_to=row.skipped_to):
                judged[judgement.seq] = judgement
        for row in book.ahead_of(record.device, replay.state.next_seq):
            _require_bytes(row)
        stated = _state(stands, replay.state)
    except _DamageError as damage:
        yield damage.seq, "damage", str(damage)
        return
    for seq, judgement in judged.items():
        reason, t0_ms, shares, hashes = said[seq]
        sums.add(record.device, replace(judgement, reason=Reason(reason), t0_ms=t0_ms, shares=shares, hashes=hashes))
        again = (int(judgement.reason), judgement.t0_ms, judgement.shares, judgement.hashes)
        waits = stated.dating and said[seq][0] == Reason.CLOCK_UNSYNCHRONISED
        if said[seq] != again and not waits:
            was, now = Reason(said[seq][0]).label, judgement.reason.label
            yield seq, "differs", f"judged {was} then, {now} now"
    if not stated.dating and replace(stated, halted=False) != replay.state:
        yield stated.next_seq, "differs", "the chain's state is another when it is judged again"


def _require_bytes(row: Any) -> None:
    message = bytes(row.message)
    if hashlib.sha256(message).digest() != bytes(row.digest):
        raise _DamageError(row.seq, _OTHER_BYTES if message else _NO_BYTES)


def _signed(row: Any, record: DeviceRecord, state: ChainState, network: str) -> SignedBatch:
    """Return the batch of a row that goes on with a chain; _DamageError when it does not."""
    _require_bytes(row)
    try:
        signed = parse_batch(bytes(row.message))
        signed.envelope.check(record.verifier, network, "batch")
    except Rejected as error:
        raise _DamageError(row.seq, str(error)) from error
    if signed.batch.seq != row.seq or (row.seq != state.next_seq and not row.skipped_to):
        raise _DamageError(row.seq, f"the chain is at {state.next_seq}: a batch is missing, or stands elsewhere")
    if not row.skipped_to and signed.batch.prev != state.head:
        raise _DamageError(row.seq, "it does not follow from the batch before")
    if row.verdict != verdict_of(Reason(row.reason)).value:
        raise _DamageError(row.seq, f"its verdict is {row.verdict}, its reason {Reason(row.reason).label}")
    return signed


def _state(stands: tuple[int, ChainState | None] | None, ended: ChainState) -> ChainState:
    """Return a chain's state, which stands where its batches end; _DamageError when it does not."""
    if stands is None:
        if ended.next_seq:
            raise _DamageError(ended.next_seq, "batches without a chain")
        return ended
    numbered, stated = stands
    if stated is None:
        raise _DamageError(numbered, "the chain's state cannot be read")
    if not (numbered == stated.next_seq == ended.next_seq) or stated.head != ended.head:
        text = f"the chain's state ends there, its row at {numbered}, its batches at {ended.next_seq}"
        raise _DamageError(stated.next_seq, text)
    return stated


def _sums_differ(counted: Sums, kept: Sums) -> str:
    """Say where sums are not what the batches add up to; empty where they are."""
    pairs: list[tuple[Any, Any]] = [(counted.devices, kept.devices), (counted.channels, kept.channels)]
    wrong = {
        place[1] for one, other in pairs for place in one.keys() | other.keys() if one.get(place) != other.get(place)
    }
    if not wrong:
        return ""
    return f"{len(wrong)} windows have other sums than their batches, the first at {min(wrong)}"


def _counters(connection: Connection) -> Iterator[str]:
    counted = _counted_verdicts(connection)
    kept = {
        (row.verdict, row.reason): row.count
        for row in connection.execute(select(verdicts))
        if Reason(row.reason) not in _NO_PLACE or row.verdict != Verdict.REJECTED.value
    }
    for key in sorted(counted.keys() | kept.keys()):
        if counted[key] != kept.get(key, 0):
            verdict, reason = key
            yield f"{verdict} {Reason(reason).label}: counted {kept.get(key, 0)}, there are {counted[key]}"
    waiting = _counted_waiting(connection)
    for row in connection.execute(select(chains.c.device, chains.c.waiting, chains.c.waiting_bytes)):
        there = waiting.get(bytes(row.device), (0, 0))
        if (row.waiting, row.waiting_bytes) != there:
            yield f"device {bytes(row.device).hex()}: {row.waiting} batches wait by its counter, {there[0]} do"
    newest = connection.execute(select(func.max(batches.c.revision))).scalar() or 0
    numbered = connection.execute(select(counters.c.value).where(counters.c.name == REVISION)).scalar() or 0
    if newest > numbered:
        yield f"revisions: numbered up to {numbered}, there is {newest}"


def _counted_verdicts(connection: Connection) -> Counter[tuple[str, int]]:
    query = select(batches.c.verdict, batches.c.reason, func.count()).group_by(batches.c.verdict, batches.c.reason)
    return Counter({(str(verdict), int(reason)): int(count) for verdict, reason, count in connection.execute(query)})


def _counted_waiting(connection: Connection) -> dict[bytes, tuple[int, int]]:
    query = (
        select(batches.c.device, func.count(), func.sum(func.length(batches.c.message)))
        .join(chains, chains.c.device == batches.c.device)
        .where(~batches.c.in_chain, batches.c.seq >= chains.c.next_seq)
        .group_by(batches.c.device)
    )
    return {bytes(device): (int(count), int(size)) for device, count, size in connection.execute(query)}


def _count_again(connection: Connection) -> None:
    for row in connection.execute(select(verdicts)).all():
        if Reason(row.reason) not in _NO_PLACE or row.verdict != Verdict.REJECTED.value:
            mine = (verdicts.c.verdict == row.verdict, verdicts.c.reason == row.reason)
            connection.execute(delete(verdicts).where(*mine))
    found = [{"verdict": v, "reason": r, "count": n} for (v, r), n in _counted_verdicts(connection).items()]
    if found:
        connection.execute(insert(verdicts), found)
    connection.execute(update(chains).values(waiting=0, waiting_bytes=0))
    for device, (count, size) in _counted_waiting(connection).items():
        values = {"waiting": count, "waiting_bytes": size}
        connection.execute(update(chains).where(chains.c.device == device).values(values))
    connection.execute(update(chains).values(version=chains.c.version + 1))
    newest = connection.execute(select(func.max(batches.c.revision))).scalar() or 0
    behind = (counters.c.name == REVISION, counters.c.value < newest)
    connection.execute(update(counters).where(*behind).values(value=newest))
