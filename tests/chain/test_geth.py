"""The story of a period on a real geth: deployment, admission, a line, an order, a claim, a pool; by wall time."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from eth_account import Account

from maxgreen.chain.client import connect
from maxgreen.chain.deployment import Governance
from maxgreen.chain.doctor import diagnose
from maxgreen.chain.market import KWH_WEI, Pool, balances, pool_opening, sweep
from maxgreen.clock import SystemClock
from tests.chain.world import World
from tests.conftest import free_port, stop, wait_for

GETH = shutil.which("geth") or str(Path.home() / "go/bin/geth")


@pytest.fixture
def geth(tmp_path):
    if not os.access(GETH, os.X_OK):
        pytest.skip("geth is not installed: go install github.com/ethereum/go-ethereum/cmd/geth@v1.16.9")
    port = free_port()
    command = [GETH, "--dev", "--http", "--http.addr", "127.0.0.1", "--http.port", str(port), "--ipcdisable"]
    command += [
        "--datadir",
        str(tmp_path / "geth"),
        "--authrpc.port",
        str(free_port()),
        "--nodiscover",
        "--maxpeers",
        "0",
    ]
    with (tmp_path / "geth.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    chain = connect(url, SystemClock())
    wait_for(lambda: chain.chain_id, what="geth")
    yield chain
    stop(process)


@pytest.mark.services
def test_the_story_of_a_period_on_geth(geth):
    accounts = [Account.from_key(bytes([7]) * 31 + bytes([k + 1])) for k in range(8)]
    [rich] = geth.web3.eth.accounts
    for account in accounts:
        sent = geth.web3.eth.send_transaction({"from": rich, "to": account.address, "value": 10**20})
        geth.web3.eth.wait_for_transaction_receipt(sent)
    world = World(geth, SystemClock(), accounts, Governance(voting_delay_s=1, voting_period_s=8, timelock_s=1))
    assert diagnose(world.deployment).wrong == []
    world.enrol().open()
    world.pass_time(12)
    energy = 500_000  # what 100 W make in five seconds
    [claim] = world.approved(world.claim(energy, at_s=8))
    world.contract.claim(world.stranger, claim)
    line = world.contract.line(claim.line)
    assert (line.paid_mws, line.credit_mws) == (energy, 0)
    assert line.minted_wei == energy * 900_000 * 2_500 // 9
    sweep(world.deployment, world.stranger)
    world.pass_(pool_opening(world.deployment, 2, [KWH_WEI] * 3, [KWH_WEI] * 4))
    pool = Pool(world.deployment, 2)
    held = balances(world.deployment, accounts[5].address, [2])["energy 2"]
    pool.deposit(accounts[5], "energy", held)
    pool.redeem(accounts[5], pool.shares(accounts[5].address)[0])
    assert held - 2 <= balances(world.deployment, accounts[5].address, [2])["energy 2"] <= held
