"""The machine that the agent runs on, as the kernel tells it; what is not there is None."""

import shutil
from pathlib import Path
from typing import Final

TEMPERATURE: Final = Path("/sys/class/thermal/thermal_zone0/temp")
# the firmware's get_throttled bits, where the kernel shows them (raspberrypi-hwmon, soc firmware)
THROTTLED: Final = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")


def cpu_mdeg() -> int | None:
    """Return the processor's temperature in m°C."""
    return _number(TEMPERATURE, 10)


def throttled() -> int | None:
    """Return the firmware's throttling bits: under-voltage, capped, throttled, too hot."""
    return _number(THROTTLED, 16)


def free_mib(folder: Path) -> int | None:
    """Return the free space beside a folder in MiB."""
    try:
        return shutil.disk_usage(folder).free // 2**20
    except OSError:
        return None


def _number(path: Path, base: int) -> int | None:
    try:
        return int(path.read_text().strip(), base)
    except (OSError, ValueError):
        return None
