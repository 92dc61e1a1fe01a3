"""The contracts on the embedded chain, and the same calls on a real anvil."""

from collections import defaultdict
from dataclasses import replace

import pytest

from maxgreen.chain import explain as explain_module
from maxgreen.chain.artifacts import CONTRACTS, artifact, errors_by_selector
from maxgreen.chain.client import Chain, connect, connect_to_read
from maxgreen.chain.dao import Proposal, ProposalState, Vote
from maxgreen.chain.deploying import selector_of
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.explain import explain
from maxgreen.chain.merkle import BATCH_LEAF, LINE_LEAF, MerkleTree, leaf_hash, root_of
from maxgreen.chain.orders import Ends, Exclusion, OrderStatus
from maxgreen.chain.registry import admission, application, apply_for, apply_with, key_words, read_systems
from maxgreen.errors import Fatal
from maxgreen.protocol.attestation import attest, hand_over, prove_possession
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec
from tests.chain.world import DAY_S, KWH, START_S, TERMS, embedded, on_anvil, refused


@pytest.fixture(params=["embedded", "anvil"])
def world(request, tmp_path):
    return embedded(tmp_path) if request.param == "embedded" else on_anvil(request.getfixturevalue("anvil"))


@pytest.mark.services
def test_a_month_of_energy_is_paid_once(world):
    world.enrol().open()
    contract, chain = world.contract, world.chain
    token = world.deployment.energy_token(2)
    for number, energy in enumerate((KWH, KWH + 7_000_007), 1):
        world.pass_time(DAY_S)
        at_s = (number - 1) * DAY_S + 80_000
        posting, [claim] = world.period(world.claim(energy, number, at_s))
        order = contract.post(world.operator, posting)
        assert order == number
        with refused("OrderOpen"):
            contract.post(world.operator, posting)
        approve = contract.approval(order, posting).calls[0]
        with refused("AccessManagedUnauthorized"):
            chain.transact(world.operator, approve)
        assert world.pass_(contract.approval(order, posting)) is ProposalState.EXECUTED
        contract.claim(world.stranger, claim)  # anybody may
        with refused("NothingNew"):
            contract.claim(world.stranger, claim)
        with refused("NothingToCollect"):
            contract.collect(world.operator, world.ends.line_id)
        total = (energy * 900_000 * 2_500) // 9
        assert abs(chain.call(token.functions.totalSupply()) - total) <= 1
        with refused("PeriodNotNew"):
            contract.post(world.operator, posting)
        with refused("NothingPayable"):
            contract.post(world.operator, replace(posting, until_s=posting.until_s + 1))
    line = contract.line(world.ends.line_id)
    assert (line.paid_mws, line.credit_mws, contract.total_paid_mws()) == (KWH + 7_000_007, 0, KWH + 7_000_007)
    supply = chain.call(token.functions.totalSupply())
    shares = [chain.call(token.functions.balanceOf(world.accounts[k].address)) for k in (5, 6)]
    assert sum(shares) == supply == total
    assert shares[1] * 9 <= shares[0] <= shares[1] * 9 + 20
    assert supply == line.minted_wei == line.paid_mws * 900_000 * 2_500 // 9


@pytest.mark.services
def test_a_rejected_order_says_why_and_a_corrected_one_takes_its_place(world):
    world.enrol().open()
    world.pass_time(DAY_S)
    posting, [claim] = world.period(world.claim(KWH, at_s=80_000))
    world.contract.post(world.operator, posting)
    assert world.pass_(world.contract.rejection(1, posting, 63, "the loss is not explained")) is ProposalState.EXECUTED
    order = world.contract.order(1)
    assert (order.status, order.code, order.text) == (OrderStatus.REJECTED, 63, "the loss is not explained")
    with refused("NoOrderApproved"):
        world.contract.claim(world.operator, claim)
    [claim] = world.approved(world.claim(KWH, at_s=80_000, payable_total_mws=KWH - 5))
    world.contract.claim(world.operator, claim)
    assert world.contract.line(world.ends.line_id).paid_mws == KWH - 5


@pytest.mark.rule("P-ATT-1")
@pytest.mark.services
def test_claims_need_both_meters_signatures(world):
    world.enrol().open()
    world.pass_time(DAY_S)
    good, other = world.claim(KWH, at_s=80_000), world.claim(KWH, at_s=80_000, payable_total_mws=KWH + 1)
    [claim] = world.approved(good)
    for change in (
        {"sent": replace(good.sent, seq=9)},
        {"received": replace(good.received, seq=9)},
        {"received": replace(good.sent, channel=0)},
        {"sent": attest(world.miner, "eip155:1:0x" + "0" * 40, 1, good.sent.unix_s, KWH, 1)},
    ):
        with refused("BadAttestation"):
            world.contract.claim(world.operator, replace(claim, **change))
    with refused("NotInOrder"):  # another time
        world.contract.claim(world.operator, replace(claim, sent=world.attest(KWH, 2, 80_001)[0]))
    [claim] = world.approved(other)
    with refused("PayableExceedsGrowth"):
        world.contract.claim(world.operator, claim)


