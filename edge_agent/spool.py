"""The spool: signed batches and the registers behind them, in one SQLite transaction each.

A batch leaves only when a signed receipt says that the ledger has it (P-RCT-2). Whatever is read is compared with the
digest that was written beside it: a medium may forget, never invent.
"""

import hashlib
import json
import logging
import secrets
import sqlite3
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.chain_tip import ChainTip, decode_tip, encode_tip
from edge_agent.source import Tick
from maxgreen.errors import Fatal, MaxgreenError, Retryable
from maxgreen.keyfile import write_durably
from maxgreen.protocol import cose
from maxgreen.protocol.backend import Receipt, decode_receipt
from maxgreen.protocol.batch import Batch, parse_batch
from maxgreen.verify.meter import Sample

KEEP_AFTER_RECEIPT_MS: Final = 7 * 86_400_000
RECOVER: Final = "stop the agent and run 'maxgreen agent recover': it keeps what is whole, and says what is not"
_VERSION: Final = 3
_DAY_MS: Final = 86_400_000
_NOTE_BATCHES: Final = 10
_NOTE_MS: Final = 600_000
_READ_AT_ONCE: Final = 100
_MOST_FREED: Final = 200  # batches that one note of a receipt deletes
_CHECKED_WHOLE: Final = 64 * 2**20  # bytes: larger ones are not read through at each start
_LOG: Final = logging.getLogger(__name__)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT NOT NULL, value BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS batches (seq INTEGER PRIMARY KEY, message BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS receipts (day INTEGER PRIMARY KEY, message BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS undated (
    boot BLOB NOT NULL, boot_ms INTEGER NOT NULL, samples BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (boot, boot_ms)
);
"""


class MediumError(Retryable):
    """The medium takes or gives nothing now: full, read-only, locked, failing."""


class DamagedError(Fatal):
    """What was read is not what was written; `seq` names the batch when it is one."""

    def __init__(self, message: str, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq


@dataclass(frozen=True)
class Kept:
    """What of a spool is whole."""

    tip: ChainTip
    batches: Iterable[tuple[int, bytes]] = ()
    receipts: Sequence[tuple[int, bytes]] = ()  # day, message
    undated: Sequence[tuple[bytes, int, bytes, bytes]] = ()
    obeyed: int | None = -1
    predecessor: tuple[bytes, bytes] | None = None


class Spool:
    """The agent's only durable state beside its keys."""

    def __init__(self, path: Path, genesis_head: bytes, *, predecessor: tuple[bytes, bytes] | None = None) -> None:
        """Open or make the spool; `predecessor`: a new one goes on after that device and head (field 14).

        DamagedError when it is damaged, or gone: registers are never invented. MediumError when it may be there later.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._mark = path.with_name(f"{path.name}.begun")
        if self._mark.exists() and not (path.exists() and path.stat().st_size):
            raise DamagedError(f"spool {path}: it is gone or empty, and with it this key's registers; {RECOVER}")
        with self._medium():
            self._db = open_database(path)
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self._begin(predecessor, genesis_head)
            self.tip = read_tip(self._db)
            if self._db.execute("SELECT 1 FROM batches WHERE seq = ?", (self.tip.next_seq,)).fetchone():
                raise ValueError("the registers are older than the batches")
            self.predecessor, self._obeyed = read_predecessor(self._db), read_obeyed(self._db)
        self._unnoted: tuple[Receipt, bytes] | None = None
        self._noted = (-_NOTE_BATCHES, -_NOTE_MS)
        last = self._receipt_on_or_before(2**62)
        self._receipted_seq = last.next_seq if last else 0
        path.chmod(0o600)

    def _begin(self, predecessor: tuple[bytes, bytes] | None, genesis_head: bytes) -> None:
        """Make sure that this file is the one that the mark beside it names; a new one gets all its facts at once."""
        identity = read_fact(self._db, "spool")
        if self._mark.exists():
            if identity is None or self._mark.read_text().strip() != identity.hex():
                raise ValueError("it is not the file that was begun here")
            return
        if identity is None:
            if self._db.execute("SELECT 1 FROM batches UNION ALL SELECT 1 FROM receipts").fetchone():
                raise ValueError("batches without registers")
            identity = secrets.token_bytes(16)
            with _Transaction(self._db):
                self._put("spool", identity)
                self._put("tip", encode_tip(ChainTip(0, genesis_head)))
                self._put("command", b"-1")
                self._put("predecessor", b"".join(predecessor or ()))
        # the file itself and its name are durable before the first batch, not only its write-ahead log
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        write_durably(self._mark, f"{identity.hex()}\n".encode())

    def close(self) -> None:
        """Note what is known and close the file."""
        self._note_receipt()
        self._db.close()

    def append(self, message: bytes, tip: ChainTip) -> None:
        """Commit a signed batch together with the registers and the head that follow from it."""
        digest = hashlib.sha256(message).digest()
        if tip.head != digest or tip.next_seq != self.tip.next_seq + 1:
            raise ValueError("the tip does not follow from the message")
        with self._medium(), _Transaction(self._db):
            self._db.execute("INSERT INTO batches VALUES (?, ?, ?)", (self.tip.next_seq, message, digest))
            self._put("tip", encode_tip(tip))
            self._db.execute("DELETE FROM undated WHERE boot = ? AND boot_ms <= ?", (tip.boot, tip.last_boot_ms))
        self.tip = tip

    def obeyed(self) -> int:
        """Return the number of the newest command that was obeyed; -1 when there was none (P-CMD-1)."""
        return self._obeyed

    def obey(self, number: int) -> None:
        """Note a command before it is obeyed, so that no restart obeys it again (P-CMD-1)."""
        with self._medium(), _Transaction(self._db):
            self._put("command", str(number).encode())
        self._obeyed = number

    def used_bytes(self) -> int:
        """Return how much of the file is in use; what receipts freed is used again."""
        with self._medium():
            pages, free, size = (
                int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    def hold(self, boot: bytes, readings: Sequence[tuple[Tick, int]]) -> None:
        """Keep ticks without a date, each with its nominal interval, ms; their batches take them away (P-BAT-7)."""
        if not readings:
            return
        rows = []
        for tick, interval_ms in readings:
            value = {"interval_ms": interval_ms, "samples": {n: astuple(s) for n, s in tick.samples.items()}}
            samples = json.dumps(value).encode()
            rows.append((boot, tick.boot_ms, samples, row_digest(boot, tick.boot_ms, samples)))
        with self._medium(), _Transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO undated VALUES (?, ?, ?, ?)", rows)

    def held(self) -> dict[bytes, list[tuple[Tick, int]]]:
        """Return the ticks without a date by their boots, oldest first, each with its interval.

        One that is damaged is left out: it is a gap, and counted as one.
        """
        with self._medium():
            rows = list(self._db.execute("SELECT boot, boot_ms, samples, digest FROM undated ORDER BY rowid"))
        found: dict[bytes, list[tuple[Tick, int]]] = {}
        for boot, boot_ms, samples, digest in rows:
            with suppress(ValueError, KeyError, TypeError):
                if row_digest(boot, boot_ms, samples) != digest:
                    continue
                value = json.loads(samples)
                taken = {int(n): Sample(*sample) for n, sample in value["samples"].items()}
                found.setdefault(bytes(boot), []).append((Tick(None, boot_ms, taken), value["interval_ms"]))
        if left := len(rows) - sum(map(len, found.values())):
            _LOG.error("spool %s: %d damaged readings are left out", self.path, left)
        return {boot: sorted(readings, key=lambda reading: reading[0].boot_ms) for boot, readings in found.items()}

    def messages(self, from_seq: int, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` spooled batches from `from_seq` on; DamagedError names the first that is not whole."""
        query = "SELECT seq, message, digest FROM batches WHERE seq >= ? ORDER BY seq LIMIT ?"
        limit = max(0, min(limit, self.tip.next_seq - from_seq))
        try:
            with self._medium(from_seq):
                rows = self._db.execute(query, (from_seq, limit)).fetchall()
        except DamagedError:
            if limit <= 1:
                raise
            return self.messages(from_seq, 1)  # one of them can't be read: those before it can
        found: list[tuple[int, bytes]] = []
        for seq, (stated, message, digest) in enumerate(rows, from_seq):
            if stated != seq or not is_whole(message, digest):
                if found:
                    break  # it is named when it is the first
                raise DamagedError(f"spool {self.path}: batch {seq} is damaged; {RECOVER}", seq)
            found.append((seq, message))
        if not found and from_seq < self.tip.next_seq:
            raise DamagedError(f"spool {self.path}: batch {from_seq} is gone; {RECOVER}", from_seq)
        return found

    def digest(self, seq: int) -> bytes | None:
        """Return the SHA-256 of a spooled batch, or None when it is gone, damaged or was never made."""
        try:
            found = self.messages(seq, 1)
        except DamagedError:
            return None
        return hashlib.sha256(found[0][1]).digest() if found else None

    def check(self) -> None:
        """Read everything; DamagedError when any of it is not what was written."""
        with self._medium():
            found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != b"ok":
                raise ValueError(" ".join(found.decode(errors="replace").split()))
            for day, message, digest in self._db.execute("SELECT day, message, digest FROM receipts"):
                if not is_whole(message, digest):
                    raise ValueError(f"the receipt of day {day} is not what was written")
            for boot, boot_ms, samples, digest in self._db.execute(
                "SELECT boot, boot_ms, samples, digest FROM undated"
            ):
                if row_digest(boot, boot_ms, samples) != digest:
                    raise ValueError(f"the reading at {boot_ms} ms is not what was written")
            read_tip(self._db), read_predecessor(self._db), read_obeyed(self._db)
        seq = self.oldest_seq()
        while seq < self.tip.next_seq:
            seq += len(self.messages(seq, _READ_AT_ONCE))

    def registers_before(self, t_ms: int) -> dict[int, int]:
        """Return each channel's register, mW·s, after the last spooled batch that began before `t_ms`."""
        try:
            low, high = self.oldest_seq(), self.tip.next_seq
            found = bisect_left(range(low, high), t_ms, key=lambda seq: self._batch(seq).t0_ms) + low
            batch = self._batch(max(found - 1, low)) if low < high else None
        except MaxgreenError:  # it is for show, and damage is said where it matters
            return {}
        return {channel.number: channel.register_mws for channel in batch.channels} if batch else {}

    def _batch(self, seq: int) -> Batch:
        return parse_batch(self.messages(seq, 1)[0][1]).batch

    def oldest_seq(self) -> int:
        """Return the oldest seq in the spool; the next one when it is empty."""
        with self._medium():
            row = self._db.execute("SELECT min(seq) FROM batches").fetchone()
            return self.tip.next_seq if row[0] is None else int(row[0])

    def waiting(self) -> int:
        """Return how many batches have no receipt."""
        return max(0, self.tip.next_seq - self._receipted_seq)

    def receipted(self, receipt: Receipt, message: bytes) -> None:
        """Note a receipt: what it covers may go seven days later; the day's last is kept for ever (P-RCT-4).

        It is written down every ten batches or ten minutes: one that a power cut takes comes again, and a medium lasts.
        """
        if self._unnoted and _day(self._unnoted[0]) != _day(receipt):
            self._note_receipt()
        self._unnoted = receipt, message
        noted_seq, noted_ms = self._noted
        self._receipted_seq = receipt.next_seq
        # a ledger that was restored from a backup asks again for what it had receipted: that is noted at once
        restored = receipt.next_seq < noted_seq
        if restored or receipt.next_seq >= noted_seq + _NOTE_BATCHES or receipt.server_ms >= noted_ms + _NOTE_MS:
            self._note_receipt()

    def last_receipt(self) -> bytes | None:
        """Return the newest receipt, as signed."""
        if self._unnoted:
            return self._unnoted[1]
        with self._medium():
            rows = self._db.execute("SELECT message, digest FROM receipts ORDER BY day DESC LIMIT 2").fetchall()
        return next((message for message, digest in rows if is_whole(message, digest)), None)

    def _note_receipt(self) -> None:
        if not self._unnoted:
            return
        receipt, message = self._unnoted
        try:
            with self._medium(), _Transaction(self._db):
                self._write_receipt(receipt, message)
        except MediumError as error:  # the next receipt says it again
            _LOG.warning("a receipt is not written down: %s", error)
            return
        self._unnoted = None
        self._noted = receipt.next_seq, receipt.server_ms

    def restore(self, kept: "Kept") -> None:
        """Fill a spool that was just begun with what was kept of a damaged one, in one transaction.

        When the newest command is not known none is obeyed that was issued until now: its number is no less than its
        time of issue, ms (P-CMD-1).
        """
        obeyed = time.time_ns() // 1_000_000 if kept.obeyed is None else kept.obeyed
        with self._medium(), _Transaction(self._db):
            self._put("tip", encode_tip(kept.tip))
            self._put("command", str(obeyed).encode())
            self._put("predecessor", b"".join(kept.predecessor or ()))
            rows = ((seq, message, hashlib.sha256(message).digest()) for seq, message in kept.batches)
            self._db.executemany("INSERT INTO batches VALUES (?, ?, ?)", rows)
            days = ((day, message, hashlib.sha256(message).digest()) for day, message in kept.receipts)
            self._db.executemany("INSERT INTO receipts VALUES (?, ?, ?)", days)
            self._db.executemany("INSERT INTO undated VALUES (?, ?, ?, ?)", kept.undated)
        self.tip = kept.tip

    def _write_receipt(self, receipt: Receipt, message: bytes) -> None:
        """Write a receipt, and free batches that an earlier one covered seven days ago, some at a time."""
        digest = hashlib.sha256(message).digest()
        self._db.execute("INSERT OR REPLACE INTO receipts VALUES (?, ?, ?)", (_day(receipt), message, digest))
        covering = self._receipt_on_or_before(receipt.server_ms - KEEP_AFTER_RECEIPT_MS)
        if covering is not None:
            # one that an earlier receipt covered and this one asks for again stays
            end = min(covering.next_seq, receipt.next_seq, self.oldest_seq() + _MOST_FREED)
            self._db.execute("DELETE FROM batches WHERE seq < ?", (end,))

    def _receipt_on_or_before(self, server_ms: int) -> Receipt | None:
        query = "SELECT message, digest FROM receipts WHERE day <= ? ORDER BY day DESC LIMIT 2"
        with self._medium():
            rows = self._db.execute(query, (server_ms // _DAY_MS,)).fetchall()
        for message, digest in rows:
            if not is_whole(message, digest):
                continue  # then what it covered stays longer
            receipt = decode_receipt(cose.parse(bytes(message)).payload)
            if receipt.server_ms <= server_ms:
                return receipt
        return None

    def _put(self, name: str, value: bytes) -> None:
        self._db.execute("DELETE FROM facts WHERE name = ?", (name,))
        self._db.execute("INSERT INTO facts VALUES (?, ?, ?)", (name, value, row_digest(name, value)))

    @contextmanager
    def _medium(self, seq: int | None = None) -> Iterator[None]:
        """Say of the medium's errors whether they may pass (MediumError) or not (DamagedError)."""
        try:
            yield
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            if may_pass(error):
                text = f"spool {self.path}: {error}; check free space, permissions and the medium"
                raise MediumError(text) from error
            raise DamagedError(f"spool {self.path}: damaged ({error}); it stays as evidence; {RECOVER}", seq) from error


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on an error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            finally:
                self._undo()
        else:
            self._undo()

    def _undo(self) -> None:
        if self._db.in_transaction:  # a full medium has undone it already
            self._db.execute("ROLLBACK")


def open_database(path: Path) -> sqlite3.Connection:
    """Open a spool's file for one writer that loses nothing at a power cut; one of moderate size is read through."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.text_factory = bytes  # a medium can make text of what was written as bytes
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA cache_size=-512")  # KiB: a batch touches a few pages
    if path.stat().st_size <= _CHECKED_WHOLE:
        found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != b"ok":
            raise sqlite3.DatabaseError(" ".join(found.decode(errors="replace").split()))
    if db.execute("PRAGMA user_version").fetchone()[0] not in {0, _VERSION}:
        raise ValueError("another version of the agent wrote it")
    return db


def may_pass(error: Exception) -> bool:
    """Tell whether an error is of a medium that is full, read-only, locked or failing, not of what lies on it."""
    # a table or column that is not there is said by the same kind of error
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_ERROR


def read_fact(db: sqlite3.Connection, name: str) -> bytes | None:
    """Return a named value, None when there is none; ValueError when it is damaged.

    The table has no index: a damaged one would hide rows, or keep an older one beside the newest.
    """
    rows = db.execute("SELECT value, digest FROM facts WHERE name = ?", (name,)).fetchall()
    if not rows:
        return None
    [(value, digest), *others] = rows
    if others or row_digest(name, value) != digest:
        raise ValueError(f"{name}: not what was written")
    return bytes(value)


def _needed(db: sqlite3.Connection, name: str) -> bytes:
    found = read_fact(db, name)
    if found is None:
        raise ValueError(f"{name}: it is gone")
    return found


def read_tip(db: sqlite3.Connection) -> ChainTip:
    """Return the registers and the head; ValueError when they are gone or damaged."""
    return decode_tip(_needed(db, "tip"))


def read_predecessor(db: sqlite3.Connection) -> tuple[bytes, bytes] | None:
    """Return the device and head that the chain goes on after; ValueError when that is gone or damaged."""
    origin = _needed(db, "predecessor")
    return (origin[:16], origin[16:]) if origin else None


def read_obeyed(db: sqlite3.Connection) -> int:
    """Return the number of the newest command that was obeyed, -1 for none; ValueError when it is gone or damaged."""
    return int(_needed(db, "command"))


def read_spool_state(path: Path) -> dict[str, Any]:
    """Read a spool's state without disturbing its agent, for `maxgreen agent status`."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            found = read_fact(db, "tip")
            receipt = db.execute("SELECT message FROM receipts ORDER BY day DESC LIMIT 1").fetchone()
        tip = decode_tip(found) if found else None
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise Fatal(f"spool {path}: {error}; has the agent run yet?") from error
    return {"tip": tip, "receipt": bytes(receipt[0]) if receipt else None}


def is_whole(message: object, digest: object) -> bool:
    """Tell whether bytes are those that a digest was made of; a medium can make anything else of them."""
    return isinstance(message, bytes) and hashlib.sha256(message).digest() == digest


def row_digest(*parts: object) -> bytes:
    """Return a digest of what a row holds."""
    return hashlib.sha256(repr(parts).encode()).digest()


def _day(receipt: Receipt) -> int:
    return receipt.server_ms // _DAY_MS
