"""Times to the second: the last one in which something may be done, and the first in which it may not."""

import pytest

from maxgreen.chain.market import KWH_WEI, Pool, RequestStatus, pool_opening
from maxgreen.chain.orders import attestation_values
from maxgreen.chain.registry import key_words, name_fields, read_systems
from maxgreen.protocol.attestation import attest, hand_over, prove_possession
from maxgreen.protocol.keys import MemorySigner, key_id
from tests.chain.test_contracts import halves
from tests.chain.test_edges import Asking
from tests.chain.test_market import CAP, DELIVERED, ERROR_PPM, RECEIVED, Market
from tests.chain.world import DAY_S, KWH, PEAK_MW, TERMS, embedded, refused

AHEAD_S = 300  # FUTURE_SECONDS
MONTH_S, WEEK_S = 30 * DAY_S, 7 * DAY_S


class Seconds(Asking):
    """Asks at a second of the chain's."""

    def now_s(self):
        return self.world.ask(self.world.functions("TechGovernor").clock())

    def at(self, time_s):
        """Let what is asked from now on be asked in this second."""
        if self.now_s() != time_s:
            self.world.clock.sleep_until(time_s * 1000)
            self.world.chain.newest_block(fresh=True)
        assert self.now_s() == time_s
        return self

    def last(self, time_s, account, function, refusal):
        """Ask in the last second in which it may be done, and in the next."""
        self.at(time_s).by(account, function)
        with refused(refusal):
            self.at(time_s + 1).by(account, function)

    def first(self, time_s, account, function, refusal):
        """Ask in the second before it may be done, and in the first."""
        with refused(refusal):
            self.at(time_s - 1).by(account, function)
        self.at(time_s).by(account, function)


@pytest.fixture
def market(tmp_path):
    return Market(tmp_path)


def named(world, contract, function, *arguments):
    """Return what a function answers, by the names of its fields."""
    asked = world.functions(contract)[function](*arguments)
    return name_fields(asked.abi["outputs"][0], world.ask(asked))


def reading(market, who, time_s, register):
    world, channel = market.world, RECEIVED if who == "miner" else DELIVERED
    market.seq[who] += 1
    signer = world.miner if who == "miner" else world.node
    return attest(signer, world.deployment.network, channel, time_s, register, market.seq[who])


def accept_call(market, node, buyer):
    values = attestation_values(node), attestation_values(buyer)
    return market.world.functions("EnergyExchange").accept(1, DELIVERED, *values)


def test_offers_and_what_accepts_them(market):
    world, ask, functions = market.world, Seconds(market.world), market.world.functions("EnergyExchange")
    now_s = ask.now_s()
    for good in (now_s + 1, now_s + MONTH_S):
        ask.at(now_s).by(market.owner, functions.requestStorage(1, 2, KWH, good))
    for bad in (now_s, now_s + MONTH_S + 1):
        with refused("OfferOutOfRange"):
            ask.at(now_s).by(market.owner, functions.requestStorage(1, 2, KWH, bad))
    world.send(market.owner, functions.requestStorage(1, 2, KWH, now_s + 1_000))
    ask.last(now_s + 1_000, market.node_owner, functions.answerStorage(1, True), "Expired")
    ask.by(market.node_owner, functions.answerStorage(1, False))
    market.take_out(valid_s=3 * 3_600)
    requested_s = named(world, "EnergyExchange", "takeOutAt", 1)["requestedAt"]
    with refused("NotFresh"):
        early = reading(market, "node", requested_s - 1, 0)
        ask.by(market.node_owner, accept_call(market, early, reading(market, "miner", requested_s, 0)))
    both = reading(market, "node", requested_s, 0), reading(market, "miner", requested_s, 0)
    ask.last(requested_s + 3_600, market.node_owner, accept_call(market, *both), "NotFresh")
    expires_s = market.exchange.take_out(1).expires_s
    both = reading(market, "node", expires_s - 60, 0), reading(market, "miner", expires_s - 60, 0)
    ask.last(expires_s, market.node_owner, accept_call(market, *both), "Expired")