@pytest.mark.rule("P-ID-5")
@pytest.mark.services
def test_a_system_needs_its_key_and_the_daos_vote(world):
    owner = world.accounts[6]
    spec = SystemSpec(Kind.MINER, (ChannelSpec(1, 1, 1, 0, 0),))
    with refused("NoChannels"):
        apply_for(world.deployment, owner, world.miner, replace(spec, channels=()))

    class Thief:
        spki = world.miner.spki

        def sign(self, message):
            return world.node.sign(message)

    with refused("PossessionNotProved"):
        apply_for(world.deployment, owner, Thief(), spec)
    with refused("EfficiencyOutOfRange"):
        apply_for(world.deployment, owner, world.miner, replace(spec, efficiency_ppm=0))
    proof = prove_possession(world.miner, world.deployment.network, bytes.fromhex(owner.address[2:]), 0, spec.digest)
    with refused("PossessionNotProved"):  # the device signed other fields
        apply_with(world.deployment, owner, world.miner.spki, proof, replace(spec, uri="x"))
    with refused("PossessionNotProved"):  # for another owner
        apply_with(world.deployment, world.accounts[5], world.miner.spki, proof, spec)
    number = apply_with(world.deployment, owner, world.miner.spki, proof, spec)
    with refused("PossessionNotProved"):  # and only once
        apply_with(world.deployment, owner, world.miner.spki, proof, spec)
    functions = world.deployment.registry.functions
    with refused("AccessManagedUnauthorized"):
        world.chain.transact(owner, functions.admit(number, spec.digest))
    assert application(world.deployment, number).content == spec.digest
    world.pass_(admission(world.deployment, [number]))
    with refused("DeviceAlreadyRegistered"):
        apply_for(world.deployment, owner, world.miner, spec)
    for move in (
        functions.transferFrom(owner.address, world.operator.address, 1),
        functions.approve(world.operator.address, 1),
    ):
        with refused("TokenIsSoulBound"):
            world.chain.transact(owner, move)
    with refused("NoApprovals"):
        world.chain.transact(owner, functions.setApprovalForAll(world.operator.address, True))
    [system] = read_systems(world.deployment).values()
    assert (system.token, system.owner, system.record.spki) == (1, owner.address, world.miner.spki)
    assert world.chain.call(functions.locked(1))
    assert world.chain.call(functions.network()) == world.deployment.network
    assert world.chain.call(functions.tokenURI(1)).startswith("data:application/json;base64,")


def test_tokens_are_never_more_than_the_battery_holds(tmp_path):
    world = embedded(tmp_path).enrol(battery_wh=500, efficiency_ppm=1_000_000).open()
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, at_s=80_000))
    world.contract.claim(world.operator, claim)
    token = world.deployment.energy_token(2)
    assert world.chain.call(token.functions.totalSupply()) == 5 * 10**17
    assert world.contract.line(world.ends.line_id).credit_mws == KWH // 2
    with refused("NoRoom"):
        world.contract.collect(world.operator, world.ends.line_id)
    for owner, change in ((world.operator, token.functions.mint), (world.accounts[5], None)):
        with refused("AccessManagedUnauthorized"):  # nor does burning make room without a delivery
            world.chain.transact(
                owner, change(owner.address, 1, owner.address, 0) if change else token.functions.burn(10**17)
            )
    assert world.chain.call(token.functions.symbol()) == "MGE2"


def test_what_a_suspended_system_made_waits(tmp_path):
    world = embedded(tmp_path).enrol(battery_wh=500).open()
    statuses = world.deployment.registry.functions
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, at_s=80_000))
    world.pass_(Proposal((statuses.setStatus(1, 3, "its shunt was bridged"),), "Revoke it"))
    with refused("SystemNotActive"):
        world.contract.claim(world.operator, claim)
    world.pass_(Proposal((statuses.setStatus(1, 1, "it was mended"),), "Reinstate it"))
    world.contract.claim(world.operator, claim)
    world.pass_(Proposal((statuses.setStatus(2, 2, "it sells what it has not"),), "Suspend the node"))
    with refused("SystemNotActive"):
        world.contract.collect(world.operator, world.ends.line_id)
    with refused("NotAStatus"):
        world.pass_(Proposal((statuses.setStatus(2, 0, "nothing"),), "No status"))


