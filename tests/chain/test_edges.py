"""One unit to each side of what the contracts take: bounds, times, registers, states; by questions, not transactions."""

from dataclasses import replace

import pytest
from eth_utils.abi import function_signature_to_4byte_selector
from web3 import HTTPProvider, Web3
from web3.exceptions import Web3Exception

from maxgreen.chain.artifacts import artifact
from maxgreen.chain.dao import Proposal, ProposalState
from maxgreen.chain.market import KWH_WEI, Pool, RequestStatus, coin, pool_opening
from maxgreen.chain.orders import Ends, attestation_values
from maxgreen.chain.registry import apply_for, key_words, read_systems
from maxgreen.protocol.attestation import attest, hand_over, prove_possession
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec
from tests.chain.test_contracts import Rotation, halves
from tests.chain.test_market import CAP, DELIVERED, Market, under_way
from tests.chain.world import DAY_S, KWH, TERMS, embedded, refused
from tests.conftest import running_anvil

NOBODY = 99  # no system has this number


class Asking:
    """Asks what a call would do, as the DAO's timelock or an account."""

    def __init__(self, world):
        self.world = world
        self.dao = world.deployment.addresses.timelock
        # the embedded chain answers only who could pay
        eth = world.chain.web3.eth
        sent = eth.send_transaction({"from": world.stranger.address, "to": self.dao, "value": 10**18})
        eth.wait_for_transaction_receipt(sent)
        world.pass_time(1)

    def by_dao(self, function):
        return self.world.chain.call(function, sender=self.dao)

    def by(self, account, function):
        return self.world.chain.call(function, sender=account.address)


@pytest.fixture
def market(tmp_path):
    return Market(tmp_path)


def forged(market, who, register):
    """Return what somebody else's key says of a meter."""
    world = market.world
    real = market.meter(who, register)
    thief = MemorySigner.from_secret(666)
    return attest(thief, world.deployment.network, real.channel, real.unix_s, register, real.seq)


def test_the_daos_parameters_have_bounds(tmp_path):
    world = embedded(tmp_path)
    ask = Asking(world)
    settlement, rewards = world.functions("EnergySettlement"), world.functions("Rewards")
    for good in ((10**6, 1, 1), (0, 2**40 - 1, 366 * DAY_S)):
        ask.by_dao(settlement.setParameters(*good))
    for bad in ((10**6 + 1, 1, 1), (0, 2**40, 1), (0, 1, 0), (0, 1, 366 * DAY_S + 1)):
        with refused("OutOfRange"):
            ask.by_dao(settlement.setParameters(*bad))
    exchange = world.functions("EnergyExchange")
    ask.by_dao(exchange.setCarbon(1_000 * KWH_WEI))
    with refused("TooMuch"):
        ask.by_dao(exchange.setCarbon(1_000 * KWH_WEI + 1))
    ask.by_dao(rewards.setRates(*[1_000 * KWH_WEI] * 3))
    for place in range(3):
        rates = [1_000 * KWH_WEI + (place == k) for k in range(3)]
        with refused("RateTooHigh"):
            ask.by_dao(rewards.setRates(*rates))


def test_who_is_not_registered_is_nobody(tmp_path):
    world = embedded(tmp_path).enrol()
    ask, registry = Asking(world), world.deployment.registry.functions
    for call in (
        registry.keyCount(NOBODY), registry.keyAt(NOBODY, 0), registry.meterOf(NOBODY, 0, 1),
        registry.endOf(NOBODY, 0, 1), registry.systemOf(NOBODY),
    ):  # fmt: skip
        with refused("NotRegistered"):
            world.ask(call)
    with refused("NotRegistered|ERC721NonexistentToken"):
        ask.by_dao(registry.setStatus(NOBODY, 2, "who?"))
    with refused("NoSuchKey"):
        world.ask(registry.keyAt(1, 1))
    for call in (registry.meterOf(1, 7, 2**40), registry.endOf(1, 7, 2**40)):
        with refused("NoSuchChannel"):
            world.ask(call)
    with refused("NoClone"):
        world.ask(world.functions("EnergyToken").symbol())
    assert world.ask(world.deployment.energy_token(2).functions.symbol()) == "MGE2"


