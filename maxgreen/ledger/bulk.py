"""Many rows in a statement, and many statements in a round trip: the quickest way that each database's driver has.

SQLite runs a statement for each row in C. PostgreSQL is sent the columns as arrays, and all the statements of a Bulk
together (its protocol's pipeline), since to wait for an answer to each costs more than what it does.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sqlalchemy import ARRAY, Column, ColumnElement, Connection, Dialect, Table, any_, bindparam

from maxgreen.ledger.arrays import array_of
from maxgreen.ledger.engine import ConflictError, LedgerAwayError, is_passing

# how an upsert merges a column with what is there
ADD: Final = "{table}.{column} + excluded.{column}"
MOST: Final = "CASE WHEN excluded.{column} > {table}.{column} THEN excluded.{column} ELSE {table}.{column} END"
OR: Final = "{table}.{column} | excluded.{column}"
NEW: Final = "excluded.{column}"
_Row = tuple[Any, ...]
_NAMED: Final = 10_000  # values of one statement, or pairs of them
T = TypeVar("T")


def portions(items: Sequence[T], most: int = _NAMED) -> Iterator[list[T]]:
    """Yield items in parts of at most so many: as many as one statement can name, where nothing else is said."""
    for start in range(0, len(items), most):
        yield list(items[start : start + most])


def one_of(dialect: Dialect, column: Column[Any], name: str) -> ColumnElement[bool]:
    """Tell that a column is one of a parameter's values: of one text for however many, which PostgreSQL prepares."""
    if dialect.name == "postgresql":
        return column == any_(bindparam(name, type_=ARRAY(column.type)))
    return column.in_(bindparam(name, expanding=True))


class Bulk:
    """Statements of one transaction, in their order; whether they went well is known at its end, as a context manager.

    ConflictError when a row that was to be updated is not there, or one that was to be inserted is. Nothing else uses
    the connection meanwhile.
    """

    def __init__(self, connection: Connection) -> None:
        """`connection` is in a transaction, which is the caller's to end."""
        self._db = connection
        self._raw: Any = None  # PostgreSQL's own connection
        self._updates: list[tuple[Any, int]] = []  # cursors, and how many rows each must change
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin."""
        if self._db.dialect.name == "postgresql":
            self._stack.enter_context(_translated())
            self._raw = self._db.connection.driver_connection
            self._stack.enter_context(self._raw.pipeline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for what was not waited for."""
        self._stack.__exit__(kind, error, traceback)
        if error is None and any(cursor.rowcount != count for cursor, count in self._updates):
            raise ConflictError("a row is not as it was read")

    def insert(self, table: Table, columns: Sequence[str], rows: Sequence[_Row], conflict: str = "") -> None:
        """Insert rows, given as values of `columns`; `conflict` says what else becomes of one that is there."""
        if not rows:
            return
        if self._raw is not None:
            source = f"SELECT * FROM unnest({_arrays(self._db.dialect, table, tuple(columns))})"  # noqa: S608
        else:
            source = f"VALUES ({', '.join('?' * len(columns))})"
        self._run(f"INSERT INTO {table.name} ({', '.join(columns)}) {source} {conflict}", table, columns, rows)

    def update(self, table: Table, columns: Sequence[str], keys: Sequence[str], rows: Sequence[_Row]) -> None:
        """Update rows, given as values of `columns` and `keys`: each must be there."""
        if not rows:
            return
        if self._raw is not None:
            arrays = _arrays(self._db.dialect, table, (*columns, *keys))
            names = ", ".join(f"v{k}" for k in range(len(columns) + len(keys)))
            values = ", ".join(f"{name} = v{k}" for k, name in enumerate(columns))
            where = " AND ".join(f"{table.name}.{name} = v{k}" for k, name in enumerate(keys, len(columns)))
            statement = f"UPDATE {table.name} SET {values} FROM unnest({arrays}) AS v({names}) WHERE {where}"  # noqa: S608
        else:
            values = ", ".join(f"{name} = ?" for name in columns)
            where = " AND ".join(f"{name} = ?" for name in keys)
            statement = f"UPDATE {table.name} SET {values} WHERE {where}"  # noqa: S608
        self._updates.append((self._run(statement, table, [*columns, *keys], rows), len(rows)))

    def upsert(self, table: Table, merges: Mapping[str, str], rows: Sequence[_Row], *, newest: str = "") -> None:
        """Insert rows, given as values of the primary key and the merged columns, or merge them with what is there.

        What has a higher `newest` stays as it is. No two rows have one key.
        """
        keys = [column.name for column in table.primary_key]
        values = ", ".join(f"{name} = {how.format(table=table.name, column=name)}" for name, how in merges.items())
        where = f" WHERE {table.name}.{newest} <= excluded.{newest}" if newest else ""
        conflict = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {values}{where}"
        self.insert(table, [*keys, *merges], rows, conflict)

    def rows(self, statement: str, values: _Row) -> list[_Row]:
        """Run a statement, its values marked by `?`, and return its rows."""
        if self._raw is None:
            return [tuple(row) for row in self._db.exec_driver_sql(statement, values)]
        found: list[_Row] = self._raw.execute(statement.replace("?", "%s"), values).fetchall()
        return found

    def _run(self, statement: str, table: Table, columns: Sequence[str], rows: Sequence[_Row]) -> Any:
        if self._raw is None:
            return self._db.exec_driver_sql(statement, list(rows))
        kinds = (table.c[name].type for name in columns)
        return self._raw.execute(statement, tuple(map(array_of, kinds, zip(*rows, strict=True))))


@lru_cache(64)
def _arrays(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> str:
    return ", ".join(f"%b::{table.c[name].type.compile(dialect=dialect)}[]" for name in columns)


@contextmanager
def _translated() -> Iterator[None]:
    """Let errors of PostgreSQL's driver be what SQLAlchemy's would become."""
    import psycopg  # noqa: PLC0415 - only where PostgreSQL is used

    try:
        yield
    except psycopg.IntegrityError as error:
        raise ConflictError(str(error)) from error
    except psycopg.Error as error:
        away = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) or is_passing(error.sqlstate)
        raise (LedgerAwayError(f"the ledger's database: {error}") if away else error) from error
