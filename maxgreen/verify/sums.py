"""What batches add up to, by proof window (P-POW-4): of a device, and of each of its channels.

One definition for the ledger, which adds with every batch, for its check, and for whoever closes a day. Sums of parts
are the sum of the whole in any order, so a batch that is judged later is added later.
"""

from dataclasses import dataclass, field
from enum import IntFlag

from maxgreen.protocol.reasons import Verdict
from maxgreen.protocol.work import window_of
from maxgreen.verify.verdict import Judgement


class Break(IntFlag):
    """What parts the samples of a window from those before them, or from each other."""

    NONE = 0
    BOOT = 1  # a boot begins: the batch with its first birth
    SKIPPED = 2  # the chain went on here over a hole (P-ING-4): nothing of the batch is counted


@dataclass(slots=True)
class DeviceSum:
    """A device's batches in a window: how many of each verdict; the rest is of those that were accepted."""

    accepted: int = 0
    rejected: int = 0
    suspended: int = 0  # held until the DAO reinstates
    shares: int = 0  # credited
    hashes: int = 0  # credited
    interval_ms: int = 0  # the largest nominal one
    breaks: Break = Break.NONE


@dataclass(slots=True)
class ChannelSum:
    """What accepted batches add on a channel in a window."""

    energy_mws: int = 0  # growth of the register, mW·s
    reverse_mws: int = 0  # of the reverse register
    square_current: int = 0  # Q, µA²·ms
    counted_ms: int = 0
    unmetered_ms: int = 0  # growth of the gap register
    longest_ms: int = 0  # the longest segment that was counted


@dataclass(slots=True)
class Sums:
    """The sums of some devices' batches; windows by their first second."""

    devices: dict[tuple[bytes, int], DeviceSum] = field(default_factory=dict)  # by device, window
    channels: dict[tuple[bytes, int, int], ChannelSum] = field(default_factory=dict)  # by device, window, channel

    def add(self, device: bytes, judgement: Judgement, *, reinstated: bool = False) -> None:
        """Add a batch with the verdict that it has now; one that is `reinstated` was added as suspended before.

        A batch without a date belongs to no window.
        """
        if judgement.t0_ms is None:
            return
        window_s = window_of(judgement.t0_ms)
        whole = self.devices.get((device, window_s))
        if whole is None:
            whole = self.devices[device, window_s] = DeviceSum()
        if reinstated:
            whole.suspended -= 1
        match judgement.verdict:
            case Verdict.ACCEPTED:
                self._accept(device, window_s, whole, judgement)
            case Verdict.HELD:
                whole.suspended += 1
            case _:
                whole.rejected += 1

    def _accept(self, device: bytes, window_s: int, whole: DeviceSum, judgement: Judgement) -> None:
        whole.accepted += 1
        whole.shares += judgement.shares
        whole.hashes += judgement.hashes
        whole.interval_ms = max(whole.interval_ms, judgement.interval_ms)
        if judgement.begins_boot:
            whole.breaks |= Break.BOOT
        if judgement.skipped_to:
            whole.breaks |= Break.SKIPPED
        for reading in judgement.readings:
            place = (device, window_s, reading.channel)
            one = self.channels.get(place)
            if one is None:
                one = self.channels[place] = ChannelSum()
            growth = reading.growth
            one.energy_mws += reading.energy_mws
            one.reverse_mws += reading.reverse_mws
            one.square_current += growth.square_current
            one.counted_ms += growth.counted_ms
            one.unmetered_ms += growth.gap_ms
            one.longest_ms = max(one.longest_ms, growth.longest_ms)
