"""A period's payment is interrupted before or after any question to the chain, again and again: one order, one payment."""

import os
import random
from types import SimpleNamespace

from maxgreen.chain.client import Chain
from maxgreen.chain.merkle import LINE_LEAF, MerkleTree
from maxgreen.chain.orders import OrderStatus
from settlement.orders import Payer
from settlement.statement import Leaf
from tests.chain.world import DAY_S, KWH, embedded

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
    leaf = Leaf(until_s, claim)
    tree = MerkleTree.of(LINE_LEAF, [leaf.values])
    derived = SimpleNamespace(leaves=(leaf,), tree=tree, total_mws=energy)
    return SimpleNamespace(
        period=f"2026-{number:02}", until_s=until_s, manifest_digest=bytes([number]) * 32, derived=derived
    )


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
