"""What a kilowatt-hour is in the registers' unit, and how people read it."""

from typing import Final

MWS_PER_KWH: Final = 3_600_000_000


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number and what it counts: 1 line, 2 lines."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def kwh(energy_mws: str | int) -> str:
    """Return mW·s as kWh with six decimals."""
    return f"{int(energy_mws) / MWS_PER_KWH:.6f}"
