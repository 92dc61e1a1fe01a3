"""What an operator decides and commands: recorded with who and why, signed where a device is told."""

from typing import Final

from pydantic import BaseModel, Field

from dapp.views import fleet
from dapp.visit import Visit
from ingest.commands import give
from maxgreen.errors import UsageError
from maxgreen.ledger.book import Book
from maxgreen.protocol.backend import CommandKind
from maxgreen.protocol.batch import MAX_SEQ
from maxgreen.protocol.reasons import RELEASABLE
from maxgreen.verify.rules import Action as Decided
from maxgreen.verify.rules import Decision

_VALID_S: Final = 60


class DecisionBody(BaseModel):
    """A decision on some of a device's batches (P-ING-3, P-ING-4)."""

    action: Decided
    from_seq: int = Field(ge=0, le=MAX_SEQ)
    to_seq: int = Field(ge=0, le=MAX_SEQ)
    reason: str = Field(default="", max_length=100, examples=["41 43"], description="of a release: what it lifts")
    text: str = Field(min_length=1, max_length=1_000, description="why: the owner and the auditor read it")


class CommandBody(BaseModel):
    """A command to a device (P-CMD-1)."""

    kind: str = Field(pattern="^(start_transfer|stop_transfer|registers|interval)$")
    channel: int = Field(default=0, ge=0, le=65_535)
    seconds: int = Field(default=600, ge=1, le=86_400)
    energy_mws: int = Field(default=3_600_000_000, ge=1, le=2**62)
    interval_ms: int = Field(default=1_000, ge=100, le=600_000)


def record_decision(visit: Visit, device: str, body: DecisionBody) -> None:
    """Record a decision of the operator; UsageError says what is wrong with it."""
    who, known = visit.needs_to_decide(), fleet.find(visit.world, device)
    if body.to_seq < body.from_seq:
        raise UsageError(f"from {body.from_seq} to {body.to_seq}: the range is reversed")
    known_reasons = {str(int(reason)) for reason in RELEASABLE}
    if body.action is Decided.RELEASE and (not body.reason.split() or set(body.reason.split()) - known_reasons):
        raise UsageError(f"a release names what it lifts, of {', '.join(sorted(known_reasons))}")
    with visit.world.engine.begin() as connection:
        Book(connection).add_decision(
            Decision(
                known.record.device, body.from_seq, body.to_seq, body.action, body.reason, who, visit.world.now_ms,
                body.text,
            )
        )  # fmt: skip
    visit.world.memory.forget()


def give_command(visit: Visit, device: str, body: CommandBody) -> None:
    """Sign a command and keep it in the ledger; UsageError where these pages have no key."""
    who, known, world = visit.needs_to_decide(), fleet.find(visit.world, device), visit.world
    if world.signer is None:
        raise UsageError("these pages have no key to sign commands with (key_file); use maxgreen ingest command")
    kind, arguments = {
        "start_transfer": (CommandKind.START_TRANSFER, {0: body.channel, 1: body.seconds, 2: body.energy_mws}),
        "stop_transfer": (CommandKind.STOP_TRANSFER, {0: body.channel}),
        "registers": (CommandKind.SEND_REGISTERS, {}),
        "interval": (CommandKind.SAMPLING_INTERVAL, {0: body.interval_ms}),
    }[body.kind]
    with world.engine.begin() as connection:
        book = Book(connection)
        give(
            book, world.signer, world.deployment.network, known, book.state(known.record.device), kind, arguments,
            who=who, now_ms=world.now_ms, valid_ms=1000 * _VALID_S,
        )  # fmt: skip
