"""Clocks that are late, that step, that go back: no energy is lost, doubled or misdated."""

from random import Random

import pytest

from edge_agent import undated
from edge_agent.source import Tick, kernel_clock
from edge_agent.spool import MediumError, Spool
from maxgreen.protocol.batch import EventKind
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.meter import Sample
from simulator.lab import NETWORK, T0_MS, Lab
from tests.edge_agent.test_agent import make_sealer, sealed, ticks
from tests.verify.test_verdict import Ledger

LATE = T0_MS + 10 * 3_600_000
STEP_MS = 10_000  # one reading in ten seconds


def run(spool, wall_offsets):
    """Measure: a wall-minus-boot offset for each reading, None without a clock; return all batches."""
    sealer = make_sealer(spool, interval_ms=STEP_MS)
    for k, offset_ms in enumerate(wall_offsets):
        sample = Sample(18_000_000, 1_000_000, 60_000 + k * STEP_MS)
        wall_ms = None if offset_ms is None else sample.boot_ms + offset_ms
        sealer.take(Tick(wall_ms, sample.boot_ms, {0: sample, 1: sample}))
    sealer.stop()
    return sealed(spool)


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool.db", network_digest(NETWORK))


def energy_of(count):
    return (count - 1) * 18_000 * STEP_MS // 1000


@pytest.mark.rule("P-BAT-7")
def test_three_hours_without_a_clock_are_all_counted_and_dated_by_the_first_synchronised_batch(spool):
    offset = T0_MS - 60_000
    batches = run(spool, [None] * 1_080 + [offset] * 60)
    assert batches[-1].channels[0].register_mws == energy_of(1_140)
    undated = [b for b in batches if not b.synchronised]
    assert 0 < len(undated) < len(batches)
    ledger = Ledger(Lab())
    reasons = [ledger.send(m, LATE) for _, m in spool.messages(0, 1_000)]
    assert {r for r, b in zip(reasons, batches) if not b.synchronised} == {Reason.CLOCK_UNSYNCHRONISED}
    assert {r for r, b in zip(reasons, batches) if b.synchronised} == {Reason.NONE}
    dated = [b.t0_ms - b.t0_boot_ms for b in batches if b.synchronised]
    assert set(dated) == {offset}


@pytest.mark.rule("P-BAT-6")
@pytest.mark.parametrize("step_ms", [3_600_000, -3_600_000, 1_000, -1_000])
def test_a_step_is_an_event_and_boot_time_forbids_counting_twice(spool, step_ms):
    offset = T0_MS - 60_000
    batches = run(spool, [offset] * 100 + [offset + step_ms] * 100)
    assert [e.kind for b in batches for e in b.events].count(EventKind.CLOCK_STEP) == 1
    assert batches[-1].channels[0].register_mws == energy_of(200)
    samples = [b.t0_boot_ms + o for b in batches for o in b.channels[0].offsets_ms]
    assert samples == [60_000 + k * STEP_MS for k in range(200)]
    after = [b for b in batches if b.t0_boot_ms >= 60_000 + 100 * STEP_MS]
    assert {b.t0_ms - b.t0_boot_ms for b in after} == {offset + step_ms}
    ledger = Ledger(Lab())
    reasons = [ledger.send(m, LATE) for _, m in spool.messages(0, 1_000)]
    behind = step_ms < -300_000  # then the boot's own clock dates them, and no attestation is right (P-BAT-9)
    assert reasons == [
        Reason.BAD_ATTESTATION if behind and b in after and b.attestations else Reason.NONE for b in batches
    ]
    assert [ledger.judged[b.seq].t0_ms - b.t0_boot_ms for b in after] == [offset + (0 if behind else step_ms)] * len(
        after
    )


