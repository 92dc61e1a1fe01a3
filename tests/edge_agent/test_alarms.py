"""What only a person can put right is seen within five minutes, on every surface, with what to do."""

import json
import threading
import urllib.request

import pytest

from edge_agent import report as report_module
from edge_agent import status as agent_status
from edge_agent import uplink as uplink_module
from edge_agent import work as work_module
from edge_agent.light import Pattern
from edge_agent.report import ALARM_CODES, Signs, alarms
from edge_agent.work import Worker
from maxgreen.mqtt import Denied, Disconnected
from maxgreen.protocol.backend import Receipt, Rejection, sign_receipt
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from maxgreen.protocol.keys import MemorySigner
from simulator.lab import NETWORK, Lab, beacon
from tests.conftest import free_port, wait_for
from tests.edge_agent.test_operation import Rig

WRONG = {
    "board": {"board_fault": "Input/output error"},
    "case_open": {"case_open": True},
    "medium": {"medium_fault": "spool x: disk full"},
    "lost": {"lost_ticks": 5},
    "key": {"key_fault": "token away"},
    "contradiction": {"contradiction": "receipt for seq 9 contradicts this device's chain"},
    "damaged": {"damaged": [3, 4]},
    "missing": {"missing": "the ledger asks for batch 3, the spool begins at 5"},
    "earlier_key": {"earlier_key": "spool old/ab/spool.db: damaged"},
    "unknown_key": {"unknown_key": "key ab is not one of the backend's"},
    "refused": {"refused": "Not authorized"},
    "denied": {"denied": "sending batches: Not authorized"},
    "no_receipt": {"unanswered_s": 241.0},
    "rejected": {"rejected": (7, 19)},
    "not_paid": {"not_paid": Rejection(1_767_225_600, 63, "the loss is not explained")},
    "mining": {"mining_fault": "no memory"},
    "sensor": {"dead_s": {1: 61.0}},
}


@pytest.mark.parametrize("code", ALARM_CODES)
def test_every_alarm_has_its_sign_and_says_what_to_do(code):
    [found] = alarms(Signs(**WRONG[code]))
    assert found.code == code
    assert len(found.text) > 40
    assert any(word in found.text for word in ("ask", "check", "close", "free", "see", "selftest", "recover")), (
        found.text
    )


def test_nothing_wrong_is_no_alarm():
    assert alarms(Signs()) == []
    assert alarms(Signs(unanswered_s=239.0, dead_s={1: 59.0})) == []
    assert set(WRONG) == set(ALARM_CODES)


def test_a_device_that_never_had_a_receipt_is_asked_whether_it_is_registered():
    [found] = alarms(Signs(device="abcd", unanswered_s=300, ever_answered=False))
    assert "is device abcd registered?" in found.text


class Minutes:
    """An agent whose minutes pass at once, seen on every surface."""

    def __init__(self, folder, monkeypatch, **parts):
        self.now_s = 1_000.0
        monkeypatch.setattr(uplink_module, "time", self)
        self.rig = Rig(folder, **parts)
        self.rig.agent.supervisor._publish = lambda *_: None
        self.rig.tick(2)

    def monotonic(self):
        return self.now_s

    def pass_by(self, seconds, **changes):
        for _ in range(seconds):
            self.now_s += 1
            self.rig.tick(1, **changes)

    def receipt(self, next_seq, signer, verdicts=()):
        head = self.rig.spool.digest(next_seq - 1)
        receipt = Receipt(self.rig.lab.device, next_seq, head, self.rig.clock.t_ms, 0x1F100000, (), verdicts)
        topic = device_topic(self.rig.lab.device, "receipt")
        self.rig.link.deliver(topic, sign_receipt(receipt, signer, NETWORK))

    def codes(self):
        """Return the alarms' codes; every surface says the same."""
        report = self.rig.agent.report
        codes = {alarm.code for alarm in report.alarms}
        value = json.loads(json.dumps(report.to_json()))
        assert set(value["alarm_codes"]) == codes
        assert value["alarms"] == report.to_home_assistant()["alarms"]
        metric = next(m for m in agent_status.Exporter(lambda: report, None).collect() if m.name.endswith("_alarm"))
        assert {s.labels["code"] for s in metric.samples if s.value} == codes
        assert {s.labels["code"] for s in metric.samples} == set(ALARM_CODES)
        pattern = self.rig.agent.guard._pattern
        assert (pattern is Pattern.ALARM) == bool(codes - {"sensor"})
        if codes == {"sensor"}:
            assert pattern is Pattern.FAULT
        return codes


