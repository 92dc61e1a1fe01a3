"""Power as it is now: what agents publish beside their batches, else the newest batch; to open pages as events.

What agents publish so is not signed and pays nothing: pages show it, and nothing follows from it.
"""

import asyncio
import json
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import paho.mqtt.client as mqtt

from dapp.config import LiveSettings
from dapp.views import metered
from dapp.world import World
from maxgreen.mqtt import BACKEND_KEEPALIVE_S, Connection, Incoming, Notice
from maxgreen.protocol.identity import ROOT, parse_topic
from maxgreen.protocol.reasons import Malformed

_LOOK_S: Final = 2.0
_BEAT_S: Final = 15.0
_FRESH_S: Final = 60.0
_LARGEST: Final = 16 * 1024
_DEVICES: Final = 100_000
_CHANNELS: Final = 256
_ALARMS: Final = 20
MOST_STREAMS: Final = 1_000
MOST_OF_ONE: Final = 20


@dataclass(frozen=True, slots=True)
class _State:
    """What an agent published: when it came (monotonic s), power by channel, W, and what needs a person."""

    came_s: float
    watts: dict[str, float]
    alarms: list[str]


class Live:
    """The newest state of each device; one for all pages."""

    def __init__(self, world: World, settings: LiveSettings | None) -> None:
        self._world = world
        self._lock = threading.Lock()
        self._states: dict[str, _State] = {}  # by device
        self._streams: Counter[str] = Counter()  # by whose they are
        self._stopping = False
        self._connection: Connection | None = None
        if settings is not None and settings.enabled:
            self._connection = Connection(
                settings, settings.client_id, sink=self._take, subscriptions=[(f"{ROOT}/+/+/state", 0)],
                versions=(mqtt.MQTTv5, mqtt.MQTTv311), largest=_LARGEST, keepalive_s=BACKEND_KEEPALIVE_S,
            )  # fmt: skip

    def start(self) -> None:
        """Begin to listen."""
        if self._connection is not None:
            self._connection.start()

    def stop(self) -> None:
        """End listening, and what open pages wait for."""
        self._stopping = True
        if self._connection is not None:
            self._connection.stop()

    def now(self, system: int) -> dict[str, Any]:
        """Return how a system is: as its agent says it now, where that is newer than its newest batch."""
        found = self._world.memory.get(("now", system), 1.0, lambda: metered.now(self._world, system))
        known = self._world.systems[system]
        with self._lock:
            state = self._states.get(known.record.device.hex())
        if state is None or time.monotonic() - state.came_s > _FRESH_S:
            return {**found, "live": False, "alarms": []}
        channels = [{**c, "watts": state.watts.get(str(c["channel"]), c["watts"])} for c in found["channels"]]
        return {**found, "channels": channels, "live": True, "silent": False, "alarms": state.alarms}

    async def events(self, system: int, whose: str, may_see: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Yield a system's state whenever it changed, as server-sent events; a comment now and then.

        `whose` streams are counted together; one ends when `may_see` says no more.
        """
        if self._streams.total() >= MOST_STREAMS or self._streams[whose] >= MOST_OF_ONE:
            yield b"retry: 30000\n\n"
            return
        self._streams[whose] += 1
        try:
            said, beat_s = "", time.monotonic()
            while not self._stopping and await asyncio.to_thread(may_see):
                value = await asyncio.to_thread(self.now, system)
                text = json.dumps(value, separators=(",", ":"))
                if text != said:
                    said, beat_s = text, time.monotonic()
                    yield f"data: {text}\n\n".encode()
                elif time.monotonic() - beat_s > _BEAT_S:
                    beat_s = time.monotonic()
                    yield b": still here\n\n"
                await asyncio.sleep(_LOOK_S / 2)
        finally:
            self._streams[whose] -= 1
            self._streams += Counter()  # forgets whoever has none

    def _take(self, notice: Notice) -> None:
        if not isinstance(notice, Incoming):
            return
        try:
            device, _ = parse_topic(notice.topic)
            state = _read(json.loads(notice.payload))
        except (Malformed, ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # it is for people to look at, and this is nothing to look at
        with self._lock:
            if device.hex() in self._states or len(self._states) < _DEVICES:
                self._states[device.hex()] = state


def _read(state: Any) -> _State:
    """Return what an agent publishes of itself; ValueError and others where it is none."""
    watts = {str(n)[:5]: float(w) for n, w in list(state["power_w"].items())[:_CHANNELS] if w is not None}
    if not all(map(math.isfinite, watts.values())):
        raise ValueError("no power")
    return _State(time.monotonic(), watts, [str(alarm)[:300] for alarm in state["alarms"][:_ALARMS]])
