"""Line-days: derived ahead or at the close, kept or not, the same comes of them as of all evidence at once."""

from dataclasses import replace

import pytest
from sqlalchemy import delete, select, update

from maxgreen.errors import Fatal
from maxgreen.ledger.book import Book
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.ledger.schema import line_days, line_notes, segments
from maxgreen.protocol.pack import PackError
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.rules import Action, Limits, Status
from maxgreen.verify.segment import segment_name
from settlement import outcomes, portions
from settlement.audit import audit
from settlement.close import Closer, NotReadyError
from settlement.kept_days import decode_day, encode_day
from settlement.packs import keep_run, stored_pack
from simulator.lab import EASY, NETWORK, T0_MS
from tests.ingest.desks import BACKEND, NOBODY
from tests.settlement.test_splits import DAY_MS, WINDOW_MS, Site, system

WINDOWS = (2, 3, 4, 70, 71, 140, 141, 142, 143)
AFTER_MS = 21 * 60_000  # after midnight, when the day before is derived


def day(site, number, *, windows=WINDOWS, attested=(2, 4, 71, 143), arrives_ms=1_000, labs=None):
    """Let both ends measure some windows of a day."""
    begin_ms = T0_MS + number * DAY_MS
    for lab in labs or (site.miner, site.node):
        lab.reboot(bytes([number + 1, lab.secret] * 8), wall_ms=begin_ms)
        for k in windows:
            lab.wall_offset_ms = begin_ms + k * WINDOW_MS - lab.boot_ms
            lost = 200_000 if lab is site.node else 0
            batch = lab.batch([(18_000_000 + j - lost, 1_000_000 + 7 * k + j) for j in range(20)])
            if lab is site.miner:
                batch = replace(batch, work=lab.work(site.beacon))
            message = lab.sign(lab.attested(batch) if k in attested else batch)
            site.bench.send(message, received_ms=begin_ms + (k + 1) * WINDOW_MS + arrives_ms)


def kept(site):
    with site.engine.begin() as connection:
        return {row.day: bytes(row.inputs) for row in connection.execute(select(line_days))}


def closed(site, period="2026-01-04", now_ms=T0_MS + 30 * DAY_MS):
    """Close, audit, and return the run."""
    run = site.closer.close(period, now_ms)
    keep_run(site.store, run, None)
    assert audit(stored_pack(site.store, period)).checks
    return run


def at_once(monkeypatch, site, period="2026-01-04"):
    """Close without any days."""
    monkeypatch.setattr(outcomes, "account_of_days", lambda *_: None)
    return closed(site, period)


