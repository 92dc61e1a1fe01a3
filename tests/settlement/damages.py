"""Damages of evidence: bytes and values of every entry, with and without a manifest that fits.

`python -m tests.settlement.damages 100000` is the long run: each damage ends in a sentence, or changes nothing that counts.
"""

import hashlib
import json
import random
import resource
import sys
import time
from collections import Counter

from maxgreen.chain.claims import claim_json
from maxgreen.chain.deployment import FIELDS
from maxgreen.protocol import cose
from maxgreen.protocol.pack import (
    MANIFEST,
    ORDER,
    RUN,
    PackError,
    canonical_json,
    manifest_bytes,
    parse_pack,
    write_pack,
)
from settlement.audit import audit
from settlement.packs import pack_of
from simulator.evidence import line_pack
from simulator.lab import NETWORK
from tests.settlement.test_statement import BACKEND, LINE, UNTIL_S, Pair

STORY = {3: {"offline": True}, 5: {"drop": 9_000_000}, "cuts": (4,)}

HOSTILE = [
    None, True, False, 0, -1, 1, 2**31, 2**53 - 1, 2**53, 2**64, 10**40, -(2**63), 0.5, 1e308, "", "0", "-1", "1e9", "NaN",
    "\uff19", "\u0000", "..", "00" * 32, "zz", "f" * 10_000, [], {}, [[]], [{}], {"": ""}, [0] * 1_000,
]  # fmt: skip


def order_of(entries):
    """Return an order.json for a pack of one line, as settlement writes it."""
    made = Pair(STORY).made()
    _, run = line_pack(made.result(), BACKEND)
    assert run.data == entries[RUN]
    return canonical_json(
        {
            "chain_id": 31337,
            "contracts": dict.fromkeys(FIELDS.values(), "0x" + "11" * 20),
            "order": 1,
            "posting": {
                "until": UNTIL_S,
                "root": run.root.hex(),
                "count": len(run.claims),
                "total_mws": str(run.total_mws),
                "manifest": run.digest.hex(),
                "evidence": "",
            },
            "claims": [claim_json(claim) for claim in run.claims],
            "transactions": {"post": "0x" + "22" * 32},
        }
    )


def spoilt(rng, value):
    """Return a JSON value with one thing in it replaced, left out, doubled or renamed."""
    if isinstance(value, (list, dict)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        copy = dict(value) if isinstance(value, dict) else list(value)
        what = rng.random()
        if what < 0.7:
            copy[key] = spoilt(rng, value[key])
        elif what < 0.8:
            del copy[key]
        elif isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[str(rng.randrange(9))] = copy.pop(key)
        return copy
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice("0f9-. \n") + value[at + 1 :]
    return rng.choice(HOSTILE)


def damaged(rng, entries, name):
    """Return an entry's bytes, damaged."""
    data = entries[name]
    if name.endswith(".json") and rng.random() < 0.7:
        value = spoilt(rng, json.loads(data))
        try:
            return canonical_json(value)
        except ValueError:  # what RFC 8785 has no form for
            return json.dumps(value).encode()
    if name.endswith(".csv") and rng.random() < 0.6:
        rows = data.split(b"\n")
        at = rng.randrange(len(rows))
        cells = rows[at].split(b",")
        cells[rng.randrange(len(cells))] = str(rng.choice(HOSTILE)).encode()[:200]
        rows[at] = b",".join(cells)
        return b"\n".join(rows)
    broken = bytearray(data or b"\0")
    for _ in range(rng.choice([1, 1, 1, 4])):
        at = rng.randrange(len(broken))
        what = rng.random()
        if what < 0.6:
            broken[at] ^= 1 << rng.randrange(8)
        elif what < 0.8:
            del broken[at : at + rng.randrange(1, 40)]
            broken = broken or bytearray(b"\0")
        else:
            broken[at:at] = rng.randbytes(rng.randrange(1, 40))
    return bytes(broken)


def remade(rng, entries):
    """Return damaged entries; mostly names, manifest, run and order fit again, and the backend's signature too."""
    name = rng.choice(sorted(entries))
    found = {**entries, name: damaged(rng, entries, name)}
    if name in {RUN, ORDER, f"{LINE}/{MANIFEST}"} or rng.random() < 0.1:
        return name, found
    own = {n.removeprefix(f"{LINE}/"): d for n, d in found.items() if n.startswith(LINE)}
    head = {key: value for key, value in json.loads(own[MANIFEST]).items() if key != "files"}
    if name.startswith("segments/"):
        data = found.pop(name)
        digest = hashlib.sha256(data).hexdigest()
        found[f"segments/{digest}.cbor"] = data
        old = name.removeprefix("segments/").removesuffix(".cbor")
        head["segments"] = {d: [digest if s == old else s for s in found_] for d, found_ in head["segments"].items()}
    if rng.random() < 0.7:
        own["statement.cose"] = cose.sign(own["statement.json"], BACKEND, NETWORK, "statement", detached=True)
    own[MANIFEST] = manifest_bytes(head, own)
    run = json.loads(found[RUN])
    run["lines"][0]["manifest"] = hashlib.sha256(own[MANIFEST]).hexdigest()
    if rng.random() < 0.5:  # what has no order says so in its root
        found.pop(ORDER, None)
    found[RUN] = canonical_json(run)
    return name, {**found, **{f"{LINE}/{n}": d for n, d in own.items()}}


def run(count, seed=1, progress=None):
    """Audit `count` damages; return how they ended. Whatever is no sentence is raised."""
    rng, ended = random.Random(seed), Counter()
    entries = Pair(STORY).entries()
    entries[ORDER] = order_of(entries)
    whole = write_pack(entries)
    assert audit(pack_of(parse_pack(whole, "pack"))).checks
    for number in range(count):
        if rng.random() < 0.2:  # the archive itself
            broken = bytearray(whole)
            for _ in range(rng.choice([1, 3])):
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
            name, made = "zip", bytes(broken)
        else:
            name, found = remade(rng, entries)
            made = write_pack(found)
        try:
            audit(pack_of(parse_pack(made, "pack")))
            ended["changes nothing that counts"] += 1
        except PackError as error:
            if not str(error):
                raise AssertionError(f"{name}: no sentence") from error
            ended["a sentence"] += 1
        if progress is not None:
            progress(number, ended)
    return ended


def main():
    """Run as many damages as asked for, and say how they ended."""
    count, begun = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, time.monotonic()

    def progress(number, ended):
        if number % 5_000 == 4_999:
            print(f"{number + 1} damages, {time.monotonic() - begun:.0f} s: {dict(ended)}", flush=True)

    ended = run(count, progress=progress)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{count} damages: {dict(ended)}; {peak_mib} MiB at most")


if __name__ == "__main__":
    main()