def test_readings_never_go_back_and_never_outrun_the_panel(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, 5, at_s=80_000))
    world.contract.claim(world.operator, claim)
    for number, (energy, seq, at_s, name) in enumerate(
        (
            (KWH + 5, 6, 79_999, "ReadingWentBack"),
            (KWH - 5, 6, 80_001, "RegisterWentBack"),
            (100 * KWH, 6, 80_010, "RegisterTooFast"),
        )
    ):
        world.pass_time(10)
        changes = {"payable_total_mws": KWH + 6 + number}
        [claim] = world.approved(world.claim(energy, seq, at_s, **changes))
        with refused(name):
            world.contract.claim(world.operator, claim)


def test_only_the_newest_approved_order_is_claimed_and_only_its_leaves(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(2 * DAY_S)
    [old] = world.approved(world.claim(2 * KWH, 1, at_s=40_000))
    world.pass_time(10)
    [new] = world.approved(world.claim(KWH, 1, at_s=80_000), total_mws=2 * KWH)  # corrected downwards
    with refused("NotInOrder"):
        world.contract.claim(world.operator, old)
    with refused("NotInOrder"):
        world.contract.claim(world.operator, replace(new, payable_total_mws=KWH + 1))
    # a node of the tree is no leaf: leaves are hashed twice
    inner = leaf_hash(LINE_LEAF, (0, old.line, 0, 0, 0, bytes(32), 0, 0))
    with refused("NotInOrder"):
        world.contract.claim(world.operator, replace(new, proof=(inner,)))
    world.contract.claim(world.operator, new)
    world.pass_time(10)
    [more] = world.approved(world.claim(3 * KWH, 2, at_s=160_000), total_mws=KWH + 1)
    world.contract.claim(world.operator, more)  # no more than its total, whatever its leaf says
    assert world.contract.line(more.line).paid_mws == KWH + 1
    with refused("OrderExceeded"):
        world.contract.claim(world.operator, more)


def test_an_order_is_what_was_voted_on_and_lapses(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(DAY_S)
    posting, _ = world.period(world.claim(KWH, at_s=80_000))
    for change, name in (
        ({"root": bytes(32)}, "NothingPosted"),
        ({"count": 0}, "NothingPosted"),
        ({"until_s": posting.until_s + 10_000}, "PeriodNotOver"),
        ({"evidence": "x" * 513}, "TextTooLong"),
        ({"total_mws": 0}, "NothingPayable"),
    ):
        with refused(name):
            world.contract.post(world.operator, replace(posting, **change))
    with refused("AccessManagedUnauthorized"):
        world.contract.post(world.stranger, posting)
    world.contract.post(world.operator, posting)
    # the vote may come first: it is for a content, not for a number
    with refused("ContentChanged"):
        world.pass_(world.contract.approval(1, replace(posting, total_mws=2 * KWH), description="Twice"))
    world.contract.withdraw(world.operator, 1)
    assert world.contract.order(1).status is OrderStatus.WITHDRAWN
    with refused("OrderNotOpen"):
        world.contract.withdraw(world.operator, 1)
    assert world.contract.post(world.operator, posting) == 2
    world.pass_time(61 * DAY_S)
    assert world.contract.order(2).status is OrderStatus.LAPSED
    with refused("OrderLapsed"):
        world.pass_(world.contract.approval(2, posting))
    assert world.contract.post(world.operator, posting) == 3
    with refused("NoSuchOrder"):
        world.contract.order(9)


def test_a_line_that_the_dao_leaves_out_stops_no_other(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(DAY_S)
    exclusion = Exclusion(world.ends.line_id, 62, "its meter is unsealed")
    [claim] = world.approved(world.claim(KWH, at_s=80_000), exclusions=[exclusion])
    with refused("LineIsHeld"):
        world.contract.claim(world.operator, claim)
    assert world.contract.line(world.ends.line_id).hold == 62
    assert world.contract.hold_text(world.ends.line_id) == "its meter is unsealed"
    world.pass_(world.contract.releasing(world.ends.line_id))
    world.contract.claim(world.operator, claim)
    world.pass_(world.contract.holding(exclusion))
    with refused("NothingToCollect"):
        world.contract.collect(world.operator, world.ends.line_id)


def test_a_line_that_nobody_opened_is_not_paid_whatever_is_approved(tmp_path):
    """Without bases every register since the meter's first day would count."""
    world = embedded(tmp_path).enrol()
    world.pass_(world.contract.line_approval([(world.ends, TERMS)]))
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, at_s=80_000))
    with refused("LineWasNotOpened"):
        world.contract.claim(world.operator, claim)
    world.contract.open_line(world.operator, world.ends, *world.attest(0, 0))
    world.contract.claim(world.operator, claim)


def test_what_the_dao_closes_is_closed_with_its_clones_until_it_opens_it(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, at_s=80_000))
    authority = world.functions("Authority")
    addresses = world.deployment.addresses
    for target in (world.deployment.settlement.address, addresses.energy_token):
        world.pass_(Proposal((authority.setTargetClosed(target, True),), f"Close {target}"))
        assert world.ask(authority.isTargetClosed(target))
        with refused("AccessManagedUnauthorized"):
            world.contract.claim(world.operator, claim)
        world.pass_(Proposal((authority.setTargetClosed(target, False),), f"Open {target}"))
    clone, mint = world.deployment.energy_token(2).address, selector_of("EnergyToken", "mint")
    world.pass_(Proposal((authority.setTargetFunctionRole(clone, [mint], 2**64 - 1),), "Everybody mints"))
    assert world.ask(authority.getTargetFunctionRole(clone, mint)) == 2  # the implementation's
    assert world.ask(authority.isTargetClosed(clone)) is False
    world.contract.claim(world.operator, claim)
    with refused("AccessManagerLockedFunction"):
        locked = bytes.fromhex("7a9e5e4b")  # setAuthority(address)
        world.pass_(Proposal((authority.setTargetFunctionRole(addresses.energy_token, [locked], 0),), "Move it"))


