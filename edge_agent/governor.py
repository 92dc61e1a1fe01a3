"""When mining pauses: heat, throttling, and the owner's energy budget (P-POW-5)."""

from dataclasses import dataclass
from typing import Final

from pydantic import Field

from maxgreen.settings import Table

_THROTTLED_NOW: Final = 0b1111  # firmware's get_throttled: under-voltage, capped, throttled, too hot, each now
# mining resumes so far on the other side of its limit, so that a value at the limit does not make it flap
_COOLER_MDEG: Final = 5_000
_MORE_POWER: Final = 1.1
_MORE_VOLTAGE: Final = 1.02


class BudgetSettings(Table):
    """When not to mine."""

    max_cpu_c: float = Field(default=75, description="pause above this CPU temperature, °C; resume 5 °C below")
    min_power_w: float = Field(
        default=0, ge=0, description="pause while the panels give less, W; resume 10 % above; 0 = never"
    )
    min_battery_v: float = Field(
        default=0, ge=0, description="pause while the battery has less, V; resume 2 % above; 0 = never"
    )
    battery_channel: int = Field(default=0, ge=0, description="the channel whose voltage is the battery's")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the agent sees now; None where nothing is known."""

    cpu_mdeg: int | None = None
    throttled: int | None = None
    generation_mw: int | None = None
    battery_uv: int | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Why mining pauses: its kind, and what people read."""

    kind: str
    text: str


def pause_reason(budget: BudgetSettings, now: Conditions, *, since: Pause | None = None) -> Pause | None:
    """Return why mining must pause, None when it may run; a limit that it pauses for already is a little stricter."""
    kind = since.kind if since else ""
    if now.throttled is not None and now.throttled & _THROTTLED_NOW:
        return Pause("throttled", "the firmware throttles (power supply or heat)")
    limit_mdeg = round(budget.max_cpu_c * 1000) - (_COOLER_MDEG if kind == "heat" else 0)
    if now.cpu_mdeg is not None and now.cpu_mdeg > limit_mdeg:
        return Pause("heat", f"CPU at {now.cpu_mdeg / 1000:.0f} °C")
    least_mw = budget.min_power_w * 1000 * (_MORE_POWER if kind == "power" else 1)
    if least_mw and (now.generation_mw is None or now.generation_mw < least_mw):
        return Pause("power", f"panels below {budget.min_power_w:g} W")
    least_uv = budget.min_battery_v * 1e6 * (_MORE_VOLTAGE if kind == "battery" else 1)
    if least_uv and (now.battery_uv is None or now.battery_uv < least_uv):
        return Pause("battery", f"battery below {budget.min_battery_v:g} V")
    return None