def test_deliveries_and_silence(market):
    ask, functions = Seconds(market.world), market.world.functions("EnergyExchange")
    market.take_out()
    market.accept()
    due_s = market.exchange.take_out(1).deliver_by_s
    at_due, late = (attestation_values(reading(market, "node", time_s, KWH)) for time_s in (due_s, due_s + 1))
    ask.at(due_s + 10)
    ask.by(market.node_owner, functions.finish(1, at_due))
    with refused("Expired"):
        ask.by(market.node_owner, functions.finish(1, late))
    early, there = (attestation_values(reading(market, "miner", time_s, KWH)) for time_s in (due_s - 1, due_s))
    with refused("ReadingTooEarly"):
        ask.by(market.owner, functions.confirm(1, early))
    ask.by(market.owner, functions.confirm(1, there))
    ask.last(due_s + 2 * WEEK_S, market.node_owner, functions.finish(1, at_due), "Expired")


def test_silence_ends_a_second_after_two_weeks(market):
    ask, functions = Seconds(market.world), market.world.functions("EnergyExchange")
    market.take_out()
    market.accept()
    silent_s = market.exchange.take_out(1).deliver_by_s + 2 * WEEK_S
    ask.first(silent_s + 1, market.owner, functions.settle(1), "NotYet")


def test_what_is_measured_is_exact(tmp_path):
    """By both registers' growth, the node's peak in the time, and the error and offset of the buyer's meter."""
    market = Market(tmp_path, offset_mw=3)
    ask, functions = Seconds(market.world), market.world.functions("EnergyExchange")
    market.take_out()
    market.world.pass_time(20)
    begun_s = ask.now_s()
    both = reading(market, "node", begun_s, 5_000_001), reading(market, "miner", begun_s - 7, 7_000_003)
    market.exchange.accept(market.node_owner, 1, *both)

    def measured():
        return market.world.ask(functions.measured(1))

    assert measured() == 0
    market.world.pass_time(2_000)
    market.exchange.finish(market.node_owner, 1, reading(market, "node", begun_s + 500, 5_000_001 + 1_000))
    assert measured() == 1_000
    market.exchange.finish(market.node_owner, 1, reading(market, "node", begun_s + 1_000, 5_000_001 + KWH))
    assert measured() == PEAK_MW * 1_001
    market.exchange.finish(market.node_owner, 1, reading(market, "node", begun_s + 2_000, 5_000_001 + KWH))
    assert measured() == PEAK_MW * 2_001
    received = 90_000_001
    market.exchange.confirm(market.owner, 1, reading(market, "miner", begun_s + 2_000, 7_000_003 + received))
    assert measured() == received + -(-received * ERROR_PPM // 10**6) + 3 * 2_007
    assert market.exchange.take_out(1).status is RequestStatus.SETTLED


def test_a_register_of_the_deliverys_last_second_settles_whichever_comes_first(market):
    market.take_out()
    market.accept()
    due_s = market.exchange.take_out(1).deliver_by_s
    market.world.pass_time(due_s + 10 - Seconds(market.world).now_s())
    market.exchange.confirm(market.owner, 1, reading(market, "miner", due_s, 1_000))
    market.exchange.finish(market.node_owner, 1, reading(market, "node", due_s, 1_000))
    assert market.exchange.take_out(1).status is RequestStatus.SETTLED


def test_a_meters_clock_may_be_so_far_ahead(market):
    ask = Seconds(market.world)
    market.take_out()
    now_s = ask.now_s()
    node, buyer = (reading(market, who, now_s + AHEAD_S, 0) for who in ("node", "miner"))
    ask.at(now_s).by(market.node_owner, accept_call(market, node, buyer))
    with refused("AttestationInFuture"):
        ahead = reading(market, "node", now_s + AHEAD_S + 1, 0)
        ask.at(now_s).by(market.node_owner, accept_call(market, ahead, buyer))


def test_a_whole_battery_may_be_asked_for(market):
    ask, functions = Seconds(market.world), market.world.functions("EnergyExchange")
    for more, why in ((0, "ERC20Insufficient"), (1, "TooMuch")):
        with refused(why):
            ask.by(market.owner, functions.requestTakeOut(1, RECEIVED, 2, 10 * KWH_WEI + more, ask.now_s() + 60))


def test_a_pools_deadline(market):
    world = market.world
    world.pass_(pool_opening(world.deployment, 2, [KWH_WEI] * 3, [CAP] * 4))
    pool = Pool(world.deployment, 2)
    token = world.chain.contract("EnergyToken", pool.token("energy")).functions
    world.send(market.owner, token.approve(pool.address, KWH_WEI))
    ask, functions = Seconds(world), world.functions("EnergyPool", pool.address)
    deadline_s = ask.now_s() + 100
    ask.last(deadline_s, market.owner, functions.deposit(pool.token("energy"), KWH_WEI, 0, deadline_s), "TooLate")


def test_periods_orders_and_readings(tmp_path):
    world = embedded(tmp_path).enrol()
    ask, functions = Seconds(world), world.functions("EnergySettlement")
    world.pass_(world.contract.line_approval([(world.ends, TERMS)]))
    now_s = ask.now_s() + 100
    world.time_s = now_s
    bases = [attestation_values(base) for base in world.attest(0, 0)]
    ask.first(now_s, world.operator, functions.openLine(world.ends.line_id, *bases), "AttestationInFuture")
    world.contract.open_line(world.operator, world.ends, *world.attest(0, 0))
    world.pass_time(DAY_S)
    until_s = ask.now_s() + 50
    posting, _ = world.period(world.claim(KWH, 1, 80_000), until_s=until_s)
    ask.first(until_s, world.operator, functions.post(posting.values), "PeriodNotOver")
    assert world.contract.post(world.operator, posting) == 1
    posted_s = world.contract.order(1).posted_s
    approve = world.contract.approval(1, posting).calls[0]
    ask.at(posted_s + 60 * DAY_S).by_dao(approve)
    with refused("OrderLapsed"):
        ask.at(posted_s + 60 * DAY_S + 1).by_dao(approve)
    world.approved(world.claim(KWH, 1, 80_000), until_s=until_s + 1)
    same, _ = world.period(world.claim(2 * KWH, 2, 90_000), until_s=until_s + 1)
    later, _ = world.period(world.claim(2 * KWH, 2, 90_000), until_s=until_s + 2)
    with refused("PeriodNotNew"):
        ask.by(world.operator, functions.post(same.values))
    ask.by(world.operator, functions.post(later.values))


def test_keys_change_once_a_day(tmp_path):
    world = embedded(tmp_path).enrol()
    ask, functions, owner = Seconds(world), world.deployment.registry.functions, world.accounts[5]
    new, network = MemorySigner.from_secret(21), world.deployment.network
    spec = read_systems(world.deployment)[key_id(world.miner.spki)].spec
    proof = prove_possession(new, network, bytes.fromhex(owner.address[2:]), 0, spec.digest)
    pairs = [halves(signature) for signature in (hand_over(world.miner, network, key_id(new.spki)), proof)]
    began_s = world.ask(functions.keyAt(1, 0))[1]
    ask.first(began_s + DAY_S, owner, functions.rotateKey(1, key_words(new.spki), *pairs), "TooSoon")
    world.send(owner, functions.rotateKey(1, key_words(new.spki), *pairs))
    from_s = world.ask(functions.keyAt(1, 1))[1]
    numbers = [named(world, "MinerRegistry", "meterOf", 1, 1, time_s)["keyNumber"] for time_s in (from_s - 1, from_s)]
    assert numbers == [0, 1]
    settlement = world.functions("EnergySettlement")

    def prove(signer, number, time_s):
        pair = [attestation_values(attest(signer, network, 1, time_s, register, 5)) for register in (1, 2)]
        return ask.by(world.stranger, settlement.proveFraud(1, 1, number, *pair))

    prove(world.miner, 0, began_s)
    prove(world.miner, 0, from_s - 1)
    prove(new, 1, from_s)
    for signer, number, time_s in ((world.miner, 0, began_s - 1), (world.miner, 0, from_s), (new, 1, from_s - 1)):
        with refused("NoFraud"):
            prove(signer, number, time_s)


def test_badges_lapse_and_guardians_end(tmp_path):
    world = embedded(tmp_path)
    ask, badge, authority = Seconds(world), world.functions("DaoBadge"), world.functions("Authority")
    now_s = ask.now_s()
    term_s = world.ask(authority.LONGEST_TERM())
    ask.at(now_s).by_dao(authority.setGuardian(world.stranger.address, now_s + term_s))
    with refused("TermTooLong"):
        ask.at(now_s).by_dao(authority.setGuardian(world.stranger.address, now_s + term_s + 1))
    seen_s = world.ask(badge.seenAt(3))
    ask.first(seen_s + 180 * DAY_S, world.stranger, badge.announceLapse(3), "SeenLately")
    world.send(world.stranger, badge.announceLapse(3))
    announced_s = world.ask(badge.announcedAt(3))
    ask.first(announced_s + MONTH_S, world.stranger, badge.lapse(3), "NotAnnounced")
    until_s = world.ask(authority.guardianUntil())
    ask.at(until_s - 1)
    assert world.ask(authority.guardian()) == world.guardian.address
    ask.at(until_s)
    assert int(world.ask(authority.guardian()), 16) == 0