def test_lines_are_the_daos_to_allow_and_both_owners_to_close(tmp_path):
    world = embedded(tmp_path).enrol()
    with refused("NoSuchLine"):
        world.contract.open_line(world.operator, world.ends, *world.attest(0, 0))
    world.open()
    with refused("LineExists"):
        world.contract.open_line(world.operator, world.ends, *world.attest(0, 0))
    with refused("NotAnOwner"):
        world.contract.agree_to_close(world.operator, world.ends.line_id)
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, at_s=80_000))
    book = world.deployment.line_book.functions
    with refused("NotAnOwner"):
        world.send(world.accounts[5], book.takeBackClosing(world.ends.line_id))
    world.contract.agree_to_close(world.accounts[6], world.ends.line_id)
    world.send(world.accounts[6], book.takeBackClosing(world.ends.line_id))
    for owner in (world.accounts[5], world.accounts[6]):
        assert world.contract.line(world.ends.line_id).closed_s == 0
        world.contract.agree_to_close(owner, world.ends.line_id)
    closed_s = world.contract.line(world.ends.line_id).closed_s
    assert closed_s
    world.contract.claim(world.operator, claim)  # of before
    with refused("LineNotOpen"):
        world.contract.agree_to_close(world.accounts[5], world.ends.line_id)
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(2 * KWH, 2, at_s=160_000))
    with refused("ReadingAfterClosing"):
        world.contract.claim(world.operator, claim)


@pytest.mark.parametrize(("at_s", "name"), [(-100_000, "NoKeyAt"), (1 - START_S, "NoKeyAt")])
def test_a_base_is_not_older_than_the_registration(tmp_path, at_s, name):
    world = embedded(tmp_path).enrol()
    world.pass_(world.contract.line_approval([(world.ends, TERMS)]))
    world.time_s = START_S
    with refused(name):
        world.contract.open_line(world.operator, world.ends, *world.attest(0, 0, at_s=at_s))


def test_a_line_leads_from_a_miner_to_a_node(tmp_path):
    world = embedded(tmp_path).enrol()
    for ends, name in ((Ends(2, 0, 1, 1), "WrongEnd"), (Ends(1, 5, 2, 0), "NoSuchChannel")):
        world.pass_(world.contract.line_approval([(ends, TERMS)]))
        sent, received = world.attest(0, 0)
        with refused(name):
            world.contract.open_line(world.operator, ends, sent, received)


class Rotation:
    """The miner's key hands over to another in mid-month; the old one measured 1 kWh, the order is under way."""

    def __init__(self, world):
        self.world = world.enrol().open()
        self.functions, self.owner = world.deployment.registry.functions, world.accounts[5]
        self.network = world.deployment.network
        self.old, self.new = world.miner, MemorySigner.from_secret(21)
        self.spec = read_systems(world.deployment)[key_id(self.old.spki)].spec
        world.pass_time(DAY_S)
        self.closing, _ = world.attest(KWH, 7, 80_000)
        self.base, _ = world.attest(0, 0, 1)

    def proof(self, new, nonce=0):
        owner = bytes.fromhex(self.owner.address[2:])
        return prove_possession(new, self.network, owner, nonce, self.spec.digest)

    def call(self, by, new, nonce=0):
        over = hand_over(by, self.network, key_id(new.spki))
        return self.functions.rotateKey(1, key_words(new.spki), halves(over), halves(self.proof(new, nonce)))

    def rotate(self):
        self.world.send(self.owner, self.call(self.old, self.new))
        self.from_s = self.world.ask(self.functions.keyAt(1, 1))[1]
        return self


