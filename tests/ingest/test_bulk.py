"""Many rows in a statement: columns as PostgreSQL's own arrays, and what was not as it was read."""

import random

import pytest
from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary, String, Text, func, select, update
from sqlalchemy.exc import IntegrityError

from maxgreen.ledger.arrays import array_of
from maxgreen.ledger.bulk import Bulk
from maxgreen.ledger.engine import ConflictError, LedgerAwayError, glance, open_engine, reader
from maxgreen.ledger.schema import REVISION, batches, counters, verdicts
from maxgreen.ledger.writing import next_revision

_TEXT = "aé€𐍈 '\"\\{},NULL\n"
_MADE = {
    LargeBinary(): lambda chance: chance.randbytes(chance.choice((0, 1, 300))),
    BigInteger(): lambda chance: chance.choice((-(2**63), 2**63 - 1, 0, chance.getrandbits(40))),
    Integer(): lambda chance: chance.choice((-(2**31), 2**31 - 1, 0)),
    Boolean(): lambda chance: chance.random() < 0.5,
    String(80): lambda chance: "".join(chance.choices(_TEXT, k=chance.randrange(9))),
    Text(): lambda chance: "".join(chance.choices(_TEXT, k=chance.randrange(9))),
}


@pytest.fixture
def engine(ledger_url):
    return open_engine(ledger_url)


@pytest.mark.parametrize("kind", _MADE, ids=str)
def test_postgres_reads_an_array_as_it_was(engine, kind):
    if engine.dialect.name == "sqlite":
        pytest.skip("arrays are PostgreSQL's")
    chance = random.Random(str(kind))
    cast = f"%b::{kind.compile(dialect=engine.dialect)}[]"
    with engine.begin() as connection:
        for count in (1, 2, 200):
            for nulls in (0, 0.5, 1):
                values = [None if chance.random() < nulls else _MADE[kind](chance) for _ in range(count)]
                found = connection.exec_driver_sql(f"SELECT * FROM unnest({cast})", (array_of(kind, values),))
                assert list(found.scalars()) == values


def test_a_row_that_is_not_as_it_was_read_is_a_conflict(engine):
    with engine.begin() as connection:
        with Bulk(connection) as bulk:
            bulk.insert(verdicts, ("verdict", "reason", "count"), [("held", 1, 5), ("held", 2, 5)])
        with pytest.raises(ConflictError), Bulk(connection) as bulk:
            bulk.update(verdicts, ("count",), ("verdict", "reason"), [(6, "held", 1), (6, "held", 3)])
    with pytest.raises(ConflictError), engine.begin() as connection, Bulk(connection) as bulk:
        bulk.update(verdicts, ("count",), ("verdict", "reason"), [(9, "held", 1), (9, "held", 3)])
    with engine.begin() as connection:
        assert set(connection.execute(select(verdicts.c.count)).scalars()) <= {5, 6}


def test_statements_follow_each_other_and_what_fails_leaves_nothing(engine):
    with engine.begin() as connection, Bulk(connection) as bulk:
        bulk.insert(verdicts, ("verdict", "reason", "count"), [("held", 1, 5)])
        bulk.upsert(verdicts, {"count": "excluded.{column} + {table}.{column}"}, [("held", 1, 2), ("held", 4, 2)])
        assert next_revision(bulk, 3) == 3
        bulk.update(verdicts, ("count",), ("verdict", "reason"), [(9, "held", 4)])
    counted = select(verdicts.c.reason, verdicts.c.count).order_by(verdicts.c.reason)
    with engine.begin() as connection:
        assert list(connection.execute(counted)) == [(1, 7), (4, 9)]
    with (
        pytest.raises(Exception, match="no such|does not exist"),
        engine.begin() as connection,
        Bulk(connection) as bulk,
    ):
        bulk.upsert(verdicts, {"count": "excluded.{column}"}, [("held", 7, 1)])
        bulk.rows("SELECT naught FROM nowhere WHERE 1 = ?", (1,))
        bulk.upsert(verdicts, {"count": "excluded.{column}"}, [("held", 8, 1)])
    with engine.begin() as connection:  # and the connection serves as before
        assert list(connection.execute(counted)) == [(1, 7), (4, 9)]


def test_a_connection_that_ends_amid_statements_is_a_ledger_that_is_away(engine):
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no server")
    with pytest.raises(LedgerAwayError), engine.begin() as connection:
        number = connection.scalar(select(func.pg_backend_pid()))
        with glance(engine).begin() as other:
            other.execute(select(func.pg_terminate_backend(number)))
        with Bulk(connection) as bulk:
            bulk.upsert(verdicts, {"count": "excluded.{column}"}, [("held", 7, 1)])
    with engine.begin() as connection, Bulk(connection) as bulk:
        bulk.upsert(verdicts, {"count": "excluded.{column}"}, [("held", 8, 1)])


def test_who_glances_sees_what_is_committed_now_and_a_reader_one_state(engine):
    value = select(counters.c.value).where(counters.c.name == REVISION)
    with glance(engine).begin() as glancing, reader(engine).begin() as reading:
        before = reading.scalar(value)
        if engine.dialect.name == "postgresql":
            glancing.scalar(value)
        with engine.begin() as connection:
            connection.execute(update(counters).where(counters.c.name == REVISION).values(value=before + 1))
        assert glancing.scalar(value) == before + 1
        assert reading.scalar(value) == before
    with reader(engine).begin() as reading:
        assert reading.scalar(select(func.count()).select_from(batches)) == 0


def test_a_row_that_is_there_already_is_a_conflict_also_where_more_follows(engine):
    with engine.begin() as connection, Bulk(connection) as bulk:
        bulk.insert(verdicts, ("verdict", "reason", "count"), [("held", 1, 5)])
    with pytest.raises((ConflictError, IntegrityError)), engine.begin() as connection, Bulk(connection) as bulk:
        bulk.insert(verdicts, ("verdict", "reason", "count"), [("held", 1, 6)])
        next_revision(bulk, 1)
        bulk.upsert(verdicts, {"count": "excluded.{column}"}, [("held", 2, 1)])
    with engine.begin() as connection:
        assert list(connection.execute(select(verdicts.c.reason, verdicts.c.count))) == [(1, 5)]
