import pytest

from tests.ingest.desks import Bench, made


@pytest.fixture
def engine(ledger_url):
    engine = made(ledger_url)
    yield engine
    engine.dispose()


@pytest.fixture
def bench(engine):
    return Bench(engine)
