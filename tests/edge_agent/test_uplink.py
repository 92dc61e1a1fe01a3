"""What goes over the connection: in order, once, after the receipt; and what the backend says of it."""

import sqlite3
import threading

import pytest

from edge_agent import uplink as uplink_module
from edge_agent.report import UNANSWERED_S
from edge_agent.spool import KEEP_AFTER_RECEIPT_MS, Spool
from edge_agent.uplink import RECEIPT_WAIT_S, Uplink
from maxgreen.mqtt import Acknowledged, Denied, Disconnected
from maxgreen.protocol.backend import BackendKeys, Beacon, Receipt, sign_beacon, sign_receipt
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from maxgreen.protocol.keys import MemorySigner
from simulator.lab import NETWORK, T0_MS, Lab
from tests.edge_agent.test_agent import BACKEND, Clock, make_sealer, ticks
from tests.fakes.link import FakeLink


class Line:
    """An uplink on a fake link, with a backend that signs receipts; seconds pass when `now_s` is moved."""

    def __init__(self, spool, window=5, resend_s=30):
        self.spool, self.link, self.clock, self.lab, self.now_s = spool, FakeLink(), Clock(), Lab(), 1_000.0
        self.window, self.resend_s = window, resend_s
        self.uplink = self.restarted()

    def restarted(self, keys=(BACKEND,)):
        keys = BackendKeys(tuple(key.spki for key in keys), NETWORK)
        self.uplink = Uplink(
            self.link, self.spool, self.lab.device, keys, NETWORK, self.clock,
            window=self.window, resend_s=self.resend_s,
        )  # fmt: skip
        return self.uplink

    def monotonic(self):
        return self.now_s

    def fill(self, count):
        sealer = make_sealer(self.spool, seal_ms=1_000)
        for tick in ticks(0, count + 1):
            sealer.take(tick)
        return self

    def connect(self, next_seq=0):
        """Connect to a broker that retains a receipt."""
        self.link.connect()
        self.receipt(next_seq, retained=True)
        return self

    def receipt(self, next_seq, *, head=None, server_ms=None, signer=BACKEND, nbits=7, retained=False, held=()):
        if head is None:
            head = self.spool.digest(next_seq - 1) or network_digest(NETWORK)
        self.clock.t_ms += 1
        receipt = Receipt(self.lab.device, next_seq, head, server_ms or self.clock.t_ms, nbits, held=held)
        message = sign_receipt(receipt, signer, NETWORK)
        self.link.deliver(device_topic(self.lab.device, "receipt"), message, retained=retained)
        self.process()

    def process(self, seconds=0.0, times=3):
        self.now_s += seconds
        for _ in range(times):
            self.uplink.process()

    def sent(self):
        seqs = {message: seq for seq, message in self.spool.messages(self.spool.oldest_seq(), 10_000)}
        return [seqs[message] for message in self.link.batches()]


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool.db", network_digest(NETWORK))


@pytest.fixture
def make(spool, monkeypatch):
    def make(count, **options):
        line = Line(spool, **options).fill(count)
        monkeypatch.setattr(uplink_module, "time", line)
        return line

    return make


@pytest.mark.rule("P-RCT-1", "P-RCT-2")
def test_batches_go_in_order_and_stay_until_seven_days_after_their_receipt(make, spool):
    line = make(8).connect()
    line.process(times=5)
    assert line.link.batches() == [m for _, m in spool.messages(0, 100)]
    line.receipt(4)
    assert spool.oldest_seq() == 0
    assert spool.waiting() == spool.tip.next_seq - 4
    line.clock.t_ms += KEEP_AFTER_RECEIPT_MS
    line.receipt(5)
    assert spool.oldest_seq() == 4


@pytest.mark.rule("P-RCT-2")
def test_nothing_is_sent_before_the_retained_receipt_was_read_or_surely_is_none(make):
    line = make(8)
    line.link.connect()
    line.process()
    line.process(RECEIPT_WAIT_S - 0.1)
    assert line.sent() == []
    line.process(0.2)
    assert line.sent() == list(range(8))


@pytest.mark.rule("P-RCT-2", "P-RCT-3")
def test_a_restored_card_sends_nothing_of_its_other_history(make, spool):
    line = make(10)
    line.receipt(10)
    end = spool.tip.next_seq
    sealer = make_sealer(spool, boot=bytes(16), seal_ms=1_000)  # measured without a network
    for tick in ticks(1_000, 6):
        sealer.take(tick)
    assert spool.tip.next_seq > end
    line.link.connect()
    line.process()
    line.receipt(end + 20, head=b"h" * 32)
    line.process(3_600)
    assert line.sent() == []
    assert "contradicts" in line.uplink.alarm


