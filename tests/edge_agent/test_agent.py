"""Sealer and spool: where batches are cut, and that what is signed is kept as it is."""

import hashlib
from dataclasses import replace

import pytest

from edge_agent.sealer import Sealer
from edge_agent.source import Tick
from edge_agent.spool import Spool
from maxgreen.errors import Fatal
from maxgreen.keyfile import create_key_file, load_key_file
from maxgreen.protocol.batch import EventKind, Role, parse_batch
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.meter import Sample
from simulator.lab import NETWORK, T0_MS, Lab, sensor
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
    while not sealer.outbox.is_empty:  # a call writes a few batches: a slow medium keeps nothing else waiting
        sealer.work()
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
    assert spool.held() == {}


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
    assert spool.held() == {}


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


@pytest.mark.parametrize("channels", [1, 2, 8, 16, 24, 32, 40])
@pytest.mark.rule("P-BAT-1")
def test_any_number_of_channels_stays_below_the_largest_batch(tmp_path, channels):
    lab = Lab()
    sensors = tuple(replace(sensor(n, Role.GENERATION), calibration="c" * 64) for n in range(channels))
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    birth = replace(lab.birth, sensors=sensors)
    sealer = Sealer(spool, lab.signer, NETWORK, birth, BOOT, interval_ms=10, seal_ms=60_000, harvest=lambda _p: None)
    for k in range(6_100 if channels == 1 else 1_500 if channels == 40 else 3_000):
        boot_ms = 60_000 + 10 * k
        samples = {n: Sample(18_000_000, 1_000_000, boot_ms + n % 9) for n in range(channels)}
        sealer.take(Tick(T0_MS + 10 * k, boot_ms, samples))
    sealer.stop()
    sizes = [len(message) for _, message in spool.messages(0, 1000)]
    assert 25_000 < max(sizes) <= 65_536


@pytest.mark.rule("P-BAT-6")
def test_a_reading_at_the_instant_of_the_one_before_is_not_signed(spool):
    sealer = make_sealer(spool)
    given = list(ticks(0, 30))
    for tick in given:
        sealer.take(tick)
    sealer.set_interval(2_000)
    sealer.take(given[-1])
    for tick in ticks(31, 60):
        sealer.take(tick)
    sealer.stop()
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in spool.messages(0, 100)} == {Reason.NONE}


def test_sensors_that_flap_while_nothing_is_measured_make_no_endless_list(spool):
    sealer = make_sealer(spool)
    for tick in ticks(0, 1_000):
        sealer.take(replace(tick, samples={}, faults=(0,) if tick.boot_ms % 2_000 else ()))
    sealer.take(next(ticks(1_000, 1)))
    assert len(sealed(spool)[0].events) < 60


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


@pytest.mark.rule("P-ATT-1")
def test_an_hour_that_ends_between_two_batches_is_attested_by_the_next_one(spool):
    sealer = make_sealer(spool)
    for tick in ticks(3_500, 100):
        sealer.take(tick)
    sealer.event(EventKind.SENSOR_FAULT, 3_659_500)  # cuts at 09:59:59.5
    for tick in ticks(3_601, 120):
        sealer.take(tick)
    batches = sealed(spool)
    assert [b.seq for b in batches if b.attestations] == [
        0,
        next(b.seq for b in batches if b.t0_ms >= T0_MS + 3_600_000),
    ]


@pytest.mark.rule("P-ATT-1")
def test_a_start_that_not_every_channel_attests_opens_no_lines(spool):
    sealer = make_sealer(spool)
    for tick in ticks(0, 5):
        sealer.take(replace(tick, samples={0: tick.samples[0]}))
    sealer.event(EventKind.TRANSFER_START, 64_500, 7)
    assert not spool.tip.opened
    for tick in ticks(5, 5):
        sealer.take(tick)
    assert spool.tip.opened


def test_a_channel_that_the_settings_have_no_more_is_left_out_of_what_waited(spool):
    sealer = make_sealer(spool)
    for tick in ticks(0, 5, wall=False):
        sealer.take(replace(tick, samples={**tick.samples, 9: replace(tick.samples[0], boot_ms=tick.boot_ms - 1)}))
    for tick in ticks(5, 60):
        sealer.take(tick)
    sealer.stop()
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in spool.messages(0, 100)} == {Reason.NONE}
