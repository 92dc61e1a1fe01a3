"""Runs inside Home Assistant's own test environment: what it makes of the agent's messages (given as JSON)."""

import json
import os
from pathlib import Path

from homeassistant.const import STATE_UNAVAILABLE, STATE_UNKNOWN
from pytest_homeassistant_custom_component.common import async_fire_mqtt_message

with open(os.environ["MAXGREEN_MESSAGES"]) as _file:  # noqa: PTH123
    GIVEN = json.load(_file)


async def test_home_assistant_shows_the_agent_as_it_is(hass, mqtt_mock_entry, caplog):
    Path(hass.config.path("configuration.yaml")).touch()  # noqa: ASYNC240 - an empty one is a valid one
    await mqtt_mock_entry()

    async def say(name):
        for topic, payload in GIVEN[name]:
            async_fire_mqtt_message(hass, topic, json.dumps(payload))
        await hass.async_block_till_done()

    def state(ending):
        [found] = [s for s in hass.states.async_all() if s.entity_id.endswith(ending)]
        return found

    await say("introduction")
    await say("readings")
    power, energy = state("generation_0_power"), state("generation_0_energy")
    assert float(power.state) == 18.0
    assert power.attributes["unit_of_measurement"] == "W"
    assert power.attributes["device_class"] == "power"
    assert float(energy.state) == 1.25
    assert energy.attributes["state_class"] == "total_increasing"
    assert state("_online").state == "on"
    assert state("_problem").state == "off"
    caplog.clear()

    await say("lost channel")
    assert state("generation_0_power").state == STATE_UNKNOWN
    assert float(state("sent_1_power").state) == 17.0
    assert state("_problem").state == "on"
    assert "check the wiring" in state("_problem").attributes["alarms"][0]
    assert state("_temperature").state == STATE_UNKNOWN

    await say("gone")
    assert state("_online").state == "off"
    for ending in ("generation_0_power", "sent_1_power", "generation_0_energy", "_problem", "_temperature"):
        assert state(ending).state == STATE_UNAVAILABLE, ending

    await say("back")
    assert float(state("generation_0_power").state) == 18.0
    assert state("_problem").state == "off"
    assert [r.getMessage() for r in caplog.records if r.levelname in {"WARNING", "ERROR"}] == []
