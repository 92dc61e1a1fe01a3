"""What of a damaged spool is whole, and a new spool made of it (`maxgreen agent recover`).

The damaged file is copied aside first and stays as evidence. While the new one is made the mark beside the spool says
so, and no agent starts on what is half done; killed at any instant and begun again, it ends the same.
"""

import hashlib
import mmap
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from edge_agent.chain_tip import ChainTip
from edge_agent.spool import Kept, Spool, is_whole, read_obeyed, read_predecessor, read_tip, row_digest
from maxgreen.keyfile import sync_folder, write_durably
from maxgreen.protocol.backend import Receipt
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.reasons import Rejected
from maxgreen.units import counted

T = TypeVar("T")
_ENVELOPE: Final = bytes.fromhex("d28455a201260450")  # tag 18, array of four, {1: -7, 4: key id of 16 bytes}
_RECOVERING: Final = b"recovering\n"
_FILES: Final = ("", "-wal", ".begun")  # the shared memory file is made again
_MOST_SEQS: Final = 1_000_000  # that are looked at: two years of minutes


@dataclass(frozen=True)
class Found:
    """What is left of a damaged spool: registers and head when they are whole, and batches."""

    tip: ChainTip | None
    kept: Kept
    lost: tuple[int, ...]  # batches that were there and are not whole


def examine(path: Path) -> Found:
    """Return what is whole in a spool's file; nothing of it is changed. Batches are read when they are asked for."""
    receipts: list[tuple[int, bytes]] = []
    undated: list[tuple[bytes, int, bytes, bytes]] = []
    if not path.exists() or not path.stat().st_size:
        return Found(None, Kept(ChainTip(0, b"")), ())
    with _opened(path) as db:
        tip = _whole(read_tip, db)
        origin = _whole(lambda db: (read_predecessor(db),), db)
        predecessor = origin[0] if origin else None
        if tip is not None and (_batch(db, tip.next_seq)[1] or (origin is None and not tip.next_seq)):
            tip = None  # the medium forgot newer registers; or nobody knows what the first batch goes on after
        obeyed = _whole(read_obeyed, db)
        with _unreadable_is_nothing():
            for day, message, digest in db.execute("SELECT day, message, digest FROM receipts"):
                if is_whole(message, digest):
                    receipts.append((int(day), message))
        with _unreadable_is_nothing():
            rows = db.execute("SELECT boot, boot_ms, samples, digest FROM undated")
            undated.extend(row for row in rows if row_digest(*row[:3]) == row[3])  # those before an error stay
        seqs = _seqs(path, db, tip)
        doubtful = {
            seq: [] if found is None else [found] for seq in seqs for found, whole in [_batch(db, seq)] if not whole
        }
        mended = _mended(path, db, doubtful, tip) if doubtful else {}
    lost = doubtful.keys() - mended.keys()
    batches = WholeBatches(path, [seq for seq in seqs if seq not in lost], mended)
    kept = Kept(tip or ChainTip(0, b""), batches, receipts, undated, obeyed, predecessor)
    return Found(tip, kept, tuple(sorted(lost)))


class WholeBatches:
    """The whole batches of a damaged spool, read one by one: there may be more than memory holds."""

    def __init__(self, path: Path, seqs: Sequence[int], mended: Mapping[int, bytes]) -> None:
        self._path = path
        self._seqs = seqs
        self._mended = mended

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        with _opened(self._path) as db:
            for seq in self._seqs:
                message = self._mended.get(seq) or _batch(db, seq)[0]
                if message is not None:
                    yield seq, message


