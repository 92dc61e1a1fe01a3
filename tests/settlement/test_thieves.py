"""What a dishonest miner, node or both take: nothing beyond the stated tolerance (settlement.md, 2 to 5)."""

from dataclasses import replace

import pytest

from maxgreen.protocol.batch import Role
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.rules import Action, Decision, Limits
from maxgreen.verify.segment import Segment, Taking
from settlement.inputs import Base
from settlement.loss import Measured
from settlement.windows import State
from simulator.lab import T0_MS, Lab
from tests.settlement.test_statement import BEGIN_S, PEAK_MW, RESISTANCE, WINDOW, Pair

CURRENT_UA = 1_000_000
STEP_MS = 30_000


class Thieves(Pair):
    """A pair whose every window is made by hand; both ends are honest where nothing else is said."""

    def __init__(self, **options):
        self.ahead = set()  # what waits behind a hole: device, seq
        super().__init__(options, windows=0)

    def both(self, *, skim=0.0, count=20, attested=False, sent=CURRENT_UA, working=True, **changes):
        """A window; `skim`: what the node does not meter. Changes are of both batches, or of one (miner=, node=)."""
        own = {"miner": changes.pop("miner", {}), "node": changes.pop("node", {})}
        first = sum(len(m) for m in self.messages.values()) == 2
        for name, lab in (("miner", self.miner), ("node", self.node)):
            change = {**changes, **own[name]}
            current = sent if name == "miner" else int((sent - sent * RESISTANCE // 10**6 // 18) * (1 - skim))
            readings = [(18_000_000 + k, current + k) for k in range(count - first)]
            batch = lab.batch(readings, **change)
            if name == "miner" and working:
                batch = replace(batch, work=lab.work(self.beacon))
            self.messages[lab.device].append(lab.sign(lab.attested(batch) if attested else batch))

    def made(self, **changes):
        return super().made(**{"ahead": self.ahead, **changes})

    def result(self, **changes):
        result = super().made(**{"ahead": self.ahead, **changes}).result()
        self.windows = {(w.window_s - BEGIN_S) // WINDOW: w for w in result.windows.windows}
        return result.statement


def test_honest_ends_are_paid_all_that_arrived():
    pair = Thieves()
    for k in range(6):
        pair.both(attested=k == 5)
    statement = pair.result()
    assert int(statement["payable_mws"]) == int(statement["received_mws"]) > 0
    assert (statement["held"], statement["disputed"]) == ({}, {})


@pytest.mark.parametrize("skim", [0.15, 0.4, 0.9])
def test_skimming_is_disputed_and_so_stays_at_the_next_close(skim):
    pair = Thieves()
    for k in range(6):
        pair.both(skim=skim, attested=k == 5)
    statement = pair.result()
    assert int(statement["payable_mws"]) == 0
    assert {w.state for w in pair.windows.values()} == {State.DISPUTED}
    before = {BEGIN_S + k * WINDOW: ("disputed", "47") for k in pair.windows}
    honest = Thieves()
    for k in range(6):
        honest.both(attested=k == 5)
    assert int(honest.result(windows_before=before)["payable_mws"]) == 0
    assert int(honest.result()["payable_mws"]) > 0


def test_a_day_that_fails_together_is_disputed_though_each_window_passes():
    pair = Thieves()
    for k in range(40):
        pair.both(skim=0.1, attested=k == 39)
    pair.result()
    alone = Thieves()
    alone.both(skim=0.1, attested=True)
    alone.result()
    assert alone.windows[0].state is State.COUNTED  # within what sampling may err by in one window
    assert {w.state for w in pair.windows.values()} == {State.DISPUTED}


@pytest.mark.parametrize("who", ["miner", "node"])
def test_a_party_does_not_choose_the_tolerance_by_the_interval_that_it_states(who):
    pair = Thieves()
    for k in range(12):
        pair.both(skim=0.4, attested=k == 11, **{who: {"interval_ms": 900_000}})
    pair.result()
    assert {w.state for w in pair.windows.values()} == {State.DISPUTED}
    assert all(w.measured.edge_mws == 2 * PEAK_MW * Limits().edge_ms // 1000 for w in pair.windows.values())


@pytest.mark.parametrize("who", ["miner", "node"])
def test_reboots_do_not_switch_the_loss_check_off(who):
    pair = Thieves()
    for k in range(12):
        if k % 2:
            lab = getattr(pair, who)
            lab.reboot(bytes([k] * 16), wall_ms=lab.boot_ms + lab.wall_offset_ms)
        pair.both(skim=0.4, attested=k == 11)
    statement = pair.result()
    assert int(statement["payable_mws"]) == 0


@pytest.mark.parametrize("who", ["miner", "node"])
def test_a_rejected_batch_of_the_far_future_touches_its_own_window_alone(who):
    pair = Thieves()
    for k in range(6):
        if k == 2:
            lab = getattr(pair, who)
            boot, boot_ms, offset = lab.boot, lab.boot_ms, lab.wall_offset_ms
            lab.reboot(bytes([9] * 16), wall_ms=T0_MS + 10**12)
            pair.messages[lab.device].append(lab.sign(lab.batch([(18_000_000, CURRENT_UA)])))
            lab.boot, lab.boot_ms, lab.wall_offset_ms, lab.born = boot, boot_ms, offset, False
        pair.both(skim=0.4 if k > 2 else 0.0, attested=k == 5)
    pair.result()
    assert {pair.windows[k].state for k in (3, 4, 5)} == {State.DISPUTED}


def test_what_only_one_end_metered_is_charged_not_counted_and_too_much_of_it_is_held():
    pair = Thieves()
    for k in range(24):
        if k == 3:  # the node is away for a minute, then the sun is out again
            readings = [(18_000_000 + j, CURRENT_UA + j) for j in range(20)]
            batch = replace(pair.miner.batch(readings), work=pair.miner.work(pair.beacon))
            pair.messages[pair.miner.device].append(pair.miner.sign(batch))
            late = [(18_000_000 + j, CURRENT_UA - CURRENT_UA * RESISTANCE // 10**6 // 18 + j) for j in range(17)]
            pair.node.reboot(bytes([3] * 16), wall_ms=pair.node.boot_ms + pair.node.wall_offset_ms + 3 * STEP_MS)
            pair.messages[pair.node.device].append(pair.node.sign(pair.node.batch(late)))
            continue
        pair.both(attested=k == 23)
    statement = pair.result()
    dark = pair.windows[3].measured
    assert (dark.sent_dark_ms, dark.received_dark_ms) == (0, 3 * STEP_MS)
    assert pair.windows[3].state is State.COUNTED
    assert int(statement["payable_mws"]) == int(statement["received_mws"])
    short = Limits(pow_nbits_min=0x207FFFFF, unmetered_ppm=1_000)
    rules = pair.made().rules
    pair.result(rules=type(rules)(rules.network, limits=[(0, short)], beacons=rules.beacons))
    assert pair.windows[3].reasons == (Reason.UNMETERED,)
    assert {pair.windows[k].state for k in (2, 4)} == {State.COUNTED}


def test_more_than_ten_minutes_of_a_window_are_held():
    pair = Thieves()
    for k in range(6):
        if k == 3:
            for lab in (pair.miner, pair.node):
                lab.wall_offset_ms -= 300_000  # as far back as a clock may step
        pair.both(count=10 if k == 3 else 20, attested=k == 5)
    pair.result()
    assert pair.windows[2].reasons == (Reason.OVERFULL,)


def test_nothing_measured_before_the_registration_counts():
    pair = Thieves()
    for k in range(6):
        pair.both(attested=k == 5)
    since_ms = (BEGIN_S + 3 * WINDOW) * 1000
    parties = tuple(replace(p, record=replace(p.record, statuses=((since_ms, "active"),))) for p in pair.made().parties)
    pair.result(parties=parties, received_ms=since_ms + 86_400_000)
    assert min(pair.windows) == 3


def test_sent_energy_that_is_called_generation_is_rejected_and_what_nobody_registered_counts_nowhere():
    pair = Thieves()
    for k in range(6):
        pair.both(attested=k == 5)
    miner, node = pair.made().parties
    roles = ((0, 1), (1, 0))
    lying = replace(miner, record=replace(miner.record, roles=roles))
    assert int(pair.result(parties=(lying, node))["payable_mws"]) == 0
    assert State.COUNTED not in {w.state for w in pair.windows.values()}
    alone = replace(miner, channels=miner.channels[1:], record=replace(miner.record, roles=((1, 1),)))
    pair.result(parties=(alone, node))
    assert {w.reasons for w in pair.windows.values()} == {(Reason.NOT_GENERATED,)}


@pytest.mark.parametrize(
    ("lifted", "left"),
    [
        ("41", {Reason.OVER_CAPACITY}),
        ("43", {Reason.OFFLINE_WINDOW}),
        ("41 43", set()),
        ("", {41, 43}),
        ("x 4", {41, 43}),
    ],
)
def test_a_release_lifts_the_reasons_that_it_names_and_no_other(lifted, left):
    pair = Thieves()
    for k in range(8):
        odd = k in (3, 4)
        pair.both(sent=2_900_000 if odd else CURRENT_UA, working=not odd, attested=k == 7)
    pair.options["decisions"] = [Decision(pair.miner.device, 4, 5, Action.RELEASE, lifted, "dao", T0_MS, "looked at")]
    statement = pair.result()
    assert {int(r) for k in (3, 4) for r in pair.windows[k].reasons} == {int(r) for r in left}
    assert [d["reason"] for d in statement["decisions"]] == [lifted]


def test_what_the_dao_rejects_is_out_for_ever():
    pair = Thieves()
    for k in range(6):
        pair.both(attested=k == 5)
    whole = int(pair.result()["payable_mws"])
    pair.options["decisions"] = [
        Decision(pair.miner.device, 2, 3, Action.REJECT, "60", "dao", T0_MS, "a twin"),
        Decision(pair.miner.device, 2, 3, Action.RELEASE, "49 52", "dao", T0_MS, "a try"),
    ]
    statement = pair.result()
    assert {pair.windows[k].reasons for k in (1, 2)} == {(Reason.TAKEN_OUT,)}
    assert 0 < int(statement["payable_mws"]) < whole
    assert len(statement["decisions"]) == 2


def test_a_hole_of_years_costs_no_time():
    pair = Thieves()
    for k in range(4):
        pair.both(attested=k == 3)
    lab = pair.miner
    lab.sign(lab.batch())  # lost
    ahead = Lab(secret=1, roles=(Role.GENERATION, Role.SENT), interval_ms=STEP_MS)
    ahead.seq, ahead.head = lab.seq, lab.head
    pair.messages[lab.device].append(ahead.sign(ahead.batch(t0_ms=4_102_444_800_000)))
    pair.ahead.add((lab.device, ahead.seq - 1))
    statement = pair.result()
    assert pair.windows[3].reasons == (Reason.INCOMPLETE,)
    assert int(statement["payable_mws"]) > 0


@pytest.mark.parametrize("who", [0, 1])
def test_a_batch_that_its_chain_does_not_lead_to_puts_the_line_in_trouble(who):
    pair = Thieves()
    for k in range(4):
        pair.both(attested=k == 3)
    made = pair.made()
    device = made.parties[who].device
    lab = Lab(secret=1 if who == 0 else 4, roles=(Role.GENERATION, Role.SENT), interval_ms=STEP_MS)
    [digest] = made.inputs.segments[device]
    whole = Segment.parse(made.segments[digest])
    broken = replace(whole, batches=(Taking(lab.next(seq=5), T0_MS + 86_400_000),))
    made.segments[broken.digest] = broken.data
    changed = {**made.inputs.segments, device: (broken.digest,)}
    found = made.result(segments=changed)
    assert "seq 5: gap_before" in made.evidence(segments=changed).troubles[device]
    assert found.statement["trouble"] == f"the evidence of device {device.hex()} does not hold together"
    assert (found.statement["payable_mws"], found.claim(bytes(32))) == ("0", None)
    assert int(made.result().statement["payable_mws"]) > 0


@pytest.mark.parametrize("spoilt", [False, True])
def test_who_parts_windows_has_the_edge_once(spoilt):
    pair = Thieves()
    for k in range(24):
        if spoilt and k % 2:  # the node spoils every second window: a register that does not follow from its samples
            readings = [(18_000_000 + j, CURRENT_UA + j) for j in range(20)]
            batch = replace(pair.miner.batch(readings), work=pair.miner.work(pair.beacon))
            pair.messages[pair.miner.device].append(pair.miner.sign(batch))
            batch = pair.node.batch(readings)
            wrong = tuple(replace(c, register_mws=c.register_mws + 5) for c in batch.channels)
            pair.node.meters = {n: replace(m, forward=m.forward + 10**13) for n, m in pair.node.meters.items()}
            pair.messages[pair.node.device].append(pair.node.sign(replace(batch, channels=wrong)))
            continue
        pair.both(skim=0.3, sent=380_000, attested=k in (22, 23), node={"interval_ms": 60_000})
    statement = pair.result()
    assert int(statement["payable_mws"]) == 0
    assert State.COUNTED not in {w.state for w in pair.windows.values()}


@pytest.mark.parametrize("lying", [False, True])
def test_generation_that_cannot_be_makes_nothing_of_what_is_sent(lying):
    pair = Thieves()
    dark = [(18_000_000, 0)] * 20
    for k in range(8):
        if k == 1:  # all that the day is said to have generated, in a window in which nothing is sent
            made = [(18_000_000 + j, 20_000_000 + j) for j in range(20)] if lying else dark
            pair.both(sent=0, miner={"others": {0: made, 1: dark}})
        else:
            pair.both(attested=k == 7, miner={"others": {0: dark[k == 0 :]}})
    statement = pair.result()
    assert int(statement["payable_mws"]) == 0
    assert {pair.windows[k].reasons for k in range(2, 8)} == {(Reason.NOT_GENERATED,)}


def test_a_line_counts_from_its_bases_on_by_time_too():
    pair = Thieves()
    for k in range(8):
        pair.both(attested=k == 7)
    line = pair.made().line
    later = Base(BEGIN_S + 5 * WINDOW)  # attested by a clock that was ahead: an early seq, a late time
    pair.result(line=replace(line, sent_base=later, received_base=later))
    assert min(pair.windows) == 5


@pytest.mark.parametrize("interval_ms", [1_000, 60_000, 120_000, 300_000])
def test_ends_may_sample_at_other_intervals(interval_ms):
    pair = Thieves()
    pair.node.interval_ms, seconds = interval_ms, 600
    for k in range(6):
        pair.both(attested=k == 5) if interval_ms == STEP_MS else _other_interval(pair, interval_ms, seconds, k)
    statement = pair.result()
    assert (statement["held"], statement["disputed"]) == ({}, {})


def _other_interval(pair, interval_ms, seconds, k):
    for name, lab in (("miner", pair.miner), ("node", pair.node)):
        step_ms = STEP_MS if name == "miner" else interval_ms
        begin_ms = BEGIN_S * 1000 + k * seconds * 1000
        current = CURRENT_UA if name == "miner" else CURRENT_UA - CURRENT_UA * RESISTANCE // 10**6 // 18
        skipped = 1 if k == 0 else 0  # the base took the first instant
        lab.boot_ms = begin_ms + skipped * step_ms - lab.wall_offset_ms
        count = seconds * 1000 // step_ms - skipped
        batch = lab.batch([(18_000_000 + j % 5, current + j % 3) for j in range(count)])
        if name == "miner":
            batch = replace(batch, work=lab.work(pair.beacon))
        pair.messages[lab.device].append(lab.sign(lab.attested(batch) if k == 5 else batch))


def test_boots_in_grey_windows_do_not_excuse_the_day():
    pair = Thieves()
    for k in range(24):
        if k in (5, 9, 13):  # the node boots, and is away for 90 s of a window with little sun: all of it could be lost
            readings = [(18_000_000 + j, 100_000 + j) for j in range(20)]
            batch = replace(pair.miner.batch(readings), work=pair.miner.work(pair.beacon))
            pair.messages[pair.miner.device].append(pair.miner.sign(batch))
            pair.node.reboot(bytes([k] * 16), wall_ms=pair.node.boot_ms + pair.node.wall_offset_ms + 3 * STEP_MS)
            pair.messages[pair.node.device].append(pair.node.sign(pair.node.batch([(18_000_000, 5_001)] * 17)))
            continue
        pair.both(sent=100_000, attested=k == 23)
    pair.result()
    excused = sum(w.measured.received_unmet_mws for w in pair.windows.values() if w.counts)
    sent = sum(w.measured.sent_mws for w in pair.windows.values() if w.counts)
    assert 0 < excused <= sent // 20
    assert sum(w.reasons == (Reason.UNMETERED,) for w in pair.windows.values()) == 2


def test_a_window_that_one_end_metered_in_part_pays_no_more_of_a_lossy_line():
    whole = Measured(BEGIN_S, 1_000, 1_000, 0, 111, 11, 0, 5, 0, 100, 0, WINDOW * 1_000)
    assert (whole.one_sided, whole.matched_mws, whole.tolerance_mws) == (True, 900, 111)


def test_a_dispute_outlives_another_reason():
    pair = Thieves()
    for k in range(6):
        pair.both(attested=k == 5)
    before = {BEGIN_S + 2 * WINDOW: ("held", "47"), BEGIN_S + 3 * WINDOW: ("held", "")}
    pair.result(windows_before=before)
    assert (pair.windows[2].state, pair.windows[2].dispute) == (State.DISPUTED, (Reason.LOSS_EXCEEDS_LIMIT,))
    assert pair.windows[3].counts
    pair.options["decisions"] = [Decision(pair.miner.device, 3, 3, Action.RELEASE, "47", "dao", T0_MS, "looked at")]
    pair.result(windows_before=before)
    assert (pair.windows[2].counts, pair.windows[2].dispute) == (True, ())


def test_a_batch_that_waits_holds_nothing_that_its_chain_has_passed():
    pair = Thieves()
    for k in range(6):
        pair.both(attested=k == 5)
    lab = pair.node
    lab.sign(lab.batch())  # lost
    lab.reboot(bytes([8] * 16), wall_ms=BEGIN_S * 1000)
    pair.messages[lab.device].append(lab.sign(lab.batch([(18_000_000, CURRENT_UA)])))
    pair.ahead.add((lab.device, lab.seq - 1))
    statement = pair.result()
    assert pair.windows[5].reasons == (Reason.INCOMPLETE,)
    assert {pair.windows[k].state for k in range(5)} == {State.COUNTED}
    assert int(statement["payable_mws"]) > 0
