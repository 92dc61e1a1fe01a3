"""Coins, pools, storage and take-out requests, module votes: on the embedded chain."""

from dataclasses import replace

import pytest

from maxgreen.chain.dao import Proposal, ProposalState
from maxgreen.chain.market import (
    KWH_WEI,
    Exchange,
    Pool,
    RequestStatus,
    balances,
    coin,
    pool_opening,
    sweep,
    wei_of,
)
from maxgreen.chain.registry import admission, apply_for, key_words, read_systems
from maxgreen.errors import UsageError
from maxgreen.protocol.attestation import attest, hand_over, prove_possession
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec
from tests.chain.world import DAY_S, KWH, PEAK_MW, TERMS, embedded, refused

CAP = 1_000 * KWH_WEI
DELIVERED, RECEIVED = 3, 2
ERROR_PPM = 5_000


class Market:
    """A miner (token 1) and a node (token 2) that have tokens; the miner also meters what it receives."""

    def __init__(self, tmp_path, *, carbon=False, world=None, offset_mw=0):
        world = self.world = world or embedded(tmp_path)
        miner = SystemSpec(
            Kind.MINER,
            (ChannelSpec(1, 1, PEAK_MW, ERROR_PPM, 0), ChannelSpec(2, RECEIVED, PEAK_MW, ERROR_PPM, offset_mw)),
        )
        node = SystemSpec(
            Kind.STORAGE_NODE,
            (ChannelSpec(0, RECEIVED, PEAK_MW, ERROR_PPM, 0), ChannelSpec(3, DELIVERED, PEAK_MW, ERROR_PPM, 0)),
            battery_wh=10_000,
        )
        self.owner, self.node_owner = world.accounts[5], world.accounts[6]
        ids = [
            apply_for(world.deployment, self.owner, world.miner, miner),
            apply_for(world.deployment, self.node_owner, world.node, node),
        ]
        world.pass_(admission(world.deployment, ids))
        world.time_s = world.chain.newest_block().time_s
        world.open()
        world.pass_time(DAY_S)
        [claim] = world.approved(world.claim(2 * KWH, at_s=80_000))
        world.contract.claim(world.operator, claim)
        if carbon:
            world.pass_(Proposal((world.deployment.functions("EnergyExchange").setCarbon(KWH_WEI // 2),), "Carbon"))
        sweep(world.deployment, world.stranger)
        self.exchange = Exchange(world.deployment)
        self.vault = world.deployment.addresses.timelock
        self.seq = {"miner": 10, "node": 10}

    def give(self, name, account, amount):
        """Let the vault hand out coins, by a vote."""
        token = coin(self.world.deployment, name)
        self.world.pass_(Proposal((token.functions.transfer(account.address, amount),), f"Give {name}"))

    def pool(self):
        world = self.world
        world.pass_(pool_opening(world.deployment, 2, [KWH_WEI, 2 * KWH_WEI, KWH_WEI], [CAP] * 4))
        return Pool(world.deployment, 2)

    def meter(self, who, register, at_s=0, seq=None):
        """Return an attestation of now (or `at_s` later): the miner's received or the node's delivered channel."""
        world = self.world
        signer, channel = (world.miner, 2) if who == "miner" else (world.node, 3)
        self.seq[who] += 1
        now_s = world.chain.newest_block(fresh=True).time_s
        return attest(signer, world.deployment.network, channel, now_s + at_s, register, seq or self.seq[who])

    def take_out(self, amount=KWH_WEI, valid_s=3_600):
        return self.exchange.request_take_out(self.owner, 1, 2, 2, amount, valid_s)

    def accept(self, number=1, account=None, node=0, buyer=0):
        readings = self.meter("node", node), self.meter("miner", buyer)
        return self.exchange.accept(account or self.node_owner, number, *readings)


@pytest.fixture
def market(tmp_path):
    return Market(tmp_path)


def test_coins_are_minted_on_paid_energy_once_to_the_vault(market):
    world = market.world
    held = balances(world.deployment, market.vault, [2])
    assert held == {"energy 2": 0, "deca": 2 * KWH_WEI, "maxcoin": 2 * KWH_WEI, "carbon": 2 * KWH_WEI}
    sweep(world.deployment, world.stranger)
    assert balances(world.deployment, market.vault, [2]) == held
    rewards = world.deployment.functions("Rewards")
    with refused("AccessManagedUnauthorized"):
        world.send(world.operator, rewards.setRates(0, 0, 0))
    with refused("RateTooHigh"):
        world.pass_(Proposal((rewards.setRates(10**22, 0, 0),), "Far too much"))
    world.pass_(Proposal((rewards.setRates(3 * KWH_WEI, 0, 0),), "Other rates"))
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(3 * KWH, 2, at_s=160_000))
    world.contract.claim(world.operator, claim)
    sweep(world.deployment, world.stranger)
    assert balances(world.deployment, market.vault, [2])["deca"] == 5 * KWH_WEI
    for name in ("deca", "maxcoin", "carbon"):
        with refused("AccessManagedUnauthorized"):
            world.send(world.operator, coin(world.deployment, name).functions.mint(world.operator.address, 1))
    with pytest.raises(UsageError):
        coin(world.deployment, "gold")


def test_a_pool_keeps_its_parity_and_its_fee(market):
    world = market.world
    with pytest.raises(UsageError, match="no pool"):
        Pool(world.deployment, 2)
    with refused("NoEnergyToken"):
        world.pass_(pool_opening(world.deployment, 1, [1, 1, 1], [CAP] * 4))
    with refused("NoParity"):
        world.pass_(pool_opening(world.deployment, 2, [1, 0, 1], [CAP] * 4))
    pool = market.pool()
    market.give("maxcoin", market.owner, KWH_WEI)
    market.give("deca", market.node_owner, KWH_WEI)
    pool.deposit(market.owner, "energy", KWH_WEI)
    shares, value = pool.shares(market.owner.address)
    assert KWH_WEI - 2 <= value <= KWH_WEI
    # a donation counts for nothing
    energy = coin(world.deployment, "energy", 2)
    world.send(market.owner, energy.functions.transfer(pool.address, KWH_WEI // 10))
    assert pool.shares(market.owner.address) == (shares, value)
    # 1 kWh is 2 MaxCoin; a swap costs 0.3 %
    assert pool.quote("maxcoin", KWH_WEI, "energy") == KWH_WEI // 2 * 997 // 1000
    with refused("TooLittle"):
        world.send(
            market.owner,
            world.functions("EnergyPool", pool.address).swap(
                pool.token("maxcoin"), KWH_WEI, pool.token("energy"), KWH_WEI // 2, 2**40
            ),
        )
    with refused("TooLate"):
        world.send(
            market.owner,
            world.functions("EnergyPool", pool.address).swap(
                pool.token("maxcoin"), KWH_WEI, pool.token("energy"), 1, world.chain.newest_block().time_s - 1
            ),
        )
    with refused("SameToken"):
        pool.quote("deca", 1, "deca")
    with refused("NotOfThisPool"):
        world.ask(world.functions("EnergyPool", pool.address).perKwh(market.vault))
    before = balances(world.deployment, market.owner.address, [2])["energy 2"]
    pool.swap(market.owner, "maxcoin", KWH_WEI, "energy")
    assert balances(world.deployment, market.owner.address, [2])["energy 2"] - before == KWH_WEI // 2 * 997 // 1000
    _, grown = pool.shares(market.owner.address)
    assert grown > value  # the fee is the shares'
    with pytest.raises(UsageError, match=r"the pool holds 0\.5015 energy, and would give 0\.997"):
        pool.swap(market.node_owner, "deca", KWH_WEI, "energy")
    pool.deposit(market.node_owner, "deca", KWH_WEI)
    assert pool.shares(market.owner.address)[1] >= grown  # never worth less by another's act
    # redeem: in one token (with the fee), and a part of each
    pool.redeem_in(market.owner, "energy", shares // 4)
    pool.redeem(market.owner, shares - shares // 4)
    assert pool.shares(market.owner.address) == (0, 0)
    with refused("ERC20InsufficientBalance"):
        pool.redeem(market.owner, 1)
    held = pool.reserves()
    for name, reserve in held.items():
        assert world.ask(coin(world.deployment, name, 2).functions.balanceOf(pool.address)) >= reserve


def test_a_pool_keeps_no_more_than_its_caps_and_can_be_stopped_but_for_leaving(market):
    world = market.world
    world.pass_(pool_opening(world.deployment, 2, [KWH_WEI] * 3, [KWH_WEI // 2, 1, 1, 1]))
    pool = Pool(world.deployment, 2)
    with refused("CapReached"):
        pool.deposit(market.owner, "energy", KWH_WEI)
    pool.deposit(market.owner, "energy", KWH_WEI // 2)
    from maxgreen.chain.deploying import selector_of

    authority = world.functions("Authority")
    pools = world.deployment.address_of("EnergyPools")
    for name in ("swap", "deposit", "redeemIn"):
        world.send(world.guardian, authority.stop(pools, selector_of("EnergyPool", name)))
    for act in (
        lambda: pool.redeem_in(market.owner, "energy", 1_000),
        lambda: pool.deposit(market.owner, "energy", 1),
        lambda: world.send(
            market.owner,
            world.functions("EnergyPool", pool.address).swap(pool.token("energy"), 1, pool.token("deca"), 0, 2**40),
        ),
    ):
        with refused("AccessManagedUnauthorized"):
            act()
    pool.redeem(market.owner, pool.shares(market.owner.address)[0])
    with refused("AccessManagedUnauthorized"):
        world.send(market.owner, world.deployment.functions("EnergyPools").open(2, [1] * 3, [1] * 4))


def test_energy_is_stored_by_agreement(market):
    exchange, world = market.exchange, market.world
    with refused("NotOwner"):
        exchange.request_storage(market.node_owner, 1, 2, KWH, 3_600)
    with refused("WrongKind"):
        exchange.request_storage(market.owner, 1, 1, KWH, 3_600)
    with refused("NothingAsked"):
        exchange.request_storage(market.owner, 1, 2, 0, 3_600)
    with refused("OfferOutOfRange"):
        exchange.request_storage(market.owner, 1, 2, KWH, 32 * DAY_S)
    for number, (account, accept, status) in enumerate(
        (
            (market.node_owner, True, RequestStatus.ACCEPTED),
            (market.node_owner, False, RequestStatus.REFUSED),
            (market.owner, False, RequestStatus.CANCELLED),
        ),
        1,
    ):
        assert exchange.request_storage(market.owner, 1, 2, KWH, 3_600) == number
        with refused("NotOwner"):
            exchange.answer_storage(market.world.stranger, number, accept=False)
        with refused("NotOwner"):
            exchange.answer_storage(market.owner, number, accept=True)
        exchange.answer_storage(account, number, accept=accept)
        assert next(iter(exchange.storage_requests())).status is status
        with refused("WrongStatus"):
            exchange.answer_storage(account, number, accept=accept)
    exchange.request_storage(market.owner, 1, 2, KWH, 60)
    world.pass_time(100)
    with refused("Expired"):
        exchange.answer_storage(market.node_owner, 4, accept=True)


def test_what_both_meters_saw_is_burned_and_the_rest_comes_back(tmp_path):
    market = Market(tmp_path, carbon=True)
    world, exchange = market.world, market.exchange
    market.give("carbon", market.owner, KWH_WEI)
    energy, carbon = (coin(world.deployment, name, 2) for name in ("energy", "carbon"))
    supply = world.ask(energy.functions.totalSupply())
    assert market.take_out() == 1
    with refused("NothingAsked"):
        market.take_out(1)
    with refused("ChannelBusy"):
        market.take_out(10**15)
    with refused("NotOwner"):
        market.accept(account=market.owner)
    with refused("NotFresh"):  # of before the request
        exchange.accept(market.node_owner, 1, market.meter("node", 5, -60), market.meter("miner", 0))
    with refused("NotFresh"):  # what the buyer got before does not count
        exchange.accept(market.node_owner, 1, market.meter("node", 5), market.meter("miner", 0, -60))
    with refused("WrongChannel"):
        wrong = attest(world.node, world.deployment.network, 0, world.chain.newest_block().time_s, 5, 99)
        exchange.accept(market.node_owner, 1, wrong, market.meter("miner", 0))
    start = market.meter("node", 5)
    exchange.accept(market.node_owner, 1, start, market.meter("miner", 0))
    world.pass_time(40_000)
    delivered = KWH * 8 // 10
    end = market.meter("node", 5 + delivered)
    with refused("NotOwner"):  # nobody else ends a delivery
        exchange.finish(world.stranger, 1, end)
    with refused("ReadingWentBack"):  # nor the register of its beginning
        exchange.finish(market.node_owner, 1, start)
    exchange.finish(market.node_owner, 1, end)
    with refused("ReadingTooEarly"):
        exchange.confirm(world.stranger, 1, market.meter("miner", delivered, -10_000))
    received = delivered * 9 // 10
    exchange.confirm(world.stranger, 1, market.meter("miner", received))
    assert exchange.take_out(1).status is RequestStatus.SETTLED
    burned = wei_of(received + received * ERROR_PPM // 10**6)
    assert supply - world.ask(energy.functions.totalSupply()) == burned
    assert world.ask(world.deployment.registry.functions.consumed(1)) == burned
    owner = market.owner.address
    assert exchange.owed(owner, energy.address) == KWH_WEI - burned
    assert exchange.owed(owner, carbon.address) == KWH_WEI // 2 - KWH_WEI // 2 * burned // KWH_WEI
    before = world.ask(energy.functions.balanceOf(owner))
    exchange.withdraw(market.owner, energy.address)
    assert world.ask(energy.functions.balanceOf(owner)) - before == KWH_WEI - burned
    with refused("NothingOwed"):
        exchange.withdraw(market.owner, energy.address)
    with refused("WrongStatus"):
        exchange.finish(market.node_owner, 1, market.meter("node", 9 * KWH))
    exchange.withdraw(market.owner, carbon.address)
    for token in (energy, carbon):
        assert world.ask(token.functions.balanceOf(world.deployment.address_of("EnergyExchange"))) == 0
    # room for another month's energy, by a delivery
    assert market.take_out() == 2


def test_a_request_that_nobody_accepts_costs_nothing(market):
    world, exchange = market.world, market.exchange
    energy = coin(world.deployment, "energy", 2)
    with refused("TooMuch"):
        market.take_out(11 * KWH_WEI)
    with refused("WrongChannel"):
        exchange.request_take_out(market.owner, 1, 1, 2, 10**15, 3_600)
    for number, account, status in (
        (1, market.node_owner, RequestStatus.REFUSED),
        (2, market.owner, RequestStatus.CANCELLED),
    ):
        market.take_out()
        with refused("NotOwner"):
            exchange.decline(world.stranger, number)
        exchange.decline(account, number)
        assert exchange.take_out(number).status is status
        exchange.withdraw(market.owner, energy.address)
    market.take_out(valid_s=60)
    world.pass_time(120)
    with refused("Expired"):
        market.accept(3)
    exchange.decline(market.owner, 3)
    assert exchange.owed(market.owner.address, energy.address) == KWH_WEI
    with pytest.raises(UsageError, match="no take-out"):
        exchange.take_out(9)


def under_way(market):
    market.take_out()
    market.accept()
    market.world.pass_time(40_000)


def consumed(market):
    return market.world.ask(market.world.deployment.registry.functions.consumed(1))


def test_a_silent_buyer_leaves_the_figure_to_the_node_two_weeks_after_it_showed_it(market):
    world, exchange = market.world, market.exchange
    under_way(market)
    reading = market.meter("node", KWH // 2)
    world.pass_time(6 * DAY_S)
    exchange.finish(market.node_owner, 1, reading)  # kept back for days: the buyer's time begins now
    with refused("ReadingWentBack"):
        exchange.finish(market.node_owner, 1, market.meter("node", KWH // 4))
    for days in (0, 10):
        world.pass_time(days * DAY_S)
        with refused("NotYet"):
            exchange.settle(market.node_owner, 1)
    world.pass_time(4 * DAY_S + 10)
    exchange.settle(market.node_owner, 1)
    assert consumed(market) == KWH_WEI // 2


def test_a_silent_node_leaves_the_figure_to_the_buyer_and_a_late_register_wins_until_then(market):
    world, exchange = market.world, market.exchange
    under_way(market)
    with refused("ReadingTooEarly"):  # the node may deliver for a week
        exchange.confirm(market.owner, 1, market.meter("miner", KWH // 3))
    world.pass_time(7 * DAY_S)
    exchange.confirm(market.owner, 1, market.meter("miner", KWH // 3))
    assert exchange.measured_mws(1) == KWH // 3  # no slack of its own meter, when it alone speaks
    with refused("NotYet"):
        exchange.settle(market.owner, 1)
    with refused("Expired"):  # delivered after its time
        exchange.finish(market.node_owner, 1, market.meter("node", KWH // 4))
    market.seq["node"] += 1
    due_s = exchange.take_out(1).deliver_by_s
    late = attest(world.node, world.deployment.network, 3, due_s, KWH // 4, market.seq["node"])
    exchange.finish(market.node_owner, 1, late)
    assert consumed(market) == KWH_WEI // 4


def test_two_silent_meters_give_everything_back(market):
    world, exchange = market.world, market.exchange
    under_way(market)
    world.pass_time(22 * DAY_S)
    with refused("Expired"):
        exchange.finish(market.node_owner, 1, market.meter("node", KWH // 4))
    exchange.settle(world.stranger, 1)
    energy = coin(world.deployment, "energy", 2)
    assert exchange.owed(market.owner.address, energy.address) == KWH_WEI


def test_who_is_suspended_meanwhile_can_still_show_its_meter(market):
    world, exchange = market.world, market.exchange
    under_way(market)
    exchange.finish(market.node_owner, 1, market.meter("node", KWH))
    world.pass_(Proposal((world.deployment.registry.functions.setStatus(1, 2, "look at it"),), "Suspend the buyer"))
    exchange.confirm(market.owner, 1, market.meter("miner", KWH // 3))
    assert consumed(market) == wei_of(KWH // 3 + KWH // 3 * ERROR_PPM // 10**6)
    with refused("SystemNotActive"):
        market.take_out(10**15)


def test_a_rotated_meter_is_not_compared_and_goes_on_with_the_next_request(market):
    world, exchange = market.world, market.exchange
    under_way(market)
    new = MemorySigner.from_secret(77)
    functions, network = world.deployment.registry.functions, world.deployment.network
    spec = read_systems(world.deployment)[key_id(world.miner.spki)].spec
    proof = prove_possession(new, network, bytes.fromhex(market.owner.address[2:]), 0, spec.digest)
    over = hand_over(world.miner, network, key_id(new.spki))
    pairs = [[signature[:32], signature[32:]] for signature in (over, proof)]
    world.pass_time(DAY_S)
    world.send(market.owner, functions.rotateKey(1, key_words(new.spki), *pairs))
    world.pass_time(60)
    exchange.finish(market.node_owner, 1, market.meter("node", KWH // 5))
    world.miner, market.seq["miner"] = new, 0
    with refused("OtherKey"):
        exchange.confirm(market.owner, 1, market.meter("miner", 0))
    world.pass_(exchange.decision(1, KWH // 5))
    market.take_out(KWH_WEI // 10)
    old = MemorySigner.from_secret(11)
    stale = attest(old, network, 2, world.ask(functions.keyAt(1, 1))[1] - 1, 0, 99)
    with refused("NotFresh"):
        exchange.accept(market.node_owner, 2, market.meter("node", KWH), stale)
    market.accept(2, node=KWH)
    world.pass_time(40_000)
    exchange.finish(market.node_owner, 2, market.meter("node", KWH + KWH // 20))
    exchange.confirm(market.owner, 2, market.meter("miner", KWH // 20))
    assert exchange.take_out(2).status is RequestStatus.SETTLED


def test_the_dao_decides_a_dispute(market):
    world, exchange = market.world, market.exchange
    under_way(market)
    exchange.finish(market.node_owner, 1, market.meter("node", KWH))
    with refused("AccessManagedUnauthorized"):
        world.send(world.operator, world.deployment.functions("EnergyExchange").decide(1, 0))
    world.pass_(exchange.decision(1, KWH // 5))
    assert world.ask(world.deployment.registry.functions.consumed(1)) == KWH_WEI // 5


def test_a_node_cannot_have_given_more_than_its_peak(market):
    world, exchange = market.world, market.exchange
    market.take_out()
    market.accept()
    world.pass_time(9)
    exchange.finish(market.node_owner, 1, market.meter("node", KWH))
    node_end = exchange.take_out(1).node_end_s
    assert exchange.measured_mws(1) <= PEAK_MW * 15
    assert node_end


def test_owners_and_members_vote_on_modules_and_on_nothing_else(market):
    world = market.world
    addresses = world.deployment.addresses
    electorate, modules = (world.deployment.functions(name) for name in ("Electorate", "ModuleRegistry"))
    voters = [*world.members, market.owner, market.node_owner]
    from maxgreen.chain.dao import Dao

    dao = Dao(world.deployment, world.clock, governor="ModuleGovernor")
    release = modules.set("agent", "2.0.0", b"\7" * 32, "https://releases.example/agent-2.0.0")
    for account in (market.owner, market.node_owner):
        world.send(world.stranger, electorate.refresh(account.address))
    world.pass_time(2)  # the first who take their vote are no majority: members have theirs
    two = [market.owner, market.node_owner]
    assert dao.carry_out(Proposal((release,), "Two"), two, wait=True) is ProposalState.DEFEATED
    for account in (*voters, world.stranger):
        world.send(world.stranger, electorate.refresh(account.address))
    with refused("VotesAreNotDelegated"):
        world.send(market.owner, electorate.delegate(world.stranger.address))
    world.pass_time(5)
    assert [world.ask(electorate.getVotes(a.address)) for a in (*voters, world.stranger)] == [1] * 5 + [0]
    assert dao.carry_out(Proposal((release,), "Agent 2"), voters[2:], wait=True) is ProposalState.EXECUTED
    assert dao.carry_out(Proposal((release,), "Again"), voters[3:], wait=True) is ProposalState.DEFEATED
    [module] = world.ask(modules.historyOf("agent"))
    assert (module[0], module[1], world.ask(modules.names())) == ("2.0.0", b"\7" * 32, ["agent"])
    for wrong, name in (
        (modules.set("", "1", bytes(32), ""), "NoName"),
        (modules.set("x" * 600, "1", bytes(32), ""), "TextTooLong"),
        (world.functions("MinerRegistry", addresses.registry).setStatus(1, 3, "no"), "AccessManagedUnauthorized"),
    ):
        with refused(name):
            dao.carry_out(Proposal((wrong,), name), voters[2:], wait=True)
    with refused("AccessManagedUnauthorized"):  # nor does the technical DAO set modules
        world.pass_(Proposal((release,), "By the DAO"))
    world.pass_(Proposal((world.deployment.registry.functions.setStatus(1, 2, "look"),), "Suspend"))
    world.send(world.stranger, electorate.refresh(market.owner.address))
    world.pass_time(2)
    assert world.ask(electorate.getVotes(market.owner.address)) == 0


def test_lines_are_paid_by_the_writer_alone_and_a_successor_goes_on(market):
    """A second settlement over the same book pays only what the first did not."""
    world = market.world
    addresses = world.deployment.addresses
    book = world.deployment.line_book.functions
    reading = (1, 1, 1, 0, 0)
    for call in (
        book.open(world.ends.line_id, reading, reading),
        book.claim(world.ends.line_id, 1, reading, reading, 0, 0),
        book.pay(world.ends.line_id, 1, 1),
        book.hold(world.ends.line_id, 1, ""),
        book.release(world.ends.line_id),
        book.forfeit(world.ends.line_id),
        book.nextKey(world.ends.line_id, True, reading),
        book.raiseClosing(world.ends.line_id, True, reading),
    ):
        with refused("NotWriter"):
            world.send(world.operator, call)
    second = world.chain.deploy(
        world.stranger, "EnergySettlement", addresses.authority, addresses.registry, addresses.line_book
    )
    authority = world.functions("Authority")
    world.pass_(
        Proposal(
            (
                authority.grantRole(2, second.address, 0),
                authority.setTargetFunctionRole(second.address, [bytes.fromhex("00000000")], 1),
            ),
            "A second settlement that may mint, and not write",
        )
    )
    assert world.ask(book.writer()) == addresses.settlement
    assert world.contract.total_paid_mws() == 2 * KWH


def test_a_new_line_begins_where_an_old_one_was_closed(tmp_path):
    world = embedded(tmp_path).enrol().open()
    other = MemorySigner.from_secret(33)
    channel = ChannelSpec(0, RECEIVED, PEAK_MW, 0, 0)
    spec = SystemSpec(Kind.STORAGE_NODE, (channel,), battery_wh=1_000)
    world.pass_(admission(world.deployment, [apply_for(world.deployment, world.accounts[6], other, spec)]))
    ends = replace(world.ends, node_token=3)
    world.pass_(world.contract.line_approval([(ends, TERMS)]))
    sent, _ = world.attest(0, 0)
    received = attest(other, world.deployment.network, 0, world.chain.newest_block().time_s, 0, 0)
    with refused("ChannelInUse"):
        world.contract.open_line(world.operator, ends, sent, received)
    world.pass_time(100)
    world.pass_(world.contract.closing(world.ends.line_id))
    with refused("ReadingBeforeClosing"):
        world.contract.open_line(world.operator, ends, sent, received)
    world.pass_time(100)
    now_s = world.chain.newest_block().time_s
    sent = attest(world.miner, world.deployment.network, 1, now_s, 5, 1)
    received = attest(other, world.deployment.network, 0, now_s, 0, 0)
    world.contract.open_line(world.operator, ends, sent, received)
    assert world.contract.line(ends.line_id).base_sent.register_mws == 5
    # and another one between the old ends has the next epoch
    world.pass_(world.contract.closing(ends.line_id))
    again = replace(world.ends, epoch=1)
    world.pass_(world.contract.line_approval([(again, TERMS)]))
    world.pass_time(100)
    now_s = world.chain.newest_block().time_s
    sent = attest(world.miner, world.deployment.network, 1, now_s, 9, 2)
    received = attest(world.node, world.deployment.network, 0, now_s, 0, 2)
    world.contract.open_line(world.operator, again, sent, received)
    assert world.contract.line(again.line_id).opened_s
