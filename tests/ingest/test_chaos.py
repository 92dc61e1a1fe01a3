"""A short run of `tests.ingest.chaos`; `make chaos` is the long one."""

import pytest

from tests.conftest import need
from tests.ingest.chaos import chaos
from tests.services import MissingError

pytestmark = pytest.mark.services


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_servers_that_are_killed_and_stopped_lose_and_double_nothing(tmp_path, database):
    try:
        found = chaos(tmp_path, 8, database, 5)
    except MissingError as error:
        need(None, str(error))
    assert found["batches"] > 0
    assert (found["lost"], found["doubled"], found["told_too_much"]) == (0, 0, 0)
    assert found["ledger_is_whole"]
    assert found["view_is_ledger"]
