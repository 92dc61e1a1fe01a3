"""What of a damaged spool is whole, and a new spool made of it (`maxgreen agent recover`).

The damaged file is copied aside first and stays as evidence. While the new one is made the mark beside the spool says
so, and no agent starts on what is half done; killed at any instant and begun again, it ends the same.
"""

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.chain_tip import ChainTip, decode_tip
from edge_agent.spool import Kept, Spool, read_fact, read_origin, row_digest
from maxgreen.keyfile import sync_folder, write_durably
from maxgreen.protocol.backend import Receipt
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.reasons import Rejected

_RECOVERING: Final = b"recovering\n"
_FILES: Final = ("", "-wal", ".begun")  # the shared memory file is made again
_MOST_LOST: Final = 100_000  # seqs that are asked for one by one beyond the last one found


@dataclass(frozen=True)
class Found:
    """What is left of a damaged spool: registers and head when they are whole, and batches."""

    tip: ChainTip | None
    kept: Kept
    lost: tuple[int, ...]  # batches that were there and are not whole


def examine(path: Path) -> Found:
    """Return what is whole in a spool's file; nothing of it is changed."""
    tip: ChainTip | None = None
    obeyed, predecessor = -1, None
    receipts: list[tuple[int, bytes]] = []
    undated: list[tuple[bytes, int, bytes, bytes]] = []
    batches: list[tuple[int, bytes]] = []
    doubtful: dict[int, bytes | None] = {}
    if not path.exists() or not path.stat().st_size:
        return Found(None, Kept(ChainTip(0, b"")), ())
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        db.text_factory = bytes
        with _unreadable_is_nothing():
            found = read_fact(db, "tip")
            tip = decode_tip(found) if found else None
        with _unreadable_is_nothing():
            predecessor, obeyed = read_origin(db)
        with _unreadable_is_nothing():
            for day, message, digest in db.execute("SELECT day, message, digest FROM receipts ORDER BY day"):
                if hashlib.sha256(message).digest() == digest:
                    receipts.append((int(day), bytes(message)))
        with _unreadable_is_nothing():
            rows = db.execute("SELECT boot, boot_ms, samples, digest FROM undated")
            undated = [row for row in rows if row_digest(*row[:3]) == row[3]]
        low, high = _range(db, tip)
        for seq in range(low, high):
            message, whole = _batch(db, seq)
            if whole and message is not None:
                batches.append((seq, message))
            else:
                doubtful[seq] = message
    # a batch is whole, too, when it is the one that the next one follows
    heads = {seq - 1: parse_batch(message).batch.prev for seq, message in batches}
    if tip is not None:
        heads[tip.next_seq - 1] = tip.head
    for seq, message in list(doubtful.items()):
        if message is not None and hashlib.sha256(message).digest() == heads.get(seq):
            batches.append((seq, message))
            del doubtful[seq]
    batches.sort()
    kept = Kept(tip or ChainTip(0, b""), batches, receipts, undated, obeyed, predecessor)
    return Found(tip, kept, tuple(doubtful))


def set_aside(path: Path) -> Path:
    """Copy a damaged spool away; return the copy. A recovery that was cut off has made it already."""
    mark = path.with_name(f"{path.name}.begun")
    before = sorted((path.parent / "damaged").glob("*/complete"))
    if before and mark.exists() and mark.read_bytes() == _RECOVERING:
        return before[-1].parent / path.name
    folder = path.parent / "damaged" / f"{len(before) + 1:04}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    for ending in _FILES:
        source = path.with_name(path.name + ending)
        if source.exists():
            _copy(source, folder / source.name)
    write_durably(folder / "complete", b"")
    write_durably(mark, _RECOVERING)
    return folder / path.name


def rebuild(path: Path, kept: Kept, genesis_head: bytes) -> None:
    """Put a new spool with what was kept in the place of one that was set aside."""
    fresh = path.with_name(f"{path.name}.fresh")
    for ending in ("", "-wal", "-shm", ".begun"):
        fresh.with_name(fresh.name + ending).unlink(missing_ok=True)
    spool = Spool(fresh, genesis_head)
    spool.restore(kept)
    spool.close()  # the last connection leaves no write-ahead log
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    fresh.replace(path)
    sync_folder(path.parent)
    begun = fresh.with_name(f"{fresh.name}.begun")
    begun.replace(path.with_name(f"{path.name}.begun"))
    sync_folder(path.parent)


def following(found: Found, receipt: Receipt) -> list[bytes]:
    """Return the whole batches that go on from a receipt, link by link: the ledger may still have them."""
    by_seq, head, messages = dict(found.kept.batches), receipt.head, []
    for seq in range(receipt.next_seq, receipt.next_seq + len(by_seq)):
        message = by_seq.get(seq)
        if message is None:
            break
        try:
            batch = parse_batch(message).batch
        except Rejected:
            break
        if batch.seq != seq or batch.prev != head:
            break
        messages.append(message)
        head = hashlib.sha256(message).digest()
    return messages


def spool_of(folder: Path, messages: list[bytes], receipt: Receipt, genesis_head: bytes) -> bytes:
    """Make a spool that delivers `messages` after a receipt; return the head that the chain then has."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    head = hashlib.sha256(messages[-1]).digest() if messages else receipt.head
    end = receipt.next_seq + len(messages)
    spool = Spool(folder / "spool.db", genesis_head)
    spool.restore(Kept(ChainTip(end, head, closed=True), list(enumerate(messages, receipt.next_seq))))
    spool.close()
    return head


@contextmanager
def _unreadable_is_nothing() -> Iterator[None]:
    with suppress(sqlite3.Error, ValueError, KeyError, TypeError, AttributeError):
        yield


def _range(db: sqlite3.Connection, tip: ChainTip | None) -> tuple[int, int]:
    """Return the seqs that there should be."""
    try:
        low, high = db.execute("SELECT min(seq), max(seq) FROM batches").fetchone()
    except sqlite3.Error:
        low, high = 0, min(tip.next_seq, _MOST_LOST) - 1 if tip else _MOST_LOST
    if low is None:
        low, high = (tip.next_seq, tip.next_seq - 1) if tip else (0, -1)
    low = max(0, low)
    if tip is not None:
        high = tip.next_seq - 1  # a damaged key may name any number
        low = min(low, tip.next_seq)
    return low, min(high + 1, low + 10 * _MOST_LOST)


def _batch(db: sqlite3.Connection, seq: int) -> tuple[bytes | None, bool]:
    """Return the message at a place, where it can be read, and whether it is what was written there."""
    try:
        row = db.execute("SELECT message, digest FROM batches WHERE seq = ?", (seq,)).fetchone()
        if row is None or parse_batch(bytes(row[0])).batch.seq != seq:
            return None, False
        message = bytes(row[0])
    except (sqlite3.Error, TypeError, Rejected):
        return None, False
    return message, hashlib.sha256(message).digest() == row[1]


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def explain(found: Found) -> str:
    """Return what was lost, as a sentence with what to do."""
    if not found.lost:
        return "every batch is whole"
    spans = _spans(found.lost)
    named = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans[:10])
    more = f" and {len(spans) - 10} more spans" if len(spans) > 10 else ""
    return (
        f"{len(found.lost)} batches are lost: {named}{more}. What the ledger has already it keeps; ask the operator to "
        "close the holes that are left: 'maxgreen ingest decide skip'"
    )


def _spans(numbers: tuple[int, ...]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1] = spans[-1][0], number
        else:
            spans.append((number, number))
    return spans
