"""How hard a device's work is to be: it follows the work of the last hour (P-POW-4)."""

from collections.abc import Mapping
from typing import Final

from maxgreen.protocol.work import WINDOW_MS, credit_of, nbits_of_credit, window_of
from maxgreen.verify.rules import Limits

_STEERING_WINDOWS: Final = 6


def steered(credited: Mapping[int, int], t0_ms: int, hashes: int) -> dict[int, int]:
    """Return the hashes credited by window, with those of one more batch: only the newest windows are kept."""
    window = window_of(t0_ms)
    counts = {**credited, window: credited.get(window, 0) + hashes}
    if len(counts) > _STEERING_WINDOWS + 1:
        counts.pop(min(counts))
    return counts


def wanted_nbits(credited: Mapping[int, int], limits: Limits, now_ms: int) -> int:
    """Return the difficulty that gives `shares_per_window` at the rate of the last hour (P-POW-4)."""
    since_s = (now_ms - _STEERING_WINDOWS * WINDOW_MS) // 1000
    hashes = sum(count for window, count in credited.items() if window >= since_s)
    per_share = hashes // (_STEERING_WINDOWS * limits.shares_per_window)
    return limits.pow_nbits_min if per_share <= credit_of(limits.pow_nbits_min) else nbits_of_credit(per_share)
