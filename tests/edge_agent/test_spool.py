"""What the spool costs: bounded work in every call, however much waits."""

import os
from dataclasses import replace

import pytest

from edge_agent import outbox as outbox_module
from edge_agent.chain_tip import encode_tip
from edge_agent.spool import KEEP_AFTER_RECEIPT_MS, MediumError, Spool
from maxgreen.protocol.backend import Receipt, sign_receipt
from maxgreen.protocol.cose import network_digest
from simulator.lab import NETWORK, T0_MS, Lab
from tests.edge_agent.test_agent import BACKEND, make_sealer, sealed, ticks

GENESIS = network_digest(NETWORK)


def io(name):
    with open("/proc/self/io") as file:  # noqa: PTH123
        return int(next(line for line in file if line.startswith(name)).split()[1])


def filled(path, count, size):
    """A spool with `count` batches of a size, most of them of no meaning."""
    spool = Spool(path, GENESIS)
    sealer = make_sealer(spool, seal_ms=1_000)
    for tick in ticks(0, 60):
        sealer.take(tick)
    begin = spool.tip.next_seq
    spool._db.execute("PRAGMA synchronous=OFF")
    spool._db.execute("BEGIN")
    spool._db.executemany(
        "INSERT INTO batches VALUES (?, ?, ?)", ((k, os.urandom(size), os.urandom(32)) for k in range(begin, count))
    )
    spool._db.execute("COMMIT")
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool._db.execute("PRAGMA synchronous=FULL")
    spool.tip = replace(spool.tip, next_seq=count)
    spool._put("tip", encode_tip(spool.tip))
    return spool


def note(spool, next_seq, server_ms):
    receipt = Receipt(Lab().device, next_seq, b"h" * 32, server_ms, 7)
    spool.receipted(receipt, sign_receipt(receipt, BACKEND, NETWORK))
    spool._note_receipt()


def test_a_receipt_writes_what_it_says_and_nothing_of_a_months_backlog(tmp_path):
    spool = filled(tmp_path / "spool.db", 43_200, 1_300)
    written, changed = io("wchar"), spool._db.total_changes
    for seq in (10, 20, 30):
        note(spool, seq, T0_MS + seq)
    assert io("wchar") - written < 500_000
    assert spool._db.total_changes - changed <= 6
    assert spool.waiting() == 43_200 - 30


def test_freeing_a_week_goes_in_small_steps(tmp_path):
    spool = filled(tmp_path / "spool.db", 5_000, 15_000)
    note(spool, 5_000, T0_MS)
    read, oldest = io("rchar"), []
    for k in range(30):
        note(spool, 5_000, T0_MS + KEEP_AFTER_RECEIPT_MS + k)
        oldest.append(spool.oldest_seq())
    assert oldest[0] <= 200
    assert oldest[-1] == 5_000
    assert (io("rchar") - read) / 30 < 8e6


def test_a_large_spool_is_not_read_through_at_the_start(tmp_path):
    path = tmp_path / "spool.db"
    filled(path, 60_000, 1_400).close()
    assert path.stat().st_size > 64 * 2**20
    read = io("rchar")
    spool = Spool(path, GENESIS)
    make_sealer(spool)
    assert io("rchar") - read < 3e6
    spool.close()


@pytest.mark.rule("P-BAT-3")
def test_hours_of_backlog_are_written_some_at_a_time_and_none_is_lost(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "spool.db", GENESIS)
    sealer = make_sealer(spool)
    for tick in ticks(0, 5):
        sealer.take(tick)
    real, writes, full = spool.append, [0], [True]

    def append(*arguments):
        if full[0]:
            raise MediumError("full")
        writes[0] += 1
        return real(*arguments)

    monkeypatch.setattr(spool, "append", append)
    for tick in ticks(5, 3 * 3_600):
        sealer.take(tick)
    assert sealer.medium_fault == "full"
    full[0] = False
    before = 0
    while not sealer.outbox.is_empty:
        sealer.work()
        assert writes[0] - before <= 8
        before = writes[0]
    assert sealer.medium_fault == ""
    sealer.stop()
    assert sealed(spool)[-1].channels[0].register_mws == (3 * 3_600 + 4) * 18_000


def test_when_memory_is_full_the_oldest_readings_are_a_gap_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox_module, "_MOST_TICKS", 600)
    spool = Spool(tmp_path / "spool.db", GENESIS)
    sealer = make_sealer(spool)
    real, full = spool.append, [True]
    monkeypatch.setattr(spool, "append", lambda *a: real(*a) if not full[0] else _raise(MediumError("full")))
    for tick in ticks(0, 3_600):
        sealer.take(tick)
    assert sealer.stalled <= 660
    assert sealer.outbox.lost_ticks >= 2_900
    full[0] = False
    sealer.stop()
    channel = sealed(spool)[-1].channels[0]
    assert channel.gap_ms > 2_800_000
    assert channel.register_mws < 700 * 18_000


def _raise(error):
    raise error


@pytest.mark.rule("P-BAT-7")
def test_the_alarm_of_the_medium_ends_when_waiting_readings_are_written_again(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "spool.db", GENESIS)
    sealer = make_sealer(spool)
    real = spool.hold
    monkeypatch.setattr(spool, "hold", lambda *_: _raise(MediumError("full")))
    for tick in ticks(0, 130, wall=False):
        sealer.take(tick)
    assert sealer.medium_fault == "full"
    monkeypatch.setattr(spool, "hold", real)
    for tick in ticks(130, 120, wall=False):
        sealer.take(tick)
    assert sealer.medium_fault == ""
    assert sum(map(len, spool.held().values())) >= 180


def test_a_reading_that_the_medium_changed_while_it_waited_is_a_gap(tmp_path, caplog):
    spool = Spool(tmp_path / "spool.db", GENESIS)
    sealer = make_sealer(spool)
    for tick in ticks(0, 90, wall=False):
        sealer.take(tick)
    sealer.stop()
    spool._db.execute("UPDATE undated SET samples = replace(samples, x'3138', x'3139') WHERE boot_ms = 70000")
    assert sum(map(len, spool.held().values())) == 89
    assert "1 damaged readings" in caplog.text


@pytest.mark.rule("P-POW-1")
def test_shares_found_before_a_key_fault_are_not_thrown_away(tmp_path):
    from edge_agent.sealer import Sealer
    from maxgreen.protocol.batch import Work
    from tests.edge_agent.test_agent import BOOT
    from tests.edge_agent.test_operation import Token

    token, found = Token(Lab().signer), [(1, 2, 3)]
    spool = Spool(tmp_path / "spool.db", GENESIS)

    def harvest(_prev):
        return Work(7, 0x207FFFFF, found.pop()) if found else None

    sealer = Sealer(
        spool, token, NETWORK, Lab().birth, BOOT, interval_ms=1_000, seal_ms=60_000, harvest=harvest
    )  # fmt: skip
    for tick in ticks(0, 2):
        sealer.take(tick)
    found.append((4, 5, 6))
    token.out = True
    for tick in ticks(2, 62):
        sealer.take(tick)
    assert "DeviceRemoved" in sealer.key_fault
    token.out = False
    for tick in ticks(64, 60):
        sealer.take(tick)
    assert (4, 5, 6) in [batch.work.nonces for batch in sealed(spool) if batch.work]
