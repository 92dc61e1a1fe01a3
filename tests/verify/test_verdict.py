"""Verdicts: what a batch's place and content decide, and what follows for the chain."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxgreen.protocol.batch import Role, parse_batch
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Reason, Rejected
from maxgreen.verify.chain import ChainState
from maxgreen.verify.replay import Replay
from maxgreen.verify.rules import Action, Decision, Limits, Rules
from maxgreen.verify.verdict import Place, open_message, place
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon

LATER = T0_MS + 3_600_000


class Ledger:
    """The smallest ledger: a chain in memory."""

    def __init__(self, lab, rules=None, status=((0, "active"),)):
        self.record = lab.record(status=status)
        self.rules = rules or Rules(NETWORK, limits=[(0, Limits(pow_nbits_min=EASY))], beacons={7: beacon()})
        self.chain = Replay(ChainState.start(NETWORK), self.record, self.rules)
        self.judged = {}

    @property
    def state(self):
        return self.chain.state

    def send(self, message, received_ms=LATER, skipped_to=False):
        signed = open_message(message, None, received_ms, lambda _d: self.record, NETWORK)
        if not skipped_to:
            where = place(self.state, signed, None)
            if where is not Place.NEXT:
                return where.reason
        judgements = self.chain.take(signed, received_ms, skipped_to=skipped_to)
        self.judged.update((j.seq, j) for j in judgements)
        return judgements[0].reason


@pytest.mark.rule("P-ING-3")
def test_no_device_is_stuck_behind_a_bad_batch():
    lab = Lab()
    ledger = Ledger(lab)
    assert ledger.send(lab.next()) is Reason.NONE
    batch = lab.batch()
    wrong = tuple(replace(c, register_mws=c.register_mws + 5_000) for c in batch.channels)
    for number, meter in lab.meters.items():
        lab.meters[number] = replace(meter, forward=meter.forward + 5_000 * 2 * 10**12)
    assert ledger.send(lab.sign(replace(batch, channels=wrong))) is Reason.REGISTER_MISMATCH
    assert ledger.send(lab.next()) is Reason.NONE


@pytest.mark.rule("P-ING-2")
@pytest.mark.parametrize("field", ["register_mws", "reverse_mws", "gap_ms"])
def test_each_register_must_follow_from_the_samples(field):
    lab = Lab()
    batch = lab.batch()
    wrong = tuple(replace(c, **{field: getattr(c, field) + 1}) for c in batch.channels)
    assert Ledger(lab).send(lab.sign(replace(batch, channels=wrong))) is Reason.REGISTER_MISMATCH


@pytest.mark.rule("P-BAT-6")
def test_boot_times_rise_within_a_boot_and_wall_times_across_boots():
    lab = Lab()
    ledger = Ledger(lab)
    ledger.send(lab.next())
    repeated = lab.next(t0_boot_ms=60_000)
    assert ledger.send(repeated) is Reason.TIME_OVERLAP
    lab.reboot(bytes(16), wall_ms=T0_MS + 5_000)
    assert ledger.send(lab.next()) is Reason.TIME_OVERLAP
    lab.reboot(bytes(range(1, 17)), wall_ms=T0_MS + 60_000)
    assert ledger.send(lab.next()) is Reason.NONE


@pytest.mark.rule("P-BAT-6")
def test_a_clock_step_back_within_a_boot_is_allowed():
    lab = Lab()
    ledger = Ledger(lab)
    assert ledger.send(lab.next()) is Reason.NONE
    lab.wall_offset_ms -= 8_000
    assert ledger.send(lab.next()) is Reason.NONE


@pytest.mark.rule("P-BAT-9")
@pytest.mark.parametrize("behind_ms", [300_000, 300_001])
def test_a_clock_that_falls_behind_the_boots_own_by_more_than_the_limit_dates_nothing(behind_ms):
    lab = Lab()
    ledger = Ledger(lab)
    ledger.send(lab.next())
    lab.wall_offset_ms -= behind_ms
    assert ledger.send(lab.next()) is Reason.NONE
    own = behind_ms == 300_000
    assert ledger.judged[1].t0_ms == T0_MS + 10_000 - (behind_ms if own else 0)
    attested = ledger.send(lab.sign(lab.attested(lab.batch())))
    assert attested is (Reason.NONE if own else Reason.BAD_ATTESTATION)


@pytest.mark.rule("P-BAT-9")
def test_time_within_a_boot_cannot_be_multiplied():
    lab = Lab()
    ledger = Ledger(lab)
    energy = {}
    for _ in range(120):  # an hour of boot time, within three minutes by the clock that the device states
        assert ledger.send(lab.next([(18_000_000, 1_000_000)] * 30)) in {Reason.NONE, Reason.FUTURE_TIME}
        lab.wall_offset_ms -= 28_500
    for judgement in ledger.judged.values():
        if judgement.reason is Reason.NONE:
            window = judgement.t0_ms // 600_000
            energy[window] = energy.get(window, 0) + judgement.readings[1].growth.counted_ms
    assert max(energy.values()) <= 600_000 + 300_000
    assert sum(energy.values()) <= 3_600_000


@pytest.mark.rule("P-BAT-9")
def test_a_batch_that_crosses_a_window_is_rejected_and_one_that_ends_with_it_is_not():
    lab = Lab(wall_offset_ms=T0_MS - 60_000 + 590_000)
    ledger = Ledger(lab)
    assert ledger.send(lab.next()) is Reason.NONE
    lab = Lab(wall_offset_ms=T0_MS - 60_000 + 591_000)
    ledger = Ledger(lab)
    assert ledger.send(lab.next()) is Reason.CROSSES_WINDOW
    assert ledger.send(lab.next()) is Reason.NONE


@pytest.mark.rule("P-BAT-9")
def test_a_batch_without_a_clock_may_cross_a_window_but_is_no_longer_than_one():
    for step_ms, reason in ((60_000, Reason.NONE), (70_000, Reason.CROSSES_WINDOW)):
        lab = Lab(interval_ms=step_ms, wall_offset_ms=T0_MS - 60_000 + 300_000)
        ledger = Ledger(lab)
        assert ledger.send(lab.next(synchronised=False, t0_ms=0)) is Reason.CLOCK_UNSYNCHRONISED
        ledger.send(lab.next([(1, 1)]))
        assert ledger.judged[0].reason is reason


@pytest.mark.rule("P-ING-6")
def test_a_channel_is_what_the_registry_calls_it():
    lab = Lab()
    ledger = Ledger(lab)
    ledger.record = replace(ledger.record, roles=((0, 0), (1, 2)))
    ledger.chain = Replay(ChainState.start(NETWORK), ledger.record, ledger.rules)
    assert ledger.send(lab.next()) is Reason.WRONG_ROLE
    unregistered = replace(lab.record(), roles=((0, 0),))
    lab = Lab()
    ledger = Ledger(lab)
    ledger.record = unregistered
    ledger.chain = Replay(ChainState.start(NETWORK), unregistered, ledger.rules)
    assert ledger.send(lab.next()) is Reason.NONE  # it is in the chain, and counts nowhere


@pytest.mark.rule("P-BAT-7")
def test_batches_without_a_clock_are_dated_by_the_first_that_has_one():
    lab = Lab()
    ledger = Ledger(lab)
    assert ledger.send(lab.next(synchronised=False, t0_ms=0)) is Reason.CLOCK_UNSYNCHRONISED
    assert ledger.send(lab.next(synchronised=False, t0_ms=0)) is Reason.CLOCK_UNSYNCHRONISED
    assert ledger.send(lab.next()) is Reason.NONE
    assert [ledger.judged[k].reason for k in (0, 1)] == [Reason.NONE, Reason.NONE]
    assert [ledger.judged[k].t0_ms for k in (0, 1)] == [T0_MS, T0_MS + 10_000]
    assert ledger.state.undated_from is None
    assert ledger.send(lab.next(synchronised=False, t0_ms=0)) is Reason.NONE


@pytest.mark.rule("P-BAT-7")
def test_an_attestation_without_a_clock_is_bad_when_the_date_comes():
    lab = Lab()
    ledger = Ledger(lab)
    ledger.send(lab.sign(replace(lab.attested(lab.batch()), synchronised=False)))
    ledger.send(lab.next())
    assert ledger.judged[0].reason is Reason.BAD_ATTESTATION


@pytest.mark.rule("P-ING-3")
def test_a_channel_without_a_birth_is_named_and_forgets_the_last_samples():
    lab = Lab()
    ledger = Ledger(lab)
    ledger.send(lab.next())
    batch = lab.batch()
    odd = tuple(replace(c, role=int(Role.RECEIVED)) for c in batch.channels)
    assert ledger.send(lab.sign(replace(batch, channels=odd))) is Reason.BIRTH_MISSING
    assert all(c.last is None for c in ledger.state.channels.values())


@pytest.mark.rule("P-POW-1", "P-POW-2", "P-POW-3")
def test_work_credits_only_when_it_is_hard_fresh_and_in_time():
    for changes, received, remark, shares in (
        ({}, LATER, Reason.NONE, 2),
        ({"pow_nbits_min": 0x1F400000}, LATER, Reason.WEAK_WORK, 0),
        ({"grace_s": 0}, LATER, Reason.NONE, 2),
        ({"late_s": 60}, LATER, Reason.LATE_WORK, 0),
    ):
        lab = Lab()
        limits = Limits(**{"pow_nbits_min": EASY, **changes})
        ledger = Ledger(lab, Rules(NETWORK, limits=[(0, limits)], beacons={7: beacon()}))
        assert ledger.send(lab.next(work=lab.work(beacon())), received) is Reason.NONE
        assert (ledger.judged[0].remark, ledger.judged[0].shares) == (remark, shares)


@pytest.mark.rule("P-POW-2", "P-POW-3")
def test_work_on_an_unknown_or_old_beacon_is_stale():
    old = beacon(8, T0_MS // 1000 - 100_000)
    late = beacon(9, T0_MS // 1000 + 600)
    for challenge in (beacon(99), old, late):
        lab = Lab()
        rules = Rules(NETWORK, limits=[(0, Limits(pow_nbits_min=EASY))], beacons={7: beacon(), 8: old, 9: late})
        ledger = Ledger(lab, rules)
        assert ledger.send(lab.next(work=lab.work(challenge))) is Reason.NONE
        assert ledger.judged[0].remark is Reason.STALE_WORK


@pytest.mark.rule("P-POW-1")
def test_work_for_another_history_or_device_is_bad():
    lab, other = Lab(), Lab(secret=5)
    hard = 0x1F400000
    stolen = other.work(beacon(), nbits=hard, shares=1)
    assert Ledger(lab).send(lab.next(work=stolen)) is Reason.BAD_WORK
    lab = Lab()
    rewritten = lab.work(beacon(), nbits=hard, shares=1, prev=bytes(32))
    assert Ledger(lab).send(lab.next(work=rewritten)) is Reason.BAD_WORK


@pytest.mark.rule("P-ATT-1")
@pytest.mark.parametrize("change", ["twice", "register_mws", "unix_s", "seq", "channel"])
def test_a_wrong_attestation_rejects_the_batch(change):
    lab = Lab()
    batch = lab.attested(lab.batch())
    first = batch.attestations[0]
    wrong = (first, first) if change == "twice" else (replace(first, **{change: getattr(first, change) + 5}),)
    assert Ledger(lab).send(lab.sign(replace(batch, attestations=wrong))) is Reason.BAD_ATTESTATION
    lab = Lab()
    assert Ledger(lab).send(lab.sign(lab.attested(lab.batch()))) is Reason.NONE


def test_a_suspended_device_is_held_until_the_dao_reinstates_it():
    lab = Lab()
    ledger = Ledger(lab, status=((0, "suspended"),))
    assert ledger.send(lab.next()) is Reason.SUSPENDED_DEVICE
    decision = Decision(lab.device, 0, 9, Action.REINSTATE, "", "dao", LATER, "checked")
    rules = Rules(NETWORK, decisions=[decision])
    lab = Lab()
    assert Ledger(lab, rules, status=((0, "suspended"),)).send(lab.next()) is Reason.NONE


@pytest.mark.rule("P-ING-4")
def test_a_skip_takes_the_held_batch_as_the_new_base():
    lab = Lab()
    ledger = Ledger(lab)
    ledger.send(lab.next())
    lab.next()
    after = lab.next()
    assert ledger.send(after) is Reason.GAP_BEFORE
    assert ledger.send(after, skipped_to=True) is Reason.NONE
    assert ledger.judged[2].readings == ()
    assert ledger.send(lab.next()) is Reason.NONE


@pytest.mark.rule("P-ING-3")
def test_place_tells_duplicates_from_equivocation():
    lab = Lab()
    first = parse_batch(lab.next())
    digest = hashlib.sha256(first.message).digest()
    state = ChainState.start(NETWORK)
    assert place(state, first, None) is Place.NEXT
    assert place(state, first, digest) is Place.DUPLICATE
    assert place(state, first, bytes(32)) is Place.EQUIVOCATION
    assert place(replace(state, halted=True), first, None) is Place.SUSPENDED
    ahead = parse_batch(Lab().sign(Lab().batch(seq=4_096)))
    assert place(state, ahead, None) is Place.AHEAD
    far = parse_batch(Lab().sign(Lab().batch(seq=4_097)))
    assert place(state, far, None) is Place.TOO_FAR


@pytest.mark.rule("P-ID-2", "P-ID-4")
def test_a_topic_of_another_device_is_malformed():
    lab = Lab()
    topic = device_topic(Lab(secret=2).device, "batch")
    with pytest.raises(Rejected) as caught:
        open_message(lab.next(), topic, LATER, lambda _d: lab.record(), NETWORK)
    assert caught.value.reason is Reason.MALFORMED


def test_a_device_is_unknown_before_its_registration():
    lab = Lab()
    record = lab.record(status=((LATER + 1, "active"),))
    with pytest.raises(Rejected) as caught:
        open_message(lab.next(), None, LATER, lambda _d: record, NETWORK)
    assert caught.value.reason is Reason.UNKNOWN_DEVICE


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 26_000_000), st.integers(-3_000_000, 3_000_000)), min_size=1, max_size=20),
       st.integers(1, 5))  # fmt: skip
def test_honest_chains_are_accepted_whole_and_survive_json(readings, count):
    lab = Lab()
    ledger = Ledger(lab)
    for _ in range(count):
        assert ledger.send(lab.next(readings)) is Reason.NONE
        assert ChainState.from_json(ledger.state.to_json()) == ledger.state
    for number, meter in lab.meters.items():
        assert ledger.state.channels[number].register_mws == meter.register_mws


@pytest.mark.rule("P-ING-5")
def test_device_and_seq_tell_messages_apart_whatever_order_they_come_in():
    lab = Lab()
    messages = [lab.next() for _ in range(3)]
    ledger = Ledger(Lab())
    assert ledger.send(messages[1]) is Reason.GAP_BEFORE
    assert [ledger.send(m) for m in messages] == [Reason.NONE] * 3
    assert set(ledger.judged) == {0, 1, 2}


@pytest.mark.rule("P-ING-1", "P-BAT-6")
def test_a_reinstatement_changes_no_verdict_of_what_came_after():
    status = ((0, "active"), (T0_MS + 100_000, "suspended"), (T0_MS + 400_000, "active"))
    lab = Lab(interval_ms=30_000)
    messages = [lab.next(), lab.next()]  # the second one while the device is suspended
    lab.reboot(bytes(16), wall_ms=T0_MS + 50_000)  # over the time of the suspended one
    messages.append(lab.next())
    decision = Decision(lab.device, 0, 9, Action.REINSTATE, "", "dao", LATER, "checked")
    found = []
    for decisions in ((), (decision,)):
        ledger = Ledger(Lab(), Rules(NETWORK, decisions=decisions), status=status)
        found.append([ledger.send(message) for message in messages])
    assert found[0][1] is Reason.SUSPENDED_DEVICE
    assert found[1][1] is Reason.NONE
    assert found[0][2] is found[1][2] is Reason.TIME_OVERLAP
