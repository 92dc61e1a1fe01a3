"""Kills an agent's sealing process at random instants; with `power` what was not synchronised is dropped each time.

    python -m tests.edge_agent.power_cuts FOLDER kill|power ROUNDS SEED

Runs under medium.c. Prints one JSON object: rounds, batches, and what was lost or changed (nothing, when all is well).
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from edge_agent.spool import Spool
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.cose import network_digest
from simulator.lab import NETWORK
from tests.edge_agent.test_agent import make_sealer, ticks

LIVE, DURABLE = Path(os.environ["MEDIUM_LIVE"]), Path(os.environ["MEDIUM_DURABLE"])
GENESIS = network_digest(NETWORK)


def seal(pipe):
    """Seal batches of five samples until killed; tell each one that the spool has taken."""
    spool = Spool(LIVE / "spool.db", GENESIS)
    sealer = make_sealer(spool, seal_ms=5_000)
    second = (sealer.tip.last_boot_ms + 1 - 60_000 + 999) // 1000 if sealer.tip.next_seq else 0
    told = spool.tip.next_seq
    while True:
        for tick in ticks(second, 1):
            sealer.take(tick)
        second += 1
        if spool.tip.next_seq > told:
            register = spool.tip.meters[0].register_mws
            line = f"{spool.tip.next_seq - 1} {spool.tip.head.hex()} {register}\n"
            os.write(pipe, line.encode())
            told = spool.tip.next_seq


def register_of(tip):
    """Return the register of channel 0; 0 before the first batch."""
    return tip.meters[0].register_mws if tip.meters else 0


def check(acknowledged, verified, faults):
    """Compare the spool that was found with all that was acknowledged before; return it as what must stay."""
    spool = Spool(LIVE / "spool.db", GENESIS)
    found = {}
    for seq, message in spool.messages(0, 1_000_000):
        digest = hashlib.sha256(message).hexdigest()
        if verified.get(seq, ("",))[0] != digest:
            verified[seq] = digest, parse_batch(message).batch.channels[0].register_mws
        found[seq] = verified[seq]
    faults += [f"batch {seq} is lost or changed" for seq, told in acknowledged.items() if found.get(seq) != told]
    if sorted(found) != list(range(spool.tip.next_seq)):
        faults.append(f"sequence {sorted(found)[:5]}… up to {spool.tip.next_seq}")
    if found and register_of(spool.tip) != found[max(found)][1]:
        faults.append("the register is not the last batch's")
    spool.close()
    return found


def main():
    how, rounds, chance = sys.argv[1], int(sys.argv[2]), random.Random(int(sys.argv[3]))
    acknowledged, verified, faults = {}, {}, []
    for _ in range(rounds):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            seal(theirs)
        os.close(theirs)
        time.sleep(chance.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(ours) as lines:
            for line in lines:
                seq, head, register = line.split()
                acknowledged[int(seq)] = head, int(register)
        if how == "power":
            shutil.rmtree(LIVE)
            shutil.copytree(DURABLE, LIVE, ignore=shutil.ignore_patterns(".fresh"))
        acknowledged = check(acknowledged, verified, faults)
    print(json.dumps({"rounds": rounds, "batches": len(acknowledged), "faults": faults}))


if __name__ == "__main__":
    main()
