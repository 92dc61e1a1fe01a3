"""What people see of an agent: its state, Home Assistant's view, and the machine it runs on."""

import json
from dataclasses import replace

import pytest

from edge_agent import host
from edge_agent.homeassistant import discovery, discovery_topic
from edge_agent.spool import Spool
from maxgreen.protocol.batch import EventKind
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import device_topic
from maxgreen.verify.meter import Sample
from simulator.lab import NETWORK, Lab
from tests.edge_agent.test_agent import make_sealer, sealed, ticks
from tests.edge_agent.test_live import Burst, make_agent, until  # noqa: F401


def value(template, state):
    """Evaluate a Home Assistant template as it is written here: a path into value_json."""
    path = template.removeprefix("{{ value_json").removesuffix(" }}")
    return eval(f"state{path}", {"state": Attributes(state)})


class Attributes(dict):
    __getattr__ = dict.__getitem__


def test_home_assistant_finds_every_value_of_the_state(make_agent):  # noqa: F811
    agent, _, _, thread = make_agent(Burst(list(ticks(0, 130))))
    thread.start()
    until(lambda: len(agent.seen) == 130)
    state = json.loads(json.dumps(agent.supervisor.look().to_home_assistant()))
    described = discovery(agent.device, Lab().birth)
    parts = described["cmps"]
    assert value(parts["power_0"]["val_tpl"], state) == 18.0
    assert value(parts["energy_1"]["val_tpl"], state) == 119 * 18_000 / 3.6e9
    assert value(parts["temperature"]["val_tpl"], state) == state["cpu_c"]
    assert value(parts["spool"]["val_tpl"], state) == 0
    assert parts["online"]["stat_t"] == device_topic(agent.device, "status")
    assert (parts["energy_0"]["stat_cla"], parts["power_0"]["stat_cla"]) == ("total_increasing", "measurement")
    identities = [part["uniq_id"] for part in parts.values()]
    assert len(set(identities)) == len(identities) == 8


@pytest.mark.parametrize("wanted", [True, False])
def test_an_agent_introduces_itself_at_each_connection_where_its_owner_wants_that(make_agent, wanted):  # noqa: F811
    agent, link, _, thread = make_agent(Burst())
    agent.supervisor._parts = replace(agent._parts, home_assistant=wanted)
    thread.start()
    until(lambda: any(topic.endswith("/state") for topic, _ in link.sent))
    introductions = [payload for topic, payload in link.sent if topic == discovery_topic(agent.device)]
    assert len(introductions) == wanted
    if wanted:
        assert json.loads(introductions[0]) == discovery(agent.device, Lab().birth)
        link.disconnect()
        link.connect()
        until(lambda: [topic for topic, _ in link.sent].count(discovery_topic(agent.device)) == 2)


def test_a_failing_sensor_is_one_event_until_it_is_back(tmp_path):
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    sealer = make_sealer(spool)
    for k, tick in enumerate(ticks(0, 59)):
        broken = 20 <= k < 30 or 40 <= k < 45
        samples = {0: Sample(18_000_000, 1_000_000, tick.boot_ms)} if broken else tick.samples
        sealer.take(replace(tick, samples=samples, faults=(1,) if broken else ()))
    sealer.stop()
    events = [event.kind for batch in sealed(spool) for event in batch.events]
    assert events.count(EventKind.SENSOR_FAULT) == 2
    meters = sealer.tip.meters
    assert meters[0].register_mws == 58 * 18_000
    assert meters[1].gap_ms > 0
    assert meters[1].register_mws < meters[0].register_mws


def test_the_machine_is_described_as_far_as_the_kernel_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "TEMPERATURE", tmp_path / "temp")
    monkeypatch.setattr(host, "THROTTLED", tmp_path / "throttled")
    assert (host.cpu_mdeg(), host.throttled()) == (None, None)
    (tmp_path / "temp").write_text("48312\n")
    (tmp_path / "throttled").write_text("50005\n")
    assert (host.cpu_mdeg(), host.throttled()) == (48_312, 0x50005)
    (tmp_path / "temp").write_text("hot")
    assert host.cpu_mdeg() is None
    assert host.free_mib(tmp_path) > 0
    assert host.free_mib(tmp_path / "none") is None
