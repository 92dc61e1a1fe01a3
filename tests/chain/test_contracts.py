"""The contracts on the embedded chain, and the same calls on a real anvil."""

from dataclasses import replace

import pytest
from eth_account import Account

from maxgreen.chain.client import Chain, connect, connect_to_read
from maxgreen.chain.dao import Dao, Proposal, ProposalState, Vote
from maxgreen.chain.deploying import deploy
from maxgreen.chain.deployment import Deployment, Governance
from maxgreen.chain.embedded import dev_secret
from maxgreen.chain.explain import ChainRefusedError, explain
from maxgreen.chain.merkle import BATCH_LEAF, MerkleTree, leaf_hash, root_of
from maxgreen.chain.orders import Ends, LossTerms, OrderRequest, OrderStatus, SettlementContract
from maxgreen.chain.registry import ChannelSpec, Kind, SystemSpec, admission, apply_for, read_systems
from maxgreen.clock import FileClock
from maxgreen.errors import Fatal
from maxgreen.protocol.attestation import attest
from maxgreen.protocol.keys import MemorySigner

START_S = 1_767_225_600
KWH = 3_600_000_000
GOVERNANCE = Governance(voting_delay_s=1, voting_period_s=5, timelock_s=1)
ANVIL_SECRETS = [
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
]


class World:
    """A deployment with a miner, a storage node and a line."""

    def __init__(self, chain, clock, accounts):
        self.chain, self.clock, self.accounts = chain, clock, accounts
        self.members = accounts[2:5]
        self.operator = accounts[1]
        self.deployment = deploy(
            chain, accounts[0], self.operator.address, [m.address for m in self.members], GOVERNANCE
        )
        # a proposer's votes must be older than its proposal
        clock.sleep_until((chain.newest_block().time_s + 5) * 1000)
        self.dao = Dao(self.deployment, clock)
        self.contract = SettlementContract(self.deployment)
        self.miner, self.node = MemorySigner.from_secret(11), MemorySigner.from_secret(12)
        self.ends = Ends(1, 1, 2, 0)
        self.time_s = chain.newest_block().time_s

    def enrol(self, battery_wh=10_000, efficiency_ppm=900_000):
        channel = ChannelSpec(1, 1, 100_000, 5_000, 0)
        received = ChannelSpec(0, 2, 100_000, 5_000, 0)
        node = SystemSpec(Kind.STORAGE_NODE, (received,), efficiency_ppm=efficiency_ppm, battery_wh=battery_wh)
        ids = [
            apply_for(self.deployment, self.accounts[5], self.miner, SystemSpec(Kind.MINER, (channel,), (351, -1066))),
            apply_for(self.deployment, self.accounts[6], self.node, node),
        ]
        assert self.pass_(admission(self.deployment, ids)) is ProposalState.EXECUTED
        return self

    def pass_(self, proposal):
        return self.dao.carry_out(proposal, self.members, wait=True)

    def attest(self, energy, seq, at_s=0):
        network, t = self.deployment.network, self.time_s + at_s
        return attest(self.miner, network, 1, t, energy, seq), attest(self.node, network, 0, t, energy, seq)

    def open(self):
        self.contract.open_line(self.operator, self.ends, LossTerms(1000, 0, 100_000), *self.attest(0, 0))
        return self

    def wanted(self, energy, seq=1, at_s=100_000_000, **changes):
        sent, received = self.attest(energy, seq, at_s)
        request = OrderRequest(
            self.ends.line_id, self.time_s, energy, b"\1" * 32, b"\2" * 32, b"\3" * 32, sent, received
        )
        return replace(request, **changes)


