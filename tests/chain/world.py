"""A deployment with a miner, a storage node and a line between them, on the embedded chain or a real anvil."""

import atexit
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from eth_account import Account

from maxgreen.chain.client import connect
from maxgreen.chain.dao import Dao, ProposalState
from maxgreen.chain.deploying import deploy
from maxgreen.chain.deployment import Deployment, Governance
from maxgreen.chain.embedded import dev_secret
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.chain.merkle import LINE_LEAF, MerkleTree
from maxgreen.chain.orders import Claim, Ends, LossTerms, OrderStatus, Posting, SettlementContract
from maxgreen.chain.registry import admission, apply_for
from maxgreen.clock import FileClock
from maxgreen.protocol.attestation import attest
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec

START_S = 1_767_225_600
KWH = 3_600_000_000
DAY_S = 86_400
GOVERNANCE = Governance(voting_delay_s=1, voting_period_s=5, timelock_s=1)
TERMS = LossTerms(1000, 0, 100_000)
PEAK_MW = 100_000
ANVIL_SECRETS = [
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
    "0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
]


ACCOUNTS = [Account.from_key(dev_secret(k)) for k in range(8)]


class World:
    """Accounts: 0 deployer, 1 operator, 2 to 4 members, 5 owns the miner, 6 the storage node, 7 is guardian."""

    def __init__(self, chain, clock, accounts, governance=GOVERNANCE, addresses=None):
        self.chain, self.clock, self.accounts = chain, clock, accounts
        self.members = accounts[2:5]
        self.operator, self.guardian, self.stranger = accounts[1], accounts[7], accounts[0]
        if addresses is None:
            members = [m.address for m in self.members]
            guardian = self.guardian.address
            self.deployment = deploy(chain, accounts[0], self.operator.address, members, governance, guardian=guardian)
            self.pass_time(5)  # a proposer's votes must be older than its proposal
        else:
            self.deployment = Deployment(chain, addresses)
        self.dao = Dao(self.deployment, clock)
        self.contract = SettlementContract(self.deployment)
        self.miner, self.node = MemorySigner.from_secret(11), MemorySigner.from_secret(12)
        self.ends = Ends(1, 1, 2, 0)
        self.time_s = chain.newest_block().time_s

    def pass_time(self, seconds):
        self.clock.sleep_until((self.chain.newest_block(fresh=True).time_s + seconds) * 1000)
        self.chain.newest_block(fresh=True)

    def functions(self, name, address=None):
        return self.chain.contract(name, address or self.deployment.address_of(name)).functions

    def send(self, account, function):
        return self.chain.transact(account, function)

    def ask(self, function):
        return self.chain.call(function)

    def pass_(self, proposal):
        return self.dao.carry_out(proposal, self.members, wait=True)

    def enrol(self, battery_wh=10_000, efficiency_ppm=900_000):
        channel = ChannelSpec(1, 1, PEAK_MW, 5_000, 0)
        received = ChannelSpec(0, 2, PEAK_MW, 5_000, 0)
        node = SystemSpec(Kind.STORAGE_NODE, (received,), efficiency_ppm=efficiency_ppm, battery_wh=battery_wh)
        ids = [
            apply_for(self.deployment, self.accounts[5], self.miner, SystemSpec(Kind.MINER, (channel,), (351, -1066))),
            apply_for(self.deployment, self.accounts[6], self.node, node),
        ]
        assert self.pass_(admission(self.deployment, ids)) is ProposalState.EXECUTED
        self.time_s = self.chain.newest_block().time_s
        return self

    def attest(self, energy, seq, at_s=0, miner=None, node=None):
        network, t = self.deployment.network, self.time_s + at_s
        return (
            attest(miner or self.miner, network, 1, t, energy, seq),
            attest(node or self.node, network, 0, t, energy, seq),
        )

    def open(self):
        assert self.pass_(self.contract.line_approval([(self.ends, TERMS)])) is ProposalState.EXECUTED
        self.contract.open_line(self.operator, self.ends, *self.attest(0, 0))
        self.time_s = self.chain.newest_block(fresh=True).time_s
        return self

    def claim(self, energy, seq=1, at_s=0, **changes):
        """Return a line's claim of everything up to a reading, its proof yet to come."""
        sent, received = self.attest(energy, seq, at_s)
        claim = Claim(self.ends.line_id, energy, b"\1" * 32, (), sent, received)
        return replace(claim, **changes)

    def period(self, *claims, until_s=None, **changes):
        """Return the posting of claims, and the claims with their proofs."""
        until_s = self.chain.newest_block(fresh=True).time_s if until_s is None else until_s

        leaves = [claim.leaf(until_s) for claim in claims]
        tree = MerkleTree.of(LINE_LEAF, leaves)
        total = sum(c.payable_total_mws for c in claims)
        posting = Posting(until_s, tree.root, len(claims), total, b"\3" * 32, "https://packs.example/1")
        return replace(posting, **changes), [replace(c, proof=tuple(tree.proof(k))) for k, c in enumerate(claims)]

    def approved(self, *claims, exclusions=(), **changes):
        """Post claims, let the DAO approve them, and return them ready to be claimed."""
        posting, ready = self.period(*claims, **changes)
        order = self.contract.post(self.operator, posting)
        assert self.pass_(self.contract.approval(order, posting, exclusions)) is ProposalState.EXECUTED
        assert self.contract.order(order).status is OrderStatus.APPROVED
        return ready


@cache
def _deployed():
    """Deploy once; each test goes on with a copy of the chain's file."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    clock = FileClock(folder / "clock")
    clock.sleep_until(START_S * 1000)
    world = World(connect(str(folder / "chain.db"), clock), clock, ACCOUNTS)
    world.chain.web3.provider.ethereum_tester.backend._db.close()
    return folder, world.deployment.addresses


def embedded(tmp_path):
    folder, addresses = _deployed()
    for name in ("clock", "chain.db"):
        shutil.copy(folder / name, tmp_path / name)
    clock = FileClock(tmp_path / "clock")
    return World(connect(str(tmp_path / "chain.db"), clock), clock, ACCOUNTS, addresses=addresses)


class ChainClock:
    """Time is the chain's own; sleeping moves it."""

    def __init__(self, chain):
        self._chain = chain

    def now_ms(self):
        return self._chain.newest_block().time_s * 1000

    def sleep_until(self, t_ms):
        if t_ms // 1000 > self._chain.newest_block().time_s:
            self._chain.web3.provider.make_request("evm_setNextBlockTimestamp", [t_ms // 1000])
        self._chain.web3.provider.make_request("evm_mine", [])


def on_anvil(url, governance=GOVERNANCE):
    chain = connect(url, None)
    return World(chain, ChainClock(chain), [Account.from_key(secret) for secret in ANVIL_SECRETS], governance)


def refused(name):
    return pytest.raises(ChainRefusedError, match=name)
