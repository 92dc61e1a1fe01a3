"""Many rows in one statement, by the quickest way that each database's driver has.

SQLite runs a statement for each row in C; PostgreSQL is sent the columns as arrays, or a COPY.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Dialect, Table

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


def insert_many(connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[_Row]) -> None:
    """Insert rows, given as values of `columns`."""
    names = ", ".join(columns)
    if connection.dialect.name == "postgresql":
        _copy(connection, f"COPY {table.name} ({names}) FROM STDIN", rows)
        return
    marks = ", ".join("?" * len(columns))
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", list(rows))  # noqa: S608


def update_many(
    connection: Connection, table: Table, columns: Sequence[str], keys: Sequence[str], rows: Sequence[_Row]
) -> int:
    """Update rows, given as values of `columns` and `keys`; return how many there were."""
    if connection.dialect.name == "postgresql":
        arrays = _arrays(connection.dialect, table, (*columns, *keys))
        names = ", ".join(f"v{k}" for k in range(len(columns) + len(keys)))
        values = ", ".join(f"{name} = v{k}" for k, name in enumerate(columns))
        where = " AND ".join(f"{table.name}.{name} = v{k}" for k, name in enumerate(keys, len(columns)))
        statement = f"UPDATE {table.name} SET {values} FROM unnest({arrays}) AS v({names}) WHERE {where}"  # noqa: S608
        return connection.exec_driver_sql(statement, _columns(rows)).rowcount
    values = ", ".join(f"{name} = ?" for name in columns)
    where = " AND ".join(f"{name} = ?" for name in keys)
    return connection.exec_driver_sql(f"UPDATE {table.name} SET {values} WHERE {where}", list(rows)).rowcount  # noqa: S608


def upsert_many(
    connection: Connection, table: Table, merges: Mapping[str, str], rows: Sequence[_Row], *, newest: str = ""
) -> None:
    """Insert rows, given as values of the primary key and the merged columns, or merge them with what is there.

    What has a higher `newest` stays as it is. No two rows have one key.
    """
    if not rows:
        return
    keys = [column.name for column in table.primary_key]
    columns = [*keys, *merges]
    names = ", ".join(columns)
    values = ", ".join(f"{name} = {how.format(table=table.name, column=name)}" for name, how in merges.items())
    where = f" WHERE {table.name}.{newest} <= excluded.{newest}" if newest else ""
    conflict = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {values}{where}"
    if connection.dialect.name == "postgresql":
        arrays = _arrays(connection.dialect, table, tuple(columns))
        statement = f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) {conflict}"  # noqa: S608
        connection.exec_driver_sql(statement, _columns(rows))
        return
    marks = ", ".join("?" * len(columns))
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({marks}) {conflict}", list(rows))  # noqa: S608


@lru_cache(64)
def _arrays(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> str:
    return ", ".join(f"%b::{table.c[name].type.compile(dialect=dialect)}[]" for name in columns)


def _columns(rows: Sequence[_Row]) -> _Row:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _copy(connection: Connection, statement: str, rows: Sequence[_Row]) -> None:
    """Copy rows into PostgreSQL; its driver's errors become what SQLAlchemy's would."""
    import psycopg  # noqa: PLC0415 - only where PostgreSQL is used

    cursor: Any = connection.connection.cursor()
    try:
        with cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.IntegrityError as error:
        raise ConflictError(str(error)) from error
    except psycopg.Error as error:
        away = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) or is_passing(error.sqlstate)
        raise (LedgerAwayError(f"the ledger's database: {error}") if away else error) from error
