"""Which signed commands a device obeys (P-CMD-1)."""

from typing import Final

from maxgreen.protocol.backend import Command

_MAX_NUMBER: Final = 2**63 - 1  # the largest that the spool holds


def refusal(command: Command, *, device: bytes, last_number: int, now_ms: int, synchronised: bool) -> str | None:
    """Return why a command is not obeyed, None when it is; `last_number` is the newest one obeyed, -1 for none."""
    if command.device != device:
        return "it is for another device"
    if not synchronised:
        return "this device's clock is not synchronised"
    if command.number > _MAX_NUMBER:
        return f"number {command.number} is too large"
    if command.number <= last_number:
        return f"number {last_number} was obeyed already"
    if now_ms >= command.expires_ms:
        return f"it expired {(now_ms - command.expires_ms) / 1000:.0f} s ago"
    return None
