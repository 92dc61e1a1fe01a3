"""Writing a desk: one transaction, a few statements, nothing where another process was first."""

import hashlib
from collections import Counter
from typing import Any, Final

from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from maxgreen.ledger.bulk import ADD, NEW, Bulk
from maxgreen.ledger.desk import Chain, Desk
from maxgreen.ledger.engine import ConflictError
from maxgreen.ledger.schema import REVISION, RULES, batches, chains, commands, counters, evidence, receipts, verdicts
from maxgreen.ledger.sums import add_sums
from maxgreen.protocol import cbor
from maxgreen.protocol.reasons import Reason, Verdict
from maxgreen.verify.verdict import Judgement

EVIDENCE_MESSAGES: Final = 10_000  # kept of one device, and of all that name none
EVIDENCE_BYTES: Final = 64 * 2**20
_DAY_MS: Final = 86_400_000
_TAKE_REVISIONS: Final = (
    f"UPDATE {counters.name} SET value = value + CASE WHEN name = '{REVISION}' THEN ? ELSE 0 END "  # noqa: S608
    f"WHERE name IN ('{REVISION}', '{RULES}') RETURNING name, value"
)
# what was obeyed stays obeyed: a device that has forgotten refuses a number that comes again
_NOTE_FATE: Final = (
    update(commands)
    .where(commands.c.device == bindparam("of"), commands.c.number == bindparam("at"), commands.c.obeyed.is_not(True))
    .values(obeyed=bindparam("obeyed"), refusal=bindparam("refusal"), told_ms=bindparam("told_ms"))
)


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
    if desk.removed:
        _remove(connection, desk)
    changed = desk.changed()
    count = len(desk.rows) + len(desk.judged)
    with Bulk(connection) as bulk:
        old = [(*_chain_values(chain), chain.device, chain.version) for chain in changed if chain.version]
        bulk.update(chains, _CHAIN, ("device", "version"), old)
        new = [(chain.device, *_chain_values(chain)) for chain in changed if not chain.version]
        bulk.insert(chains, ("device", *_CHAIN), new)
        # also of evidence alone: its rows are read in the order of their numbers
        last = next_revision(bulk, count, desk.rules_change) if count or desk.evidence else 0
        revisions = iter(range(last - count + 1, last + 1))
        rows = [
            (
                row.device, row.seq, row.digest, row.message, row.received_ms,
                *_judged_values(row.judgement, row.reason, row.state_before, next(revisions)),
            )
            for row in desk.rows.values()
        ]  # fmt: skip
        bulk.insert(batches, _ROW, rows)
        judged = [
            (*_judged_values(judgement, Reason.NONE, before, next(revisions)), device, seq)
            for (device, seq), (judgement, before) in desk.judged.items()
        ]
        bulk.update(batches, _JUDGED, ("device", "seq"), judged)
        add_sums(bulk, desk.sums, last)
        _count(bulk, desk.counts)
        kept = [
            (device, server_ms // _DAY_MS, server_ms, message) for device, server_ms, message in sorted(desk.receipts)
        ]
        bulk.upsert(receipts, {"server_ms": NEW, "message": NEW}, kept, newest="server_ms")
    if desk.evidence:
        _add_evidence(connection, desk)
    if desk.fates:
        told = [
            {"of": f.device, "at": f.number, "obeyed": f.refusal is None, "refusal": f.refusal, "told_ms": f.told_ms}
            for f in desk.fates
        ]
        connection.execute(_NOTE_FATE, told)
    return last


def _count(bulk: Bulk, counts: Counter[tuple[str, int]]) -> None:
    moved = [(verdict, reason, number) for (verdict, reason), number in sorted(counts.items()) if number]
    bulk.upsert(verdicts, {"count": ADD}, moved)


def next_revision(bulk: Bulk, count: int, rules_change: int | None = None) -> int:
    """Take `count` revisions and return the last; until the commit no other transaction takes any.

    So whoever sees a revision sees every one below it. ConflictError when the rules have changed since `rules_change`;
    until the commit nobody changes them.
    """
    values = {name: int(value) for name, value in bulk.rows(_TAKE_REVISIONS, (count,))}
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
    connection.execute(insert(evidence), rows)
    with Bulk(connection) as bulk:
        _count(bulk, Counter((Verdict.REJECTED.value, int(item.error.reason)) for item in fresh.values()))
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
