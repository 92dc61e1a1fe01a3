"""Transfers of a real agent process, disturbed at random: is the relay open in time, or at the process's end?

    python -m tests.edge_agent.transfers FOLDER COUNT SEED

The relay is a file that the process writes 1 or 0 into; `maxgreen agent open-relay` is played by whoever sees the
process's end, as systemd does. Prints one JSON object: transfers, how late after limit + 2 s (or the process's end) the
latest opened, how many were late at all, how they were disturbed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

DISTURBED = ("nothing", "kill", "stop and go on", "stop and kill", "medium", "network", "term")


class FileBoard:
    """A relay that is a file; every process sees what it says."""

    has_relay = True

    def __init__(self, path):
        self.path = path
        self.connect(line=False)

    def connect(self, *, line):
        fresh = self.path.with_name(f".{self.path.name}.{threading.get_ident()}")
        fresh.write_text("1" if line else "0")
        fresh.replace(self.path)

    def tamper_open(self):
        return False

    def light(self, *, on):
        pass

    def release(self):
        self.connect(line=False)


def serve(folder, most_s, disturbed):
    """Be the agent: live samples, real threads, one transfer of at most `most_s`."""
    from edge_agent.agent import Agent
    from edge_agent.parts import AgentParts
    from edge_agent.sensors.base import Electrical
    from edge_agent.source import LiveSource
    from edge_agent.spool import Spool
    from edge_agent.uplink import Uplink
    from maxgreen.protocol.backend import BackendKeys, Command, CommandKind, sign_command
    from maxgreen.protocol.cose import network_digest
    from maxgreen.protocol.identity import device_topic
    from simulator.lab import NETWORK, Lab
    from tests.edge_agent.test_agent import BACKEND
    from tests.fakes.link import FakeLink

    class Chip:
        part, full_scale = "fake", Electrical(26_000_000, 3_200_000)

        def read(self):
            return Electrical(18_000_000, 1_000_000)

    import edge_agent.source as source_module

    source_module.kernel_clock = lambda: (True, 1)
    lab, link = Lab(), FakeLink()
    spool = Spool(folder / "spool.db", network_digest(NETWORK))
    source = LiveSource({0: Chip(), 1: Chip()}, interval_ms=100)
    clock = type("Clock", (), {"now_ms": staticmethod(lambda: time.time_ns() // 10**6)})()
    keys = BackendKeys((BACKEND.spki,), NETWORK)
    uplink = Uplink(link, spool, lab.device, keys, NETWORK, clock, window=20, resend_s=30)
    board = FileBoard(folder / "relay")
    agent = Agent(
        AgentParts(
            source, lab.signer, spool, uplink, None, lab.birth, NETWORK, 100, 1_000,
            clock=clock, board=board, line_channel=1,
        )
    )  # fmt: skip

    def begin():
        number = int(time.time())
        now = clock.now_ms()
        command = Command(
            lab.device, number, now, now + 60_000, CommandKind.START_TRANSFER, {0: 1, 1: most_s, 2: 10**12}
        )
        link.deliver(device_topic(lab.device, "command"), sign_command(command, BACKEND, NETWORK))
        deadline = time.monotonic() + 20
        while agent.guard.transfer is None and time.monotonic() < deadline:
            time.sleep(0.005)
        print("closed", flush=True)
        if disturbed == "medium":
            real = spool.append
            spool.append = lambda *arguments: (time.sleep(20), real(*arguments))
        if disturbed == "network":
            link.notices = SimpleNamespace(get=lambda **_: time.sleep(20))
            uplink._send = lambda: time.sleep(20)

    def when_ready():
        deadline = time.monotonic() + 20
        while spool.tip.next_seq < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        begin()

    threading.Thread(target=when_ready, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: agent.stop())
    agent.run()


def one(folder, chance):
    """Run one transfer; return (how it was disturbed, how late the relay was, s)."""
    disturbed, most_s = chance.choice(DISTURBED), chance.choice([1, 2])
    folder.mkdir()
    relay = folder / "relay"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.edge_agent.transfers", "serve", folder, str(most_s), disturbed],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "closed\n"
    begun = time.monotonic()
    time.sleep(chance.uniform(0, most_s))
    ended = None
    if disturbed in {"kill", "stop and kill"}:
        if disturbed != "kill":
            process.send_signal(signal.SIGSTOP)
            time.sleep(chance.uniform(0, 1.5))
        process.kill()
        process.wait()
        FileBoard(relay)  # ExecStopPost
        ended = time.monotonic()
    elif disturbed == "stop and go on":
        process.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(0, 1.5))
        process.send_signal(signal.SIGCONT)
    elif disturbed == "term":
        process.terminate()
    limit = begun + most_s + 2
    while relay.read_text() != "0":
        if time.monotonic() > limit + 8:
            break
        time.sleep(0.005)
    late = time.monotonic() - (ended or limit)
    process.kill()
    process.wait()
    return disturbed, late


def main():
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return
    folder, count, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    late, kinds = [], {}
    for k in range(count):
        disturbed, seconds = one(folder / f"t{k}", chance)
        kinds[disturbed] = kinds.get(disturbed, 0) + 1
        late.append(round(seconds, 3))
    print(json.dumps({"transfers": count, "latest_s": max(late), "late": sum(s > 0 for s in late), "disturbed": kinds}))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[2]))
    main()
