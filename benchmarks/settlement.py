"""How long an audit of a device's month takes, and what of it are signatures and hashes alone.

    python benchmarks/settlement.py [--days 30] [--json]

One miner and one node: a batch of 60 samples a minute, ten shares in every ten minutes. The floor is the same
signatures verified by OpenSSL and the same shares hashed, with nothing around them.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import replace

sys.path.pop(0)  # this file stands beside the package of its name

from maxgreen.chain.orders import Ends
from maxgreen.protocol import cose
from maxgreen.protocol.backend import sign_beacon
from maxgreen.protocol.batch import Role, parse_batch
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.pack import MANIFEST, manifest_bytes, write_pack
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Limits, Rules
from maxgreen.verify.shares import Shares, check_shares
from settlement.audit import audit
from settlement.inputs import Arrival, Base, ChannelTerms, Inputs, KnownRegister, LineBase, LineTerms, Party
from settlement.statement import derive
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon

BACKEND = MemorySigner.from_secret(2)
PEAK_MW = 40_000
DAY_S = 86_400
BATCHES_A_DAY = 1_440
RESISTANCE_UOHM = 200_000


def month(days: int) -> Inputs:
    """Return the inputs of a period of so many days of January 2026, with every minute metered."""
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
    arrived = T0_MS + days * DAY_S * 1000
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
    return Inputs(
        network=NETWORK,
        period=period,
        until_s=begin_s + days * DAY_S,
        start_s=begin_s,
        previous=None,
        parties=parties,
        lines=(line,),
        rules=Rules(NETWORK, limits=[(0, limits)], beacons={challenge.number: challenge}),
        backend_keys=(BACKEND.spki,),
        beacon_messages=(sign_beacon(challenge, BACKEND, NETWORK),),
        receipts={},
        batches={device: tuple(found) for device, found in messages.items()},
        arrivals={d: tuple(Arrival(k, arrived) for k in range(len(found))) for d, found in messages.items()},
        starts={d: ChainState.start(NETWORK) for d in messages},
        windows_before={},
    )


def pack_of(inputs: Inputs) -> dict[str, bytes]:
    """Return the pack of these inputs."""
    entries = {**inputs.entries(), **derive(inputs).entries}
    entries["statement.cose"] = cose.sign(entries["statement.json"], BACKEND, NETWORK, "statement", detached=True)
    entries[MANIFEST] = manifest_bytes(NETWORK, inputs.period, inputs.until_s, None, entries)
    return entries


def floor(inputs: Inputs) -> tuple[float, float]:
    """Return the seconds that signatures and shares of the same batches take with nothing around them."""
    signed = [(party, parse_batch(m)) for party in inputs.parties for m in inputs.batches[party.device]]
    begun = time.perf_counter()
    for party, one in signed:
        one.envelope.check(party.record.verifier, NETWORK, "batch")
    verified = time.perf_counter()
    for party, one in signed:
        work = one.batch.work
        if work is not None:
            challenge = inputs.rules.beacons[work.beacon]
            check_shares(Shares(party.device, one.batch.prev, challenge, work.nbits, work.nonces))
    return verified - begun, time.perf_counter() - verified


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    inputs = month(options.days)
    entries = pack_of(inputs)
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    begun = time.perf_counter()
    report = audit(entries)
    audit_s = time.perf_counter() - begun
    signatures_s, shares_s = floor(inputs)
    found = {
        "days": options.days,
        "batches": sum(map(len, inputs.batches.values())),
        "pack_mib": round(len(write_pack(entries)) / 2**20, 1),
        "audit_s": round(audit_s, 2),
        "audit_s_a_device": round(audit_s / 2, 2),
        "signatures_s": round(signatures_s, 2),
        "shares_s": round(shares_s, 2),
        "mib_before": before_mib,
        "mib_at_most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "payable_mws": sum(report.payable_mws.values()),
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<18} {value}")


if __name__ == "__main__":
    main()
