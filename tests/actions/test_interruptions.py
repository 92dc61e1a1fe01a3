"""Commands that end before or after any question to the chain, again and again: their effect comes once, none is stuck.

`MAXGREEN_KILLS=1000` ends each of the commands more often.
"""

import json
import os
import random

import pytest
from typer.testing import CliRunner

from maxgreen.chain.claims import attestation_json, claim_json
from maxgreen.chain.market import RequestStatus, balances
from maxgreen.chain.orders import OrderStatus
from maxgreen.errors import MaxgreenError
from tests.actions.test_commands import APPS, desk, desk_of
from tests.chain.test_interruptions import Interrupted
from tests.chain.test_market import Market
from tests.chain.world import KWH, on_anvil
from tests.conftest import running_anvil

__all__ = ["desk"]
COMMANDS = 15
EACH = -(-int(os.environ.get("MAXGREEN_KILLS", "60")) // COMMANDS)


class Hand:
    """Runs commands that are killed; what was killed is run again until it says that it is done, or was before."""

    def __init__(self, desk, monkeypatch):
        self.desk, self.world, self.chance = desk, desk.market.world, random.Random(11)
        self.interrupted = Interrupted(self.world.chain, monkeypatch)
        self.kills, self.commands = 0, 0

    def __call__(self, done, who, command, *arguments):
        """Run a command of a person; `done` tells whether its effect is there."""
        self.commands += 1
        options = [
            "--as", str(self.desk.folder / f"{who}.key"), "--deployment", str(self.desk.folder / "deployment.json"),
            "--json",
        ]  # fmt: skip
        app, *words = command.split()

        def attempt():
            result = CliRunner().invoke(APPS[app], [*words, *map(str, arguments), *options])
            self.world.chain.sends = True
            if result.exception is not None and not isinstance(result.exception, (MaxgreenError, SystemExit)):
                raise result.exception
            return result

        self.again(attempt, done)
        said = attempt()
        assert done(), (command, said.output, said.exception)

    def again(self, attempt, _done):
        """Let an attempt be killed some times."""
        for _ in range(EACH):
            if self.interrupted.run(attempt, self.chance.randrange(1, 14), heard=self.chance.random() < 0.5):
                break
            self.kills += 1

    def file(self, name, value):
        path = self.desk.folder / name
        path.write_text(json.dumps(value))
        return path


class Reorganised(Hand):
    """Runs commands whose blocks are taken back afterwards; what is gone is done again by the same command."""

    def __init__(self, desk, monkeypatch):
        super().__init__(desk, monkeypatch)
        self.request, self.gone = self.world.chain.web3.provider.make_request, 0

    def again(self, attempt, done):
        self.request("anvil_mine", [hex(25)])  # what was before stays
        assert attempt().exception is None
        now_ms = self.world.clock.now_ms()
        answer = self.request("anvil_reorg", [self.chance.randrange(1, 21), []])
        assert "error" not in answer, answer
        self.world.clock.sleep_until(now_ms + 1_000)
        self.gone += not done()


def test_a_command_that_is_killed_anywhere_is_run_again_and_counts_once(desk, monkeypatch):
    hand = Hand(desk, monkeypatch)
    live(desk, hand)
    assert hand.kills >= COMMANDS


@pytest.mark.services
def test_what_a_reorganisation_takes_back_the_same_command_does_again_once(tmp_path, monkeypatch):
    with running_anvil() as url:
        desk = desk_of(Market(None, carbon=True, world=on_anvil(url)), tmp_path, monkeypatch)
        hand = Reorganised(desk, monkeypatch)
        live(desk, hand)
        assert hand.gone > COMMANDS // 2


def live(desk, hand):
    """Take energy out, approve, pay and close a period, sweep, record, propose: each command as the hand runs it."""
    market, world = desk.market, desk.market.world
    line, contract, exchange = world.ends.line_id, world.contract, market.exchange

    # energy is taken out
    market.give("carbon", market.owner, 10**18)
    desk("ana", "owner take-out", "1.2", 2, "1")
    node, buyer = (hand.file(f"{n}.json", attestation_json(market.meter(n, 0))) for n in ("node", "miner"))
    hand(
        lambda: exchange.take_out(1).status is RequestStatus.ACCEPTED,
        "bo", "node accept", 1, "--reading", node, "--buyer-reading", buyer,
    )  # fmt: skip
    world.pass_time(40_000)
    end = hand.file("end.json", attestation_json(market.meter("node", KWH // 2)))
    hand(lambda: exchange.take_out(1).node_end_s, "bo", "node finish", 1, "--reading", end)
    got = hand.file("got.json", attestation_json(market.meter("miner", KWH // 2)))
    hand(
        lambda: exchange.take_out(1).status is RequestStatus.SETTLED,
        "ana", "owner confirm", 1, "--reading", got,
    )  # fmt: skip
    before = balances(world.deployment, market.owner.address, [2])
    assert before["carbon"] == 10**18 - 5 * 10**17
    carbon = world.deployment.addresses.carbon
    hand(lambda: not exchange.owed(market.owner.address, carbon), "ana", "owner withdraw")
    after = balances(world.deployment, market.owner.address, [2])
    assert after["carbon"] == 10**18 - 25 * 10**16  # half of what half a kilowatt-hour would have taken is back

    # a period is approved, paid, its line closed
    world.pass_time(86_400)
    posting, [claim] = world.period(world.claim(3 * KWH, 2, at_s=160_000))
    number = contract.post(world.operator, posting)

    def proposals():
        return desk("m1", "dao list")["proposals"]

    hand(lambda: len(proposals()) == 1, "m1", "dao approve", number)
    proposal = proposals()[0]["proposal"]
    world.pass_time(2)
    for votes, member in enumerate(("m1", "m2"), 1):
        hand(lambda n=votes: proposals()[0]["votes"].startswith(f"{n} for"), member, "dao vote", proposal, "for")
    world.pass_time(10)
    hand(lambda: proposals()[0]["state"] == "queued", "stranger", "dao queue", proposal)
    world.pass_time(3)
    hand(lambda: contract.order(number).status is OrderStatus.APPROVED, "stranger", "dao execute", proposal)
    order = hand.file("order.json", {"claims": [claim_json(claim)]})
    hand(lambda: contract.line(line).paid_mws == 3 * KWH, "ana", "owner claim", "--order", order)
    assert contract.total_paid_mws() == 3 * KWH
    hand(lambda: contract.line(line).closed_s == 0, "ana", "owner close-line", line.hex())
    hand(lambda: contract.line(line).closed_s, "bo", "owner close-line", line.hex())
    minted = world.ask(world.deployment.line_book.functions.totalMinted())
    rewards = world.functions("Rewards")
    hand(lambda: world.ask(rewards.swept()) == minted, "operator", "operator sweep")
    record = hand.file("record.json", ["hashes"])
    registry = world.deployment.registry.functions
    hand(lambda: world.ask(registry.recordOf(1, 1))[1], "operator", "operator record", 1, "pool", record)
    hand(
        lambda: len([p for p in proposals() if "suspended" in p["description"]]) == 1,
        "m1", "dao status", 1, "suspended", "look at it",
    )  # fmt: skip
    assert world.ask(registry.statusOf(1)) == 1
    assert hand.commands == COMMANDS
