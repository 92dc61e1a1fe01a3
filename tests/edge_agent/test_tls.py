"""The real link over TLS, in both directions at once: one owner of the socket, so no record is ever garbled."""

import os
import shutil

import pytest

from tests.conftest import need
from tests.edge_agent.soak import soak

pytestmark = pytest.mark.services
SECONDS = float(os.environ.get("MAXGREEN_SOAK_SECONDS", "12"))


@pytest.mark.rule("P-RCT-2")
@pytest.mark.parametrize(("rate", "cuts"), [(300, 0), (50, 6)], ids=["load", "cuts"])
def test_no_disconnect_is_of_our_making_and_nothing_is_lost_or_sent_twice_without_need(
    tmp_path, mosquitto_program, rate, cuts
):
    need(shutil.which("openssl"), "openssl is not installed (apt-get install openssl)")
    found = soak(mosquitto_program, tmp_path, SECONDS, rate, cuts)
    assert found["disconnects_of_our_making"] == 0, found
    assert found["doubles_without_need"] == 0, found
    assert found["arrived"] == found["in_order_at_the_ledger"] == found["batches"], found
