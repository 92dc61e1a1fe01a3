"""The pages over PostgreSQL: every page and answer, as over SQLite."""

import pytest

from maxgreen.ledger.engine import open_engine
from tests.chain.world import on_anvil
from tests.conftest import running_anvil
from tests.dapp.conftest import MORNING, Site
from tests.dapp.test_access import ALLOWED, EVERYBODY, ask
from tests.e2e.story import Story, tell

pytestmark = pytest.mark.services


@pytest.fixture
def town(ledger_url, tmp_path):
    with running_anvil(*MORNING) as rpc:
        story = Story(on_anvil(rpc), tmp_path)
        story.engine = open_engine(ledger_url)
        story.closer._engine = story.engine
        tell(story)
        yield Site(story)
        story.engine.dispose()


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_every_route_answers_over_postgresql(town):
    for route, allowed in ALLOWED.items():
        for who in sorted(allowed & (EVERYBODY - {"reader", "script"})):
            answer = ask(town, who, route)
            assert answer.status_code in {200, 201, 303}, (route, who, answer.text[:300])
