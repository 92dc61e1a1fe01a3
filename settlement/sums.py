"""What the windows of a line add up to, and what is payable for it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sums:
    """What windows add up to, mW·s; `matched_mws` is what counts of those that are one-sided."""

    sent_mws: int = 0
    received_mws: int = 0
    expected_mws: int = 0
    error_mws: int = 0
    matched_mws: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.sent_mws + other.sent_mws,
            self.received_mws + other.received_mws,
            self.expected_mws + other.expected_mws,
            self.error_mws + other.error_mws,
            self.matched_mws + other.matched_mws,
        )

    @property
    def payable_mws(self) -> int:
        """What is payable for them (settlement.md, 5)."""
        beyond_mws = max(0, self.expected_mws - self.error_mws)
        return self.matched_mws + max(0, min(self.received_mws, self.sent_mws - beyond_mws))
