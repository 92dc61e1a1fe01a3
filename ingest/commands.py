"""Commands to devices: numbered, signed and kept in the ledger, from where the running service sends them (P-CMD-1)."""

from collections.abc import Mapping
from typing import Any

from maxgreen.errors import UsageError
from maxgreen.ledger.book import Book
from maxgreen.ledger.registry import KnownDevice
from maxgreen.protocol.backend import Command, CommandKind, decode_command, sign_command
from maxgreen.protocol.cose import parse
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.reasons import Refusal
from maxgreen.units import kwh
from maxgreen.verify.chain import ChainState


def give(
    book: Book,
    signer: Signer,
    network: str,
    known: KnownDevice,
    state: ChainState | None,
    kind: CommandKind,
    arguments: Mapping[int, int],
    *,
    who: str,
    now_ms: int,
    valid_ms: int,
) -> Command:
    """Sign a command and keep it in the ledger; UsageError when the device has no such channel.

    Numbers follow the clock, so that they rise even over a ledger that was restored from a backup.
    """
    device = known.record.device
    if kind in (CommandKind.START_TRANSFER, CommandKind.STOP_TRANSFER):
        channels = sorted(state.channels) if state else []
        if arguments[0] not in channels:
            raise UsageError(
                f"device {device.hex()}: has no channel {arguments[0]}; it has {channels or 'sent nothing'}"
            )
    newest = book.newest_command(device)
    number = now_ms if newest is None else max(now_ms, newest + 1)
    command = Command(device, number, now_ms, now_ms + valid_ms, kind, arguments)
    book.add_command(command, who, sign_command(command, signer, network))
    return command


def command_text(kind: str, arguments: Mapping[int, int]) -> str:
    """Return a command as people say it (P-CMD-1: the arguments' numbers)."""
    match kind, dict(arguments):
        case "start_transfer", {0: channel, 1: seconds, 2: energy_mws}:
            return f"start transfer, channel {channel}, {seconds} s, {kwh(energy_mws)} kWh"
        case "stop_transfer", {0: channel}:
            return f"stop transfer, channel {channel}"
        case "sampling_interval", {0: interval_ms}:
            return f"sampling interval, {interval_ms} ms"
    return kind.replace("_", " ")


def command_json(row: Any, now_ms: int) -> dict[str, Any]:
    """Return a command of the ledger, and its fate: waiting, sent, obeyed, refused, or expired and nothing heard."""
    command = decode_command(parse(bytes(row.message)).payload)
    if row.obeyed is not None:
        fate = "obeyed" if row.obeyed else "refused"
    elif now_ms >= command.expires_ms:
        fate = "expired"
    else:
        fate = "waiting" if row.sent_ms is None else "sent"
    return {
        "device": command.device.hex(),
        "number": command.number,
        "issued_ms": command.issued_ms,
        "expires_ms": command.expires_ms,
        "kind": command.kind.name.lower(),
        "arguments": dict(command.arguments),
        "who": row.who,
        "fate": fate,
        "refusal": None if row.refusal is None else _label(row.refusal),
        "sent_ms": row.sent_ms,
        "told_ms": row.told_ms,
    }


def _label(refusal: int) -> str:
    """Return a refusal's name; a device may know more of them than we do."""
    try:
        return Refusal(refusal).label
    except ValueError:
        return f"reason {refusal}"
