"""Batches by month of arrival, on PostgreSQL."""

from collections import Counter
from datetime import UTC, datetime
from importlib.resources import files

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from maxgreen.ledger.bulk import Bulk
from maxgreen.ledger.engine import ConflictError
from maxgreen.ledger.months import make_months
from maxgreen.ledger.schema import batches
from maxgreen.ledger.writing import _ROW
from simulator.lab import Lab
from tests.ingest.desks import Bench, rows

pytestmark = pytest.mark.services
DAY_MS = 86_400_000


def t_ms(year, month, day=1):
    return round(datetime(year, month, day, tzinfo=UTC).timestamp() * 1000)


def places(engine):
    """How many batches each partition has."""
    with engine.begin() as connection:
        return Counter(row[0] for row in connection.execute(text("SELECT tableoid::regclass::text FROM batches")))


@pytest.fixture
def postgres(engine):
    if engine.dialect.name != "postgresql":
        assert make_months(engine, t_ms(2031, 5)) == []  # SQLite keeps one table
        pytest.skip("partitions are PostgreSQL's")
    return engine


def test_each_month_has_a_partition_before_it_begins(postgres):
    assert make_months(postgres, t_ms(2030, 11, 30)) == ["batches_2030_11", "batches_2030_12", "batches_2031_01"]
    assert make_months(postgres, t_ms(2030, 12)) == ["batches_2031_02"]
    assert make_months(postgres, t_ms(2030, 12)) == []
    bench, lab = Bench(postgres), Lab()
    for when in (t_ms(2026, 1, 2), t_ms(2030, 12) - 1, t_ms(2030, 12), t_ms(2031, 1, 31), t_ms(2035, 1)):
        bench.send(lab.next(), received_ms=when)
    assert places(postgres) == {
        "batches_first": 1, "batches_2030_11": 1, "batches_2030_12": 1, "batches_2031_01": 1, "batches_other": 1,
    }  # fmt: skip
    assert [row.seq for row in rows(postgres, lab.device)] == list(range(5))
    assert make_months(postgres, t_ms(2035, 1)) == ["batches_2035_02", "batches_2035_03"]  # its own is in `other`
    assert make_months(postgres, t_ms(2026, 1)) == []  # what was there first covers it


def test_a_place_is_taken_once_in_whatever_month_its_batch_comes_again(postgres):
    make_months(postgres, t_ms(2030, 11))
    bench, lab = Bench(postgres), Lab()
    first, second, third = (lab.next() for _ in range(3))
    bench.send(first, third, received_ms=t_ms(2030, 11, 2))  # the third waits for the second
    bench.send(first, third, received_ms=t_ms(2030, 12, 2))
    bench.send(second, first, received_ms=t_ms(2031, 1, 2))
    bench.send(first, second, third, received_ms=t_ms(2031, 2, 2))
    found = rows(postgres, lab.device)
    assert [(row.seq, row.verdict, row.in_chain) for row in found] == [(k, "accepted", True) for k in range(3)]
    assert places(postgres) == {"batches_2030_11": 2, "batches_2031_01": 1}
    with postgres.begin() as connection, pytest.raises(ConflictError), Bulk(connection) as bulk:
        bulk.insert(batches, _ROW, [tuple(getattr(found[0], name) for name in _ROW)])


def test_a_ledger_with_batches_becomes_one_with_months_and_back(postgres):
    config = Config()
    config.set_main_option("script_location", str(files("maxgreen.ledger").joinpath("migrations")))
    bench, lab = Bench(postgres), Lab()
    make_months(postgres, t_ms(2030, 11))

    def migrate(to):
        with postgres.begin() as connection:
            config.attributes["connection"] = connection
            (command.downgrade if to == "0003_fates" else command.upgrade)(config, to)

    bench.send(lab.next(), received_ms=t_ms(2026, 2))
    bench.send(lab.next(), received_ms=t_ms(2030, 12))
    before = rows(postgres, lab.device)
    migrate("0003_fates")
    assert rows(postgres, lab.device) == before
    with postgres.begin() as connection:  # as a ledger that never had months
        connection.execute(text("DELETE FROM batches WHERE received_ms > :t"), {"t": t_ms(2029, 1)})
    migrate("head")
    for month in (3, 4):
        bench.send(lab.next(), received_ms=t_ms(2026, month))
    assert [row.seq for row in rows(postgres, lab.device)] == [0, 2, 3]
    assert len({row.id for row in rows(postgres, lab.device)}) == 3
    assert make_months(postgres, t_ms(2030, 11)) == ["batches_2030_11", "batches_2030_12", "batches_2031_01"]


def test_nobody_waits_for_a_month_that_waits_for_a_reader(postgres, monkeypatch):
    from maxgreen.errors import Retryable

    monkeypatch.setattr("maxgreen.ledger.months._LOCK_MS", 100)
    with postgres.begin() as reading:
        reading.execute(text("SELECT count(*) FROM batches"))
        with pytest.raises(Retryable):
            make_months(postgres, t_ms(2030, 11))
        Bench(postgres).send(Lab().next())
    assert len(make_months(postgres, t_ms(2030, 11))) == 3
