"""Days, a month or a mix of both, whatever comes late, is skipped, suspended or decided: the same total, paid once."""

import random
from dataclasses import replace

import pytest

from maxgreen.chain.orders import Ends, Line, LossTerms, Reading
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.protocol.backend import sign_beacon
from maxgreen.protocol.batch import Role
from maxgreen.protocol.reasons import Reason
from maxgreen.store import FolderStore
from maxgreen.verify.rules import Action, Decision, Limits
from settlement.audit import audit
from settlement.close import Closer, NotReadyError
from settlement.packs import keep_run, stored_pack
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon
from tests.ingest.desks import BACKEND, NOBODY, Bench, rows

DAY_MS = 86_400_000
WINDOW_MS = 600_000
PEAK_MW = 40_000
RESISTANCE_UOHM = 200_000
DAYS = 4


def system(kind, roles):
    channels = [
        {"number": k, "role": int(role), "peak_mw": PEAK_MW, "error_ppm": 5_000, "offset_mw": 0}
        for k, role in enumerate(roles)
    ]
    return {
        "kind": kind, "channels": channels, "place_deci": None, "since_ms": 0, "efficiency_ppm": 1_000_000,
        "battery_wh": 10**6, "online_required": False, "key_number": 0,
    }  # fmt: skip


class Site:
    """A miner and a node on a ledger; the line's terms are the book's, and nothing of them changes by paying."""

    def __init__(self, url, folder):
        self.miner = Lab(roles=(Role.GENERATION, Role.SENT), interval_ms=30_000)
        self.node = Lab(secret=4, roles=(Role.RECEIVED,), interval_ms=30_000, boot=bytes([4] * 16))
        self.engine = open_engine(url)
        self.beacon = beacon(valid_s=40 * 86_400)
        with self.engine.begin() as connection:
            known = [
                KnownDevice(self.miner.record(), 1, NOBODY, system("miner", self.miner.roles)),
                KnownDevice(self.node.record(), 2, NOBODY, system("storage_node", self.node.roles)),
            ]
            put_devices(connection, known)
            book = Book(connection)
            book.set_limits(0, Limits(pow_nbits_min=EASY, shares_per_window=1, late_s=10**7))
            book.add_beacon(self.beacon, sign_beacon(self.beacon, BACKEND, NETWORK))
        self.bench = Bench(self.engine)
        base = Reading(T0_MS // 1000, 0, 0)
        self.line = Line(
            Ends(1, 1, 2, 0), LossTerms(RESISTANCE_UOHM, 0, 100_000), base.time_s, 0, *[base] * 4, *[0] * 7
        )
        self.packs = []
        self.store = FolderStore(folder / f"evidence-{self.engine.url.database.rpartition('/')[2]}")
        self.closer = Closer(self.engine, self.store, self, BACKEND, NETWORK)

    def opened_lines(self):
        return [self.line]

    def decide(self, lab, action, first, last, reason="", at_ms=0):
        with self.engine.begin() as connection:
            text = Decision(lab.device, first, last, action, reason, "dao", at_ms, "looked at")
            Book(connection).add_decision(text)
        self.bench.settle()

    def close(self, period, now_ms):
        """Close; audit what is closed against the pack before it; return the line's statement."""
        run = self.closer.close(period, now_ms)
        keep_run(self.store, run, None)
        pack = stored_pack(self.store, period)
        audit(pack, previous=self.packs[-1] if self.packs else None)
        self.packs.append(pack)
        [statement] = run.lines
        return statement


def story(seed):
    """Return what happens: (time, what, arguments), each message with its arrival."""
    rng = random.Random(seed)
    site_miner = Lab(roles=(Role.GENERATION, Role.SENT), interval_ms=30_000)
    node = Lab(secret=4, roles=(Role.RECEIVED,), interval_ms=30_000, boot=bytes([4] * 16))
    challenge = beacon(valid_s=40 * 86_400)
    happens = []
    for day in range(DAYS):
        begin_ms = T0_MS + day * DAY_MS
        for lab in (site_miner, node):
            lab.reboot(bytes([day + 1, lab.secret] * 8), wall_ms=begin_ms)
        for number in range(7):
            kind = rng.choice(["honest"] * 5 + ["offline", "skim", "over", "late", "hole"])
            if number in {0, 6} or day == DAYS - 1:
                kind = "honest"
            current = 2_900_000 if kind == "over" else 1_000_000
            arrival_ms = begin_ms + (number + 1) * WINDOW_MS + 1_000
            for lab in (site_miner, node):
                lost = 0 if lab is site_miner else current * RESISTANCE_UOHM // 10**6
                taken = current if lab is site_miner or kind != "skim" else current // 2
                readings = [(18_000_000 + k - lost, taken + number * 7 + k) for k in range(20)]
                batch = lab.batch(readings)
                if lab is site_miner and kind != "offline":
                    batch = replace(batch, work=lab.work(challenge))
                if number in {0, 6}:
                    batch = lab.attested(batch)
                seq, message = batch.seq, lab.sign(batch)
                if kind == "hole" and lab is node:
                    # it never comes, or long after the chain was skipped past it
                    happens.append((arrival_ms + rng.choice([1, 3]) * 3_600_000, "skip", (seq, seq + 1)))
                    if rng.random() < 0.5:
                        happens.append((begin_ms + 2 * DAY_MS, "message", message))
                    continue
                late_ms = rng.choice([3_600_000, 30 * 3_600_000]) if kind == "late" and lab is node else 0
                happens.append((arrival_ms + late_ms, "message", message))
                if kind == "over" and lab is site_miner and rng.random() < 0.7:
                    happens.append((begin_ms + rng.choice([1, 2]) * DAY_MS - 7_200_000, "release", (seq, seq)))
    return sorted(happens, key=lambda happened: happened[0])


def play(url, folder, seed, closes):
    """Let everything happen, closing periods in between: (time, period); return the last statement and the site."""
    site = Site(url, folder)
    happens = story(seed) + [(at_ms, "close", period) for at_ms, period in closes]
    statement = None
    for at_ms, what, value in sorted(happens, key=lambda happened: happened[0]):
        site.bench.clock.t_ms = at_ms
        if what == "message":
            site.bench.send(value, received_ms=at_ms)
            site.bench.settle()
        elif what == "skip":
            site.decide(site.node, Action.SKIP, *value, at_ms=at_ms)
        elif what == "release":
            site.decide(site.miner, Action.RELEASE, *value, "43", at_ms=at_ms)
        else:
            statement = site.close(value, at_ms)
    return statement, site


LAST = T0_MS + 45 * DAY_MS
MONTH = [(LAST, "2026-01")]
WAYS = {
    "days": [(T0_MS + (k + 9) * DAY_MS, f"2026-01-{k + 1:02}") for k in range(DAYS)] + [(LAST, "2026-01-31")],
    "early days": [(T0_MS + (k + 1) * DAY_MS + 20 * 60_000, f"2026-01-{k + 1:02}") for k in range(1)]
    + [(T0_MS + 10 * DAY_MS, "2026-01-03"), (LAST, "2026-01-31")],
    "gaps": [(T0_MS + 9 * DAY_MS, "2026-01-01"), (T0_MS + 12 * DAY_MS, "2026-01-04"), (LAST, "2026-01-31")],
    "mixed": [(T0_MS + 10 * DAY_MS, "2026-01-02"), (LAST, "2026-01")],
}


@pytest.mark.parametrize("seed", range(8))
def test_the_split_is_the_whole(tmp_path, seed):
    whole, _ = play(f"sqlite:///{tmp_path}/month.db", tmp_path, seed, MONTH)
    assert int(whole["payable_total_mws"]) > 0
    for name, closes in WAYS.items():
        try:
            found, _ = play(f"sqlite:///{tmp_path}/{name.replace(' ', '_')}.db", tmp_path, seed, closes)
        except NotReadyError:
            continue  # a chain that had not reported past the day: it closes at the deadline, as the others do
        assert found["payable_total_mws"] == whole["payable_total_mws"], name


@pytest.mark.rule("P-ING-4")
@pytest.mark.parametrize("late", ["never", "late", "forged"])
def test_a_skipped_seq_and_what_the_skip_leads_to_count_nowhere(tmp_path, late):
    site = Site(f"sqlite:///{tmp_path}/ledger.db", tmp_path)
    lost = None
    for number in range(8):
        for lab in (site.miner, site.node):
            readings = [(18_000_000 + k - (200_000 if lab is site.node else 0), 1_000_000 + k) for k in range(20)]
            batch = lab.batch(readings)
            if lab is site.miner:
                batch = replace(batch, work=lab.work(site.beacon))
            message = lab.sign(lab.attested(batch) if number in {0, 7} else batch)
            at_ms = T0_MS + (number + 1) * WINDOW_MS
            if lab is site.miner and number == 3:
                lost = batch, message
            else:
                site.bench.send(message, received_ms=at_ms)
    site.decide(site.miner, Action.SKIP, 3, 4, at_ms=at_ms)
    if late == "late":
        assert site.bench.send(lost[1], received_ms=at_ms + 1_000).reason is Reason.GAP_BEFORE
    if late == "forged":
        thief = Lab(roles=site.miner.roles, interval_ms=30_000, seq=3, head=bytes(32))
        site.bench.send(thief.sign(replace(lost[0], prev=bytes(32))), received_ms=at_ms + 1_000)
    kept = {row.seq: (row.in_chain, row.skipped_to) for row in rows(site.engine, site.miner.device)}
    assert kept[4] == (True, True)
    statement = site.close("2026-01-01", T0_MS + 9 * DAY_MS)
    windows = site.packs[-1].entries(site.line.ends.line_id.hex())["windows.csv"].decode().splitlines()[1:]
    rows_by_window = {(int(row.split(",")[0]) * 1000 - T0_MS) // WINDOW_MS: row.split(",") for row in windows}
    assert [rows_by_window[k][1] for k in (3, 4)] == ["0", "0"]  # nothing was sent in them, though the node received
    assert all(int(rows_by_window[k][2]) > 0 for k in (3, 4))
    counted = sum(int(row[2]) for k, row in rows_by_window.items() if k not in {3, 4} and row[11] == "counted")
    assert int(statement["payable_total_mws"]) == counted > 0


def test_what_waits_since_a_chain_was_halted_counts_when_it_goes_on(tmp_path):
    site = Site(f"sqlite:///{tmp_path}/ledger.db", tmp_path)
    for number in range(8):
        for lab in (site.miner, site.node):
            readings = [(18_000_000 + k - (200_000 if lab is site.node else 0), 1_000_000 + k) for k in range(20)]
            batch = lab.batch(readings)
            if lab is site.miner:
                batch = replace(batch, work=lab.work(site.beacon))
            batch = lab.attested(batch) if number in {0, 3, 7} else batch
            site.bench.send(lab.sign(batch), received_ms=T0_MS + (number + 1) * WINDOW_MS)
            if lab is site.miner and number == 3:  # its twin signs another batch with the same seq
                twin = Lab(roles=lab.roles, interval_ms=30_000, seq=3)
                said = site.bench.send(twin.sign(replace(batch, attestations=())), received_ms=T0_MS + 5 * WINDOW_MS)
                assert said.reason is Reason.EQUIVOCATION
    first = site.close("2026-01-01", T0_MS + 9 * DAY_MS)
    assert 0 < int(first["payable_total_mws"]) < 5 * 18_000 * 600
    assert set(first["held"]) == {"52"}
    site.decide(site.miner, Action.CONTINUE, 0, 99, at_ms=T0_MS + 10 * DAY_MS)
    second = site.close("2026-01-02", T0_MS + 11 * DAY_MS)
    assert int(second["payable_total_mws"]) > 1.8 * int(first["payable_total_mws"])


def test_a_device_that_was_away_all_day_makes_no_audit_fail(tmp_path):
    site = Site(f"sqlite:///{tmp_path}/ledger.db", tmp_path)
    for day in range(3):
        for lab in (site.miner, site.node):
            lab.reboot(bytes([day + 1, lab.secret] * 8), wall_ms=T0_MS + day * DAY_MS)
        for number in range(3):
            for lab in (site.miner,) if day == 1 else (site.miner, site.node):
                readings = [(18_000_000 + k - (200_000 if lab is site.node else 0), 1_000_000 + k) for k in range(20)]
                batch = lab.batch(readings)
                if lab is site.miner:
                    batch = replace(batch, work=lab.work(site.beacon))
                message = lab.sign(lab.attested(batch) if number in {0, 2} else batch)
                site.bench.send(message, received_ms=T0_MS + day * DAY_MS + (number + 1) * WINDOW_MS)
    paid = [int(site.close(f"2026-01-0{day + 1}", T0_MS + (day + 9) * DAY_MS)["payable_total_mws"]) for day in range(3)]
    assert paid[0] == paid[1] > 0
    assert paid[2] > 1.9 * paid[0]
