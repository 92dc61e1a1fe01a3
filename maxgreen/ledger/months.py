"""The partitions of `batches` on PostgreSQL: one for each month of arrival, made before it begins.

What has no month of its own goes to `batches_other`: nothing depends on a partition being there. The pair (device, seq)
is unique within each; across them it is since the device's chain row is compared and set with every batch
(docs/decisions/0016-months.md).
"""

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from maxgreen.errors import Retryable

_AHEAD: Final = 2  # months beside the present one
_TAKEN: Final = {"42P17", "23514"}  # overlaps another partition; rows of it are in the default partition
_LOCK_MS: Final = 2_000  # who reads for long is not waited for, or everybody else would wait behind us


def make_months(engine: Engine, now_ms: int) -> list[str]:
    """Make the partitions of this month and the next; return the new ones' names. Retryable while others read."""
    if engine.dialect.name != "postgresql":
        return []
    made = []
    begin = _month_of(now_ms)
    for _ in range(_AHEAD + 1):
        end = begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
        with engine.begin() as connection:
            if _make(connection, f"batches_{begin:%Y_%m}", _ms(begin), _ms(end)):
                made.append(f"batches_{begin:%Y_%m}")
        begin = end
    return made


def _make(connection: Connection, name: str, begin_ms: int, end_ms: int) -> bool:
    """Make a partition; False when there is one for its time, or there are batches of it in another already."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_MS}")
    if not connection.exec_driver_sql("SELECT pg_try_advisory_xact_lock(hashtext('batches'))").scalar():
        raise Retryable("another service makes the ledger's months")
    if connection.exec_driver_sql(f"SELECT to_regclass('{name}')").scalar() is not None:
        return False
    statements = [
        f"CREATE TABLE {name} (LIKE batches INCLUDING DEFAULTS, UNIQUE (device, seq))",
        f"ALTER TABLE batches ATTACH PARTITION {name} FOR VALUES FROM ({begin_ms}) TO ({end_ms})",  # reading goes on
    ]
    try:
        with connection.begin_nested():
            for statement in statements:
                connection.exec_driver_sql(statement)
    except SQLAlchemyError as error:
        if getattr(error.__cause__, "sqlstate", None) in _TAKEN:
            return False
        raise
    return True


def _month_of(t_ms: int) -> datetime:
    return datetime.fromtimestamp(t_ms / 1000, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)