def halves(signature):
    return [signature[:32], signature[32:]]


@pytest.mark.rule("P-ID-6")
def test_a_key_hands_over_to_the_next(tmp_path):
    world = embedded(tmp_path)
    rotation = Rotation(world)
    with refused("NotOwner"):
        world.send(world.stranger, rotation.call(rotation.old, rotation.new))
    with refused("HandOverNotProved"):
        world.send(rotation.owner, rotation.call(rotation.new, rotation.new))
    rotation.rotate()
    assert world.ask(rotation.functions.tokenOf(key_id(rotation.new.spki))) == 1
    with refused("TooSoon"):
        world.send(rotation.owner, rotation.call(rotation.new, MemorySigner.from_secret(23)))
    # without the old key: the owner asks, the DAO decides
    lost = MemorySigner.from_secret(22)
    replaced = Proposal((rotation.functions.replaceKey(1, key_id(lost.spki)),), "Replace the key of system 1")
    with refused("KeyNotRequested"):
        world.pass_(replaced)
    world.send(rotation.owner, rotation.functions.requestKey(1, key_words(lost.spki), *halves(rotation.proof(lost))))
    world.pass_(replace(replaced, description="Replace it, as the owner asks"))
    assert world.ask(rotation.functions.keyCount(1)) == 3
    assert world.ask(rotation.functions.keyAt(1, 1))[3]  # lost: it proves nothing any more
    with refused("NoSuchKey"):
        world.ask(rotation.functions.keyAt(1, 3))


@pytest.mark.rule("P-ID-6")
def test_a_line_goes_on_with_the_next_key(tmp_path):
    world = embedded(tmp_path)
    rotation = Rotation(world).rotate()
    line, contract = world.ends.line_id, world.contract
    world.pass_time(DAY_S)
    cut = attest(rotation.new, rotation.network, 1, rotation.from_s + 60_000, KWH, 9)
    [claim] = world.approved(replace(world.claim(2 * KWH, 9, at_s=150_000), sent=cut))
    with refused("OtherKey"):
        contract.claim(world.operator, claim)
    contract.next_key(world.stranger, line, miner_end=True)
    with refused("NoSuchKey"):
        contract.next_key(world.stranger, line, miner_end=True)
    with refused("PayableExceedsGrowth"):  # the old key's kWh was not shown yet
        contract.claim(world.operator, claim)
    with refused("OtherKey"):  # a register of the present key closes nothing
        contract.show_closing(world.stranger, line, cut, miner_end=True)
    late = attest(rotation.old, rotation.network, 1, rotation.from_s + 5, 50 * KWH, 8)  # the old key counts no more
    with refused("BadAttestation"):
        contract.show_closing(world.stranger, line, late, miner_end=True)
    at_once = attest(rotation.old, rotation.network, 1, rotation.closing.unix_s, KWH + 1, 8)
    for closing in (rotation.base, rotation.closing, rotation.closing):  # early, right, and nothing twice
        contract.show_closing(world.stranger, line, closing, miner_end=True)
    with refused("RegisterTooFast"):  # a second holds no energy twice
        contract.show_closing(world.stranger, line, at_once, miner_end=True)
    assert contract.line(line).carried_sent_mws == KWH
    contract.claim(world.operator, claim)
    assert contract.line(line).paid_mws == 2 * KWH


@pytest.mark.rule("P-ID-6")
def test_rotations_during_the_vote_take_no_claim_away(tmp_path):
    world = embedded(tmp_path)
    rotation = Rotation(world)
    line, contract = world.ends.line_id, world.contract
    [claim] = world.approved(world.claim(KWH, 7, at_s=80_000))
    rotation.rotate()
    world.pass_time(2 * DAY_S)
    third = MemorySigner.from_secret(24)
    world.send(rotation.owner, rotation.call(rotation.new, third))  # the second key signed nothing
    for _ in range(2):
        contract.next_key(world.stranger, line, miner_end=True)
    contract.claim(world.operator, claim)
    assert contract.line(line).paid_mws == KWH
    from_s = world.ask(rotation.functions.keyAt(1, 2))[1]
    world.pass_time(DAY_S)
    contract.show_closing(world.stranger, line, rotation.closing, miner_end=True)
    cut = attest(third, rotation.network, 1, from_s + 60_000, KWH, 9)
    [more] = world.approved(replace(world.claim(2 * KWH, 9, at_s=3 * DAY_S), sent=cut))
    later = attest(rotation.old, rotation.network, 1, rotation.closing.unix_s + 10, KWH + 1_000, 8)
    contract.show_closing(world.stranger, line, later, miner_end=True)  # makes no leaf wrong
    contract.claim(world.operator, more)
    assert contract.line(line).paid_mws == 2 * KWH


