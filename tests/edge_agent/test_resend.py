"""Resending is a pure policy: nothing goes out twice within its delay, and an absent backend costs next to nothing."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import resend
from edge_agent.resend import MAX_DELAY_S, Flight, due, receipted, sent

DAY_S = 86_400
AHEAD, RESEND_S = 60, 30.0


class Ledger:
    """A backend that has batches of the first `lost_every`-th loss, after a while; drives a flight by events."""

    def __init__(self, chance, ahead=AHEAD):
        self.flight, self.now_s, self.out, self.ahead = Flight(), 0.0, [], ahead
        self.chance = chance

    def send_due(self, next_seq):
        while (seq := due(self.flight, self.now_s, next_seq=next_seq, ahead=self.ahead)) is not None:
            self.flight = sent(self.flight, seq, self.now_s, resend_s=RESEND_S, chance=self.chance)
            self.out.append((self.now_s, seq))

    def receipt(self, next_seq):
        self.flight = receipted(self.flight, next_seq, self.now_s, resend_s=RESEND_S, chance=self.chance)


@pytest.mark.rule("P-RCT-2")
@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["wait", "seal", "receipt"]), st.floats(0, 300), st.integers(0, 80)), max_size=200
    ),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50),
)
def test_no_batch_goes_out_twice_within_its_delay_and_all_in_order(steps, chances):
    turn = [0]

    def chance():
        turn[0] += 1
        return chances[turn[0] % len(chances)]

    ledger, next_seq, have, again = Ledger(chance), 0, 0, -1
    last: dict[int, float] = {}
    for what, seconds, count in steps:
        if what == "wait":
            ledger.now_s += seconds
        elif what == "seal":
            next_seq += count
        else:
            have = min(have + count, max((seq + 1 for _, seq in ledger.out), default=0))
            again = have if ledger.flight.attempt and have == ledger.flight.first + 1 else -1
            ledger.receipt(have)
        before = len(ledger.out)
        ledger.send_due(next_seq)
        for at_s, seq in ledger.out[before:]:
            assert have <= seq < min(next_seq, have + AHEAD + ledger.flight.room)
            assert ledger.flight.room <= min(resend.MOST_ROOM, have)
            if seq in last:
                assert at_s - last[seq] >= RESEND_S or seq == again
                assert seq == have  # only the oldest one without a receipt
            last[seq] = at_s
    first_times = list(dict.fromkeys(seq for _, seq in ledger.out))
    assert first_times == sorted(first_times)


def test_a_backlog_fills_the_way_and_a_ledger_that_keeps_up_gets_no_more_than_the_usual():
    ledger, have = Ledger(lambda: 0.5), 0
    for _ in range(20):
        ledger.send_due(10_000)
        have = ledger.flight.end
        ledger.receipt(have)
    ledger.send_due(10_000)
    assert ledger.flight.end - have == AHEAD + resend.MOST_ROOM
    for next_seq in range(have + 1, have + 100):
        ledger.receipt(next_seq)
    ledger.receipt(ledger.flight.end)
    before = len(ledger.out)
    ledger.receipt(ledger.flight.end + 1)
    ledger.send_due(20_000)
    assert len(ledger.out) - before == AHEAD


@pytest.mark.rule("P-RCT-2")
@pytest.mark.parametrize("seed", range(10))
def test_a_month_without_backend_costs_less_than_a_hundred_publishes_a_day(seed):
    ledger = Ledger(Random(seed).random)
    for minute in range(30 * 1440):
        ledger.now_s = minute * 60.0
        ledger.send_due(minute + 1)
    for day in range(30):
        assert sum(day * DAY_S <= at_s < (day + 1) * DAY_S for at_s, _ in ledger.out) <= 100
    ledger.receipt(AHEAD)  # it is back: everything that waits goes out, once
    begun = len(ledger.out)
    have = AHEAD
    while have < 30 * 1440:
        ledger.send_due(30 * 1440)
        have = ledger.flight.end
        ledger.receipt(have)
    assert [seq for _, seq in ledger.out[begun:]] == list(range(AHEAD, 30 * 1440))


def test_a_receipt_within_the_delay_makes_nothing_go_out_twice():
    ledger = Ledger(lambda: 0.0)
    for minute in range(1_000):
        ledger.now_s = 60.0 * minute
        ledger.send_due(minute + 1)
        ledger.now_s += 29.9
        ledger.send_due(minute + 1)
        ledger.receipt(minute + 1)
    assert [seq for _, seq in ledger.out] == list(range(1_000))


def test_what_a_broker_lost_goes_out_again_one_after_the_other_as_soon_as_the_ledger_answers():
    ledger = Ledger(lambda: 0.5)
    ledger.send_due(20)
    ledger.now_s = 46.0
    ledger.send_due(20)
    assert ledger.out[-1] == (46.0, 0)
    for have in range(1, 20):  # each receipt says what is missing next, and that was sent long ago
        ledger.receipt(have)
        ledger.now_s += 0.05
        ledger.send_due(20)
        assert ledger.out[-1][1] == have


def test_delays_grow_to_their_limit_with_full_jitter():
    flight = Flight()
    spans = []
    for _ in range(14):
        flight = sent(flight, 0, 0.0, resend_s=RESEND_S, chance=lambda: 0.999)
        spans.append(flight.delay_s)
    assert spans[0] < 60.1
    assert spans == sorted(spans)
    assert MAX_DELAY_S < spans[-1] <= MAX_DELAY_S + RESEND_S
    assert sent(flight, 0, 0.0, resend_s=RESEND_S, chance=lambda: 0.0).delay_s == RESEND_S


def test_a_backend_that_is_heard_again_gets_the_oldest_batch_within_seconds_and_not_from_all_at_once():
    flight = Flight(0, (0.0,), delay_s=MAX_DELAY_S, attempt=9)
    woken = [resend.awake(flight, 5_000.0, resend_s=RESEND_S, chance=lambda c=c: c / 10) for c in range(10)]
    assert [w.since_s + w.delay_s for w in woken] == [5_000 + 3.0 * c for c in range(10)]
    assert resend.awake(Flight(), 0, resend_s=1, chance=None) == Flight()


def test_what_the_broker_never_answered_goes_out_again_at_once_and_nothing_else():
    flight = Flight(5, (1.0, 2.0, 3.0, 4.0), delay_s=30)
    flight = resend.lost(flight, {6, 8, 3})
    out = []
    while (seq := due(flight, 5.0, next_seq=9, ahead=AHEAD)) is not None:
        flight = sent(flight, seq, 5.0, resend_s=RESEND_S, chance=lambda: 0.0)
        out.append(seq)
    assert out == [6, 8]
    assert flight == Flight(5, (1.0, 5.0, 3.0, 5.0), delay_s=30)


def test_a_ledger_restored_from_a_backup_is_sent_again_what_it_asks_for():
    ledger = Ledger(lambda: 0.0)
    ledger.send_due(30)
    ledger.receipt(30)
    ledger.receipt(10)
    ledger.send_due(30)
    assert [seq for _, seq in ledger.out[30:]] == list(range(10, 30))