@pytest.fixture
def make(tmp_path, monkeypatch):
    return lambda **parts: Minutes(tmp_path, monkeypatch, **parts)


def test_dead_sensors_are_an_alarm_until_they_are_back(make):
    minutes = make()
    minutes.pass_by(59, samples={}, faults=(0, 1))
    assert minutes.codes() == set()
    minutes.pass_by(2, samples={}, faults=(0, 1))
    assert minutes.codes() == {"sensor"}
    assert len(minutes.rig.agent.report.alarms) == 2
    minutes.pass_by(1)
    assert minutes.codes() == set()


def test_receipts_of_a_key_that_is_not_pinned_are_an_alarm_at_once(make):
    from tests.edge_agent.test_agent import BACKEND

    minutes = make()
    minutes.receipt(1, MemorySigner.from_secret(9))
    minutes.pass_by(1)
    assert minutes.codes() == {"unknown_key"}
    minutes.receipt(1, BACKEND)
    minutes.pass_by(1)
    assert minutes.codes() == set()


@pytest.mark.parametrize(("reason", "cure"), [(19, "roles"), (9, "restart the machine"), (11, "DAO"), (77, "operator")])
def test_batches_that_do_not_count_are_an_alarm_until_one_does(make, reason, cure):
    from tests.edge_agent.test_agent import BACKEND

    minutes = make()
    minutes.receipt(1, BACKEND, ((0, reason),))
    minutes.pass_by(1)
    assert minutes.codes() == {"rejected"}
    assert cure in minutes.rig.agent.report.alarms[0].text
    minutes.receipt(1, BACKEND, ((0, reason), (1, 0)))
    minutes.pass_by(1)
    assert minutes.codes() == set()


def test_a_backend_that_never_answers_is_an_alarm_within_five_minutes(make):
    from tests.edge_agent.test_agent import BACKEND

    minutes = make()
    minutes.pass_by(300)
    assert minutes.codes() == {"no_receipt"}
    assert "registered" in minutes.rig.agent.report.alarms[0].text
    minutes.receipt(minutes.rig.spool.tip.next_seq, BACKEND)
    minutes.pass_by(1)
    assert minutes.codes() == set()


def test_what_the_broker_refuses_is_an_alarm(make):
    minutes = make()
    minutes.rig.link.notices.put(Denied(BEACON_TOPIC, "Not authorized"))
    minutes.pass_by(1)
    assert minutes.codes() == {"denied"}
    minutes.rig.link.notices.put(Disconnected("Session taken over"))
    minutes.pass_by(1)
    assert "refused" in minutes.codes()


def test_a_miner_that_fails_is_an_alarm_and_is_tried_again(make, monkeypatch):
    monkeypatch.setattr(work_module, "_RETRY_S", 0.01)
    calls, real = [], work_module.Miner

    def miner(*arguments, **options):
        calls.append(1)
        if len(calls) < 20:
            raise MemoryError("no memory for the kernel")
        return real(*arguments, **options)

    monkeypatch.setattr(work_module, "Miner", miner)
    worker = Worker(Lab().device, nbits=0x207FFFFF, duty=1.0)
    minutes = make(worker=worker)
    worker.start()
    worker.take_beacon(beacon())
    try:
        wait_for(lambda: worker.fault, what="the fault")
        minutes.pass_by(1)
        if worker.fault:
            assert minutes.codes() == {"mining"}
        wait_for(lambda: not worker.fault and len(calls) >= 20, what="its end")
        minutes.pass_by(1)
        assert minutes.codes() == set()
    finally:
        worker.stop()
    assert worker._thread not in threading.enumerate()


def test_mining_at_its_limit_does_not_flap():
    import random

    from edge_agent.governor import BudgetSettings, Conditions, pause_reason

    chance, budget = random.Random(1), BudgetSettings(min_power_w=10, min_battery_v=12)
    for make_now in (
        lambda: Conditions(generation_mw=10_000 + chance.randint(-300, 300), battery_uv=13_000_000),
        lambda: Conditions(generation_mw=20_000, battery_uv=12_000_000 + chance.randint(-50_000, 50_000)),
    ):
        since, flips = None, 0
        for _ in range(3_600):
            now = pause_reason(budget, make_now(), since=since)
            flips, since = flips + ((now is None) != (since is None)), now
        assert flips == 1


def test_the_metrics_are_served_with_every_alarm(make):
    minutes = make()
    port = free_port()
    stop = agent_status.Exporter(lambda: minutes.rig.agent.report, None).serve(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    stop()
    for code in report_module.ALARM_CODES:
        assert f'maxgreen_agent_alarm{{code="{code}"}} 0.0' in text