def test_a_closing_that_is_later_and_says_the_same_takes_no_claim_away(tmp_path):
    world = embedded(tmp_path)
    rotation = Rotation(world)
    [claim] = world.approved(world.claim(KWH, 7, at_s=80_000))
    rotation.rotate()
    world.contract.next_key(world.stranger, world.ends.line_id, miner_end=True)
    idle = attest(rotation.old, rotation.network, 1, claim.sent.unix_s + 60, claim.sent.register_mws, 8)
    world.contract.show_closing(world.stranger, world.ends.line_id, idle, miner_end=True)
    world.contract.claim(world.operator, claim)
    assert world.contract.line(world.ends.line_id).paid_mws == KWH


@pytest.mark.rule("P-ID-6")
def test_a_closed_line_is_paid_what_both_keys_measured_before(tmp_path):
    world = embedded(tmp_path)
    rotation = Rotation(world).rotate()
    line, contract = world.ends.line_id, world.contract
    other = Ends(1, 1, 2, 0, 1)
    world.pass_(contract.line_approval([(other, TERMS)]))
    with refused("LineWasNotOpened"):
        contract.next_key(world.stranger, other.line_id, miner_end=True)
    world.pass_time(DAY_S)
    cut = attest(rotation.new, rotation.network, 1, rotation.from_s + 60_000, KWH, 9)
    world.pass_(contract.closing(line))
    [claim] = world.approved(replace(world.claim(2 * KWH, 9, at_s=150_000), sent=cut))
    contract.next_key(world.stranger, line, miner_end=True)
    contract.show_closing(world.stranger, line, rotation.closing, miner_end=True)
    contract.claim(world.operator, claim)
    world.pass_(contract.closing(other.line_id))
    now_s = world.chain.newest_block().time_s
    sent = attest(rotation.new, rotation.network, 1, now_s, 0, 0)
    received = attest(world.node, rotation.network, 0, now_s, 0, 0)
    with refused("LineNotOpen"):
        contract.open_line(world.operator, other, sent, received)


@pytest.mark.rule("P-ATT-2")
def test_fraud_is_proved_by_anybody_and_stops_the_payment(tmp_path):
    world = embedded(tmp_path)
    rotation = Rotation(world)
    [claim] = world.approved(world.claim(KWH, 7, at_s=80_000))
    functions, contract = world.deployment.settlement.functions, world.contract

    def prove(first, second, key_number=0):
        pair = [(a.unix_s, a.register_mws, a.seq, a.signature[:32], a.signature[32:]) for a in (first, second)]
        return world.send(world.stranger, functions.proveFraud(1, 1, key_number, *pair))

    one, other = world.attest(KWH, 5, 80_000)[0], world.attest(KWH + 1, 5, 80_000)[0]
    outside = attest(rotation.old, rotation.network, 1, 1, KWH, 5)
    for wrong in ((one, one), (one, replace(other, seq=6)), (one, outside)):
        with refused("NoFraud"):
            prove(*wrong)
    with refused("NoSuchKey"):
        prove(one, other, 1)
    with refused("BadAttestation"):
        prove(one, replace(one, register_mws=0))
    prove(one, other)
    assert world.ask(world.deployment.registry.functions.statusOf(1)) == 2
    with refused("SystemNotActive"):
        contract.claim(world.operator, claim)
    with refused("ProvedBefore"):
        prove(other, one)
    world.pass_(Proposal((world.deployment.registry.functions.setStatus(1, 1, "forgiven"),), "Reinstate it"))
    lost = MemorySigner.from_secret(22)
    world.send(rotation.owner, rotation.functions.requestKey(1, key_words(lost.spki), *halves(rotation.proof(lost))))
    world.pass_(Proposal((rotation.functions.replaceKey(1, key_id(lost.spki)),), "Its key was stolen"))
    with refused("NoFraud"):  # a stolen key suspends nobody any more
        prove(world.attest(1, 9, 80_000)[0], world.attest(2, 9, 80_000)[0])


