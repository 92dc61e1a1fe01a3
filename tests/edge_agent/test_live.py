"""Live measuring: a schedule that does not drift, sensors that come and go, and a sampler that nothing delays."""

import threading
import time
from itertools import islice

import pytest

from edge_agent import source as source_module
from edge_agent.agent import Agent
from edge_agent.parts import AgentParts
from edge_agent.sensors.base import Electrical, SensorError
from edge_agent.source import LiveSource, Tick
from edge_agent.spool import Spool
from edge_agent.uplink import Uplink
from maxgreen.protocol.backend import BackendKeys
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.cose import network_digest
from maxgreen.verify.meter import Sample
from simulator.lab import NETWORK, T0_MS, Lab
from tests.edge_agent.test_agent import BACKEND, BOOT, Clock, make_sealer, ticks
from tests.fakes.link import AnsweringLink


class Chip:
    """A sensor whose readings take time and may fail."""

    part, full_scale = "fake", Electrical(26_000_000, 3_200_000)

    def __init__(self, clock, takes_ms=0, fails=()):
        self.clock, self.takes_ms, self.fails, self.reads = clock, takes_ms, set(fails), 0

    def read(self):
        self.reads += 1
        self.clock.t_ms += self.takes_ms
        if self.reads in self.fails:
            raise SensorError("no answer")
        return Electrical(18_000_000, 1_000_000)


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    found.t_ms = 5_000
    monkeypatch.setattr(source_module, "_boot_ms", lambda: found.t_ms)
    monkeypatch.setattr(
        source_module.threading.Event, "wait", lambda _e, s: found.sleep_until(found.t_ms + round(s * 1000))
    )
    return found


@pytest.mark.rule("P-BAT-4")
def test_live_ticks_are_an_interval_apart_and_stamped_with_the_grid(clock):
    found = list(islice(LiveSource({0: Chip(clock)}, interval_ms=100).ticks(-1), 50))
    assert [tick.boot_ms for tick in found] == list(range(5_000, 10_000, 100))
    assert all(tick.samples[0].boot_ms == tick.boot_ms for tick in found)


@pytest.mark.rule("P-BAT-4")
def test_a_slow_sensor_loses_slots_but_the_grid_stays(clock):
    live = LiveSource({0: Chip(clock), 1: Chip(clock, takes_ms=130)}, interval_ms=100)
    assert [tick.boot_ms for tick in islice(live.ticks(-1), 4)] == [5_000, 5_200, 5_400, 5_600]


def test_a_sensor_that_is_lost_never_stops_the_other_and_comes_back(clock, caplog):
    lost = Chip(clock, fails=range(3, 9))
    found = list(islice(LiveSource({0: Chip(clock), 1: lost}, interval_ms=100).ticks(-1), 8))
    assert [sorted(tick.samples) for tick in found] == [[0, 1]] * 2 + [[0]] * 3 + [[0, 1]] * 3
    assert [tick.faults for tick in found] == [()] * 2 + [(1,)] * 3 + [()] * 3
    assert [record.getMessage() for record in caplog.records] == ["channel 1 lost: no answer", "channel 1 is back"]


class Burst:
    """A live source under a test's control: what is put into it comes at once."""

    boot_id, is_live = BOOT, True

    def __init__(self, given=(), error=None):
        self.given, self.error, self.over, self.now_ms, self.interval_ms = given, error, threading.Event(), 60_000, None

    def boot_ms(self):
        return self.now_ms

    def set_interval(self, interval_ms):
        self.interval_ms = interval_ms

    def ticks(self, after_boot_ms):
        yield from self.given
        if self.error:
            raise self.error
        self.over.wait()


