"""What the status light says: patterns that a person can read (docs/agent.md)."""

from enum import Enum
from typing import Final


class Pattern(Enum):
    """Blinks in a cycle: times in ms, beginning with the light on."""

    FINE = (100, 2_900)
    SENDING_ENERGY = (2_900, 100)
    NO_BROKER = (100, 200, 100, 2_600)
    NO_CLOCK = (100, 200, 100, 200, 100, 2_300)
    FAULT = (500, 500)
    ALARM = (100, 100)

    def lit(self, now_ms: int) -> bool:
        """Tell whether the light is on at a time."""
        rest = now_ms % sum(self.value)
        on = True
        for span in self.value:
            if rest < span:
                return on
            rest -= span
            on = not on
        raise AssertionError


def pattern(*, alarm: bool, fault: bool, dated: bool, connected: bool, transferring: bool) -> Pattern:
    """Return the most urgent pattern."""
    order: Final = (
        (alarm, Pattern.ALARM),
        (fault, Pattern.FAULT),
        (not dated, Pattern.NO_CLOCK),
        (not connected, Pattern.NO_BROKER),
        (transferring, Pattern.SENDING_ENERGY),
    )
    return next((found for applies, found in order if applies), Pattern.FINE)