def test_the_dao_takes_credit_back(tmp_path):
    world = embedded(tmp_path).enrol(battery_wh=500, efficiency_ppm=1_000_000).open()
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, at_s=80_000))
    world.contract.claim(world.operator, claim)
    world.pass_(world.contract.forfeiting(claim.line))
    line = world.contract.line(claim.line)
    assert (line.credit_mws, line.forfeited_mws, line.minted_mws) == (0, KWH // 2, KWH // 2)
    with refused("NothingToCollect"):
        world.contract.collect(world.operator, claim.line)


def test_the_guardian_stops_single_functions_for_a_while_and_no_more(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(KWH, at_s=80_000))
    authority = world.functions("Authority")
    settlement = world.deployment.settlement
    selector = selector_of("EnergySettlement", "claim")
    stop = authority.stop(settlement.address, selector)
    with refused("NotGuardian"):
        world.send(world.stranger, stop)
    with refused("NotStoppable"):
        world.send(world.guardian, authority.stop(settlement.address, selector_of("EnergySettlement", "reject")))
    world.send(world.guardian, stop)
    with refused("AccessManagedUnauthorized"):
        world.contract.claim(world.operator, claim)
    world.pass_(Proposal((world.deployment.registry.functions.setStatus(1, 2, "look"),), "The DAO goes on"))
    world.pass_(Proposal((world.deployment.registry.functions.setStatus(1, 1, "seen"),), "The DAO goes on again"))
    world.pass_(Proposal((authority.resume(settlement.address, selector),), "Resume"))
    world.contract.claim(world.operator, claim)
    with refused("StoppedBefore"):
        world.send(world.guardian, stop)
    mint = selector_of("EnergyToken", "mint")
    world.send(world.guardian, authority.stop(world.deployment.addresses.energy_token, mint))  # of every node
    world.pass_time(DAY_S)
    [claim] = world.approved(world.claim(2 * KWH, 2, at_s=160_000))
    with refused("AccessManagedUnauthorized"):
        world.contract.claim(world.operator, claim)
    world.pass_time(7 * DAY_S)
    world.contract.claim(world.operator, claim)
    with refused("TermTooLong"):
        world.pass_(Proposal((authority.setGuardian(world.guardian.address, 2**40),), "For ever"))
    world.pass_time(366 * DAY_S)
    world.pass_(Proposal((authority.setStoppable(settlement.address, [selector], True),), "A sign of life"))
    with refused("NotGuardian"):  # its term is over
        world.send(world.guardian, stop)


def test_nobody_takes_or_kills_anothers_proposal(tmp_path):
    world = embedded(tmp_path).enrol()
    functions = world.deployment.governor.functions
    mine = world.contract.line_approval([(world.ends, TERMS)]).by(world.members[0].address)
    targets, values, calldatas, digest = mine.arguments
    for text in (mine.description, "no proposer at all", mine.description + " "):
        with refused("GovernorRestrictedProposer"):
            world.send(world.members[2], functions.propose(targets, values, calldatas, text))
    world.dao.propose(world.members[0], mine)
    assert world.ask(functions.hashProposal(*mine.arguments)) == world.dao.id_of(mine)
    with refused("GovernorUnableToCancel"):
        world.send(world.members[2], functions.cancel(targets, values, calldatas, digest))
    world.send(world.guardian, functions.cancel(targets, values, calldatas, digest))
    assert world.dao.state(mine) is ProposalState.CANCELED


def test_what_passed_lapses(tmp_path):
    world = embedded(tmp_path).enrol()
    functions = world.deployment.governor.functions
    proposal = world.dao.propose(world.members[0], world.contract.line_approval([(world.ends, TERMS)]))
    world.clock.sleep_until(world.dao.due_ms(proposal))
    world.chain.newest_block(fresh=True)
    for member in world.members:
        world.dao.vote(member, proposal)
    world.pass_time(10)
    assert world.dao.state(proposal) is ProposalState.SUCCEEDED
    world.send(world.stranger, functions.queue(*proposal.arguments))
    world.pass_time(15 * DAY_S)
    assert world.dao.state(proposal) is ProposalState.EXPIRED
    with refused("GovernorUnexpectedProposalState"):
        world.send(world.stranger, functions.execute(*proposal.arguments))
    timelock = world.functions("Timelock")
    direct = timelock.executeBatch(*proposal.arguments[:3], bytes(32), proposal.arguments[3])
    with refused("AccessControlUnauthorizedAccount"):  # nor past the governor
        world.send(world.members[0], direct)


def test_a_badge_is_its_owners_vote_and_lapses_when_silent(tmp_path):
    world = embedded(tmp_path)
    badge = world.functions("DaoBadge")
    for target in (world.stranger.address, "0x" + "0" * 40):
        with refused("VotesAreNotDelegated"):
            world.send(world.members[0], badge.delegate(target))
    with refused("SeenLately"):
        world.send(world.stranger, badge.announceLapse(3))
    world.pass_time(179 * DAY_S)
    two = world.members[:2]
    grant = Proposal((badge.grant(world.accounts[6].address),), "One more member")
    assert world.dao.carry_out(grant, two, wait=True) is ProposalState.EXECUTED
    world.pass_time(2 * DAY_S)
    for number in (1, 2):
        with refused("SeenLately"):  # they voted
            world.send(world.stranger, badge.announceLapse(number))
    with refused("NotAnnounced"):
        world.send(world.stranger, badge.lapse(3))
    world.send(world.stranger, badge.announceLapse(3))
    with refused("AnnouncedBefore"):
        world.send(world.stranger, badge.announceLapse(3))
    world.pass_time(10 * DAY_S)
    world.send(world.members[2], badge.present())  # the owner objects
    world.pass_time(181 * DAY_S)
    with refused("NotAnnounced"):
        world.send(world.stranger, badge.lapse(3))
    with refused("NotMember"):
        world.send(world.stranger, badge.present())
    world.send(world.stranger, badge.announceLapse(3))
    with refused("NotAnnounced"):
        world.send(world.stranger, badge.lapse(3))
    world.pass_time(31 * DAY_S)
    world.send(world.stranger, badge.lapse(3))
    world.pass_time(5)
    assert world.ask(badge.getVotes(world.members[2].address)) == 0
    with refused("AlreadyMember"):
        world.pass_(Proposal((badge.grant(world.members[2].address),), "Again"))
    with refused("NotLapsed"):
        world.send(world.stranger, badge.takeUp())
    world.send(world.members[2], badge.takeUp())
    assert world.ask(badge.getVotes(world.members[2].address)) == 1
    world.pass_(Proposal((badge.revoke(world.members[2].address),), "Out"))
    assert world.ask(badge.balanceOf(world.members[2].address)) == 0


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


def test_an_application_that_is_not_what_was_voted_on_stops_no_other(tmp_path):
    world = embedded(tmp_path)
    spec = SystemSpec(Kind.MINER, (ChannelSpec(1, 1, 1, 0, 0),))
    twice = [apply_for(world.deployment, world.accounts[5], world.miner, spec) for _ in range(2)]
    other = apply_for(world.deployment, world.accounts[6], world.node, spec)
    functions = world.deployment.registry.functions
    calls = (functions.admit(99, bytes(32)), functions.admit(other, bytes(32)))
    admitted = admission(world.deployment, [*twice, other])
    assert world.pass_(Proposal((*calls, *admitted.calls), "All")) is ProposalState.EXECUTED
    assert {system.token for system in read_systems(world.deployment).values()} == {1, 2}


def test_the_operator_keeps_records_of_a_system(tmp_path):
    world = embedded(tmp_path).enrol()
    functions = world.deployment.registry.functions
    world.send(world.operator, functions.setRecord(1, 1, b"\5" * 32, "https://pool.example/1"))
    digest, _, uri = world.ask(functions.recordOf(1, 1))
    assert (digest, uri) == (b"\5" * 32, "https://pool.example/1")
    world.send(world.operator, functions.setRecord(1, 0, bytes(32), "x" * 512))
    with refused("UriTooLong"):
        world.send(world.operator, functions.setRecord(1, 0, bytes(32), "x" * 513))
    with refused("AccessManagedUnauthorized"):
        world.send(world.stranger, functions.setRecord(1, 0, bytes(32), ""))


def test_a_minority_does_not_pay(tmp_path):
    world = embedded(tmp_path).enrol().open()
    world.pass_time(DAY_S)
    posting, _ = world.period(world.claim(KWH, at_s=80_000))
    world.contract.post(world.operator, posting)
    against = world.dao.propose(world.members[0], world.contract.approval(1, posting, description="Against"))
    world.clock.sleep_until(world.dao.due_ms(against))
    world.chain.newest_block(fresh=True)
    world.dao.vote(world.members[0], against)
    for member in world.members[1:]:
        world.dao.vote(member, against, Vote.AGAINST)
    assert world.dao.votes(against) == (2, 1, 0)
    assert world.pass_(against) is ProposalState.DEFEATED
    assert world.contract.order(1).status is OrderStatus.POSTED


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


def test_an_error_has_one_meaning_in_all_contracts():
    names = defaultdict(set)
    for contract in CONTRACTS:
        for entry in artifact(contract)["abi"]:
            if entry["type"] == "error":
                types = tuple(p["type"] for p in entry["inputs"])
                names[entry["name"], types].add(tuple(p["name"] for p in entry["inputs"]))
    assert {key: found for key, found in names.items() if len(found) > 1} == {}


def test_every_sentence_is_of_an_error_that_there_is():
    errors = {entry["name"]: entry for entry in errors_by_selector().values()}
    for name, sentence in explain_module.SENTENCES.items():
        sentence.format(**{p["name"]: explain_module._Number(1) for p in errors[name]["inputs"]})


def test_merkle_proofs_lead_to_the_root():
    for count in (1, 2, 3, 7, 8):
        leaves = [(bytes([k]) * 32,) for k in range(count)]
        tree = MerkleTree.of(BATCH_LEAF, leaves)
        for k, leaf in enumerate(leaves):
            assert root_of(leaf_hash(BATCH_LEAF, leaf), tree.proof(k)) == tree.root
    assert MerkleTree.of(BATCH_LEAF, []).root == bytes(32)
