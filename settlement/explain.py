"""Where each watt-second of a line went in a period: counted, lost, held, disputed, or not metered. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from maxgreen.protocol.reasons import Reason
from maxgreen.units import kwh
from settlement.periods import period_bounds
from settlement.windows import DAY_S, State, Window

_HOUR_S: Final = 3_600
_LEAST_MWS: Final = 1_800  # what rounds to nothing is not said
WHY: Final = {
    Reason.INCOMPLETE: "batches are missing; they count when the device has sent them",
    Reason.OFFLINE_WINDOW: "no proof of work arrived for these ten minutes; the DAO can release them",
    Reason.NOT_GENERATED: "more was sent than generated that day; check both meters' calibration",
    Reason.OVER_CAPACITY: "more than the registered panel can make; register the panel's real peak",
    Reason.AT_NIGHT: "energy at night; check the registered place",
    Reason.STUCK_SENSOR: "the sensor repeated one reading; check it",
    Reason.RECEIVED_EXCEEDS_SENT: "more was received than sent; calibrate both meters, or ask the DAO",
    Reason.LOSS_EXCEEDS_LIMIT: "more was lost than the line explains; check the line, or ask the DAO",
    Reason.TAKEN_OUT: "the DAO rejected these batches; they never count",
    Reason.SUSPENDED: "the device is suspended; the DAO can reinstate it",
    Reason.BATCH_NOT_ACCEPTED: "a batch was rejected or is held; the device's page says why",
    Reason.UNATTESTED: "measured after the period's last register reading; it counts in the next order",
    Reason.OVERFULL: "more than ten minutes were metered in ten minutes: a clock was set back; ask the DAO",
    Reason.UNMETERED: "one meter was silent for too much of the day; the DAO can release it",
}


@dataclass(frozen=True)
class Part:
    """Some of what was sent, mW·s: what became of it, in how many windows, and why."""

    name: str
    energy_mws: int
    windows: int
    why: str


@dataclass(frozen=True)
class Slot:
    """A UTC day of a line, or an hour, mW·s: what arrived and counts, what was lost, what is held or disputed."""

    begin_s: int
    counted_mws: int
    lost_mws: int
    held_mws: int
    disputed_mws: int


@dataclass(frozen=True)
class Explanation:
    """A line's period. `parts` add up to `sent_mws`."""

    line: str
    sent_mws: int
    received_mws: int
    parts: tuple[Part, ...]
    slots: tuple[Slot, ...]  # days; hours where the period is one day
    windows: int
    counted_windows: int
    reverse_sent_mws: int  # against the direction of the sent channel
    reverse_received_mws: int
    dark_sent_s: int  # how long the miner did not meter while the node did
    dark_received_s: int
    payable_mws: int

    def why(self) -> list[str]:
        """Return why this amount, in sentences for the owner; at most ten."""
        parts = [part for part in self.parts if part.energy_mws >= _LEAST_MWS]
        found = [f"{kwh(part.energy_mws)} kWh {part.name}: {part.why}" for part in parts[:8]]
        found.append(f"{self.counted_windows} of {self.windows} windows of ten minutes count")
        found.append(f"{kwh(self.payable_mws)} kWh are payable now, with what earlier periods left")
        return found


def explain(period: str, statement: Mapping[str, Any], windows: Sequence[Window]) -> Explanation:
    """Return where the energy of a line went in a period: by its statement, and the windows of its evidence."""
    begin_s, until_s = period_bounds(period)
    windows = [w for w in windows if w.window_s >= begin_s]
    return Explanation(
        line=statement["line"],
        sent_mws=sum(w.measured.sent_mws for w in windows),
        received_mws=sum(w.measured.received_mws for w in windows),
        parts=tuple(_parts(windows)),
        slots=tuple(_slots(windows, begin_s, until_s)),
        windows=len(windows),
        counted_windows=sum(w.counts for w in windows),
        reverse_sent_mws=int(statement["sent_reverse_mws"]),
        reverse_received_mws=int(statement["received_reverse_mws"]),
        dark_sent_s=sum(w.measured.sent_dark_ms for w in windows) // 1000,
        dark_received_s=sum(w.measured.received_dark_ms for w in windows) // 1000,
        payable_mws=int(statement["payable_mws"]),
    )


def _split(window: Window) -> tuple[int, int, int, int]:
    """Return what of a counted window arrived, was lost as expected, was lost beyond it, and met no meter."""
    w = window.measured
    arrived = min(w.sent_mws, w.received_mws)
    lost = w.sent_mws - arrived
    if w.one_sided:
        return arrived, 0, 0, lost
    expected = min(lost, w.expected_mws)
    return arrived, expected, lost - expected, 0


def _parts(windows: list[Window]) -> list[Part]:
    counting = [w for w in windows if w.counts]
    splits = [_split(w) for w in counting]
    names = (
        ("counted", "it arrived"),
        ("lost as expected", "the resistance of the line explains it"),
        ("lost within the meters' error", "both meters may err by as much"),
        ("met no meter", "the node did not meter while the miner did"),
    )
    found = [
        Part(name, sum(split[k] for split in splits), sum(split[k] > 0 for split in splits), why)
        for k, (name, why) in enumerate(names)
    ]
    rest: dict[tuple[State, Reason], list[Window]] = defaultdict(list)
    for window in windows:
        if not window.counts:
            rest[window.state, window.reasons[0]].append(window)
    for (state, reason), held in sorted(rest.items()):
        energy_mws = sum(w.measured.sent_mws for w in held)
        found.append(Part(f"{state.value} ({int(reason)} {reason.label})", energy_mws, len(held), WHY[reason]))
    return found


def _slots(windows: list[Window], begin_s: int, until_s: int) -> list[Slot]:
    size_s = DAY_S if until_s - begin_s > DAY_S else _HOUR_S
    slots: dict[int, list[Window]] = {begin_s: [] for begin_s in range(begin_s, until_s, size_s)}
    for window in windows:
        slots[begin_s + (window.window_s - begin_s) // size_s * size_s].append(window)
    found = []
    for slot_s, slot in slots.items():
        splits = [_split(w) for w in slot if w.counts]
        found.append(
            Slot(
                slot_s,
                sum(split[0] for split in splits),
                sum(sum(split[1:]) for split in splits),
                sum(w.measured.sent_mws for w in slot if w.state is State.HELD),
                sum(w.measured.sent_mws for w in slot if w.state is State.DISPUTED),
            )
        )
    return found
