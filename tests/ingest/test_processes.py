"""Several judging processes: divided by device, killed, hung, and ended with the service."""

import os
import random
import signal
import time

import pytest

from ingest import crew
from ingest.config import IngestSettings
from ingest.crew import Crew
from ingest.metrics import Metrics
from maxgreen.clock import FileClock
from maxgreen.keyfile import create_key_file
from maxgreen.mqtt import Incoming
from maxgreen.protocol.backend import decode_receipt
from maxgreen.protocol.cose import parse
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Reason
from simulator.lab import NETWORK, Lab
from tests.ingest.desks import LATER, Wire, kept_evidence, made, reasons

LABS = [Lab(secret) for secret in range(1, 9)]
EACH = 40


class Rig:
    """A crew of two on a ledger, and a broker in memory that has the batches of some devices."""

    def __init__(self, folder, url):
        create_key_file(folder / "backend.pem")
        FileClock(folder / "clock").sleep_until(LATER)
        self.settings = IngestSettings(
            ledger=url, key_file=folder / "backend.pem", clock_file=folder / "clock", processes=2
        )
        self.engine, self.wire, self.metrics = made(url, *LABS), Wire(), Metrics()
        self.crew = Crew(self.settings, NETWORK, self.wire, self.metrics)
        labs = [Lab(secret) for secret in range(1, 9)]
        self.messages = [
            Incoming(device_topic(lab.device, "batch"), lab.next([(1, 1)]), packet=1, qos=1)
            for _ in range(EACH)
            for lab in labs
        ]

    def run(self, until, patience_s=400):
        ends = time.monotonic() + patience_s
        while not until():
            assert time.monotonic() < ends, self.crew.alarm
            self.crew.step()

    def pids(self):
        return [member._process.pid for member in self.crew._members if member._process is not None]


@pytest.fixture
def rig(tmp_path, ledger_url):
    rig = Rig(tmp_path, ledger_url)
    yield rig
    rig.crew.stop()
    for pid in rig.pids():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def check_whole(rig):
    for lab in LABS:
        assert reasons(rig.engine, lab.device) == [Reason.NONE] * EACH


def test_each_device_is_judged_by_one_process_in_order(rig):
    rig.wire.waiting = [*rig.messages, Incoming("nonsense", b"\0", packet=1, qos=1)]
    rig.run(lambda: len(rig.wire.acknowledged) == len(rig.messages) + 1)
    check_whole(rig)
    newest = {}
    for topic, payload, retain in rig.wire.sent:
        assert retain
        newest[topic] = decode_receipt(parse(payload).payload).next_seq
    assert newest == {device_topic(lab.device, "receipt"): EACH for lab in LABS}
    counted = {labels: child._value.get() for labels, child in rig.metrics.batches._metrics.items()}
    assert counted == {("accepted", "accepted"): len(rig.messages), ("rejected", "malformed"): 1}
    assert rig.metrics.transactions._value.get() >= 2
    assert rig.crew.alarm is None


def test_few_are_one_process_s_and_many_are_divided_and_the_order_holds(rig, monkeypatch):
    """Groups of any size in turn, so that the way of dividing changes again and again."""
    monkeypatch.setattr(crew, "_FEW", 12)
    sizes, left, ways = random.Random(7), list(rig.messages), set()
    rig.crew.start()
    while left:
        size = sizes.choice([1, 3, 11, 12, 40])
        rig.wire.waiting += left[:size]
        del left[:size]
        rig.run(lambda: not rig.wire.waiting and not rig.crew._group)
        ways.add(rig.crew._divides)
        if sizes.random() < 0.5:
            rig.run(lambda: len(rig.wire.acknowledged) == len(rig.messages) - len(left))
    rig.run(lambda: len(rig.wire.acknowledged) == len(rig.messages))
    check_whole(rig)
    assert ways == {True, False}


