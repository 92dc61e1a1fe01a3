"""Sealer, spool and uplink: what is signed is kept, sent in order, and dropped only on a receipt."""

import hashlib
import sqlite3
from dataclasses import replace

import pytest

from edge_agent.sealer import Sealer
from edge_agent.source import Tick
from edge_agent.spool import KEEP_AFTER_RECEIPT_MS, Spool
from edge_agent.uplink import Uplink
from maxgreen.errors import Fatal
from maxgreen.keyfile import create_key_file, load_key_file
from maxgreen.protocol.backend import BackendKeys, Receipt, sign_receipt
from maxgreen.protocol.batch import EventKind, parse_batch
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.meter import Sample
from simulator.lab import NETWORK, T0_MS, Lab
from tests.fakes.link import FakeLink
from tests.verify.test_verdict import Ledger

BACKEND_SECRET = 2
BACKEND = MemorySigner.from_secret(BACKEND_SECRET)
BOOT = bytes(range(16))


class Clock:
    def __init__(self):
        self.t_ms = T0_MS

    def now_ms(self):
        return self.t_ms

    def sleep_until(self, t_ms):
        self.t_ms = max(self.t_ms, t_ms)


def make_sealer(spool, boot=BOOT, **changes):
    lab = Lab()
    options = {"interval_ms": 1_000, "seal_ms": 60_000, "harvest": lambda _prev: None, **changes}
    return Sealer(spool, lab.signer, NETWORK, lab.birth, boot, **options)


def ticks(start_s, count, *, wall=True, offset_ms=T0_MS):
    for k in range(start_s, start_s + count):
        sample = Sample(18_000_000, 1_000_000, k * 1000 + 60_000)
        yield Tick(offset_ms + k * 1000 if wall else None, sample.boot_ms, {0: sample, 1: sample})


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool.db", network_digest(NETWORK))


def sealed(spool):
    return [parse_batch(message).batch for _, message in spool.messages(0, 10_000)]


