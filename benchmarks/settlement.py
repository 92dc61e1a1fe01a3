"""How long an audit of a device's month takes, and what of it are signatures and hashes alone.

    python benchmarks/settlement.py [--days 30] [--jobs 2] [--json]

One miner and one node: a batch of 60 samples a minute, ten shares in every ten minutes. The floor is the same
signatures verified by OpenSSL and the same shares hashed, with nothing around them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.pop(0)  # this file stands beside the package of its name

from maxgreen.chain.orders import Ends
from maxgreen.protocol.batch import Role, parse_batch
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.pack import write_pack
from maxgreen.verify.rules import Limits, Rules
from maxgreen.verify.shares import Shares, check_shares
from settlement.inputs import Base, ChannelTerms, KnownRegister, LineBase, LineTerms, Party
from simulator.evidence import LineEvidence
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon

BACKEND = MemorySigner.from_secret(2)
PEAK_MW = 40_000
DAY_S = 86_400
BATCHES_A_DAY = 1_440
RESISTANCE_UOHM = 200_000


def month(days: int) -> LineEvidence:
    """Return the evidence of a period of so many days of January 2026, with every minute metered, a segment a day."""
    miner = Lab(roles=(Role.GENERATION, Role.SENT))
    node = Lab(secret=4, roles=(Role.RECEIVED,), boot=bytes(16))
    challenge = beacon(valid_s=40 * DAY_S)
    messages: dict[bytes, list[bytes]] = {miner.device: [], node.device: []}
    for number in range(days * BATCHES_A_DAY):
        for lab, lost in ((miner, 0), (node, 200_000)):
            batch = lab.batch([(18_000_000 + k - lost, 1_000_000 + number % 999 + k) for k in range(60)])
            if lab is miner:
                batch = replace(batch, work=lab.work(challenge, shares=1))
            message = lab.sign(lab.attested(batch) if number % 60 == 59 or number == 0 else batch)
            messages[lab.device].append(message)
    parties = tuple(
        Party(
            lab.device,
            lab.record(),
            kind,
            token,
            tuple(ChannelTerms(0, n, int(role), PEAK_MW, 5_000, 0) for n, role in enumerate(lab.roles)),
            None,
            1_000_000,
            10**6,
            False,
        )
        for lab, kind, token in ((miner, "miner", 1), (node, "storage_node", 2))
    )
    begin_s = T0_MS // 1000
    line = LineTerms(
        Ends(1, 1, 2, 0).line_id, 1, 1, 2, 0, RESISTANCE_UOHM, 0, 100_000, Base(begin_s), Base(begin_s),
        LineBase(begin_s), 0, KnownRegister(), KnownRegister(), 0, 0, 0,
    )  # fmt: skip
    period = f"2026-01-{days:02}" if days < 31 else "2026-01"
    limits = Limits(pow_nbits_min=EASY, late_s=10**8, grace_s=10**8)
    return LineEvidence(
        network=NETWORK,
        period=period,
        until_s=begin_s + days * DAY_S,
        start_s=begin_s,
        parties=parties,
        line=line,
        rules=Rules(NETWORK, limits=[(0, limits)], beacons={challenge.number: challenge}),
        signer=BACKEND,
        messages=messages,
        received_ms=T0_MS + days * DAY_S * 1000,
        cuts=range(BATCHES_A_DAY, days * BATCHES_A_DAY, BATCHES_A_DAY),
    )


def floor(made: LineEvidence) -> tuple[float, float]:
    """Return the seconds that signatures and shares of the same batches take with nothing around them."""
    signed = [(party, parse_batch(m)) for party in made.parties for m in made.messages[party.device]]
    begun = time.perf_counter()
    for party, one in signed:
        one.envelope.check(party.record.verifier, NETWORK, "batch")
    verified = time.perf_counter()
    for party, one in signed:
        work = one.batch.work
        if work is not None:
            challenge = made.rules.beacons[work.beacon]
            check_shares(Shares(party.device, one.batch.prev, challenge, work.nbits, work.nonces))
    return verified - begun, time.perf_counter() - verified


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    made = month(options.days)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pack.zip"
        path.write_bytes(write_pack(made.entries()))
        pack_mib = path.stat().st_size / 2**20
        alone_s, alone_mib, payable = timed(path, 1)
        jobs_s, jobs_mib, again = timed(path, options.jobs)
    assert payable == again
    signatures_s, shares_s = floor(made)
    found = {
        "days": options.days,
        "batches": sum(map(len, made.messages.values())),
        "pack_mib": round(pack_mib, 1),
        "audit_s": alone_s,
        "audit_s_a_device": round(alone_s / 2, 2),
        "audit_mib": alone_mib,
        "jobs": options.jobs,
        "jobs_s": jobs_s,
        "jobs_times": round(alone_s / jobs_s, 2),
        "jobs_mib": jobs_mib,
        "signatures_s": round(signatures_s, 2),
        "shares_s": round(shares_s, 2),
        "payable_mws": payable,
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<18} {value}")


def timed(path: Path, jobs: int) -> tuple[float, int, int]:
    """Audit a pack by the command; return its seconds, its MiB at most (all of its processes), and what is payable."""
    command = [str(Path(sys.executable).with_name("maxgreen")), "audit", str(path), "--jobs", str(jobs), "--json"]
    begun = time.perf_counter()
    done = subprocess.run(["/usr/bin/time", "-f", "%M", *command], capture_output=True, text=True, check=True)
    seconds = round(time.perf_counter() - begun, 2)
    return seconds, int(done.stderr.split()[-1]) // 1024, sum(json.loads(done.stdout)["payable_mws"].values())


if __name__ == "__main__":
    main()