@pytest.fixture
def make_agent(tmp_path):
    started = []

    def make(source):
        lab, clock = Lab(), Clock()
        link = AnsweringLink(lab.device, BACKEND, NETWORK, clock.now_ms)
        spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
        keys = BackendKeys((BACKEND.spki,), NETWORK)
        uplink = Uplink(link, spool, lab.device, keys, NETWORK, clock, window=20, resend_s=30)
        agent = Agent(AgentParts(source, lab.signer, spool, uplink, None, lab.birth, NETWORK, 1_000, 60_000))
        thread = threading.Thread(target=agent.run, kwargs={"progress": lambda: agent.seen.append(1)}, daemon=True)
        agent.seen = []
        started.append((agent, source, thread))
        return agent, link, spool, thread

    yield make
    for agent, source, thread in started:
        agent.stop()
        source.over.set()
        if thread.ident:
            thread.join(10)


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_every_sampled_tick_is_sealed_also_when_the_agent_is_stopped_at_once(make_agent, tmp_path):
    agent, link, _, thread = make_agent(Burst(list(ticks(0, 400))))
    thread.start()
    until(lambda: len(agent.seen) >= 400)
    agent.stop()
    thread.join(10)
    assert not thread.is_alive()
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    batches = [parse_batch(message).batch for _, message in spool.messages(0, 100)]
    assert sum(len(b.channels[0].voltage_uv) for b in batches) == 400
    assert batches[-1].channels[0].register_mws == 399 * 18_000
    assert batches[-1].attestations
    assert link.batches() == [message for _, message in spool.messages(0, 100)]


def test_a_backlog_is_sent_without_waiting_for_the_next_tick(make_agent, tmp_path):
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    sealer = make_sealer(spool, seal_ms=1_000)
    for tick in ticks(0, 500):
        sealer.take(tick)
    count = spool.tip.next_seq
    spool.close()
    agent, link, _, thread = make_agent(Burst())
    thread.start()
    until(lambda: len(link.batches()) >= count)
    assert agent.seen == []
    assert [parse_batch(message).batch.seq for message in link.batches()] == list(range(count))


def test_what_goes_wrong_in_the_sampler_ends_the_agent(make_agent):
    agent, _, _, _ = make_agent(Burst([Tick(T0_MS, 60_000, {0: Sample(1, 1, 60_000)})], error=RuntimeError("bus gone")))
    with pytest.raises(RuntimeError, match="bus gone"):
        agent.run()


def test_systemd_hears_of_the_first_tick_and_then_at_most_every_ten_seconds(monkeypatch):
    from maxgreen import service

    told, now = [], [100.0]
    monkeypatch.setattr(service, "notify", told.append)
    monkeypatch.setattr(service.time, "monotonic", lambda: now[0])
    beat = service.Heartbeat()
    for _ in range(25):
        beat()
        now[0] += 1
    assert told == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]


@pytest.mark.rule("P-BAT-4")
def test_on_the_real_driver_the_register_is_the_integral_within_the_chips_resolution(tmp_path, clock):
    import math

    from edge_agent.sensors.ina219 import Ina219Sensor
    from tests.fakes.ina219_bus import Ina219Bus

    class Sky(Ina219Bus):
        """A panel in the sun of a quarter of an hour: what is read follows the time."""

        def writeto(self, *arguments, **options):
            phase = (clock.t_ms - 5_000) / 900_000 * math.pi
            self.voltage, self.current = 17 + math.sin(phase), 2.5 * math.sin(phase)
            super().writeto(*arguments, **options)

    chips = {n: Ina219Sensor(Sky, address=0x40, shunt_uohm=100_000) for n in (0, 1)}
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    sealer = make_sealer(spool)
    for tick in islice(LiveSource(chips, interval_ms=1_000).ticks(-1), 901):
        sealer.take(Tick(T0_MS + tick.boot_ms, tick.boot_ms, tick.samples))
    sealer.stop()
    phases = [k / 900 * math.pi for k in range(901)]
    power_w = [(17 + math.sin(p)) * 2.5 * math.sin(p) for p in phases]
    true_mws = 1_000 * sum((a + b) / 2 for a, b in zip(power_w, power_w[1:]))
    # half a step of voltage (2 mV) and of current (50 µA) on every reading, and currents below the dead band
    off_mws = sum(1_000 * (2e-3 * 2.5 + 50e-6 * 18) for _ in phases) + 1_000 * 5e-3 * 18 * 2
    for number in (0, 1):
        assert abs(sealer.tip.meters[number].register_mws - true_mws) <= off_mws
    assert off_mws < true_mws / 1_000
