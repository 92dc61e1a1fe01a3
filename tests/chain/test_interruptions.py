"""A period's payment is interrupted before or after any question to the chain, again and again: one order, one payment."""

import os
import random
import subprocess

import pytest

from maxgreen.chain.client import Chain, connect
from maxgreen.chain.orders import OrderStatus
from settlement.orders import Payer
from settlement.run import make_run
from tests.chain.world import DAY_S, KWH, embedded, on_anvil
from tests.conftest import ROOT, free_port, need, stop, wait_for

KILLS = int(os.environ.get("MAXGREEN_KILLS", "60"))


class Killed(BaseException):
    """The process ends here."""


class Interrupted:
    """Lets a chain answer so many questions; the next one is not asked, or its answer is never heard of."""

    def __init__(self, chain, monkeypatch):
        self.left, self.heard, asked = None, True, Chain._asked

        def counted(chain, ask):
            if self.left is None:
                return asked(chain, ask)
            self.left -= 1
            if self.left <= 0 and not self.heard:
                asked(chain, ask)
            if self.left <= 0:
                raise Killed
            return asked(chain, ask)

        monkeypatch.setattr(Chain, "_asked", counted)
        self.chain = chain

    def run(self, step, left, *, heard):
        self.left, self.heard = left, heard
        try:
            step()
        except Killed:
            return False
        finally:
            self.left = None
        return True


def period(world, number, energy):
    """Return a closed period with one leaf, as settlement has it."""
    claim = world.claim(energy, number, (number - 1) * DAY_S + 80_000)
    until_s = world.chain.newest_block(fresh=True).time_s
    statement = {"line": claim.line.hex(), "payable_total_mws": str(energy), "paid_before_mws": "0"}
    return make_run(world.deployment.network, f"2026-{number:02}", until_s, None, [statement], [claim])


def test_a_period_is_paid_once_however_often_its_payment_is_interrupted(tmp_path, monkeypatch):
    world, rng = embedded(tmp_path).enrol(battery_wh=1_000_000).open(), random.Random(5)
    interrupted = Interrupted(world.chain, monkeypatch)
    kills, number = 0, 0
    while kills < KILLS:
        number += 1
        world.pass_time(DAY_S)
        closed = period(world, number, number * KWH)

        def settle(closed=closed):
            payer = Payer(world.deployment, world.clock, world.operator, world.members)
            posted = payer.post(closed)
            payer.decide(closed, posted, wait=True)
            payer.claim(closed, posted)
            assert payer.refused == {}

        while not interrupted.run(settle, rng.randrange(1, 50), heard=rng.random() < 0.5):
            kills += 1
        settle()
        assert world.contract.order_count() == number
        assert world.contract.order(number).status is OrderStatus.APPROVED
        line = world.contract.line(world.ends.line_id)
        assert (line.paid_mws, line.credit_mws) == (number * KWH, 0)
    token = world.deployment.energy_token(2)
    assert world.ask(token.functions.totalSupply()) == number * KWH * 900_000 * 2_500 // 9


@pytest.fixture
def anvil_of_its_own():
    port = free_port()
    program = need(ROOT / "contracts/node_modules/.bin/anvil", "anvil is not installed (make services)")
    process = subprocess.Popen([program, "--port", str(port), "--silent"])
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: connect(url, None).chain_id, what="anvil")
    yield url
    stop(process)


@pytest.mark.services
def test_a_reorganisation_of_up_to_twenty_blocks_pays_nothing_twice_and_loses_nothing(anvil_of_its_own):
    world, rng = on_anvil(anvil_of_its_own).enrol(battery_wh=1_000_000).open(), random.Random(3)
    request = world.chain.web3.provider.make_request
    for number in range(1, 7):
        request("anvil_mine", [hex(25)])  # what was before stays
        world.pass_time(DAY_S)
        closed = period(world, number, number * KWH)
        payer = Payer(world.deployment, world.clock, world.operator, world.members)
        for step in ("post", "decide", "claim"):
            posted = payer.post(closed)
            if step in {"decide", "claim"}:
                payer.decide(closed, posted, wait=True)
            if step == "claim":
                payer.claim(closed, posted)
            now_ms = world.clock.now_ms()
            depth = rng.randrange(1, 21)
            answer = request("anvil_reorg", [depth, []])
            assert "error" not in answer, answer
            world.clock.sleep_until(now_ms + 1_000)  # time goes on, whatever is taken back
        posted = payer.post(closed)  # the next run
        payer.decide(closed, posted, wait=True)
        payer.claim(closed, posted)
        assert payer.refused == {}
        line = world.contract.line(world.ends.line_id)
        assert (line.paid_mws, line.credit_mws) == (number * KWH, 0)
        assert world.contract.order_count() == number
    token = world.deployment.energy_token(2)
    assert world.ask(token.functions.totalSupply()) == 6 * KWH * 900_000 * 2_500 // 9
