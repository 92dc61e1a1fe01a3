"""Runs inside Home Assistant's own test environment: its MQTT integration at the real broker, over TLS, as its account."""

import asyncio
import json
import os
from pathlib import Path

from homeassistant.components import mqtt
from pytest_homeassistant_custom_component.common import MockConfigEntry

with open(os.environ["MAXGREEN_BROKER"]) as _file:  # noqa: PTH123
    GIVEN = json.load(_file)
PATIENCE_S = 60


async def until(hass, holds, what):
    for _ in range(PATIENCE_S * 10):
        await hass.async_block_till_done()
        if holds():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what}: {[(s.entity_id, s.state) for s in hass.states.async_all()]}")


async def test_home_assistant_reads_a_device_at_the_real_broker(hass, socket_enabled):
    Path(hass.config.path("configuration.yaml")).touch()  # noqa: ASYNC240 - an empty one is a valid one
    entry = MockConfigEntry(domain=mqtt.DOMAIN, data=GIVEN["settings"], version=1, minor_version=2)
    entry.add_to_hass(hass)
    assert await hass.config_entries.async_setup(entry.entry_id)

    def power():
        return [s.state for s in hass.states.async_all() if s.entity_id.endswith("generation_0_power")]

    await until(hass, lambda: power() == ["18.0"], "the device did not appear")
    await until(hass, lambda: power() == ["17.0"], "the device's next state did not come")
    await hass.config_entries.async_unload(entry.entry_id)
