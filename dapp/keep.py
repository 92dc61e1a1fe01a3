"""What the pages keep for themselves, in one SQLite file: sessions, tokens of scripts, readers' links, names.

One process at a time has the file (its lock), so what it remembers of it is so.

Secrets are kept as their SHA-256: who reads the file can use none of them.
"""

import hashlib
import secrets
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from maxgreen.errors import Fatal, UsageError

NONCE_MS: Final = 5 * 60_000
SESSION_MS: Final = 7 * 86_400_000
IDLE_MS: Final = 2 * 86_400_000
_SEEN_MS: Final = 3_600_000  # until it is noted again: not a write a request
MOST_TOKEN_DAYS: Final = 366
_MOST_NONCES: Final = 10_000
_MOST_OF_ONE: Final = 50  # tokens, or links, of an account
_MOST_RECENT: Final = 4_096
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS sessions (
  hash BLOB PRIMARY KEY, address TEXT NOT NULL, made_ms INTEGER NOT NULL, seen_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
  id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, address TEXT NOT NULL, label TEXT NOT NULL,
  made_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS links (
  id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, address TEXT NOT NULL, system INTEGER NOT NULL,
  label TEXT NOT NULL, made_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS names (system INTEGER PRIMARY KEY, name TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A token of a script, or a reader's link: its number, label, when it was made and ends (ms; 0: never)."""

    number: int
    label: str
    made_ms: int
    until_ms: int = 0
    system: int = 0


class Keep:
    """The file; any thread may ask."""

    def __init__(self, path: Path | None) -> None:
        """Open the file, or keep all in memory; Fatal when it cannot be used."""
        self._lock = threading.Lock()
        self._recent: dict[bytes, tuple[str, int, int]] = {}  # rows of sessions; empty after each write
        self._nonces: OrderedDict[str, tuple[str | None, int]] = OrderedDict()  # in memory: they last for minutes
        try:
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
            if path is not None:
                path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA busy_timeout=10000")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise Fatal(f"state_file {path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # signing in

    def add_nonce(self, nonce: str, text: str, now_ms: int) -> None:
        """Keep what somebody is asked to sign."""
        with self._lock:
            self._nonces[nonce] = (text, now_ms)
            while len(self._nonces) > _MOST_NONCES:
                self._nonces.popitem(last=False)

    def use_nonce(self, nonce: str, now_ms: int) -> str | None:
        """Return the text of a nonce, which every attempt uses up; None when there is none."""
        with self._lock:
            text, at_ms = self._nonces.pop(nonce, (None, 0))
        return None if at_ms < now_ms - NONCE_MS else text

    def begin_session(self, address: str, now_ms: int) -> str:
        """Return the secret of a new session."""
        secret = secrets.token_urlsafe(32)
        with self._writing() as db:
            db.execute("DELETE FROM sessions WHERE made_ms < ? OR seen_ms < ?", (now_ms - SESSION_MS, now_ms - IDLE_MS))
            newest = "SELECT hash FROM sessions WHERE address = ? ORDER BY seen_ms DESC LIMIT ?"
            query = f"DELETE FROM sessions WHERE address = ? AND hash NOT IN ({newest})"  # noqa: S608
            db.execute(query, (address, address, _MOST_OF_ONE - 1))
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", (_hash(secret), address, now_ms, now_ms))
        return secret

    def session(self, secret: str, now_ms: int) -> str | None:
        """Return whose session it is, or None when it is over."""
        known = self.recent_session(secret, now_ms)
        if known is not None:
            return known
        with self._lock:  # no write may come between the row and its memory
            query = "SELECT address, made_ms, seen_ms FROM sessions WHERE hash = ?"
            row = self._db.execute(query, (_hash(secret),)).fetchone()
            if row is None or row[1] < now_ms - SESSION_MS or row[2] < now_ms - IDLE_MS:
                return None
            if len(self._recent) >= _MOST_RECENT:
                self._recent.clear()
            self._recent[_hash(secret)] = (str(row[0]), int(row[1]), int(row[2]))
        if row[2] < now_ms - _SEEN_MS:
            with self._writing() as db:
                db.execute("UPDATE sessions SET seen_ms = ? WHERE hash = ?", (now_ms, _hash(secret)))
        return str(row[0])

    def recent_session(self, secret: str, now_ms: int) -> str | None:
        """Return whose session it is where that was asked since the last write; None when the file must say it."""
        row = self._recent.get(_hash(secret))
        return row[0] if row is not None and row[1] >= now_ms - SESSION_MS and row[2] >= now_ms - _SEEN_MS else None

    def end_session(self, secret: str) -> None:
        """End a session."""
        with self._writing() as db:
            db.execute("DELETE FROM sessions WHERE hash = ?", (_hash(secret),))

    def end_sessions(self, address: str) -> None:
        """End all sessions of an account, and all tokens of its scripts."""
        with self._writing() as db:
            db.execute("DELETE FROM sessions WHERE address = ?", (address,))
            db.execute("DELETE FROM tokens WHERE address = ?", (address,))

    # tokens of scripts

    def add_token(self, address: str, label: str, days: int, now_ms: int) -> str:
        """Return the secret of a new token; it is shown once."""
        if not 1 <= days <= MOST_TOKEN_DAYS:
            raise UsageError(f"a token lives 1 to {MOST_TOKEN_DAYS} days")
        secret = f"mgt_{secrets.token_urlsafe(32)}"
        with self._writing() as db:
            db.execute("DELETE FROM tokens WHERE until_ms <= ?", (now_ms,))
            self._bound(db, "tokens", address)
            values = (_hash(secret), address, label[:100], now_ms, now_ms + days * 86_400_000)
            db.execute("INSERT INTO tokens (hash, address, label, made_ms, until_ms) VALUES (?, ?, ?, ?, ?)", values)
        return secret

    def token(self, secret: str, now_ms: int) -> str | None:
        """Return whose token it is, or None when it is over."""
        row = self._one("SELECT address, until_ms FROM tokens WHERE hash = ?", _hash(secret))
        return None if row is None or row[1] <= now_ms else str(row[0])

    def tokens(self, address: str) -> list[Kept]:
        """Return the tokens of an account."""
        query = "SELECT id, label, made_ms, until_ms FROM tokens WHERE address = ? ORDER BY id"
        with self._lock:
            return [Kept(*row) for row in self._db.execute(query, (address,))]

    def end_token(self, address: str, number: int) -> None:
        """End a token of an account."""
        with self._writing() as db:
            db.execute("DELETE FROM tokens WHERE id = ? AND address = ?", (number, address))

    # readers' links

    def add_link(self, address: str, system: int, label: str, now_ms: int) -> str:
        """Return the secret of a link with which somebody may look at a system; it is shown once."""
        secret = secrets.token_urlsafe(24)
        with self._writing() as db:
            self._bound(db, "links", address)
            values = (_hash(secret), address, system, label[:100], now_ms)
            db.execute("INSERT INTO links (hash, address, system, label, made_ms) VALUES (?, ?, ?, ?, ?)", values)
        return secret

    def link(self, secret: str) -> tuple[str, int] | None:
        """Return who gave a link, and of which system it is; None when it was taken back."""
        row = self._one("SELECT address, system FROM links WHERE hash = ?", _hash(secret))
        return None if row is None else (str(row[0]), int(row[1]))

    def links(self, address: str, system: int) -> list[Kept]:
        """Return the links to a system that an account gave."""
        query = "SELECT id, label, made_ms, 0, system FROM links WHERE address = ? AND system = ? ORDER BY id"
        with self._lock:
            return [Kept(*row) for row in self._db.execute(query, (address, system))]

    def end_link(self, address: str, number: int) -> None:
        """Take a link back."""
        with self._writing() as db:
            db.execute("DELETE FROM links WHERE id = ? AND address = ?", (number, address))

    # names

    def name_system(self, system: int, name: str) -> None:
        """Give a system a name; none takes it away."""
        with self._writing() as db:
            db.execute("DELETE FROM names WHERE system = ?", (system,))
            if name.strip():
                db.execute("INSERT INTO names VALUES (?, ?)", (system, name.strip()[:60]))

    def names(self) -> dict[int, str]:
        """Return the names that owners gave."""
        with self._lock:
            return dict(self._db.execute("SELECT system, name FROM names").fetchall())

    @staticmethod
    def _bound(db: sqlite3.Connection, table: str, address: str) -> None:
        count = db.execute(f"SELECT count(*) FROM {table} WHERE address = ?", (address,)).fetchone()[0]  # noqa: S608
        if count >= _MOST_OF_ONE:
            raise UsageError(f"you have {count} of these already; end one first")

    def _one(self, query: str, value: Any) -> Any:
        with self._lock:
            return self._db.execute(query, (value,)).fetchone()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._recent.clear()
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
