"""I2C buses of this machine: opened at the first reading, one object for all chips of a bus."""

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from edge_agent.sensors.base import SensorError

# Adafruit's register module has one buffer for all devices and sets it before it takes the bus lock, so two threads
# read each other's values; every access of this process goes through one lock.
DRIVER_LOCK: Final = threading.RLock()

OpenBus = Callable[[], Any]


@cache
def _open(number: int) -> Any:
    from adafruit_extended_bus import ExtendedI2C  # noqa: PLC0415 - needs a board

    return ExtendedI2C(number)


def i2c_bus(number: int) -> OpenBus:
    """Return what opens a bus; SensorError when it is called and there is none."""

    def opener() -> Any:
        try:
            return _open(number)
        except (OSError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
            raise SensorError(f"I2C bus {number}: {error}; enable I2C with raspi-config, and join group i2c") from error

    return opener


def addresses(number: int) -> list[int]:
    """Return the addresses that answer on a bus; SensorError when there is no such bus."""
    bus = i2c_bus(number)()
    with DRIVER_LOCK:
        while not bus.try_lock():
            time.sleep(0.001)
        try:
            return list(bus.scan())
        finally:
            bus.unlock()