@pytest.mark.rule("P-RCT-2")
def test_after_a_reconnect_only_what_the_broker_never_answered_goes_out_again(make):
    line = make(12, window=20).connect()
    line.process()
    assert line.sent() == list(range(12))
    line.receipt(2)
    line.link.disconnect()
    line.process()
    line.link.sent.clear()
    line.connect(2)
    line.process()
    assert line.sent() == []  # the broker has the ten that have no receipt
    line.link.silent = True  # answers are lost from now on
    line.fill(0)
    sealer = make_sealer(line.spool, seal_ms=1_000)
    for tick in ticks(100, 4):
        sealer.take(tick)
    line.process()
    unanswered = line.sent()
    line.link.disconnect()
    line.process()
    line.link.sent.clear()
    line.connect(2)
    line.process()
    assert line.sent() == unanswered


@pytest.mark.rule("P-RCT-2")
def test_with_broker_up_and_backend_away_an_hour_costs_a_few_publishes(make):
    line = make(500).connect()
    for _ in range(2 * 3_600):
        line.process(0.5, times=1)
    assert len(set(line.sent())) == 15  # three windows
    assert len(line.sent()) <= 15 + 10


@pytest.mark.rule("P-RCT-2")
def test_with_the_defaults_a_receipt_a_moment_later_makes_nothing_go_out_twice(make):
    line = make(0, window=20).connect()
    sealer, noted = make_sealer(line.spool), 0
    for tick in ticks(0, 1_200):
        sealer.take(tick)
        line.clock.t_ms = tick.wall_ms
        for _ in range(4):
            line.process(0.25, times=1)
        if line.spool.tip.next_seq > noted:
            noted = line.spool.tip.next_seq
            line.receipt(noted)
    assert line.sent() == list(range(noted))


@pytest.mark.rule("P-RCT-2")
def test_a_backend_that_is_back_after_hours_is_noticed_by_its_beacon(make):
    line = make(8).connect()
    line.link.deliver(BEACON_TOPIC, beacon(1))
    for _ in range(100):
        line.process(600)
    before = len(line.sent())
    line.link.deliver(BEACON_TOPIC, beacon(1))  # the retained one, again
    line.process()
    assert len(line.sent()) == before
    line.link.deliver(BEACON_TOPIC, beacon(2))
    line.process()
    line.process(31)
    assert line.sent()[before:] == [0]