@pytest.fixture(params=["embedded", "anvil"])
def world(request, tmp_path):
    if request.param == "embedded":
        clock = FileClock(tmp_path / "clock")
        clock.sleep_until(START_S * 1000)
        chain = connect(str(tmp_path / "chain.db"), clock)
        return World(chain, clock, [Account.from_key(dev_secret(k)) for k in range(7)])
    chain = connect(request.getfixturevalue("anvil"), None)

    class AnvilClock:
        """Time is the chain's own; sleeping moves it."""

        def now_ms(self):
            return chain.newest_block().time_s * 1000

        def sleep_until(self, t_ms):
            if t_ms // 1000 > chain.newest_block().time_s:
                chain.web3.provider.make_request("evm_setNextBlockTimestamp", [t_ms // 1000])
            chain.web3.provider.make_request("evm_mine", [])

    return World(chain, AnvilClock(), [Account.from_key(secret) for secret in ANVIL_SECRETS])


def refused(name):
    return pytest.raises(ChainRefusedError, match=name)


@pytest.mark.services
def test_a_month_of_energy_is_paid_once(world):
    world.enrol().open()
    contract, chain = world.contract, world.chain
    world.clock.sleep_until((world.time_s + 90_000) * 1000)
    token = world.deployment.energy_token(2)
    total = 0
    for number, energy in enumerate((KWH, KWH + 7_000_007), 1):
        request = world.wanted(energy, number, at_s=80_000 * number // 2)
        if number == 1:
            with refused("PayableExceedsCapacity"):
                contract.request(world.operator, world.wanted(100 * KWH, 1, at_s=10))
        contract.request(world.operator, request)
        with refused("OrderOpen"):
            contract.request(world.operator, request)
        [*_, order] = contract.orders_of(world.ends.line_id)
        with refused("AccessManagedUnauthorized"):
            chain.transact(world.operator, world.deployment.settlement.functions.approve([order], [b"\2" * 32]))
        assert world.pass_(contract.approval({order: b"\2" * 32}, f"Pay {number}")) is ProposalState.EXECUTED
        contract.collect(world.operator, world.ends.line_id)
        with refused("NothingToCollect"):
            contract.collect(world.operator, world.ends.line_id)
        total = (energy * 900_000 * 2_500) // 9
        assert abs(chain.call(token.functions.totalSupply()) - total) <= 1
        with refused("NothingPayable"):
            contract.request(world.operator, request)
    line = contract.line(world.ends.line_id)
    assert (line.paid_mws, line.credit_mws, line.open_order) == (KWH + 7_000_007, 0, 0)
    supply = chain.call(token.functions.totalSupply())
    shares = [chain.call(token.functions.balanceOf(world.accounts[k].address)) for k in (5, 6)]
    assert sum(shares) == supply == total
    assert shares[1] * 9 <= shares[0] <= shares[1] * 9 + 20
    assert supply * 9 + line.acc == line.paid_mws * 900_000 * 2_500


@pytest.mark.services
def test_a_rejected_order_says_why_and_can_be_corrected(world):
    world.enrol().open()
    world.clock.sleep_until((world.time_s + 90_000) * 1000)
    world.contract.request(world.operator, world.wanted(KWH, at_s=80_000))
    assert world.pass_(world.contract.rejection(1, 63, "the loss is not explained")) is ProposalState.EXECUTED
    order = world.contract.order(1)
    assert (order.status, order.code, order.text) == (OrderStatus.REJECTED, 63, "the loss is not explained")
    world.contract.request(world.operator, world.wanted(KWH - 5, at_s=80_000))
    assert world.pass_(world.contract.approval({2: b"\2" * 32}, "Pay again")) is ProposalState.EXECUTED
    assert world.contract.line(world.ends.line_id).credit_mws == KWH - 5


@pytest.mark.rule("P-ATT-1")
@pytest.mark.services
def test_orders_need_both_meters_signatures(world):
    world.enrol().open()
    world.clock.sleep_until((world.time_s + 90_000) * 1000)
    good = world.wanted(KWH, at_s=80_000)
    for change in (
        {"sent": replace(good.sent, register_mws=KWH + 1)},
        {"received": replace(good.received, seq=9)},
        {"received": good.sent},
    ):
        with refused("BadAttestation"):
            world.contract.request(world.operator, replace(good, **change))
    with refused("PayableExceedsGrowth"):
        world.contract.request(world.operator, replace(good, payable_total_mws=KWH + 1))
    with refused("AttestationInFuture"):
        world.contract.request(world.operator, world.wanted(KWH, at_s=10_000_000))
    with refused("AccessManagedUnauthorized"):
        world.contract.request(world.accounts[5], good)


@pytest.mark.rule("P-ID-5")
@pytest.mark.services
def test_a_system_needs_its_key_and_the_daos_vote(world):
    stranger = world.accounts[6]
    spec = SystemSpec(Kind.MINER, (ChannelSpec(1, 1, 1, 0, 0),))
    with refused("NoChannels"):
        apply_for(world.deployment, stranger, world.miner, replace(spec, channels=()))

    class Thief:
        spki = world.miner.spki

        def sign(self, message):
            return world.node.sign(message)

    with refused("PossessionNotProved"):
        apply_for(world.deployment, stranger, Thief(), spec)
    with refused("EfficiencyOutOfRange"):
        apply_for(world.deployment, stranger, world.miner, replace(spec, efficiency_ppm=0))
    application = apply_for(world.deployment, stranger, world.miner, spec)
    functions = world.deployment.registry.functions
    with refused("AccessManagedUnauthorized"):
        world.chain.transact(stranger, functions.admit(application))
    world.pass_(admission(world.deployment, [application]))
    with refused("DeviceAlreadyRegistered"):
        apply_for(world.deployment, stranger, world.miner, spec)
    with refused("TokenIsSoulBound"):
        world.chain.transact(stranger, functions.transferFrom(stranger.address, world.operator.address, 1))
    [system] = read_systems(world.deployment).values()
    assert (system.token, system.owner, system.record.spki) == (1, stranger.address, world.miner.spki)
    assert world.chain.call(functions.locked(1))
    assert world.chain.call(functions.network()) == world.deployment.network


def embedded(tmp_path):
    clock = FileClock(tmp_path / "clock")
    clock.sleep_until(START_S * 1000)
    return World(connect(str(tmp_path / "chain.db"), clock), clock, [Account.from_key(dev_secret(k)) for k in range(7)])


def test_tokens_are_never_more_than_the_battery_holds(tmp_path):
    world = embedded(tmp_path).enrol(battery_wh=500, efficiency_ppm=1_000_000).open()
    world.clock.sleep_until((world.time_s + 90_000) * 1000)
    world.contract.request(world.operator, world.wanted(KWH, at_s=80_000))
    world.pass_(world.contract.approval({1: b"\2" * 32}, "Pay"))
    world.contract.collect(world.operator, world.ends.line_id)
    token = world.deployment.energy_token(2)
    assert world.chain.call(token.functions.totalSupply()) == 5 * 10**17
    assert world.contract.line(world.ends.line_id).credit_mws == KWH // 2
    with refused("NoRoom"):
        world.contract.collect(world.operator, world.ends.line_id)
    with refused("NotMinter"):
        world.chain.transact(world.operator, token.functions.mint(world.operator.address, 1))


def test_what_a_revoked_system_made_is_neither_credited_nor_paid(tmp_path):
    world = embedded(tmp_path).enrol().open()
    statuses = world.deployment.registry.functions
    world.clock.sleep_until((world.time_s + 90_000) * 1000)
    world.contract.request(world.operator, world.wanted(KWH, at_s=80_000))
    world.pass_(Proposal((statuses.setStatus(1, 3, "its shunt was bridged"),), "Revoke it"))
    assert world.pass_(world.contract.approval({1: b"\2" * 32}, "Pay")) is ProposalState.EXECUTED
    order, line = world.contract.order(1), world.contract.line(world.ends.line_id)
    assert (order.status, order.code, order.text) == (OrderStatus.REJECTED, 64, "a system of the line is not active")
    assert (line.paid_mws, line.credit_mws, line.open_order) == (0, 0, 0)  # and the line is not stuck
    with refused("SystemNotActive"):
        world.contract.request(world.operator, world.wanted(KWH, at_s=80_000))
    world.pass_(Proposal((statuses.setStatus(1, 1, "it was mended"),), "Reinstate it"))
    world.contract.request(world.operator, world.wanted(KWH, at_s=80_000))
    world.pass_(world.contract.approval({2: b"\2" * 32}, "Pay again"))
    world.pass_(Proposal((statuses.setStatus(2, 2, "it sells what it has not"),), "Suspend the node"))
    with refused("SystemNotActive"):
        world.contract.collect(world.operator, world.ends.line_id)
    world.pass_(Proposal((statuses.setStatus(2, 1, "it was a mistake"),), "Reinstate the node"))
    world.contract.collect(world.operator, world.ends.line_id)
    assert world.contract.line(world.ends.line_id).credit_mws == 0


def test_readings_never_go_back_in_time_or_seq(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.clock.sleep_until((world.time_s + 90_000) * 1000)
    world.contract.request(world.operator, world.wanted(KWH, 5, at_s=80_000))
    world.pass_(world.contract.approval({1: b"\2" * 32}, "Pay"))
    for seq, at_s in ((4, 80_000), (5, 79_999), (6, 79_999)):
        with refused("ReadingWentBack"):
            world.contract.request(world.operator, world.wanted(KWH + 5, seq, at_s=at_s))
    world.contract.request(world.operator, world.wanted(KWH + 5, 5, at_s=80_000))


def test_channels_are_few_and_each_has_a_number_of_its_own(tmp_path):
    world = embedded(tmp_path)

    def apply(numbers, uri=""):
        channels = tuple(ChannelSpec(number, 1, 1, 0, 0) for number in numbers)
        return apply_for(world.deployment, world.accounts[5], world.miner, SystemSpec(Kind.MINER, channels, uri=uri))

    with refused("ChannelTwice"):
        apply((0, 1, 0))
    with refused("TooManyChannels"):
        apply(range(17))
    with refused("UriTooLong"):
        apply((0,), "x" * 513)
    apply(range(16), "x" * 512)


def test_an_application_that_came_twice_stops_no_other(tmp_path):
    world = embedded(tmp_path)
    spec = SystemSpec(Kind.MINER, (ChannelSpec(1, 1, 1, 0, 0),))
    twice = [apply_for(world.deployment, world.accounts[5], world.miner, spec) for _ in range(2)]
    other = apply_for(world.deployment, world.accounts[6], world.node, spec)
    assert world.pass_(admission(world.deployment, [*twice, other])) is ProposalState.EXECUTED
    assert {system.token for system in read_systems(world.deployment).values()} == {1, 2}


def test_a_vote_pins_the_evidence_and_a_minority_does_not_pay(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.clock.sleep_until((world.time_s + 90_000) * 1000)
    world.contract.request(world.operator, world.wanted(KWH, at_s=80_000))
    with pytest.raises(ChainRefusedError):
        world.pass_(world.contract.approval({1: b"\x09" * 32}, "Other evidence"))
    against = world.contract.approval({1: b"\2" * 32}, "Against")
    world.dao.propose(world.members[0], against)
    world.clock.sleep_until(world.dao.due_ms(against))
    world.chain.newest_block(fresh=True)
    world.dao.vote(world.members[0], against)
    for member in world.members[1:]:
        world.dao.vote(member, against, Vote.AGAINST)
    assert world.dao.votes(against) == (2, 1, 0)
    assert world.pass_(against) is ProposalState.DEFEATED
    assert world.contract.line(world.ends.line_id).paid_mws == 0


def test_the_embedded_chain_survives_its_process_and_keeps_the_clock(tmp_path):
    world = embedded(tmp_path).enrol()
    world.clock.sleep_until((START_S + 500_000) * 1000)
    block = world.chain.newest_block(fresh=True)
    assert block.time_s == START_S + 500_000
    world.chain.web3.provider.ethereum_tester.backend._db.close()
    again = Deployment(connect(str(tmp_path / "chain.db"), world.clock), world.deployment.addresses)
    assert again.chain.newest_block() == block
    assert len(read_systems(again)) == 2


def test_a_chain_file_in_use_can_be_read_but_not_opened_twice(tmp_path):
    world = embedded(tmp_path)
    file = str(tmp_path / "chain.db")
    with pytest.raises(Fatal, match="maxgreen chain run"):
        connect(file, world.clock)
    copy = Deployment(connect_to_read(file, world.clock), world.deployment.addresses)
    assert copy.chain.newest_block() == world.chain.newest_block()
    (tmp_path / "other").write_bytes(b"no chain" * 99)
    with pytest.raises(Fatal, match="not the file of an embedded chain"):
        connect_to_read(str(tmp_path / "other"), world.clock)


def test_the_precompile_verifies_like_the_library(tmp_path):
    chain: Chain = embedded(tmp_path).chain
    import hashlib

    from maxgreen.protocol.keys import public_point

    signer = MemorySigner.from_secret(5)
    x, y = public_point(signer.spki)
    data = hashlib.sha256(b"m").digest() + signer.sign(b"m") + x.to_bytes(32, "big") + y.to_bytes(32, "big")
    address = "0x" + "100".rjust(40, "0")
    assert int.from_bytes(chain.web3.eth.call({"to": address, "data": data}), "big") == 1
    assert chain.web3.eth.call({"to": address, "data": data[:-1] + b"\0"}) == b""
    assert chain.web3.eth.call({"to": address, "data": data[:100]}) == b""


def test_any_revert_data_becomes_a_sentence():
    assert "0x00000000" in str(explain(bytes(4)))
    panic = bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big")
    assert "0x11" in str(explain(panic))
    assert "without a reason" in str(explain(b""))
    assert "0x12345678" in str(explain(bytes.fromhex("12345678")))


def test_merkle_proofs_lead_to_the_root():
    for count in (1, 2, 3, 7, 8):
        leaves = [(bytes([k]) * 32,) for k in range(count)]
        tree = MerkleTree.of(BATCH_LEAF, leaves)
        for k, leaf in enumerate(leaves):
            assert root_of(leaf_hash(BATCH_LEAF, leaf), tree.proof(k)) == tree.root
    assert MerkleTree.of(BATCH_LEAF, []).root == bytes(32)