@pytest.mark.rule("P-BAT-5")
def test_batches_are_cut_at_utc_multiples_and_the_first_sample_stands_alone(spool):
    sealer = make_sealer(spool)
    for tick in ticks(30, 151):
        sealer.take(tick)
    batches = sealed(spool)
    assert [(b.t0_ms - T0_MS) // 1000 for b in batches] == [30, 31, 60, 120]
    assert len(batches[0].channels[0].voltage_uv) == 1
    assert {e.kind for e in batches[0].events} == {EventKind.BOOT, EventKind.TRANSFER_START}
    assert {a.channel for a in batches[0].attestations} == {0, 1}
    ledger = Ledger(Lab())
    assert [ledger.send(m) for _, m in spool.messages(0, 100)] == [Reason.NONE] * 4


@pytest.mark.rule("P-ATT-1")
def test_registers_are_attested_hourly_and_at_a_clean_stop(spool):
    sealer = make_sealer(spool)
    for tick in ticks(3_500, 250):
        sealer.take(tick)
    sealer.stop()
    attested = [b.seq for b in sealed(spool) if b.attestations]
    batches = sealed(spool)
    hour = next(b.seq for b in batches if b.t0_ms + 1000 * len(b.channels[0].voltage_uv) == T0_MS + 3_600_000)
    assert attested == [0, hour, batches[-1].seq]


@pytest.mark.rule("P-BAT-6")
def test_a_clock_step_closes_the_batch_and_energy_goes_on(spool):
    sealer = make_sealer(spool)
    for tick in ticks(0, 10):
        sealer.take(tick)
    for tick in ticks(10, 10, offset_ms=T0_MS + 3_600_000):
        sealer.take(tick)
    sealer.stop()
    batches = sealed(spool)
    assert EventKind.CLOCK_STEP in {e.kind for b in batches for e in b.events}
    assert batches[-1].channels[0].register_mws == 19 * 18_000


@pytest.mark.rule("P-BAT-7")
def test_samples_that_waited_for_the_clock_are_dated_and_cut_like_others(spool):
    sealer = make_sealer(spool)
    for tick in ticks(0, 130, wall=False):
        sealer.take(tick)
    assert sealed(spool) == []
    for tick in ticks(130, 1):
        sealer.take(tick)
    batches = sealed(spool)
    assert [(b.synchronised, (b.t0_ms - T0_MS) // 1000) for b in batches] == [(True, 0), (True, 1), (True, 60)]


@pytest.mark.rule("P-BAT-7")
def test_after_an_hour_without_a_clock_samples_are_sealed_undated(spool):
    sealer = make_sealer(spool)
    for tick in ticks(0, 3_600, wall=False):
        sealer.take(tick)
    assert sealed(spool) == []
    for tick in ticks(3_600, 2, wall=False):
        sealer.take(tick)
    batches = sealed(spool)
    assert [b.t0_boot_ms for b in batches] == [60_000 * k for k in range(1, 61)]
    assert not any(b.synchronised or b.attestations for b in batches)
    assert batches[-1].channels[0].register_mws == 3_599 * 18_000


@pytest.mark.rule("P-BAT-7")
def test_samples_without_a_date_wait_on_disk_and_survive_a_power_cut(tmp_path):
    path = tmp_path / "spool.db"
    for start in (0, 150):  # the second run is dated at its end, in the same boot
        spool = Spool(path, network_digest(NETWORK))
        sealer = make_sealer(spool)
        for tick in ticks(start, 150, wall=False):
            sealer.take(tick)
        assert sealed(spool) == []
        if not start:
            spool.close()
    for tick in ticks(300, 1):
        sealer.take(tick)
    batches = sealed(spool)
    assert all(b.synchronised for b in batches)
    dated = [b.t0_ms - T0_MS + offset for b in batches for offset in b.channels[0].offsets_ms]
    # the last sealing interval was only in memory; nothing else is lost, nothing is there twice
    assert dated == [1000 * k for k in (*range(120), *range(150, 300))]
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in spool.messages(0, 100)} == {Reason.NONE}
    assert spool.held_ticks() == (b"", [])


@pytest.mark.rule("P-BAT-7")
def test_a_clean_stop_loses_no_sample_that_waits_and_the_next_boot_seals_it_undated(tmp_path):
    path = tmp_path / "spool.db"
    spool = Spool(path, network_digest(NETWORK))
    sealer = make_sealer(spool)
    for tick in ticks(0, 90, wall=False):
        sealer.take(tick)
    sealer.stop()
    spool.close()
    spool = Spool(path, network_digest(NETWORK))
    sealer = make_sealer(spool, boot=bytes(16))
    for tick in ticks(200, 5):
        sealer.take(tick)
    sealer.stop()
    batches = sealed(spool)
    assert [(b.boot, b.synchronised) for b in batches] == [(BOOT, False)] * 2 + [(bytes(16), True)] * 2
    assert [b.channels[0].register_mws for b in batches] == [59 * 18_000, 89 * 18_000, 89 * 18_000, 93 * 18_000]
    assert spool.held_ticks() == (b"", [])


@pytest.mark.rule("P-BAT-2", "P-BAT-3")
def test_a_restart_goes_on_with_the_registers_of_the_last_batch(tmp_path):
    path = tmp_path / "spool.db"
    spool = Spool(path, network_digest(NETWORK))
    sealer = make_sealer(spool)
    for tick in ticks(0, 100):
        sealer.take(tick)
    before = spool.messages(0, 100)
    spool.close()  # what was not sealed is gone, as at a power cut
    spool = Spool(path, network_digest(NETWORK))
    sealer = make_sealer(spool)
    for tick in ticks(100, 100):
        sealer.take(tick)
    sealer.stop()
    assert spool.messages(0, 100)[: len(before)] == before
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in spool.messages(0, 100)} == {Reason.NONE}
    assert sealed(spool)[-1].birth is None


def test_a_new_boot_states_its_birth_again_and_counts_nothing_across(spool):
    for boot, start in ((BOOT, 0), (bytes(16), 1_000)):
        sealer = make_sealer(spool, boot)
        for tick in ticks(start, 5):
            sealer.take(tick)
        sealer.stop()
    batches = sealed(spool)
    assert [b.seq for b in batches if b.birth] == [0, batches[-1].seq]
    assert batches[-1].channels[0].register_mws == 8 * 18_000


def test_a_tip_that_does_not_follow_is_refused(spool):
    with pytest.raises(ValueError, match="does not follow"):
        spool.append(b"x", replace(spool.tip, next_seq=5))


def test_a_damaged_spool_is_said_and_kept(tmp_path):
    path = tmp_path / "spool.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(Fatal, match="evidence"):
        Spool(path, bytes(32))
    assert path.exists()


@pytest.mark.rule("P-ID-1")
def test_key_files_are_private_made_once_and_refused_when_others_can_read_them(tmp_path):
    path = tmp_path / "keys" / "signing.pem"
    signer = create_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key_file(path).spki == signer.spki
    with pytest.raises(Fatal, match="never replaced"):
        create_key_file(path)
    path.chmod(0o640)
    with pytest.raises(Fatal, match="chmod 600"):
        load_key_file(path)
    with pytest.raises(Fatal, match="agent init"):
        load_key_file(tmp_path / "none.pem")


class Line:
    """An uplink on a fake link, with a backend that signs receipts."""

    def __init__(self, spool, window=5):
        self.spool, self.link, self.clock, self.lab = spool, FakeLink(), Clock(), Lab()
        self.uplink = Uplink(
            self.link, spool, self.lab.device, BackendKeys((BACKEND.spki,), NETWORK), NETWORK, self.clock,
            window=window, resend_s=0.01,
        )  # fmt: skip

    def fill(self, count):
        sealer = make_sealer(self.spool, seal_ms=1_000)
        for tick in ticks(0, count + 1):
            sealer.take(tick)
        return self

    def receipt(self, next_seq, *, head=None, server_ms=None, signer=BACKEND, nbits=7):
        if head is None:
            head = self.spool.digest(next_seq - 1) or network_digest(NETWORK)
        self.clock.t_ms += 1
        receipt = Receipt(self.lab.device, next_seq, head, server_ms or self.clock.t_ms, nbits)
        self.link.deliver(device_topic(self.lab.device, "receipt"), sign_receipt(receipt, signer, NETWORK))
        self.uplink.process()


@pytest.mark.rule("P-RCT-1", "P-RCT-2")
def test_batches_go_in_order_and_stay_until_seven_days_after_their_receipt(spool):
    line = Line(spool).fill(8)
    line.link.connect()
    for _ in range(5):
        line.uplink.process()
    assert line.link.batches() == [m for _, m in spool.messages(0, 100)]
    line.receipt(4)
    assert spool.oldest_seq() == 0
    assert spool.waiting() == spool.tip.next_seq - 4
    line.clock.t_ms += KEEP_AFTER_RECEIPT_MS
    line.receipt(5)
    assert spool.oldest_seq() == 4


@pytest.mark.rule("P-RCT-2")
def test_a_reconnect_sends_again_from_the_receipt(spool):
    line = Line(spool).fill(6)
    line.link.connect()
    line.uplink.process()
    line.receipt(2)
    line.link.disconnect()
    line.uplink.process()
    line.link.sent.clear()
    line.link.connect()
    line.uplink.process()
    line.uplink.process()
    assert line.link.batches()[0] == spool.messages(2, 1)[0][1]


@pytest.mark.rule("P-RCT-2")
def test_receipts_that_are_old_early_or_of_a_stranger_are_ignored(spool):
    line = Line(spool).fill(6)
    line.link.connect()
    line.uplink.process()
    line.receipt(3)
    line.receipt(1, server_ms=T0_MS - 1)
    line.receipt(4, server_ms=line.clock.t_ms + 400_000)
    line.receipt(5, signer=MemorySigner.from_secret(3))
    assert line.uplink.receipt.next_seq == 3
    line.link.deliver(device_topic(line.lab.device, "receipt"), b"\xff" * 50)
    line.uplink.process()
    assert line.uplink.alarm is None


@pytest.mark.rule("P-RCT-2")
def test_a_clock_that_is_not_synchronised_refuses_no_receipt(spool):
    line = Line(spool).fill(6)
    line.uplink.dated = False
    line.link.connect()
    line.uplink.process()
    line.receipt(3, server_ms=line.clock.t_ms + 10**12)
    assert line.uplink.receipt.next_seq == 3


@pytest.mark.rule("P-RCT-2")
def test_a_ledger_restored_from_a_backup_gets_again_what_it_had_receipted(spool):
    line = Line(spool).fill(30)
    line.link.connect()
    line.uplink.process()
    line.receipt(30)
    line.clock.t_ms += KEEP_AFTER_RECEIPT_MS + 700_000
    line.receipt(5)
    assert spool.oldest_seq() == 5
    assert spool.waiting() == spool.tip.next_seq - 5
    line.link.disconnect()
    line.link.sent.clear()
    line.link.connect()
    for _ in range(10):
        line.uplink.process()
    assert line.link.batches() == [m for _, m in spool.messages(5, 100)]
    line.clock.t_ms += 700_000
    line.receipt(3)
    line.link.connect()
    line.uplink.process()
    assert "asks for batch 3, the spool begins at 5" in line.uplink.missing
    assert line.uplink.alarm is None


@pytest.mark.rule("P-RCT-2")
def test_a_replaced_backend_key_does_not_keep_an_agent_from_starting(spool, caplog):
    line = Line(spool).fill(6)
    line.link.connect()
    line.uplink.process()
    line.receipt(3)
    keys = BackendKeys((MemorySigner.from_secret(9).spki,), NETWORK)
    again = Uplink(FakeLink(), spool, line.lab.device, keys, NETWORK, line.clock, window=5, resend_s=1)
    assert again.receipt is None
    assert "is not used" in caplog.text


@pytest.mark.rule("P-RCT-3")
@pytest.mark.parametrize(("next_seq", "head"), [(3, bytes(32)), (99, bytes(32)), (0, bytes(32))])
def test_a_receipt_that_contradicts_the_chain_stops_sending(spool, next_seq, head):
    line = Line(spool, window=2).fill(6)
    line.link.connect()
    line.uplink.process()
    line.receipt(next_seq, head=head)
    sent = len(line.link.batches())
    line.uplink.process()
    assert line.uplink.alarm is not None
    assert len(line.link.batches()) == sent
    assert spool.waiting() == spool.tip.next_seq


@pytest.mark.rule("P-RCT-4")
def test_the_last_receipt_of_each_day_is_kept(spool):
    line = Line(spool).fill(6)
    line.link.connect()
    line.uplink.process()
    for next_seq, day in ((1, 0), (2, 0), (3, 1)):
        line.clock.t_ms = T0_MS + day * 86_400_000 + next_seq
        line.receipt(next_seq)
    path = spool._db.execute("PRAGMA database_list").fetchone()[2]
    with sqlite3.connect(path) as db:
        kept = [
            BackendKeys((BACKEND.spki,), NETWORK).open_receipt(m)
            for (m,) in db.execute("SELECT message FROM receipts ORDER BY day")
        ]
    assert [r.next_seq for r in kept] == [2, 3]


@pytest.mark.rule("P-POW-5")
def test_mining_has_the_lowest_priority_and_gives_shares_for_one_history():
    import os

    from edge_agent.work import Worker
    from simulator.lab import EASY, beacon

    lab = Lab()
    worker = Worker(lab.device, nbits=EASY, duty=1.0, wait_shares=2)
    worker.start()
    worker.take_beacon(beacon())
    try:
        work = worker.harvest(lab.head)
        assert len(work.nonces) >= 2
        assert Ledger(lab).send(lab.next(work=work)) is Reason.NONE
        assert os.getpriority(os.PRIO_PROCESS, worker._thread.native_id) == 19
        assert worker.harvest(hashlib.sha256(b"another history").digest()) != work
    finally:
        worker.stop()
