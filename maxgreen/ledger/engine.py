"""Opening the ledger's database: SQLite (WAL, FULL) or PostgreSQL, migrated to the newest schema.

A database that is away, full or locked is `Retryable`, here and wherever the engine is used.
"""

import math
import sqlite3
import threading
import time
from collections.abc import MutableMapping
from functools import partial
from importlib.resources import files
from typing import Any, Final
from weakref import WeakKeyDictionary

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Dialect, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DisconnectionError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from maxgreen.errors import Fatal, Retryable
from maxgreen.ledger.arrays import Array, dumper

_BUSY_MS: Final = 30_000
_CACHE_KIB: Final = 16_384
_SECRET: Final = ("password", "sslpassword")
_CONNECT_S: Final = 10
_SILENT_MS: Final = 30_000
_FRESH_S: Final = 0.1  # so long a connection need not be asked whether it lives
_EXPECTED: Final = "; expected sqlite:///FILE or postgresql://USER@HOST/NAME"
_readers: MutableMapping[Engine, Engine] = WeakKeyDictionary()
_reading: Final = threading.Lock()  # guards it
_MIGRATING: Final = 0x6D617867
# what a database that works may answer for a while
_PASSING: Final = {
    "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY",
    "SQLITE_NOMEM", "SQLITE_PROTOCOL", "SQLITE_INTERRUPT",
}  # fmt: skip
# connection, resources, operator, system; read-only, serialisation, deadlock, lock
_PASSING_CLASSES: Final = {"08", "53", "57", "58"}
_PASSING_STATES: Final = {"25006", "40001", "40P01", "55P03"}
_POSTGRES: Final = {
    "connect_timeout": _CONNECT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": _SILENT_MS,
    "options": f"-c lock_timeout={2 * _SILENT_MS}",
}


class ConflictError(Exception):
    """Another process was first: what was read is no more so, and nothing was written."""


class LedgerAwayError(Retryable):
    """The database does not answer, has no room, or somebody holds its lock."""


def open_engine(url: str) -> Engine:
    """Open a database by its SQLAlchemy URL and migrate it; Fatal when it cannot be, Retryable while it is away."""
    try:
        engine = _engine(url)
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # one process migrates, others wait for it
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATING})")
            config = Config()
            config.set_main_option("script_location", str(files("maxgreen.ledger").joinpath("migrations")))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise Fatal(
            f"ledger {_shown(url)}: made by a version that this one does not know ({error}); use the version that made "
            "it, or begin a new ledger"
        ) from error
    except LedgerAwayError as error:
        if engine.dialect.name == "sqlite" and "unable to open" in str(error):  # such a file does not come
            raise Fatal(f"ledger {_shown(url)}: {error}") from error
        raise
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        hint = "; install maxgreen[postgres]" if str(error) == "No module named 'psycopg'" else _EXPECTED
        raise Fatal(f"ledger {_shown(url)}: {type(error).__name__}{hint}") from error
    except SQLAlchemyError as error:
        text = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        hint = "; its user must own it: CREATE DATABASE name OWNER user" if "permission denied" in text else ""
        raise Fatal(f"ledger {_shown(url)}: {text}{hint}") from error
    return engine


def unmigrated(url: str) -> Engine:
    """Return an engine of a database as it is."""
    return _engine(url)


def without_password(url: URL) -> URL:
    """Return a URL without its password, wherever that stands in it."""
    query = {name: value for name, value in url.query.items() if name not in _SECRET}
    return URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query)


def password_of(url: URL) -> str | None:
    """Return a URL's password, wherever that stands in it."""
    return url.password or next((str(url.query[name]) for name in _SECRET if name in url.query), None)


def reader(engine: Engine) -> Engine:
    """Return an engine for those who only read: each transaction sees one state, and no writer waits for it."""
    if engine.dialect.name == "sqlite":
        with _reading:
            if engine not in _readers:
                _readers[engine] = _engine(engine.url.render_as_string(hide_password=False), read_only=True)
            return _readers[engine]
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def glance(engine: Engine) -> Engine:
    """Return an engine for those whose statements stand alone: PostgreSQL is asked for no transaction around each."""
    return reader(engine) if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="AUTOCOMMIT")


def close(engine: Engine) -> None:
    """Close what an engine and its readers have open: the last connection of a SQLite file leaves it in one file."""
    with _reading:
        readers = _readers.pop(engine, None)
    for one in filter(None, (readers, engine)):
        one.dispose()


def _engine(url: str, *, read_only: bool = False) -> Engine:
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        engine = create_engine(address)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_reading if read_only else _begin_writing)
    else:
        if address.drivername == "postgresql":  # SQLAlchemy would look for psycopg2
            address = address.set(drivername="postgresql+psycopg")
        engine = create_engine(address, connect_args=_POSTGRES)
        event.listen(engine, "connect", _prepare_postgres)
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", partial(_ping, engine.dialect))
    event.listen(engine, "handle_error", _translate)
    return engine


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used_s"] = time.monotonic()


def _ping(dialect: Dialect, connection: Any, record: Any, _pool: Any) -> None:
    """Let a connection that broke while it was idle be replaced; one that was in use a moment ago is not asked."""
    if time.monotonic() - record.info.get("used_s", math.inf) <= _FRESH_S:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise DisconnectionError(str(error)) from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")


def _prepare_postgres(connection: Any, _record: Any) -> None:
    connection.adapters.register_dumper(Array, dumper())


def _begin_writing(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_reading(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN DEFERRED")


def _translate(context: ExceptionContext) -> None:
    """Let a database that is away raise LedgerAwayError instead of SQLAlchemy's error."""
    error = context.original_exception
    passing = context.is_disconnect or isinstance(context.sqlalchemy_exception, (OperationalError, InterfaceError))
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "") or ""
        passing = any(name.startswith(known) for known in _PASSING)
    passing = passing or is_passing(getattr(error, "sqlstate", None))
    if passing:
        raise LedgerAwayError(
            f"the ledger's database: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def is_passing(sqlstate: str | None) -> bool:
    """Tell whether PostgreSQL answers so only for a while (its manual, appendix A)."""
    return sqlstate is not None and (sqlstate[:2] in _PASSING_CLASSES or sqlstate in _PASSING_STATES)


def _shown(url: str) -> str:
    try:
        return without_password(make_url(url)).render_as_string()
    except (ArgumentError, ValueError):
        return "(a URL that cannot be read)"  # and may hold a password