def _mended(
    path: Path, db: sqlite3.Connection, doubtful: dict[int, list[bytes]], tip: ChainTip | None
) -> dict[int, bytes]:
    """Return, of the batches that are not what was written there, those that lie elsewhere in the file's bytes.

    One is whole when the next one follows it, whatever lies around it.
    """
    for seq, message in _carved(path):
        if seq in doubtful:
            doubtful[seq].append(message)
    found: dict[int, bytes] = {}
    for seq in sorted(doubtful, reverse=True):
        following = found.get(seq + 1) or (None if seq + 1 in doubtful else _batch(db, seq + 1)[0])
        if following is not None:
            head = parse_batch(following).batch.prev
        elif tip is not None and seq == tip.next_seq - 1:
            head = tip.head
        else:
            continue
        match = next((message for message in doubtful[seq] if hashlib.sha256(message).digest() == head), None)
        if match is not None:
            found[seq] = match
    return found


def _carved(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield what looks like a signed batch in the bytes of a spool and its log, wherever it lies."""
    for file in (path, path.with_name(f"{path.name}-wal")):
        if not file.exists() or not file.stat().st_size:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(_ENVELOPE)
            while at >= 0:
                with suppress(Rejected, IndexError):
                    message = _envelope_at(data, at)
                    yield parse_batch(message).batch.seq, message
                at = data.find(_ENVELOPE, at + 1)


def _envelope_at(data: mmap.mmap, at: int) -> bytes:
    """Return the bytes of the COSE_Sign1 that begins at a place: header, payload and a signature of 64 bytes."""
    payload = at + len(_ENVELOPE) + 16 + 1  # the key id, and the empty unprotected header
    wide = {0x58: 1, 0x59: 2}.get(data[payload], 0)
    size = int.from_bytes(data[payload + 1 : payload + 1 + wide], "big")
    return bytes(data[at : payload + 1 + wide + size + 2 + 64])


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
    head, messages = receipt.head, list[bytes]()
    for seq, message in found.kept.batches:
        if seq < receipt.next_seq:
            continue
        batch = parse_batch(message).batch
        if batch.seq != receipt.next_seq + len(messages) or batch.prev != head:
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


def _opened(path: Path) -> closing[sqlite3.Connection]:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db.text_factory = bytes
    return closing(db)


def _whole(read: Callable[[sqlite3.Connection], T], db: sqlite3.Connection) -> T | None:
    """Return what can be read, or None."""
    with _unreadable_is_nothing():
        return read(db)
    return None


@contextmanager
def _unreadable_is_nothing() -> Iterator[None]:
    with suppress(sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        yield


def _seqs(path: Path, db: sqlite3.Connection, tip: ChainTip | None) -> Sequence[int]:
    """Return the seqs that there should be: up to the registers' last one, or else those that lie in the file."""
    stated: list[int] = []
    with _unreadable_is_nothing():
        stated.extend(seq for (seq,) in db.execute("SELECT seq FROM batches"))  # those before an error stay
    if tip is None:  # a damaged key may name any number
        seen = {seq for seq, _ in _carved(path)}
        return sorted(seen | {seq for seq in stated if _batch(db, seq)[0] is not None})
    end = tip.next_seq
    found = [seq for seq in stated if 0 <= seq < end] or [seq for seq, _ in _carved(path) if seq < end]
    return range(max(min(found, default=end), end - _MOST_SEQS), end)


def _batch(db: sqlite3.Connection, seq: int) -> tuple[bytes | None, bool]:
    """Return the message at a place, where it can be read, and whether it is what was written there."""
    try:
        row = db.execute("SELECT message, digest FROM batches WHERE seq = ?", (seq,)).fetchone()
        if row is None or not isinstance(row[0], bytes) or parse_batch(row[0]).batch.seq != seq:
            return None, False
    except (sqlite3.Error, ValueError, OverflowError, MemoryError, Rejected):
        return None, False
    return row[0], is_whole(*row)


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
        f"lost: {counted(len(found.lost), 'batch', 'batches')}, {named}{more}. What the ledger has already it keeps; "
        "ask the operator to close the holes that are left: 'maxgreen ingest decide skip'"
    )


def _spans(numbers: tuple[int, ...]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1] = spans[-1][0], number
        else:
            spans.append((number, number))
    return spans