def test_what_applies_has_peaks_and_an_efficiency(tmp_path):
    world = embedded(tmp_path)

    def apply(peak_mw=1, efficiency_ppm=10**6):
        spec = SystemSpec(Kind.MINER, (ChannelSpec(1, 1, peak_mw, 0, 0),), efficiency_ppm=efficiency_ppm)
        return apply_for(world.deployment, world.accounts[5], world.miner, spec)

    with refused("ChannelWithoutPeak"):
        apply(peak_mw=0)
    for efficiency_ppm in (0, 10**6 + 1):
        with refused("EfficiencyOutOfRange"):
            apply(efficiency_ppm=efficiency_ppm)
    apply()
    apply(efficiency_ppm=1)


def test_what_no_meter_signed_is_no_reading(market):
    world, exchange = market.world, market.exchange
    market.take_out()
    for node, buyer in (
        (forged(market, "node", 0), market.meter("miner", 0)),
        (market.meter("node", 0), forged(market, "miner", 0)),
    ):
        with refused("BadAttestation"):
            exchange.accept(market.node_owner, 1, node, buyer)
    market.accept()
    world.pass_time(40_000)
    with refused("BadAttestation"):
        exchange.finish(market.node_owner, 1, forged(market, "node", KWH))
    exchange.finish(market.node_owner, 1, market.meter("node", KWH // 2))
    with refused("BadAttestation"):
        exchange.confirm(market.owner, 1, forged(market, "miner", KWH // 2))
    other = attest(world.miner, world.deployment.network, 1, world.chain.now_s(), 0, 99)  # of another channel
    with refused("BadAttestation"):
        exchange.confirm(market.owner, 1, other)


def test_a_reading_is_of_now_of_its_key_and_later_than_the_one_before(market):
    world, exchange = market.world, market.exchange
    market.take_out()
    begin = market.meter("node", 0)
    exchange.accept(market.node_owner, 1, begin, market.meter("miner", 0))
    world.pass_time(40_000)
    start_s, seq = begin.unix_s, begin.seq

    def shown(register, at_s, number):
        return attest(world.node, world.deployment.network, DELIVERED, at_s, register, number)

    def finish(register, at_s, number):
        functions = world.functions("EnergyExchange")
        values = attestation_values(shown(register, at_s, number))
        return world.chain.call(functions.finish(1, values), sender=market.node_owner.address)

    now_s = world.chain.newest_block(fresh=True).time_s
    with refused("AttestationInFuture"):
        finish(KWH, now_s + 310, seq + 1)
    finish(KWH, now_s + 299, seq + 1)
    with refused("ReadingWentBack"):
        finish(KWH, now_s, seq - 1)
    finish(KWH, now_s, seq)  # the same batch may attest
    with refused("ReadingWentBack"):
        finish(KWH, start_s, seq + 1)
    finish(0, start_s + 1, seq + 1)
    exchange.finish(market.node_owner, 1, shown(1, start_s + 2, seq + 1))
    with refused("ReadingWentBack"):
        finish(0, start_s + 3, seq + 2)
    finish(1, start_s + 3, seq + 2)


def test_an_old_keys_reading_begins_no_delivery(market):
    world, exchange = market.world, market.exchange
    world.pass_time(2 * DAY_S)
    market.take_out()
    old = market.meter("miner", 0)
    new = MemorySigner.from_secret(77)
    functions, network = world.deployment.registry.functions, world.deployment.network
    spec = read_systems(world.deployment)[key_id(world.miner.spki)].spec
    proof = prove_possession(new, network, bytes.fromhex(market.owner.address[2:]), 0, spec.digest)
    over = hand_over(world.miner, network, key_id(new.spki))
    pairs = [[signature[:32], signature[32:]] for signature in (over, proof)]
    world.pass_time(5)
    world.send(market.owner, functions.rotateKey(1, key_words(new.spki), *pairs))
    with refused("OtherKey"):
        exchange.accept(market.node_owner, 1, market.meter("node", 0), old)


def test_a_request_is_answered_once(market):
    exchange = market.exchange
    market.take_out()
    for early in (exchange.finish, exchange.confirm):
        with refused("WrongStatus"):
            early(market.node_owner, 1, market.meter("node", KWH))
    with refused("WrongStatus"):
        exchange.settle(market.owner, 1)
    market.accept()
    with refused("WrongStatus"):
        market.accept()
    with refused("WrongStatus"):
        exchange.decline(market.owner, 1)
    with refused("WrongStatus"):
        market.accept(7)
    assert exchange.take_out(1).status is RequestStatus.ACCEPTED


def test_a_late_showing_is_none_whenever_it_was_measured(market):
    world, exchange = market.world, market.exchange
    under_way(market)
    reading = market.meter("node", KWH // 4)
    world.pass_time(22 * DAY_S)
    with refused("Expired"):
        exchange.finish(market.node_owner, 1, reading)


def test_an_offer_lasts_a_month_at_most_and_asks_for_what_the_node_may_hold(market):
    world = market.world
    ask, functions = Asking(world), world.functions("EnergyExchange")
    energy = coin(world.deployment, "energy", 2)
    world.send(market.owner, energy.functions.approve(world.deployment.address_of("EnergyExchange"), 20 * KWH_WEI))
    now_s = world.chain.newest_block(fresh=True).time_s

    def offer(valid_s=3_600, amount=KWH_WEI, node=2, owner=None):
        return ask.by(owner or market.owner, functions.requestTakeOut(1, 2, node, amount, now_s + valid_s))

    def store(valid_s=3_600, energy=KWH, node=2, owner=None):
        return ask.by(owner or market.owner, functions.requestStorage(1, node, energy, now_s + valid_s))

    for asked in (offer, store):
        for bad in (-10, 0, 30 * DAY_S + 60):
            with refused("OfferOutOfRange"):
                asked(bad)
        for good in (60, 30 * DAY_S - 60):
            asked(good)
        with refused("NotOwner"):
            asked(owner=world.stranger)
        with refused("WrongKind"):
            asked(node=1)
    with refused("NothingAsked"):
        offer(amount=10**15 - 1)
    offer(amount=10**15)
    with refused("TooMuch"):
        offer(amount=10 * KWH_WEI + 1)
    with refused("NothingAsked"):
        store(energy=0)
    store(energy=1)
    world.send(market.owner, functions.requestStorage(1, 2, KWH, now_s + 3_600))
    world.pass_(ask_status(world, 2, 2))
    for asked in (offer, store):
        with refused("SystemNotActive"):
            asked(200_000)


def ask_status(world, token, status):
    return Proposal((world.deployment.registry.functions.setStatus(token, status, "look at it"),), "Set a status")


def test_a_pool_gives_no_more_than_it_has_and_nothing_for_nothing(market):
    world = market.world
    world.pass_(pool_opening(world.deployment, 2, [KWH_WEI, 2 * KWH_WEI, KWH_WEI], [KWH_WEI, CAP, CAP, CAP]))
    pool = Pool(world.deployment, 2)
    functions, ask = world.functions("EnergyPool", pool.address), Asking(world)
    energy, deca = pool.token("energy"), pool.token("deca")
    token = world.chain.contract("EnergyToken", energy).functions
    world.send(market.owner, token.approve(pool.address, 10 * KWH_WEI))
    now_s = world.chain.newest_block(fresh=True).time_s

    def deposit(amount, least=0, deadline=2**40):
        return ask.by(market.owner, functions.deposit(energy, amount, least, deadline))

    with refused("TooLittle"):
        deposit(0)
    with refused("TooLate"):
        deposit(KWH_WEI, deadline=now_s - 1)
    deposit(KWH_WEI, deadline=now_s + 60)
    with refused("CapReached"):
        deposit(KWH_WEI + 1)
    shares = deposit(KWH_WEI)
    deposit(KWH_WEI, least=shares)
    with refused("TooLittle"):
        deposit(KWH_WEI, least=shares + 1)
    with refused("NotOfThisPool"):
        ask.by(market.owner, functions.deposit(world.stranger.address, 1, 0, 2**40))
    pool.deposit(market.owner, "energy", KWH_WEI // 2)
    with refused("NotEnough"):  # there is no DECA in it
        ask.by(market.owner, functions.swap(energy, KWH_WEI // 4, deca, 0, 2**40))
    held = world.ask(functions.balanceOf(market.owner.address))
    with refused("NotEnough"):
        ask.by(market.owner, functions.redeemIn(deca, held, 0, 2**40))
    with refused("TooLittle"):
        ask.by(market.owner, functions.swap(energy, 0, deca, 0, 2**40))
    with refused("TooLate"):
        ask.by(market.owner, functions.redeem(held, [0] * 4, now_s - 1))
    total, supply = (world.ask(functions[name]()) for name in ("totalValue", "totalSupply"))
    assert world.ask(functions.valueOf(held)) == held * (total + 1) // (supply + 1_000)
    amount = ask.by(market.owner, functions.redeemIn(energy, held, 0, 2**40))
    ask.by(market.owner, functions.redeemIn(energy, held, amount, 2**40))
    for call in (functions.redeemIn(energy, held, amount + 1, 2**40), functions.redeemIn(energy, 0, 0, 2**40)):
        with refused("TooLittle"):
            ask.by(market.owner, call)
    reserve = world.ask(functions.reserveOf(energy))
    with refused("TooLittle"):
        ask.by(market.owner, functions.redeem(held, [reserve, 0, 0, 0], 2**40))
    with refused("ERC20InsufficientBalance"):
        ask.by(market.owner, functions.redeem(held + 1, [0] * 4, 2**40))
    given = ask.by(market.owner, functions.redeemIn(energy, held // 2, 0, 2**40))
    block = world.send(market.owner, functions.redeemIn(energy, held // 2, 0, 2**40))["blockNumber"]
    event = world.chain.contract("EnergyPool", pool.address).events.Redeemed
    [redeemed] = world.chain.events(event, block)
    place = world.ask(functions.tokens()).index(energy)
    assert redeemed["args"]["amounts"] == [given if k == place else 0 for k in range(4)]


def test_a_claim_is_of_the_past_and_of_both_ends(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(DAY_S)
    ahead_s = world.chain.newest_block(fresh=True).time_s - world.time_s + 9 * DAY_S
    [claim] = world.approved(world.claim(KWH, 1, ahead_s))
    with refused("AttestationInFuture"):
        world.contract.claim(world.stranger, claim)


def test_an_order_asks_for_no_more_than_a_word_holds(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(DAY_S)
    functions, ask = world.functions("EnergySettlement"), Asking(world)
    for total, refusal in ((2**96 - 1, None), (2**96, "OutOfRange")):
        posting, _ = world.period(world.claim(KWH, 1, 80_000), total_mws=total)
        if refusal is None:
            ask.by(world.operator, functions.post(posting.values))
            continue
        with refused(refusal):
            ask.by(world.operator, functions.post(posting.values))


def test_an_order_of_before_is_not_approved_when_orders_live_longer(tmp_path):
    world = embedded(tmp_path).enrol().open()
    functions, ask = world.functions("EnergySettlement"), Asking(world)
    world.pass_(Proposal((functions.setParameters(10**5, 1_250_000, DAY_S),), "Orders live a day"))
    world.pass_time(DAY_S)
    old, _ = world.period(world.claim(KWH, 1, 80_000))
    assert world.contract.post(world.operator, old) == 1
    world.pass_time(2 * DAY_S)
    with refused("OrderLapsed"):
        ask.by_dao(world.contract.approval(1, old).calls[0])
    world.approved(world.claim(KWH, 1, 80_000), until_s=old.until_s)
    world.pass_(Proposal((functions.setParameters(10**5, 1_250_000, 60 * DAY_S),), "Orders live two months"))
    with refused("PeriodNotNew"):
        ask.by_dao(world.contract.approval(1, old).calls[0])


def test_what_is_said_of_an_order_is_of_that_order_and_short(tmp_path):
    world = embedded(tmp_path).enrol().open()
    functions, ask = world.functions("EnergySettlement"), Asking(world)
    world.pass_time(DAY_S)
    posting, _ = world.period(world.claim(KWH, 1, 80_000), evidence="x" * 512)
    long, _ = world.period(world.claim(KWH, 1, 80_000), evidence="x" * 513)
    with refused("TextTooLong"):
        ask.by(world.operator, functions.post(long.values))
    world.contract.post(world.operator, posting)
    content = posting.content(1)
    ask.by_dao(functions.reject(1, content, 64, "x" * 1_024))
    with refused("TextTooLong"):
        ask.by_dao(functions.reject(1, content, 64, "x" * 1_025))
    with refused("ContentChanged"):
        ask.by_dao(functions.reject(1, bytes(32), 64, ""))
    with refused("NoSuchOrder"):
        ask.by_dao(functions.reject(2, content, 64, ""))
    with refused("NoSuchOrder"):
        ask.by(world.operator, functions.withdraw(2))
    line = world.ends.line_id
    ask.by_dao(functions.hold((line, 1, "x" * 1_024)))
    with refused("TextTooLong"):
        ask.by_dao(functions.hold((line, 1, "x" * 1_025)))
    with refused("NoSuchLine"):
        ask.by_dao(functions.hold((bytes(32), 1, "")))
    world.pass_(world.contract.approval(1, posting))
    for again in (functions.reject(1, content, 64, ""), functions.approve(1, posting.values, [])):
        with refused("OrderNotOpen|PeriodNotNew"):
            ask.by_dao(again)
    with refused("OrderNotOpen"):
        ask.by(world.operator, functions.withdraw(1))


def test_what_was_measured_before_a_line_opened_is_not_payable(tmp_path):
    world = embedded(tmp_path).enrol()
    assert world.pass_(world.contract.line_approval([(world.ends, TERMS)])) is ProposalState.EXECUTED
    world.contract.open_line(world.operator, world.ends, *world.attest(5 * KWH, 0))
    world.pass_time(DAY_S)
    (less, _), (_, more) = (world.attest(energy, 1, 80_000) for energy in (6 * KWH, 7 * KWH))
    (_, less_there), (more_here, _) = (world.attest(energy, 1, 80_000) for energy in (6 * KWH, 7 * KWH))
    for sent, received in [(less, more), (more_here, less_there)]:
        claim = replace(world.claim(KWH + 1, 1, 80_000), sent=sent, received=received)
        [claim] = world.approved(claim)
        with refused("PayableExceedsGrowth"):
            world.contract.claim(world.operator, claim)
    [claim] = world.approved(replace(world.claim(KWH, 1, 80_000), sent=less, received=less_there))
    world.contract.claim(world.operator, claim)
    assert world.contract.line(world.ends.line_id).paid_mws == KWH


def test_a_closed_line_goes_on_with_no_key_of_afterwards(tmp_path):
    world = embedded(tmp_path)
    rotation = Rotation(world)
    world.pass_(world.contract.closing(world.ends.line_id))
    world.pass_time(DAY_S)
    rotation.rotate()
    with refused("ReadingAfterClosing"):
        world.contract.next_key(world.stranger, world.ends.line_id, miner_end=True)


def test_the_present_key_is_closed_by_nobody(tmp_path):
    world = embedded(tmp_path)
    rotation = Rotation(world)
    with refused("OtherKey"):  # its register would be carried, and counted twice
        world.contract.show_closing(world.stranger, world.ends.line_id, rotation.closing, miner_end=True)


def test_a_line_is_closed_once(tmp_path):
    world = embedded(tmp_path).enrol().open()
    book, ask = world.functions("LineBook"), Asking(world)
    world.pass_(world.contract.closing(world.ends.line_id))
    for call in (
        lambda: ask.by_dao(book.close(world.ends.line_id)),
        lambda: ask.by(world.accounts[5], book.agreeToClose(world.ends.line_id)),
    ):
        with refused("LineNotOpen"):
            call()
    with refused("NoSuchLine"):
        ask.by_dao(book.close(bytes(32)))
    with refused("NotAnOwner"):
        ask.by(world.stranger, book.agreeToClose(world.ends.line_id))


def test_credit_waits_while_its_line_is_held_or_an_end_is_suspended(tmp_path):
    world = embedded(tmp_path).enrol(battery_wh=500, efficiency_ppm=10**6).open()
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, 1, 80_000))
    world.contract.claim(world.stranger, claim)
    functions, ask = world.functions("EnergySettlement"), Asking(world)
    line = world.ends.line_id
    collect = functions.collect(line)
    with refused("NoRoom"):
        ask.by(world.stranger, collect)
    world.pass_(Proposal((functions.hold((line, 60, "look at it")),), "Hold"))
    with refused("LineIsHeld"):
        ask.by(world.stranger, collect)
    world.pass_(Proposal((functions.release(line),), "Release"))
    for token in (1, 2):
        world.pass_(ask_status(world, token, 2))
        with refused("SystemNotActive"):
            ask.by(world.stranger, collect)
        world.pass_(ask_status(world, token, 1))
    with refused("NoRoom"):
        ask.by(world.stranger, collect)
    with refused("NoSuchLine"):
        ask.by(world.stranger, functions.collect(bytes(32)))


def test_a_key_from_before_the_line_measured_nothing_for_it(tmp_path):
    world = embedded(tmp_path).enrol()
    old, new = world.miner, MemorySigner.from_secret(21)
    functions, owner, network = world.deployment.registry.functions, world.accounts[5], world.deployment.network
    world.pass_time(DAY_S)
    before, _ = world.attest(KWH, 7, 80_000)
    spec = read_systems(world.deployment)[key_id(old.spki)].spec
    proof = prove_possession(new, network, bytes.fromhex(owner.address[2:]), 0, spec.digest)
    pairs = [halves(signature) for signature in (hand_over(old, network, key_id(new.spki)), proof)]
    world.send(owner, functions.rotateKey(1, key_words(new.spki), *pairs))
    world.pass_time(60)
    at_s = world.chain.newest_block(fresh=True).time_s - world.time_s
    world.miner = new
    world.pass_(world.contract.line_approval([(world.ends, TERMS)]))
    world.contract.open_line(world.operator, world.ends, *world.attest(0, 0, at_s))
    world.pass_time(DAY_S)
    [claim] = world.approved(replace(world.claim(KWH, 9, at_s + 80_000), sent=before))
    with refused("OtherKey"):
        world.contract.claim(world.stranger, claim)


def test_what_pays_pays_open_lines_and_only_more(tmp_path):
    world = embedded(tmp_path).enrol()
    book, ask = world.functions("LineBook"), Asking(world)
    world.pass_(world.contract.line_approval([(world.ends, TERMS)]))
    world.pass_(Proposal((book.setWriter(world.stranger.address),), "Another pays"))
    line, reading = world.ends.line_id, (10, 10, 1, 0, 0)

    def claim(total, energy=0, of=line):
        return ask.by(world.stranger, book.claim(of, total, reading, reading, energy, energy))

    with refused("LineNotOpen"):
        claim(5)
    with refused("NoSuchLine"):
        claim(5, of=bytes(32))
    world.send(world.stranger, book.open(line, (1, 0, 0, 0, 0), (1, 0, 0, 0, 0)))
    with refused("LineExists"):
        ask.by(world.stranger, book.open(line, reading, reading))
    claim(1)
    world.send(world.stranger, book.claim(line, 5, reading, reading, 2, 2))
    with refused("NothingNew"):
        claim(5)
    claim(6)
    ask.by(world.stranger, book.pay(line, 3, 3))
    with refused("Panic|reverted|SafeCastOverflowedUintDowncast"):  # more than its credit
        ask.by(world.stranger, book.pay(line, 4, 4))
    for call in (book.pay(line, 1, 1), book.claim(line, 9, reading, reading, 0, 0), book.forfeit(line)):
        with refused("NotWriter"):
            ask.by(world.operator, call)


@pytest.mark.services
def test_a_daos_times_have_floors_on_every_chain_that_is_not_of_a_trial():
    selector = function_signature_to_4byte_selector("TooShort(uint256,uint256)").hex()
    governor = artifact("TechGovernor")
    with running_anvil("--chain-id", "77001", "--hardfork", "osaka", "--code-size-limit", "100000") as url:
        web3 = Web3(HTTPProvider(url))
        account = web3.eth.accounts[0]
        made = web3.eth.contract(abi=governor["abi"], bytecode=governor["bytecode"])

        def make(delay_s, period_s):
            made.constructor(account, account, account, delay_s, period_s).estimate_gas({"from": account})

        make(60, 3_600)
        for short in ((59, 3_600), (60, 3_599)):
            with pytest.raises(Web3Exception) as caught:
                make(*short)
            assert selector in str(caught.value)


def test_a_line_begins_from_the_second_on_in_which_the_one_before_was_closed(tmp_path):
    world = embedded(tmp_path).enrol().open()
    book, ask = world.functions("LineBook"), Asking(world)
    world.pass_(world.contract.closing(world.ends.line_id))
    closed_s = world.ask(book.closedAt(1, 1))
    other = Ends(1, 1, 2, 0, 1)
    world.pass_(world.contract.line_approval([(other, TERMS)]))
    world.pass_(Proposal((book.setWriter(world.stranger.address),), "Another pays"))

    def begin(sent_s, received_s):
        return ask.by(world.stranger, book.open(other.line_id, (sent_s, 0, 0, 0, 0), (received_s, 0, 0, 0, 0)))

    begin(closed_s, closed_s)
    for early in ((closed_s - 1, closed_s), (closed_s, closed_s - 1)):
        with refused("ReadingBeforeClosing"):
            begin(*early)
