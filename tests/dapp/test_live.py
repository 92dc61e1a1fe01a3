"""Power as it is now, from what a device publishes over a real Mosquitto to an open page."""

import json
import threading
import time
import urllib.request
from contextlib import contextmanager

import paho.mqtt.client as mqtt
import pytest
import uvicorn
from paho.mqtt.enums import CallbackAPIVersion

from dapp.app import make_app
from dapp.audits import Audits
from dapp.config import LiveSettings
from dapp.live import Live, _read
from maxgreen.protocol.identity import device_topic
from tests.conftest import served
from tests.dapp.conftest import world_of
from tests.services import free_port, mosquitto_server, wait_for

pytestmark = pytest.mark.services


@contextmanager
def pages(site, broker):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    world = world_of(site.story, url, per_minute=10**6)
    live = Live(world, LiveSettings(enabled=True, port=broker))
    live.start()
    server = uvicorn.Server(uvicorn.Config(make_app(world, live, Audits("", None)), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, 30, "the pages")
    try:
        yield world, live, url
    finally:
        live.stop()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def follow(site, world, url, seen):
    secret = world.keep.begin_session(site.accounts["owner"].address, world.now_ms)
    request = urllib.request.Request(f"{url}/live/1", headers={"Cookie": f"mg_session={secret}"})
    with urllib.request.urlopen(request, timeout=60) as stream:
        for line in stream:
            if line.startswith(b"data: "):
                seen.append(json.loads(line[6:]))


def test_an_open_page_hears_what_a_device_publishes(site, tmp_path):
    with served(mosquitto_server(tmp_path)) as broker, pages(site, broker) as (world, live, url):
        seen = []
        threading.Thread(target=follow, args=(site, world, url, seen), daemon=True).start()
        wait_for(lambda: seen, 30, "the first state")
        assert seen[0]["live"] is False
        topic = device_topic(world.systems[1].record.device, "state")
        publisher = mqtt.Client(CallbackAPIVersion.VERSION2)
        publisher.connect("127.0.0.1", broker)
        publisher.loop_start()
        for noise in (
            b"",
            b"[",
            b"{}",
            b'{"power_w":[],"alarms":1}',
            b'{"power_w":{"1":"x"},"alarms":[]}',
            b"\xff" * 99,
            b'{"power_w":{"0":NaN},"alarms":[]}',
            b'{"power_w":{"0":1' + b"0" * 400 + b'},"alarms":[]}',
        ):
            publisher.publish(topic, noise)
        publisher.publish("mg/v1/zz/zz/state", b"{}")
        state = {"power_w": {"0": 123.5, "1": None}, "alarms": ["the case is open; close it"]}
        deadline = time.monotonic() + 60
        while not any(one["live"] for one in seen) and time.monotonic() < deadline:
            publisher.publish(topic, json.dumps(state))
            time.sleep(0.2)
        newest = seen[-1]
        assert newest["live"]
        assert newest["alarms"] == ["the case is open; close it"]
        assert newest["channels"][0]["watts"] == 123.5
        publisher.loop_stop()
        assert live._streams.total() == 1
        world.keep.end_sessions(site.accounts["owner"].address)
        wait_for(lambda: not live._streams, 30, "the end of a stream whose session is over")


def test_what_a_device_says_is_bounded():
    state = _read({"power_w": {str(k): 1 for k in range(10_000)}, "alarms": ["x" * 10_000] * 1_000})
    assert len(state.watts) == 256
    assert len(state.alarms) == 20
    assert len(state.alarms[0]) == 300
