"""How long the close of a month takes whose line-days are derived already, for how many lines.

    python benchmarks/closing.py [--lines 100 1000 10000] [--processes 2] [--ledger URL] [--json]

Two months are closed: a line's first one, and one that goes on from what the one before left. Each line has a miner
and a node of its own, whose chains are cut into a segment a day. One day is derived from signed batches, ten minutes
each; the other days of all lines are that day, moved. What is timed is a process of its own that closes the month:
reads the ledger, adds up, seals, writes the evidence of every line and the run.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this file stands beside packages of these names

from sqlalchemy import Engine, insert, update

from maxgreen.chain.orders import Ends, Line, LossTerms, Reading
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.ledger.schema import chains, segments
from maxgreen.protocol.batch import Role
from maxgreen.protocol.keys import MemorySigner
from maxgreen.store import FolderStore
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Limits, Rules
from settlement.before import Befores, Past
from settlement.close import Closer
from settlement.days import LineDay
from settlement.ends import Attested
from settlement.evidence import Link, Tip
from settlement.gather import Gatherer, party_of
from settlement.inputs import Base, KnownRegister, LineBase, LineTerms
from settlement.kept_days import EndDay, Fingerprint, KeptDay, derive_day, encode_day
from simulator.evidence import LineEvidence
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon

BACKEND = MemorySigner.from_secret(2)
NOBODY = "0x" + 40 * "0"
DAY_S, WINDOW_S, A_DAY = 86_400, 600, 144
BEGIN_S = T0_MS // 1000
MONTHS = {"2026-01": range(31), "2026-02": range(31, 59)}  # days since the first of January
CLOSED_MS = T0_MS + 90 * DAY_S * 1000
PEAK_MW, RESISTANCE_UOHM = 40_000, 200_000
LIMITS = Limits(pow_nbits_min=EASY, shares_per_window=1, late_s=10**8, grace_s=10**8)
CUT_AT_S = 9_000  # after midnight


class Contract:
    """What a close asks of the chain."""

    def __init__(self, count: int) -> None:
        """Open so many lines, none of them paid yet."""
        base = Reading(BEGIN_S, 0, 0)
        terms = LossTerms(RESISTANCE_UOHM, 0, 100_000)
        self._lines = [
            Line(Ends(2 * k + 1, 1, 2 * k + 2, 0), terms, BEGIN_S, 0, *[base] * 4, *[0] * 7) for k in range(count)
        ]

    def opened_lines(self) -> list[Line]:
        """Return the lines."""
        return self._lines


def system(kind: str, lab: Lab) -> dict[str, Any]:
    """Return a system as the registry has it."""
    channels = [
        {"number": k, "role": int(role), "peak_mw": PEAK_MW, "error_ppm": 5_000, "offset_mw": 0}
        for k, role in enumerate(lab.roles)
    ]
    return {
        "kind": kind, "channels": channels, "place_deci": None, "since_ms": 0, "efficiency_ppm": 1_000_000,
        "battery_wh": 10**6, "online_required": False, "key_number": 0,
    }  # fmt: skip


def pair(number: int) -> list[KnownDevice]:
    """Return the miner and the node of a line."""
    miner = Lab(secret=2 * number + 11, roles=(Role.GENERATION, Role.SENT))
    node = Lab(secret=2 * number + 12, roles=(Role.RECEIVED,), boot=bytes(16))
    return [
        KnownDevice(lab.record(), 2 * number + token, NOBODY, system(kind, lab))
        for lab, kind, token in ((miner, "miner", 1), (node, "storage_node", 2))
    ]


def one_day() -> KeptDay:
    """Derive one day of the first line from signed batches."""
    miner = Lab(secret=11, roles=(Role.GENERATION, Role.SENT), interval_ms=10_000)
    node = Lab(secret=12, roles=(Role.RECEIVED,), interval_ms=10_000, boot=bytes(16))
    challenge = beacon(valid_s=40 * DAY_S)
    messages: dict[bytes, list[bytes]] = {miner.device: [], node.device: []}
    for number in range(A_DAY):
        for lab, lost in ((miner, 0), (node, 200_000)):
            batch = lab.batch([(18_000_000 + k - lost, 1_000_000 + number % 99 + k) for k in range(60)])
            if lab is miner:
                batch = replace(batch, work=lab.work(challenge, shares=1))
            messages[lab.device].append(lab.sign(lab.attested(batch) if number % 6 == 5 else batch))
    line = LineTerms(
        Ends(1, 1, 2, 0).line_id, 1, 1, 2, 0, RESISTANCE_UOHM, 0, 100_000, Base(BEGIN_S), Base(BEGIN_S),
        LineBase(BEGIN_S), 0, KnownRegister(), KnownRegister(), 0, 0, 0,
    )  # fmt: skip
    made = LineEvidence(
        network=NETWORK,
        period="2026-01-01",
        until_s=BEGIN_S + DAY_S,
        start_s=BEGIN_S,
        parties=tuple(map(party_of, pair(0))),
        line=line,
        rules=Rules(NETWORK, limits=[(0, LIMITS)], beacons={challenge.number: challenge}),
        signer=BACKEND,
        messages=messages,
        received_ms=T0_MS + DAY_S * 1000,
    )
    return derive_day(made.inputs, made.evidence())


def moved(day: KeptDay, days: int) -> KeptDay:
    """Return a day as it would have been so many days later."""

    def rows(text: str) -> str:
        cut = (row.split(",", 1) for row in text.splitlines(keepends=True))
        return "".join(f"{int(window_s) + days * DAY_S},{rest}" for window_s, rest in cut)

    def later(one: LineDay | None) -> LineDay | None:
        return None if one is None else replace(one, day_s=one.day_s + days * DAY_S, rows=rows(one.rows))

    def end(one: EndDay) -> EndDay:
        per_day = max(a.attestation.register_mws for a in one.attested)
        attested = tuple(
            Attested(
                a.key_number,
                a.seq + days * A_DAY,
                replace(
                    a.attestation,
                    unix_s=a.attestation.unix_s + days * DAY_S,
                    register_mws=a.attestation.register_mws + days * per_day,
                    seq=a.seq + days * A_DAY,
                ),
            )
            for a in one.attested
        )
        newest, cut = ({key: seq + days * A_DAY for key, seq in found.items()} for found in (one.newest, one.cut))
        return EndDay(attested, newest, cut)

    return KeptDay(later(day.whole), later(day.last), end(day.sent), end(day.received), (), day.alone)


def name(*what: object) -> bytes:
    """Return a SHA-256 of its own."""
    return hashlib.sha256(repr(what).encode()).digest()


def build(engine: Engine, folder: Path, count: int, period: str, template: KeptDay) -> None:
    """Fill a ledger with a month of so many lines, their segments and line-days."""
    days = MONTHS[period]
    month = {BEGIN_S + k * DAY_S: moved(template, k) for k in days}
    state = replace(ChainState.start(NETWORK), next_seq=days.stop * A_DAY, wall_ms=CLOSED_MS).to_bytes()
    with engine.begin() as connection:
        if not days.start:
            Book(connection).set_limits(0, LIMITS)
        for start in range(0, count, 500):
            known = [device for k in range(start, min(count, start + 500)) for device in pair(k)]
            put_devices(connection, known)
            devices = [one.record.device for one in known]
            values = {"version": 1, "next_seq": days.stop * A_DAY, "state": state, "waiting": 0, "waiting_bytes": 0,
                      "due": 0, "credited": b"\xa0"}  # fmt: skip
            if days.start:
                connection.execute(update(chains).where(chains.c.device.in_(devices)).values(**values))
            else:
                connection.execute(insert(chains), [{"device": device, **values} for device in devices])
            connection.execute(insert(segments), [_cut(d, k, state) for d in devices for k in days])
    with engine.begin() as connection:
        book = Book(connection)
        lines = Contract(count).opened_lines()
        gatherer = Gatherer(book, NETWORK, period, (BACKEND.spki,), lines)
        befores = Befores(FolderStore(folder), Past.before(book, BEGIN_S + days.stop * DAY_S), book, lines)
        rows = []
        for line in lines:
            gathered = gatherer.line(line, befores)
            fingerprint = Fingerprint(gathered.inputs)
            for day_s, found in gathered.days.items():
                links = tuple((d.hex(), _link(d, digest)) for d, digests in found.items() for digest in digests)
                data = encode_day(month[day_s]._replace(links=links))
                rows.append((line.ends.line_id, day_s // DAY_S, fingerprint.of(day_s, found), data))
            if len(rows) > 10_000:
                book.keep_line_days(rows)
                rows.clear()
        book.keep_line_days(rows)


_NUMBERS: dict[bytes, int] = {}


def _cut(device: bytes, number: int, state: bytes) -> dict[str, Any]:
    first_ms = T0_MS + number * DAY_S * 1000 + (CUT_AT_S * 1000 if number else 0)
    digest = name(device, number)
    _NUMBERS[digest] = number
    return {
        "device": device, "number": number, "first_seq": number * A_DAY, "next_seq": (number + 1) * A_DAY,
        "digest": digest, "first_ms": first_ms, "last_ms": T0_MS + ((number + 1) * DAY_S + CUT_AT_S) * 1000,
        "state": state,
    }  # fmt: skip


def _link(device: bytes, digest: bytes) -> Link:
    number = _NUMBERS[digest]
    previous = name(device, number - 1) if number else b"\xff" * 32
    states = [name("state", device, k).hex() for k in (number, number + 1)]
    return Link(digest.hex(), previous.hex(), *states, Tip((number + 1) * A_DAY, states[1], 0), None)


def close(url: str, folder: Path, count: int, processes: int, period: str) -> dict[str, Any]:
    """Close a month, and say how long it took and how much memory."""
    contract: Any = Contract(count)
    closer = Closer(open_engine(url), FolderStore(folder), contract, BACKEND, NETWORK, processes=processes)
    begun = time.perf_counter()
    run = closer.close(period, CLOSED_MS)
    seconds = time.perf_counter() - begun
    assert len(run.claims) == count
    return {
        "period": period,
        "lines": count,
        "close_s": round(seconds, 2),
        "ms_a_line": round(seconds * 1000 / count, 2),
        "processes": processes,
    }


def watched(command: list[str]) -> dict[str, Any]:
    """Run a close in a process of its own; return what it says, and the memory of it and its workers at most, MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(_pss_kib, _family(process.pid))))
        time.sleep(0.1)
    said, _ = process.communicate()
    return {**json.loads(said), "mib": most // 1024}


def _family(pid: int) -> list[int]:
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(one for child in children for one in _family(int(child)))]
    return []


def _pss_kib(pid: int) -> int:
    with suppress(OSError, StopIteration):
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(row for row in rows if row.startswith("Pss:")).split()[1])
    return 0


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[100, 1_000])
    parser.add_argument("--ledger", help="an empty database of a server; otherwise SQLite in a folder of its own")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--close", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.close:
        url, folder, period = options.close
        found = close(url, Path(folder), options.lines[0], options.processes, period)
        print(json.dumps(found))
        return
    for count in options.lines:
        with tempfile.TemporaryDirectory() as folder:
            url = options.ledger or f"sqlite:///{folder}/ledger.db"
            evidence, template = Path(folder) / "evidence", one_day()
            for period in MONTHS:
                engine = open_engine(url)
                build(engine, evidence, count, period, template)
                engine.dispose()
                command = [sys.executable, __file__, "--lines", str(count), "--close", url, str(evidence), period]
                found = watched([*command, "--processes", str(options.processes)])
                said = json.dumps(found) if options.json else "  ".join(f"{k} {v}" for k, v in found.items())
                print(said, flush=True)


if __name__ == "__main__":
    main()