def folder_of(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    return folder


def site_in(folder):
    return Site(f"sqlite:///{folder}/ledger.db", folder)


def test_days_derived_ahead_come_to_what_all_evidence_comes_to(tmp_path, monkeypatch):
    ahead, other = (site_in(folder_of(tmp_path, name)) for name in ("ahead", "other"))
    for number in range(4):
        for site in (ahead, other):
            day(site, number)
        found = ahead.closer.derive_days(T0_MS + (number + 1) * DAY_MS + AFTER_MS)
        assert found == (1, 1, number)
    assert ahead.closer.derive_days(T0_MS + 4 * DAY_MS + AFTER_MS) == (1, 0, 4)
    before = kept(ahead)
    run = closed(ahead)
    assert kept(ahead)[max(before)] == before[max(before)]  # nothing was derived again
    expected = at_once(monkeypatch, other)
    assert {**run.lines[0], "manifest": ""} == {**expected.lines[0], "manifest": ""}
    assert int(run.lines[0]["payable_total_mws"]) > 0
    packs = [stored_pack(site.store, run.period).entries(run.lines[0]["line"]) for site in (ahead, other)]
    assert packs[0]["windows.csv"] == packs[1]["windows.csv"]


@pytest.mark.parametrize("last", [143, 142, 4])
def test_what_is_not_attested_by_the_end_is_held_and_paid_when_it_is(tmp_path, last):
    site = site_in(tmp_path)
    for number in range(3):
        day(site, number, attested=(2, 3, last))
        site.closer.derive_days(T0_MS + (number + 1) * DAY_MS + AFTER_MS)
    first = closed(site, "2026-01-02")
    held = first.lines[0]["held"]
    assert set(held) == ({"53"} if last != 143 else set())
    second = closed(site, "2026-01-03")
    total = [int(run.lines[0]["payable_total_mws"]) for run in (first, second)]
    assert total[1] > total[0] > 0
    whole = site_in(folder_of(tmp_path, "whole"))
    for number in range(3):
        day(whole, number, attested=(2, 3, last))
    assert closed(whole, "2026-01-03").lines[0]["payable_total_mws"] == second.lines[0]["payable_total_mws"]


def test_what_comes_late_or_is_decided_or_ruled_makes_a_day_anew(tmp_path):
    site = site_in(tmp_path)
    day(site, 0)
    day(site, 1, labs=[site.miner])
    assert site.closer.derive_days(T0_MS + 2 * DAY_MS + AFTER_MS).derived == 2
    first = kept(site)
    day(site, 1, labs=[site.node], arrives_ms=3 * 3_600_000)
    assert site.closer.derive_days(T0_MS + 2 * DAY_MS + 5 * 3_600_000) == (1, 1, 1)
    second = kept(site)
    assert [first[d] == second[d] for d in sorted(first)] == [True, False]
    with site.engine.begin() as connection:
        limits = Limits(pow_nbits_min=EASY, shares_per_window=1, late_s=10**7, unmetered_ppm=60_000)
        Book(connection).set_limits(T0_MS + 3 * DAY_MS, limits)
    assert site.closer.derive_days(T0_MS + 2 * DAY_MS + 6 * 3_600_000).derived == 2
    site.decide(site.miner, Action.REJECT, 1, 1, "60", at_ms=T0_MS + 3 * DAY_MS)
    assert site.closer.derive_days(T0_MS + 2 * DAY_MS + 7 * 3_600_000) == (1, 0, 0)  # not by its days any more
    assert "60" not in closed(site, "2026-01-02").lines[0]["held"]


def test_days_of_periods_that_are_closed_are_forgotten(tmp_path):
    site = site_in(tmp_path)
    for number in range(3):
        day(site, number)
    closed(site, "2026-01-01")
    closed(site, "2026-01-02")
    assert len(kept(site)) == 1
    closed(site, "2026-01-03")
    assert len(kept(site)) == 1


def test_a_damaged_segment_is_the_lines_trouble_whether_its_days_were_derived_or_not(tmp_path):
    for name in ("before", "after"):
        site = site_in(folder_of(tmp_path, name))
        for number in range(2):
            day(site, number)
            site.closer.derive_days(T0_MS + (number + 1) * DAY_MS + AFTER_MS)
        with site.engine.begin() as connection:
            [digest] = connection.execute(
                select(segments.c.digest).where(segments.c.device == site.node.device, segments.c.number == 1)
            ).scalars()
            if name == "before":  # the days know nothing of it yet
                connection.execute(delete(line_days))
        data = bytearray(site.store.get(segment_name(bytes(digest))))
        data[len(data) // 2] ^= 1
        site.store.put(segment_name(bytes(digest)), bytes(data))
        if name == "before":
            with pytest.raises(Fatal, match="restore it from a backup"):
                site.closer.close("2026-01-02", T0_MS + 30 * DAY_MS)
        else:  # what was derived from the right bytes holds; an audit sees the damage
            run = site.closer.close("2026-01-02", T0_MS + 30 * DAY_MS)
            assert int(run.lines[0]["payable_total_mws"]) > 0
            keep_run(site.store, run, None)
            with pytest.raises(PackError):
                audit(stored_pack(site.store, "2026-01-02"))


def test_segments_that_do_not_lead_to_each_other_are_not_added_up(tmp_path, monkeypatch):
    site, times = site_in(tmp_path), counts_of_whole(monkeypatch)
    for number in range(2):
        day(site, number)
        site.closer.derive_days(T0_MS + (number + 1) * DAY_MS + AFTER_MS)
    with site.engine.begin() as connection:  # as if another chain had been there
        row = connection.execute(select(line_days).order_by(line_days.c.day.desc())).first()
        found = decode_day(bytes(row.value))
        links = tuple((device, link._replace(start="00" * 32)) for device, link in found.links)
        value = encode_day(found._replace(links=links))
        connection.execute(update(line_days).where(line_days.c.day == row.day).values(value=value))
    assert int(closed(site, "2026-01-02").lines[0]["payable_total_mws"]) > 0
    assert times == [1]  # from all its evidence


def test_a_node_and_a_miner_without_a_day_have_none(tmp_path):
    site = site_in(tmp_path)
    assert site.closer.derive_days(T0_MS + DAY_MS + AFTER_MS) == (1, 0, 0)
    assert kept(site) == {}


def test_several_processes_come_to_the_same(tmp_path, monkeypatch, ledger_url):
    monkeypatch.setattr(portions, "_LINES", 1)
    found = []
    for count, url in ((1, f"sqlite:///{tmp_path}/one.db"), (3, ledger_url)):
        site = Site(url, folder_of(tmp_path, str(count)))
        lines = [replace(site.line, ends=replace(site.line.ends, epoch=epoch)) for epoch in range(4)]
        site.opened_lines = lambda lines=lines: lines
        for number in range(2):
            day(site, number)
        closer = Closer(site.engine, site.store, site, BACKEND, NETWORK, processes=count)
        assert closer.derive_days(T0_MS + DAY_MS + AFTER_MS) == (4, 4, 0)
        found.append(closer.close("2026-01-02", T0_MS + 30 * DAY_MS))
    assert found[0].digest == found[1].digest
    assert len(found[0].claims) == 4


@pytest.mark.parametrize("what", ["rules", "registry"])
def test_what_changes_in_the_middle_makes_it_begin_again(tmp_path, monkeypatch, what):
    site = site_in(tmp_path)
    day(site, 0)
    begin = Closer._begin

    def changing(self, *arguments):
        begun = begin(self, *arguments)
        if what == "rules":
            site.decide(site.miner, Action.REJECT, 1, 1, "60", at_ms=T0_MS)
        else:
            record = site.miner.record(status=((0, Status.ACTIVE), (T0_MS + 20 * DAY_MS, Status.SUSPENDED)))
            with site.engine.begin() as connection:
                put_devices(connection, [KnownDevice(record, 1, NOBODY, system("miner", site.miner.roles))])
        return begun

    monkeypatch.setattr(Closer, "_begin", changing)
    if what == "rules":  # each time anew
        with pytest.raises(NotReadyError, match="the next run goes on"):
            site.closer.close("2026-01-01", T0_MS + 30 * DAY_MS)
        monkeypatch.undo()
    assert closed(site, "2026-01-01").lines


@pytest.mark.parametrize("after", ["nothing", "late", "decided", "trouble"])
def test_a_close_goes_on_from_what_the_one_before_noted_as_from_its_evidence(tmp_path, after):
    found = []
    for noted in (True, False):
        site = site_in(folder_of(tmp_path, str(noted)))
        day(site, 0, attested=(2, 3, 142))
        day(site, 1, attested=(2, 3, 142), labs=[site.miner] if after == "late" else None)
        first = closed(site, "2026-01-02")
        assert first.lines[0]["held"]
        if after == "late":
            day(site, 1, attested=(2, 3, 142), labs=[site.node], arrives_ms=3 * 3_600_000)
        day(site, 2, attested=(2, 3, 142))
        if after == "decided":
            site.decide(site.miner, Action.REJECT, 3, 3, "60", at_ms=T0_MS + 3 * DAY_MS)
        with site.engine.begin() as connection:
            # an end that is silent since is not a matter of days
            assert len(Book(connection).line_notes([site.line.ends.line_id])) == (after != "late")
            if not noted:
                connection.execute(delete(line_notes))
        if after == "trouble":
            with site.engine.begin() as connection:
                where = (segments.c.device == site.node.device, segments.c.number == 0)
                connection.execute(update(segments).where(*where).values(next_seq=9))
        found.append(closed(site, "2026-01-03"))
    assert found[0].data == found[1].data
    assert int(found[0].lines[0]["payable_total_mws"]) > 0


def counts_of_whole(monkeypatch):
    """Count how often a line is derived from all of its evidence."""
    times, whole = [], outcomes.Outcomes.whole
    monkeypatch.setattr(outcomes.Outcomes, "whole", lambda *known: (times.append(1), whole(*known))[1])
    return times


def test_a_batch_of_a_clock_that_is_a_day_behind_lists_its_window_as_all_evidence_does(tmp_path, monkeypatch):
    site, times = site_in(tmp_path), counts_of_whole(monkeypatch)
    for number in (0, 2, 4):
        day(site, number)
        if number == 2:
            lab, at_ms = site.miner, T0_MS + DAY_MS + 80 * WINDOW_MS
            lab.reboot(bytes([99, lab.secret] * 8), wall_ms=at_ms - WINDOW_MS)
            lab.wall_offset_ms = at_ms - lab.boot_ms
            message = lab.sign(lab.batch([(18_000_000 + j, 1_000_000 + j) for j in range(20)]))
            outcome = site.bench.send(message, received_ms=T0_MS + 3 * DAY_MS + 2_000)
            assert outcome.reason is not Reason.NONE
        site.closer.derive_days(T0_MS + (number + 1) * DAY_MS + AFTER_MS)
    assert int(closed(site, "2026-01-05").lines[0]["payable_total_mws"]) > 0  # the audit agrees
    assert times == [1]


def test_a_reading_that_stays_the_same_over_what_a_day_sees_is_looked_at_from_its_beginning(tmp_path, monkeypatch):
    site, times = site_in(tmp_path), counts_of_whole(monkeypatch)
    midnight_ms, minute_ms = T0_MS + DAY_MS, 60_000
    day(site, 0, windows=(2, 3, 4, 70, 71), attested=(2, 4, 71))
    lab = site.miner
    lab.interval_ms = 600_000
    lab.reboot(bytes([77] * 16), wall_ms=midnight_ms - 80 * minute_ms)

    def one(at_ms, arrives_ms):
        lab.wall_offset_ms = at_ms - lab.boot_ms
        batch = replace(lab.batch([(18_000_000, 200_000)]), work=lab.work(site.beacon))
        assert site.bench.send(lab.sign(batch), received_ms=arrives_ms).reason is Reason.NONE

    one(midnight_ms - 71 * minute_ms, midnight_ms - 60 * minute_ms)
    site.closer.derive_days(midnight_ms + AFTER_MS)
    lab.boot_ms += 76 * minute_ms  # the same reading 86 minutes later, within ten intervals
    one(midnight_ms + 15 * minute_ms, midnight_ms + 180 * minute_ms)
    lab.interval_ms = 30_000
    day(site, 1, windows=(4, 70, 71, 143), attested=(4, 71, 143))
    assert "45" in closed(site, "2026-01-02").lines[0]["held"]
    assert times == [1]
