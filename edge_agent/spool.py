"""The spool: signed batches and the registers behind them, in one SQLite transaction each.

A batch leaves only when a signed receipt says that the ledger has it (P-RCT-2).
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edge_agent.source import Tick
from maxgreen.errors import Fatal
from maxgreen.protocol.backend import Receipt
from maxgreen.verify.meter import MeterState, Sample

KEEP_AFTER_RECEIPT_MS: Final = 7 * 86_400_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY, message BLOB NOT NULL, digest BLOB NOT NULL, receipted_ms INTEGER
);
CREATE TABLE IF NOT EXISTS receipts (day INTEGER PRIMARY KEY, message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS undated (
    boot BLOB NOT NULL, boot_ms INTEGER NOT NULL, samples TEXT NOT NULL, PRIMARY KEY (boot, boot_ms)
);
"""


@dataclass(frozen=True, slots=True)
class ChainTip:
    """What the next batch is built on; committed in one transaction with the batch before it (P-BAT-3)."""

    next_seq: int
    head: bytes
    boot: bytes = b""
    birth: bytes = b""
    opened: bool = False  # the opening attestation of every channel was sealed
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

    def __init__(self, path: Path, genesis_head: bytes) -> None:
        """Open or make the spool; Fatal when it is damaged."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            row = self._db.execute("SELECT value FROM state").fetchone()
        except sqlite3.DatabaseError as error:
            raise Fatal(f"spool {path}: {error}; set the file aside and keep it: it is evidence") from error
        path.chmod(0o600)
        self.tip = _tip_from_json(json.loads(row[0])) if row else ChainTip(0, genesis_head)

    def close(self) -> None:
        """Close the file."""
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

    def oldest_seq(self) -> int:
        """Return the oldest seq in the spool; the next one when it is empty."""
        row = self._db.execute("SELECT min(seq) FROM batches").fetchone()
        return self.tip.next_seq if row[0] is None else int(row[0])

    def waiting(self) -> int:
        """Return how many batches have no receipt."""
        return int(self._db.execute("SELECT count(*) FROM batches WHERE receipted_ms IS NULL").fetchone()[0])

    def receipted(self, receipt: Receipt, message: bytes) -> None:
        """Note a receipt: what it covers may go seven days later; the day's last is kept for ever (P-RCT-4)."""
        with self._transaction():
            self._db.execute(
                "UPDATE batches SET receipted_ms = ? WHERE seq < ? AND receipted_ms IS NULL",
                (receipt.server_ms, receipt.next_seq),
            )
            self._db.execute(
                "DELETE FROM batches WHERE receipted_ms <= ?", (receipt.server_ms - KEEP_AFTER_RECEIPT_MS,)
            )
            day = receipt.server_ms // 86_400_000
            self._db.execute("INSERT OR REPLACE INTO receipts VALUES (?, ?)", (day, message))

    def last_receipt(self) -> bytes | None:
        """Return the newest receipt, as signed."""
        row = self._db.execute("SELECT message FROM receipts ORDER BY day DESC LIMIT 1").fetchone()
        return bytes(row[0]) if row else None

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on an error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


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


def _tip_json(tip: ChainTip) -> dict[str, Any]:
    return {
        "next_seq": tip.next_seq,
        "head": tip.head.hex(),
        "boot": tip.boot.hex(),
        "birth": tip.birth.hex(),
        "opened": tip.opened,
        "meters": {str(number): asdict(meter) for number, meter in tip.meters.items()},
    }


def _tip_from_json(value: Mapping[str, Any]) -> ChainTip:
    return ChainTip(
        next_seq=value["next_seq"],
        head=bytes.fromhex(value["head"]),
        boot=bytes.fromhex(value["boot"]),
        birth=bytes.fromhex(value["birth"]),
        opened=value["opened"],
        meters={
            int(number): MeterState(**{**meter, "last": Sample(**meter["last"]) if meter["last"] else None})
            for number, meter in value["meters"].items()
        },
    )