@pytest.mark.rule("P-BAT-5", "P-BAT-9")
def test_a_batch_never_leaves_its_window_whatever_sensors_take_and_clocks_do(spool):
    random = Random(7)
    sealer = make_sealer(spool, interval_ms=1_000)
    offset, last_ms = T0_MS - 60_000 + 595_000, 0
    for boot_ms in range(60_000, 1_560_000, 1_000):
        offset += random.choice([-20, 30]) if random.random() < 0.1 else 0
        samples = {n: Sample(18_000_000, 1_000_000, boot_ms + n * random.randrange(900)) for n in (0, 1)}
        sealer.take(Tick(boot_ms + offset, boot_ms, samples))
        last_ms += len(samples)
    sealer.stop()
    batches = sealed(spool)
    assert sum(len(c.offsets_ms) for b in batches for c in b.channels) == last_ms
    assert {(b.t0_ms // 60_000, (b.t0_ms + b.last_offset_ms) // 60_000) for b in batches} == {
        (m, m) for m in {b.t0_ms // 60_000 for b in batches}
    }
    ledger = Ledger(Lab())
    assert {ledger.send(m, LATE) for _, m in spool.messages(0, 1_000)} == {Reason.NONE}


@pytest.mark.rule("P-BAT-6")
def test_a_clock_that_is_lost_for_a_while_and_comes_back_loses_nothing(spool):
    offset = T0_MS - 60_000
    batches = run(spool, [offset] * 50 + [None] * 50 + [offset] * 50)
    assert batches[-1].channels[0].register_mws == energy_of(150)
    ledger = Ledger(Lab())
    assert {ledger.send(m, LATE) for _, m in spool.messages(0, 1_000)} == {Reason.NONE}


def test_the_kernel_says_whether_its_clock_is_synchronised():
    synchronised, error_ms = kernel_clock()
    assert isinstance(synchronised, bool)
    assert (error_ms is None) is not synchronised


@pytest.mark.rule("P-BAT-7")
def test_readings_of_several_boots_that_wait_are_sealed_boot_by_boot(tmp_path, monkeypatch):
    path, first, second = tmp_path / "spool.db", b"1" * 16, b"0" * 16
    for boot, monkeyed in ((first, False), (second, True)):
        spool = Spool(path, network_digest(NETWORK))
        if monkeyed:  # the medium takes readings, and no batch: they stay where they are
            monkeypatch.setattr(spool, "append", _full)
        sealer = make_sealer(spool, boot=boot)
        for tick in ticks(0, 90, wall=False):
            sealer.take(tick)
        sealer._undated.hold()
        spool.close()
    spool = Spool(path, network_digest(NETWORK))
    sealer = make_sealer(spool, boot=bytes(16))
    sealer.work()
    batches = sealed(spool)
    assert [b.boot for b in batches] == [first, first, second, second]
    assert batches[-1].channels[0].register_mws == 2 * 89 * 18_000
    assert spool.held() == {}


def _full(*_arguments):
    raise MediumError("full")


@pytest.mark.rule("P-BAT-4")
@pytest.mark.parametrize("restarted", [False, True])
def test_what_waits_for_a_date_keeps_the_interval_that_it_was_sampled_at(tmp_path, restarted):
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    sealer = make_sealer(spool, interval_ms=1_000)
    for tick in ticks(0, 30, wall=False):
        sealer.take(tick)
    sealer.set_interval(10_000)
    for tick in list(ticks(30, 100, wall=False))[::10]:
        sealer.take(tick)
    if restarted:
        sealer.stop()
        spool.close()
        spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
        sealer = make_sealer(spool, interval_ms=10_000)
    for tick in ticks(130, 1):
        sealer.take(tick)
    sealer.stop()
    batches = sealed(spool)
    assert [b.interval_ms for b in batches[:3]] == [1_000, 1_000, 10_000]
    assert batches[-1].channels[0].gap_ms == 0
    ledger = Ledger(Lab())
    assert {ledger.send(m, LATE) for _, m in spool.messages(0, 100)} == {Reason.NONE}


@pytest.mark.rule("P-BAT-7")
def test_after_a_restart_what_waited_an_hour_is_sealed_and_none_is_dropped(tmp_path):
    path = tmp_path / "spool.db"
    spool = Spool(path, network_digest(NETWORK))
    sealer = make_sealer(spool)
    for tick in ticks(0, 3_600, wall=False):
        sealer.take(tick)
    held = [(tick, 1_000) for tick in ticks(3_600, 30, wall=False)]  # written, and cut off before they were released
    sealer._undated.hold()
    spool.hold(sealer._undated._boot, held)
    spool.close()
    spool = Spool(path, network_digest(NETWORK))
    sealer = make_sealer(spool)
    sealer.stop()
    assert sealed(spool)[-1].channels[0].register_mws == 3_629 * 18_000


def test_fast_readings_wait_less_long_than_an_hour(tmp_path, monkeypatch):
    monkeypatch.setattr(undated, "MOST_WAITING", 50)
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    sealer = make_sealer(spool)
    for tick in ticks(0, 120, wall=False):
        sealer.take(tick)
    sealer.stop()
    batches = sealed(spool)
    assert not any(b.synchronised for b in batches)
    assert batches[-1].channels[0].register_mws == 119 * 18_000
