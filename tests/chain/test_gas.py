"""What things cost on the chain: a committed snapshot; `python -m tests.chain.test_gas` writes it anew."""

import json
import sys
import tempfile
from pathlib import Path

from maxgreen.chain.client import Chain
from tests.chain.world import DAY_S, KWH, embedded

SNAPSHOT = Path(__file__).with_name("gas.json")
TOLERANCE = 0.01  # signatures and addresses have more or fewer zero bytes


def measured(folder):
    """Return gas by what it is for: a deployment, and the first and a later period of a line."""
    world = embedded(folder)
    web3 = world.chain.web3
    blocks = range(web3.eth.block_number + 1)
    found = {"deployment": sum(web3.eth.get_block(number)["gasUsed"] for number in blocks)}
    world.enrol().open()
    used, transact = {}, Chain.transact

    def noted(chain, account, function):
        receipt = transact(chain, account, function)
        used[function.fn_name] = receipt["gasUsed"]
        return receipt

    Chain.transact = noted
    try:
        for number, when in ((1, "first"), (2, "later")):
            world.pass_time(DAY_S)
            [claim] = world.approved(world.claim(number * KWH, number, (number - 1) * DAY_S + 80_000))
            world.contract.claim(world.operator, claim)
            found |= {f"{name}, {when}": used[name] for name in ("post", "execute", "claim")}
    finally:
        Chain.transact = transact
    return found


def test_nothing_became_dearer_or_cheaper_unseen(tmp_path):
    now, was = measured(tmp_path), json.loads(SNAPSHOT.read_text())
    assert now.keys() == was.keys()
    changed = {name: (was[name], now[name]) for name in now if abs(now[name] - was[name]) > TOLERANCE * was[name]}
    assert changed == {}, "gas changed; write it anew: python -m tests.chain.test_gas"
    assert now["deployment"] <= 45_000_000


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(measured(Path(tempfile.mkdtemp())), indent=2) + "\n")
    sys.stdout.write(SNAPSHOT.read_text())
