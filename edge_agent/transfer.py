"""A transfer of energy over the line: what opens the relay again, backend or not (P-CMD-1)."""

from dataclasses import dataclass, field, replace

from maxgreen.verify.meter import HALF_FEMTOJOULES_PER_MWS, MeterState, Sample, advance


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer that runs: its channel, command number, begin (ms since boot), limits in ms and mW·s."""

    channel: int
    command: int
    begun_boot_ms: int
    most_ms: int
    most_mws: int
    meter: MeterState = field(default_factory=MeterState)

    def metered(self, sample: Sample, *, interval_ms: int, dead_band_ua: int) -> "Transfer":
        """Return the transfer after a sample of its channel (P-BAT-4)."""
        return replace(self, meter=advance(self.meter, [sample], interval_ms=interval_ms, dead_band_ua=dead_band_ua))

    def limit_reached(self, boot_ms: int) -> str | None:
        """Return the first limit that is reached, None when there is none; since the last sample its power flows on."""
        if boot_ms - self.begun_boot_ms >= self.most_ms:
            return f"{self.most_ms / 1000:.0f} s are over"
        sent = self.meter.forward
        if self.meter.last is not None:
            sent += 2 * max(0, self.meter.last_power_pw) * max(0, boot_ms - self.meter.last.boot_ms)
        if sent >= self.most_mws * HALF_FEMTOJOULES_PER_MWS:
            return f"{self.most_mws / 3.6e6:.3f} Wh are sent"
        return None
