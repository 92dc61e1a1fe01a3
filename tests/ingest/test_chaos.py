"""A short run of `tests.ingest.chaos`; `make chaos` is the long one."""

import pytest

from tests.conftest import need
from tests.ingest.chaos import chaos
from tests.services import MissingError

pytestmark = pytest.mark.services


@pytest.mark.timeout(1_800)  # as long as it takes on a busy machine
@pytest.mark.parametrize(
    ("database", "broker"), [("sqlite", "mosquitto"), ("postgresql", "mosquitto"), ("postgresql", "nats")]
)
def test_servers_networks_disks_and_clocks_in_trouble_lose_and_double_nothing(tmp_path, database, broker):
    try:
        found = chaos(tmp_path, 8, database, 5, broker)
    except MissingError as error:
        need(None, str(error))
    assert found["batches"] > 0
    assert (found["lost"], found["doubled"], found["told_too_much"]) == (0, 0, 0)
    assert found["ledger_is_whole"]
    assert found["view_is_ledger"]
