"""Several judging processes: divided by device, killed, hung, and ended with the service."""

import os
import signal
import time

import pytest

from ingest import processes
from ingest.config import IngestSettings
from ingest.metrics import Metrics
from ingest.processes import Crew
from maxgreen.clock import FileClock
from maxgreen.keyfile import create_key_file
from maxgreen.mqtt import Incoming
from maxgreen.protocol.backend import decode_receipt
from maxgreen.protocol.cose import parse
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Reason
from simulator.lab import NETWORK, Lab
from tests.ingest.desks import LATER, Wire, made, reasons

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

    def run(self, until, patience_s=60):
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
    monkeypatch.setattr(processes, "_SILENT_S", 2.0)
    rig.run(begun_again)
    monkeypatch.undo()  # what begins anew may take its time
    rig.run(lambda: len(rig.wire.acknowledged) == len(rig.messages) and rig.crew.alarm is None)
    check_whole(rig)


def test_a_crew_ends_at_once_also_while_its_processes_begin(rig):
    rig.wire.waiting += rig.messages
    rig.crew.step()
    rig.crew.stop()
