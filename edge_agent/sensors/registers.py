"""Whole 16-bit registers of a chip: its driver reads before it changes bits, and a bus may give back nonsense."""

import time
from collections.abc import Mapping
from typing import Any


def read_u16(chip: Any, register: int) -> int:
    """Return a register; OSError when the chip does not answer."""
    answer = bytearray(2)
    with chip.i2c_device as device:
        device.write_then_readinto(bytes([register]), answer)
    return int.from_bytes(answer, "big")


def write_u16(chip: Any, register: int, value: int) -> None:
    """Write a whole register; OSError when the chip does not answer."""
    with chip.i2c_device as device:
        device.write(bytes([register, *value.to_bytes(2, "big")]))


def holds(chip: Any, wanted: Mapping[int, int], conversion_s: float) -> bool:
    """Tell whether a chip's registers are what they should be; those that are not are written again, whole.

    Then it waits for a conversion: until one is done the chip gives back what it measured otherwise.
    """
    wrong = {register: value for register, value in wanted.items() if read_u16(chip, register) != value}
    for register, value in wrong.items():
        write_u16(chip, register, value)
    if wrong:
        time.sleep(conversion_s)
    return not wrong
