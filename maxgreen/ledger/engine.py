"""Opening the ledger's database: SQLite (WAL, FULL) or PostgreSQL, migrated to the newest schema."""

from importlib.resources import files
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from maxgreen.errors import Fatal

_BUSY_MS: Final = 30_000


def open_engine(url: str) -> Engine:
    """Open a database by its SQLAlchemy URL and migrate it; Fatal when it cannot be."""
    try:
        engine = create_engine(url)
        if make_url(url).get_backend_name() == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        with engine.begin() as connection:
            config = Config()
            config.set_main_option("script_location", str(files("maxgreen.ledger").joinpath("migrations")))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (ArgumentError, OperationalError) as error:
        raise Fatal(f"ledger {url}: {error}") from error
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")


def _begin_sqlite(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
