"""What every board offers."""

from typing import Protocol


class Board(Protocol):
    """Relay, tamper switch and light; each may be missing, then it does nothing or answers None."""

    @property
    def has_relay(self) -> bool:
        """Whether a relay is wired."""
        ...

    def connect(self, *, line: bool) -> None:
        """Close the relay (True: energy may flow to the storage node) or open it."""
        ...

    def tamper_open(self) -> bool | None:
        """Tell whether the case is open."""
        ...

    def light(self, *, on: bool) -> None:
        """Switch the status light."""
        ...

    def release(self) -> None:
        """Open the relay, darken the light and give the pins back."""
        ...


class NoBoard:
    """Nothing is wired."""

    has_relay = False

    def connect(self, *, line: bool) -> None:
        """Do nothing."""

    def tamper_open(self) -> bool | None:
        """Nobody knows."""
        return None

    def light(self, *, on: bool) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""
