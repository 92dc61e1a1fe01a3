"""What an audit says: the first difference, or all that it found right and what it had to believe."""

from collections.abc import Mapping
from dataclasses import dataclass

from maxgreen.protocol.pack import PackError
from maxgreen.units import kwh


class Difference(PackError):  # noqa: N818 - what an audit finds, not a fault of the program
    """What the pack or the chain says is not what follows from the evidence."""


@dataclass(frozen=True)
class Report:
    """What an audit found right, and what it had to believe."""

    period: str
    network: str
    contracts: Mapping[str, str]  # those that the order names, by their field
    order: int | None
    payable_mws: Mapping[str, int]  # by line
    checks: tuple[str, ...]
    believed: tuple[str, ...]
    statement: bytes

    def text(self) -> str:
        """Return the report for people."""
        return "\n".join(
            [
                f"period {self.period} of network {self.network}",
                *([f"order {self.order} of settlement {self.contracts['settlement']}"] if self.order else []),
                *(f"  line {line[:8]}…  {kwh(mws)} kWh payable" for line, mws in self.payable_mws.items()),
                *(f"  ok  {check}" for check in self.checks),
                "still believed:",
                *(f"  --  {what}" for what in self.believed),
            ]
        )


class Findings:
    """Collects what an audit finds right, and what it believes."""

    def __init__(self) -> None:
        self.checks: list[str] = []
        self.believed = ["the backend's arrival times"]

    def ok(self, check: str) -> None:
        """Note what was checked."""
        self.checks.append(check)

    def believe(self, what: str) -> None:
        """Note what could not be."""
        self.believed.append(what)