def beacon(number):
    return sign_beacon(Beacon(number, T0_MS // 1000, 600, 1, bytes(32)), BACKEND, NETWORK)


@pytest.mark.rule("P-RCT-2")
def test_receipts_that_are_old_early_or_of_a_stranger_are_ignored(make):
    line = make(6).connect()
    line.receipt(3)
    line.receipt(1, server_ms=T0_MS - 1)
    line.receipt(4, server_ms=line.clock.t_ms + 400_000)
    line.receipt(5, signer=MemorySigner.from_secret(3))
    assert line.uplink.receipt.next_seq == 3
    assert "not one of the backend's" in line.uplink.unknown_key
    line.link.deliver(device_topic(line.lab.device, "receipt"), b"\xff" * 50)
    line.process()
    assert line.uplink.alarm is None
    line.receipt(4)
    assert line.uplink.unknown_key is None


def test_ten_thousand_strange_messages_are_two_lines_in_the_log_and_one_call_takes_some_of_them(make, caplog):
    line = make(1).connect()
    for _ in range(10_000):
        line.link.deliver(BEACON_TOPIC, b"\xff" * 200)
    line.process(times=1)
    assert line.link.notices.qsize() >= 9_700
    line.process(times=60)
    assert line.link.notices.empty()
    assert sum("dropped" in record.getMessage() for record in caplog.records) == 1
    line.link.deliver(BEACON_TOPIC, b"\xff" * 200)
    line.process(61)
    assert "10001 so far" in caplog.text


@pytest.mark.rule("P-RCT-2")
def test_a_clock_that_is_not_synchronised_refuses_no_receipt(make):
    line = make(6)
    line.uplink.dated = False
    line.connect()
    line.receipt(3, server_ms=line.clock.t_ms + 10**12)
    assert line.uplink.receipt.next_seq == 3


@pytest.mark.rule("P-RCT-2")
def test_a_ledger_restored_from_a_backup_gets_again_what_it_had_receipted(make, spool, caplog):
    line = make(30, window=50).connect()
    line.receipt(30)
    line.clock.t_ms += KEEP_AFTER_RECEIPT_MS + 700_000
    line.link.sent.clear()
    line.receipt(5)
    assert spool.oldest_seq() == 5
    assert spool.waiting() == spool.tip.next_seq - 5
    line.process()
    assert line.link.batches() == [m for _, m in spool.messages(5, 100)]
    line.clock.t_ms += 700_000
    line.receipt(3)
    for _ in range(100):
        line.process(60)
        line.receipt(3)
    assert "asks for batch 3, the spool begins at 5" in line.uplink.missing
    assert line.uplink.alarm is None
    assert sum("asks for batch 3" in record.getMessage() for record in caplog.records) == 1
    line.receipt(spool.tip.next_seq)
    assert line.uplink.missing is None
    assert line.uplink.delivered


@pytest.mark.rule("P-RCT-2")
def test_a_replaced_backend_key_does_not_keep_an_agent_from_starting(make, caplog):
    line = make(6).connect()
    line.receipt(3)
    assert line.restarted((MemorySigner.from_secret(9),)).receipt is None
    assert "is not used" in caplog.text


@pytest.mark.rule("P-RCT-3")
@pytest.mark.parametrize(("next_seq", "head"), [(3, bytes(32)), (99, bytes(32)), (0, bytes(32))])
def test_a_receipt_that_contradicts_the_chain_stops_sending(make, spool, next_seq, head):
    line = make(6, window=2).connect()
    line.receipt(next_seq, head=head)
    sent = len(line.link.batches())
    line.process(10_000)
    assert line.uplink.alarm is not None
    assert len(line.link.batches()) == sent
    assert spool.waiting() == spool.tip.next_seq


@pytest.mark.rule("P-RCT-4")
def test_the_last_receipt_of_each_day_is_kept(make, spool):
    line = make(6).connect()
    for next_seq, day in ((1, 0), (2, 0), (3, 1)):
        line.clock.t_ms = T0_MS + day * 86_400_000 + next_seq
        line.receipt(next_seq)
    path = spool._db.execute("PRAGMA database_list").fetchone()[2]
    with sqlite3.connect(path) as db:
        kept = [
            BackendKeys((BACKEND.spki,), NETWORK).open_receipt(m)
            for (m,) in db.execute("SELECT message FROM receipts ORDER BY day")
        ]
    assert [r.next_seq for r in kept] == [2, 3]


def test_a_refused_publish_is_not_one_that_the_broker_has(make):
    line = make(6)
    line.link.answer = "Not authorized"
    line.connect()
    line.process(times=10)
    assert "Not authorized" in line.uplink.denied
    tried = len(line.sent())
    assert tried <= 5
    line.link.disconnect()
    line.process()
    line.connect()
    line.process()
    assert len(line.sent()) == tried  # a new connection is no permission
    line.process(299)
    assert len(line.sent()) == tried
    line.link.answer = ""
    line.process(302, times=10)
    assert line.uplink.denied is None
    assert sorted(set(line.sent()[tried:])) == list(range(6))


def test_a_denied_subscription_and_a_refusal_are_known(make):
    line = make(1).connect()
    line.link.notices.put(Denied(BEACON_TOPIC, "Not authorized"))
    line.process()
    assert BEACON_TOPIC in line.uplink.deaf
    line.receipt(1)
    assert line.uplink.deaf is not None  # batches that are taken do not make it hear
    line.link.notices.put(Disconnected("it refused the connection: Bad user name or password", refused=True))
    line.process()
    assert "Bad user name" in line.uplink.refused
    line.connect()
    assert line.uplink.refused is None
    assert line.uplink.deaf is None


def test_how_long_the_backend_is_silent_counts_from_what_it_did_not_answer(make):
    line = make(6)
    line.link.connect()
    line.process()
    line.process(6)
    line.process(UNANSWERED_S)
    assert line.uplink.unanswered_s >= UNANSWERED_S
    line.receipt(3)
    assert line.uplink.unanswered_s == 0.0
    line.process(100)
    assert line.uplink.unanswered_s == 100
    line.receipt(6)
    line.process(10_000)
    assert line.uplink.unanswered_s == 0.0


def test_a_state_waits_for_the_answer_to_the_one_before_it(make):
    line = make(1).connect()
    line.link.silent = True
    assert line.uplink.publish_json("state", {"n": 1})
    for n in range(1_000):
        assert not line.uplink.publish_json("state", {"n": n})
    assert line.uplink.publish_json("status", {"status": "online"})
    line.link.notices.put(Acknowledged(line.uplink._retained[device_topic(line.lab.device, "state")]))
    line.process()
    assert line.uplink.publish_json("state", {"n": 2})
    line.link.disconnect()
    line.process()
    line.connect()
    assert line.uplink.publish_json("state", {"n": 3})


def test_batches_that_the_medium_changed_are_left_out_and_the_others_go(make, spool):
    line = make(40, window=5)
    for seq in (0, 1, 12, 13, 30):
        spool._db.execute("UPDATE batches SET message = x'00' || substr(message, 2) WHERE seq = ?", (seq,))
    line.connect()
    line.process(times=30)
    have = 0
    for _ in range(60):  # the ledger takes them in order, and the operator skips holes
        line.process(times=4)
        have = max(have, *(seq + 1 for seq, m in spool_rows(spool) if m in set(line.link.batches())))
        line.receipt(have)
    assert line.uplink.damaged == set()
    batches = set(line.link.batches())
    went = [seq for seq, m in spool_rows(spool) if m in batches]
    assert went == [seq for seq in range(spool.tip.next_seq) if seq not in {0, 1, 12, 13, 30}]
    assert len(batches) == len(line.link.batches())


def spool_rows(spool):
    return [(seq, bytes(m)) for seq, m in spool._db.execute("SELECT seq, message FROM batches ORDER BY seq")]


@pytest.mark.rule("P-RCT-2")
def test_a_receipt_that_queued_is_not_the_retained_one(make):
    line = make(40)
    line.link.connect()
    line.receipt(20)  # it waited in the session while the device was away
    assert line.sent() == []
    line.receipt(38, retained=True)
    assert line.sent() == [38, 39]


@pytest.mark.rule("P-RCT-2")
def test_a_retained_receipt_may_come_before_the_answer_to_the_subscriptions(make):
    line = make(4)
    line.link.session = 1
    line.receipt(0, retained=True)
    line.link.session = 0
    line.link.connect()
    line.process()
    assert line.sent() == [0, 1, 2, 3]


@pytest.mark.rule("P-RCT-2")
def test_a_cut_while_the_oldest_goes_out_again_sends_that_one_alone(make):
    line = make(12, window=20).connect()
    assert line.sent() == list(range(12))
    line.link.silent = True
    line.process(61)
    assert line.sent()[12:] == [0]
    line.link.disconnect()
    line.process()
    line.link.silent = False
    line.connect()
    line.process()
    assert line.sent()[12:] == [0, 0]


def test_nothing_goes_over_a_connection_that_the_uplink_does_not_know_of_yet(make):
    line = make(5).connect()
    before = len(line.sent())
    line.link.session += 1  # lost and made again; the notices are not read yet
    sealer = make_sealer(line.spool, seal_ms=1_000)
    for tick in ticks(100, 4):
        sealer.take(tick)
    line.uplink._send()
    assert len(line.sent()) == before


def test_what_the_ledger_shows_to_be_missing_goes_out_again_at_once(make):
    line = make(12, window=20).connect()
    line.process(3)
    line.receipt(5, held=(6, 7, 8))
    assert line.sent()[12:] == [5]
    line.receipt(5, held=(6, 7, 8, 9))
    line.process(20)
    assert line.sent()[12:] == [5]  # it is on its way


def test_a_slow_ledger_gets_nothing_twice(make):
    line = make(60, window=20).connect()
    for have in range(1, 60, 3):  # forty seconds for each receipt, so the last batch waits for a quarter of an hour
        line.process(29)
        line.receipt(have)
    assert line.sent() == list(range(60))


def test_a_ledger_that_was_wrong_for_a_moment_stops_nobody_for_ever(make):
    line = make(12).connect()
    line.receipt(8, head=b"x" * 32)
    assert line.uplink.alarm
    line.receipt(8)
    assert line.uplink.alarm is None


def test_a_receipt_of_the_future_that_was_taken_without_a_clock_refuses_no_later_one(make):
    line = make(12)
    line.uplink.dated = False
    line.connect()
    line.receipt(3, server_ms=line.clock.t_ms + 30 * 86_400_000)
    line.uplink.dated = True
    line.receipt(6)
    assert line.uplink.receipt.next_seq == 6


def test_beacons_of_a_restored_ledger_are_newer_by_their_time(make):
    line = make(1).connect()
    for number, later in ((900, 0), (3, 60), (2, 30)):
        made = Beacon(number, T0_MS // 1000 + later, 600, 1, bytes(32))
        line.link.deliver(BEACON_TOPIC, sign_beacon(made, BACKEND, NETWORK))
    line.process()
    assert [found.number for found in line.uplink.beacons] == [900, 3]


def test_a_wait_for_the_broker_ends_when_the_agent_is_told_to(tmp_path):
    uplink = Uplink.__new__(Uplink)
    uplink._link = FakeLink()
    listening = threading.Thread(target=uplink._listen, args=(3_600,), daemon=True)
    listening.start()
    uplink.wake()
    listening.join(60)
    assert not listening.is_alive()
