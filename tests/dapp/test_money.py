"""What pages say of payments, as they are approved, claimed late, claimed in part, held, split otherwise."""

import time
from dataclasses import replace

import pytest

from dapp.views import money
from maxgreen.chain.deployment import NOBODY
from settlement.orders import open_line
from tests.chain.world import DAY_S, on_anvil
from tests.conftest import running_anvil
from tests.dapp.conftest import MORNING, Site
from tests.e2e.story import Story


class Town:
    """Two days of two lines; nothing is claimed by itself."""

    def __init__(self, url, folder):
        self.story = story = Story(on_anvil(url), folder)
        story.enrol()
        story.window(attested=True)
        for ends in story.lines:
            open_line(story.engine, story.deployment, story.world.operator, ends)
        for k in range(4):
            story.window(attested=k == 3)
        story.tomorrow(4)
        story.window(attested=True)
        self.first = time.strftime("%Y-%m-%d", time.gmtime(story.window_s - DAY_S))
        self.site = Site(story)

    def close_first(self):
        return self.story.close(self.first)

    def close_second(self):
        for k in range(3):
            self.story.window(attested=k == 2)
        self.second = time.strftime("%Y-%m-%d", time.gmtime(self.story.window_s))
        self.story.tomorrow(6)
        self.story.window(attested=True)
        return self.story.close(self.second)

    def rows(self, system=1):
        """Statements with their states, the oldest first."""
        world = self.site.world
        world.memory._clear()
        return [money.with_state(world, system, row) for row in money.statements(world, system)][::-1]

    def states(self):
        return [row["state"] for row in self.rows()]

    @property
    def line(self):
        self.site.world.memory._clear()
        [line] = money.lines_of(self.site.world, {1})
        return line

    @property
    def home(self):
        self.site.world.memory._clear()
        return self.site.client("owner").get("/home").text

    def can_claim(self):
        self.site.world.memory._clear()
        answer = self.site.client("owner", "application/json").post("/api/v1/actions/claim", json={}).json()
        return answer["transaction"] is not None

    def got_wei(self, system):
        """What an owner's wallet got of minted tokens, by the token's own events."""
        token, owner = self.story.deployment.energy_token(3), self.story.owners[system].address
        chain = self.story.world.chain
        found = chain.events(token.events.Transfer(), 0, chain.newest_block().number, **{"from": NOBODY, "to": owner})
        return sum(event["args"]["value"] for event in found)

    def as_timelock(self, call):
        ask, timelock = self.story.world.chain.web3.provider.make_request, self.story.deployment.addresses.timelock
        ask("anvil_impersonateAccount", [timelock])
        ask("anvil_setBalance", [timelock, hex(10**18)])
        sent = {"from": timelock, "to": call.address, "data": call._encode_transaction_data(), "gas": hex(10**6)}
        assert "result" in ask("eth_sendTransaction", [sent])
        ask("evm_mine", [])


@pytest.fixture
def town(tmp_path):
    with running_anvil(*MORNING) as url:
        yield Town(url, tmp_path)


def agrees(town):
    """What pages and the claim's action say is the same, and sums are what wallets got."""
    assert (town.line["turn"] == "claim") == town.can_claim() == ("A payment was approved." in town.home)
    for system in (1, 2, 3):
        world = town.site.world
        lines = money.lines_of(world, {system})
        assert sum(money.yours_in_all(world, system, line) for line in lines) == town.got_wei(system)


def test_a_payment_that_is_claimed_late_is_counted_once(town):
    first = town.close_first()
    assert (town.states(), town.line["turn"]) == (["order"], "order")
    payer, posted = town.story.payer(first)
    assert (town.states(), town.line["turn"]) == (["vote"], "vote")
    agrees(town)
    payer.decide(first, posted, wait=True)
    assert (town.states(), town.line["turn"]) == (["claim"], "claim")
    agrees(town)
    second = town.close_second()
    assert town.states() == ["claim", "order"]
    agrees(town)
    payer, posted = town.story.payer(second)
    assert town.states() == ["claim", "vote"]
    agrees(town)
    payer.decide(second, posted, wait=True)
    assert town.states() == ["later", "claim"]
    assert town.rows()[0]["in_period"] == town.second
    agrees(town)
    payer.claim(second, posted)
    assert town.states() == ["later", "paid"]
    assert int(town.rows()[1]["yours_wei"]) == town.got_wei(1)
    agrees(town)
    before = town.rows()
    settlement = town.story.deployment.functions("EnergySettlement")
    town.as_timelock(settlement.setParameters(500_000, 1_100_000, 14 * DAY_S))
    assert [row["yours_wei"] for row in town.rows()[1:]] == [row["yours_wei"] for row in before[1:]]
    agrees(town)
    page = town.site.client("owner").get(f"/systems/1/statements/{town.first}").text
    assert f"it is in the statement of {town.second}" in page
    assert "Paid on" not in page
    assert "Paid on" in town.site.client("owner").get(f"/systems/1/statements/{town.second}").text


def test_what_was_claimed_between_is_said(town):
    first = town.close_first()
    payer, posted = town.story.payer(first)
    payer.decide(first, posted, wait=True)
    town.close_second()
    payer.claim(first, posted)
    rows = town.rows()
    assert [row["state"] for row in rows] == ["later", "order"]
    assert int(rows[1]["claimed_mws"]) == int(rows[0]["payable_mws"])
    page = town.site.client("owner").get(f"/systems/1/statements/{town.second}").text
    assert "of it was claimed before" in page
    agrees(town)


def test_credit_holds_and_what_was_taken_back_have_their_own_words(town):
    first = town.close_first()
    payer, posted = town.story.payer(first)
    payer.decide(first, posted, wait=True)
    payer.claim(first, posted)
    second = town.close_second()
    payer, posted = town.story.payer(second)
    payer.decide(second, posted, wait=True)
    payer.claim(second, posted)
    assert town.states() == ["paid", "paid"]
    name = town.story.lines[0].line_id
    real, world = town.story.world.contract.line(name), town.site.world
    half = int(town.rows()[1]["payable_mws"]) // 2
    for change, states, turn in (
        ({"credit_mws": half}, ["paid", "room"], "room"),
        ({"credit_mws": half, "hold": 62}, ["paid", "hold"], "hold"),
        ({"forfeited_mws": half}, ["paid", "forfeited"], "nothing"),
    ):
        world.memory._clear()
        world.memory.get(("line", name), 1_000, lambda change=change: replace(real, **change))
        rows = [money.with_state(world, 1, row) for row in money.statements(world, 1)][::-1]
        assert [row["state"] for row in rows] == states, change
        [line] = money.lines_of(world, {1})
        assert line["turn"] == turn, change