def test_a_process_that_ends_or_hangs_is_begun_again_and_nothing_is_lost(rig, monkeypatch):
    def begun_again():
        return "begun again" in (rig.crew.alarm or "")

    third = len(rig.messages) // 3
    rig.wire.waiting += rig.messages[:third]
    rig.run(lambda: len(rig.wire.acknowledged) >= third // 2)
    os.kill(rig.pids()[0], signal.SIGKILL)
    rig.run(begun_again)
    rig.wire.waiting += rig.messages[third : 2 * third]
    rig.run(lambda: len(rig.wire.acknowledged) == 2 * third)
    os.kill(rig.pids()[1], signal.SIGSTOP)
    rig.wire.waiting += rig.messages[2 * third :]
    monkeypatch.setattr(crew, "_SILENT_S", 2.0)
    rig.run(begun_again)
    monkeypatch.undo()  # what begins anew may take its time
    rig.run(lambda: len(rig.wire.acknowledged) == len(rig.messages) and rig.crew.alarm is None)
    check_whole(rig)


def test_a_crew_ends_at_once_also_while_its_processes_begin(rig):
    rig.wire.waiting += rig.messages
    rig.crew.step()
    rig.crew.stop()


def test_a_process_that_hangs_keeps_nobody_waiting(rig):
    """Neither the service nor the devices of another process, also where what it is sent fills the pipe."""
    rig.crew.start()
    rig.crew._divides = True
    first = rig.crew._divided(rig.messages)[0][1]
    hung = rig.pids()[0]
    os.kill(hung, signal.SIGSTOP)
    large = [Incoming(message.topic, bytes(60_000), packet=1, qos=1) for message in first[:24]]
    others = [message for message in rig.messages if message not in first]
    assert others
    rig.wire.waiting += large
    rig.crew._divides = False
    rig.crew.step()  # few: they are the first process's, and what comes after them need not wait for it
    for start in range(0, len(others), 10):
        rig.wire.waiting += others[start : start + 10]
        rig.crew.step()
    rig.run(lambda: len(rig.wire.acknowledged) == len(others))
    os.kill(hung, signal.SIGCONT)
    rig.run(lambda: len(rig.wire.acknowledged) == len(others) + len(large))


def test_a_process_that_dies_again_and_again_keeps_nobody_waiting(rig, monkeypatch):
    """What kills it lies with it alone: the others' messages are divided at once, however soon it is begun again."""
    rig.crew.start()
    rig.wire.waiting += rig.messages[:8]
    rig.run(lambda: len(rig.wire.acknowledged) == 8)
    monkeypatch.setattr(crew, "_AGAIN_S", 0.0)
    first = rig.crew._members[0]
    poison = [Incoming(device_topic(LABS[0].device, "batch"), b"poison", packet=1, qos=1)]
    rig.wire.waiting += poison
    os.kill(first._process.pid, signal.SIGSTOP)
    rig.crew.step()
    for _ in range(2):
        os.kill(first._process.pid, signal.SIGKILL)
        rig.run(lambda: first._deaths > 0 and first._process is not None)
    rig.wire.waiting += rig.messages[8:16]
    assert rig.crew.step() == 8
    assert rig.crew._divides
    rig.run(lambda: len(rig.wire.acknowledged) == 17)


def test_a_message_that_ends_who_judges_it_is_found_and_set_aside(rig):
    member, group = rig.crew._members[0], rig.messages[:5]
    member._groups.extend([list(group), rig.messages[5:8]])
    for _ in range(6):  # as if each process had ended over what it had first
        member._sent = min(2, len(member._groups))
        member._mourn(hangs=False)
        if len(rig.wire.acknowledged) == 1:
            break
    assert rig.wire.acknowledged == group[:1]
    assert [len(part) for part in member._groups] == [1, 3, 3]
    [row] = kept_evidence(rig.engine)
    assert (row.reason, row.message) == (Reason.INTERNAL_ERROR, group[0].payload)
    member._sent = 1
    for _ in range(4):
        member._mourn(hangs=True)
        member._sent = 1
    assert len(rig.wire.acknowledged) == 1  # who hangs may wait for others
    member._groups.clear()
