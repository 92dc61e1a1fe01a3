"""The spool: signed batches and the registers behind them, in one SQLite transaction each.

A batch leaves only when a signed receipt says that the ledger has it (P-RCT-2).
"""

import hashlib
import json
import logging
import sqlite3
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edge_agent.source import Tick
from maxgreen.errors import Fatal, Retryable
from maxgreen.keyfile import sync_folder
from maxgreen.protocol.backend import Receipt
from maxgreen.protocol.batch import Batch, parse_batch
from maxgreen.verify.meter import MeterState, Sample

KEEP_AFTER_RECEIPT_MS: Final = 7 * 86_400_000
_NOTE_BATCHES: Final = 10
_NOTE_MS: Final = 600_000
_LOG: Final = logging.getLogger(__name__)
RECOVER: Final = (
    "stop the agent and run 'maxgreen agent recover': it makes a new key that goes on from the last receipt"
)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY, message BLOB NOT NULL, digest BLOB NOT NULL, receipted_ms INTEGER
);
CREATE TABLE IF NOT EXISTS receipts (day INTEGER PRIMARY KEY, message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS undated (
    boot BLOB NOT NULL, boot_ms INTEGER NOT NULL, samples TEXT NOT NULL, PRIMARY KEY (boot, boot_ms)
);
CREATE TABLE IF NOT EXISTS predecessor (
    id INTEGER PRIMARY KEY CHECK (id = 1), device BLOB NOT NULL, head BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS command (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class ChainTip:
    """What the next batch is built on; committed in one transaction with the batch before it (P-BAT-3)."""

    next_seq: int
    head: bytes
    boot: bytes = b""
    birth: bytes = b""
    opened: bool = False  # the opening attestation of every channel was sealed
    closed: bool = False  # the key's last batch was sealed (event 6)
    meters: Mapping[int, MeterState] = field(default_factory=dict)

    @property
    def last_boot_ms(self) -> int:
        """Boot time of the last sealed sample of this boot; -1 when there is none."""
        return max((m.last.boot_ms for m in self.meters.values() if m.last), default=-1)

    def entered(self, boot: bytes) -> "ChainTip":
        """Return the tip as seen in `boot`: nothing is counted across a boot (P-BAT-4)."""
        if boot == self.boot:
            return self
        meters = {n: replace(m, last=None, last_power_pw=0) for n, m in self.meters.items()}
        return replace(self, boot=boot, birth=b"", meters=meters)


class Spool:
    """The agent's only durable state beside its keys."""

    def __init__(self, path: Path, genesis_head: bytes, *, predecessor: tuple[bytes, bytes] | None = None) -> None:
        """Open or make the spool; `predecessor`: a new one goes on after that device and head (field 14).

        Fatal when it is damaged, or gone: registers are never invented.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        begun = path.with_name(f"{path.name}.begun")
        if begun.exists() and not path.exists():
            raise Fatal(f"spool {path}: it is gone, and with it this key's registers; {RECOVER}")
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA cache_size=-512")  # KiB: a batch touches a few pages
            _check(self._db)
            self._db.executescript(_SCHEMA)
            row = self._db.execute("SELECT value FROM state").fetchone()
            if predecessor is not None:
                self._db.execute("INSERT OR IGNORE INTO predecessor VALUES (1, ?, ?)", predecessor)
            origin = self._db.execute("SELECT device, head FROM predecessor").fetchone()
            self.tip = _tip_from_json(json.loads(row[0])) if row else ChainTip(0, genesis_head)
        except (sqlite3.DatabaseError, ValueError, KeyError) as error:
            if isinstance(error, sqlite3.OperationalError):  # full, read-only, locked: not damaged
                raise Retryable(f"spool {path}: {error}; check free space, permissions and the medium") from error
            raise Fatal(f"spool {path}: damaged ({error}); it stays as evidence; {RECOVER}") from error
        self._unnoted: tuple[Receipt, bytes] | None = None
        self._noted = (-_NOTE_BATCHES, -_NOTE_MS)
        unreceipted = self._db.execute("SELECT min(seq) FROM batches WHERE receipted_ms IS NULL").fetchone()[0]
        self._receipted_seq: int = self.tip.next_seq if unreceipted is None else unreceipted
        path.chmod(0o600)
        if not begun.exists():
            # the file itself and its name are durable before the first batch, not only its write-ahead log
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            begun.touch(mode=0o600)
            sync_folder(path.parent)
        self.predecessor: tuple[bytes, bytes] | None = (bytes(origin[0]), bytes(origin[1])) if origin else None

    def close(self) -> None:
        """Note what is known and close the file."""
        self._note_receipt()
        self._db.close()

    def append(self, message: bytes, tip: ChainTip) -> None:
        """Commit a signed batch together with the registers and the head that follow from it."""
        digest = hashlib.sha256(message).digest()
        if tip.head != digest or tip.next_seq != self.tip.next_seq + 1:
            raise ValueError("the tip does not follow from the message")
        with self._transaction():
            self._db.execute("INSERT INTO batches VALUES (?, ?, ?, NULL)", (self.tip.next_seq, message, digest))
            self._db.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (json.dumps(_tip_json(tip)),))
            self._db.execute("DELETE FROM undated WHERE boot = ? AND boot_ms <= ?", (tip.boot, tip.last_boot_ms))
        self.tip = tip

    def obeyed(self) -> int:
        """Return the number of the newest command that was obeyed; -1 when there was none (P-CMD-1)."""
        row = self._db.execute("SELECT number FROM command").fetchone()
        return int(row[0]) if row else -1

    def obey(self, number: int) -> None:
        """Note a command before it is obeyed, so that no restart obeys it again (P-CMD-1)."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO command VALUES (1, ?)", (number,))

    def used_bytes(self) -> int:
        """Return how much of the file is in use; what receipts freed is used again."""
        pages, free, size = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def hold(self, boot: bytes, ticks: Sequence[Tick]) -> None:
        """Keep ticks that have no date yet; the batch that seals one takes it away in its transaction (P-BAT-7)."""
        if not ticks:
            return
        rows = [(boot, t.boot_ms, json.dumps({n: astuple(s) for n, s in t.samples.items()})) for t in ticks]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO undated VALUES (?, ?, ?)", rows)

    def held_ticks(self) -> tuple[bytes, list[Tick]]:
        """Return the ticks without a date and the boot that they are of; empty when there is none."""
        rows = list(self._db.execute("SELECT boot, boot_ms, samples FROM undated ORDER BY boot_ms"))
        ticks = [
            Tick(None, boot_ms, {int(n): Sample(*values) for n, values in json.loads(samples).items()})
            for _, boot_ms, samples in rows
        ]
        return (bytes(rows[0][0]) if rows else b""), ticks

    def messages(self, from_seq: int, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` spooled batches from `from_seq` on."""
        query = "SELECT seq, message FROM batches WHERE seq >= ? ORDER BY seq LIMIT ?"
        return [(int(seq), bytes(message)) for seq, message in self._db.execute(query, (from_seq, limit))]

    def digest(self, seq: int) -> bytes | None:
        """Return the SHA-256 of a spooled batch, or None when it is gone or was never made."""
        row = self._db.execute("SELECT digest FROM batches WHERE seq = ?", (seq,)).fetchone()
        return bytes(row[0]) if row else None

    def registers_before(self, t_ms: int) -> dict[int, int]:
        """Return each channel's register, mW·s, after the last spooled batch that began before `t_ms`."""
        low, high = self.oldest_seq(), self.tip.next_seq
        if low == high:
            return {}
        found = bisect_left(range(low, high), t_ms, key=lambda seq: self._batch(seq).t0_ms) + low
        batch = self._batch(max(found - 1, low))
        return {channel.number: channel.register_mws for channel in batch.channels}

    def _batch(self, seq: int) -> Batch:
        return parse_batch(self.messages(seq, 1)[0][1]).batch

    def oldest_seq(self) -> int:
        """Return the oldest seq in the spool; the next one when it is empty."""
        row = self._db.execute("SELECT min(seq) FROM batches").fetchone()
        return self.tip.next_seq if row[0] is None else int(row[0])

    def waiting(self) -> int:
        """Return how many batches have no receipt."""
        return self.tip.next_seq - max(self.oldest_seq(), self._receipted_seq)

    def receipted(self, receipt: Receipt, message: bytes) -> None:
        """Note a receipt: what it covers may go seven days later; the day's last is kept for ever (P-RCT-4).

        It is written down every ten batches or ten minutes: one that a power cut takes comes again, and a medium lasts.
        """
        if self._unnoted and _day(self._unnoted[0]) != _day(receipt):
            self._note_receipt()
        self._unnoted = receipt, message
        noted_seq, noted_ms = self._noted
        self._receipted_seq = receipt.next_seq
        if receipt.next_seq >= noted_seq + _NOTE_BATCHES or receipt.server_ms >= noted_ms + _NOTE_MS:
            self._note_receipt()

    def last_receipt(self) -> bytes | None:
        """Return the newest receipt, as signed."""
        if self._unnoted:
            return self._unnoted[1]
        row = self._db.execute("SELECT message FROM receipts ORDER BY day DESC LIMIT 1").fetchone()
        return bytes(row[0]) if row else None

    def _note_receipt(self) -> None:
        if not self._unnoted:
            return
        receipt, message = self._unnoted
        try:
            self._write_receipt(receipt, message)
        except sqlite3.OperationalError as error:  # the next receipt says it again
            _LOG.warning("spool: a receipt is not written down: %s", error)
            return
        self._unnoted = None
        self._noted = receipt.next_seq, receipt.server_ms

    def _write_receipt(self, receipt: Receipt, message: bytes) -> None:
        with self._transaction():
            self._db.execute(
                "UPDATE batches SET receipted_ms = ? WHERE seq < ? AND receipted_ms IS NULL",
                (receipt.server_ms, receipt.next_seq),
            )
            # a ledger that was restored from a backup asks again for what it had receipted
            self._db.execute("UPDATE batches SET receipted_ms = NULL WHERE seq >= ?", (receipt.next_seq,))
            self._db.execute(
                "DELETE FROM batches WHERE receipted_ms <= ? AND seq < ?",
                (receipt.server_ms - KEEP_AFTER_RECEIPT_MS, receipt.next_seq),
            )
            self._db.execute("INSERT OR REPLACE INTO receipts VALUES (?, ?)", (_day(receipt), message))

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)


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


def read_spool_state(path: Path) -> dict[str, Any]:
    """Read a spool's state without disturbing its agent, for `maxgreen agent status`."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT value FROM state").fetchone()
            waiting = db.execute("SELECT count(*) FROM batches WHERE receipted_ms IS NULL").fetchone()[0]
            receipt = db.execute("SELECT message FROM receipts ORDER BY day DESC LIMIT 1").fetchone()
    except sqlite3.Error as error:
        raise Fatal(f"spool {path}: {error}; has the agent run yet?") from error
    tip = _tip_from_json(json.loads(row[0])) if row else None
    return {"tip": tip, "waiting": int(waiting), "receipt": bytes(receipt[0]) if receipt else None}


def _check(db: sqlite3.Connection) -> None:
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(found.split()))


def _day(receipt: Receipt) -> int:
    return receipt.server_ms // 86_400_000


def _tip_json(tip: ChainTip) -> dict[str, Any]:
    return {
        "next_seq": tip.next_seq,
        "head": tip.head.hex(),
        "boot": tip.boot.hex(),
        "birth": tip.birth.hex(),
        "opened": tip.opened,
        "closed": tip.closed,
        "meters": {str(number): asdict(meter) for number, meter in tip.meters.items()},
    }


def _tip_from_json(value: Mapping[str, Any]) -> ChainTip:
    return ChainTip(
        next_seq=value["next_seq"],
        head=bytes.fromhex(value["head"]),
        boot=bytes.fromhex(value["boot"]),
        birth=bytes.fromhex(value["birth"]),
        opened=value["opened"],
        closed=value.get("closed", False),
        meters={
            int(number): MeterState(**{**meter, "last": Sample(**meter["last"]) if meter["last"] else None})
            for number, meter in value["meters"].items()
        },
    )
