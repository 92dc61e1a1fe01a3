"""What people do on the chain, each action once: its words, its fields, and the step that it takes.

A step acts in the name of an account. Where that account's key is in somebody's wallet, the step is only tried, and
what it would send is the draft of a transaction: pages hand it to the wallet. A step that needs several is tried again
after each.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, cast

from eth_abi.exceptions import EncodingError
from eth_account.signers.local import LocalAccount
from eth_utils.address import is_address, to_checksum_address
from web3.exceptions import MismatchedABI

from maxgreen.actions.calls import decode_call
from maxgreen.actions.proofs import read_proof
from maxgreen.actions.session import line_id, meter_of, mws, wei
from maxgreen.chain.claims import parse_attestation
from maxgreen.chain.client import NothingSentError, Visitor
from maxgreen.chain.dao import Proposal
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.orders import Claim, SettlementContract
from maxgreen.clock import Clock
from maxgreen.errors import UsageError
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.system import parse_system
from maxgreen.said import Said, said

_MOST_TEXT: Final = 1_000
_MOST_FILE: Final = 65_536
_LINE_DIGITS: Final = 64
_PREPARES: Final = {"approve"}  # ERC-20: lets a contract take tokens; the action itself comes after it


class Who(StrEnum):
    """Whose action it is; the chain has the last word."""

    OWNER = "owner"
    NODE = "node"
    MEMBER = "member"
    OPERATOR = "operator"
    ANYONE = "anyone"


class Kind(StrEnum):
    """What a field holds, as people write it."""

    AMOUNT = "amount"  # tokens, 1.5
    ENERGY = "energy"  # kWh, 1.5
    NUMBER = "number"
    LINE = "line"  # 64 hex digits
    METER = "meter"  # TOKEN.CHANNEL
    TEXT = "text"
    CHOICE = "choice"
    ADDRESS = "address"
    PROPOSAL = "proposal"  # its first hex digits
    SYSTEM = "system"  # a system file
    PROOF = "proof"  # what `maxgreen agent prove` prints
    READING = "reading"  # what `maxgreen operator reading` prints


class Of(StrEnum):
    """Of what a field names one: where somebody can see the list, forms offer it."""

    MY_MINER = "my miner"
    MY_SYSTEM = "my system"
    MY_METER = "my meter"  # that receives
    MY_LINE = "my line"
    SYSTEM = "system"
    NODE = "storage node"
    POOL = "node with a pool"
    SENDING = "meter that sends"
    RECEIVING = "meter that receives"
    LINE = "line"
    ORDER = "order"  # that is not decided
    APPLICATION = "application"  # that waits
    STORAGE_REQUEST = "storage request"
    TAKE_OUT = "take-out"
    PROPOSAL = "proposal"  # that is not over


@dataclass(frozen=True)
class Field:
    """A field of an action's form; one with a default, or that is optional, may be left out."""

    name: str
    kind: Kind
    label: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    most: int = 2**48  # of a number
    of: Of | None = None


@dataclass(frozen=True)
class Context:
    """Who acts, where; what an action reads of the ledger is asked for when it is needed."""

    deployment: Deployment
    clock: Clock
    account: LocalAccount
    claims: Callable[[], Sequence[Claim]] = field(default=tuple)  # of the newest approved order
    reading: Callable[[int, int], Attestation | None] = field(default=lambda _token, _channel: None)


Step = Callable[[Context, Mapping[str, Any]], object]


@dataclass(frozen=True)
class Action:
    """An action of people. One that `repeats` is tried again until nothing is left to do.

    `proposes`: what the DAO would vote on, where the step is to propose it.
    """

    name: str
    who: Who
    title: str
    about: str
    fields: tuple[Field, ...]
    step: Step = field(repr=False)
    repeats: bool = False
    nothing: str = "There is nothing to do: it is done already."  # what it means that no step is left at the first look
    proposes: Callable[[Context, Mapping[str, Any]], Proposal] | None = field(default=None, repr=False)

    def read(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Return the values of a form's fields; UsageError names the one that is not as it should be."""
        return {one.name: _read(one, str(given.get(one.name, "")).strip()) for one in self.fields}


@dataclass(frozen=True)
class Draft:
    """A transaction that a wallet is asked to sign; `last`: the action is done with it."""

    to: str
    data: bytes
    contract: str
    function: str
    says: Said
    last: bool


def draft(action: Action, context: Context, given: Mapping[str, str]) -> Draft | None:
    """Return the transaction that an action needs next; None when nothing is left to do.

    UsageError where a value is wrong, ChainRefusedError where the chain would refuse it.
    """
    values = action.read(_whole(context, action, given))
    chain = context.deployment.chain.trying()
    deployment = Deployment(chain, context.deployment.addresses)
    tried = Context(deployment, context.clock, context.account, context.claims, context.reading)
    try:
        action.step(tried, values)
    except (MismatchedABI, EncodingError) as error:
        raise UsageError("a number is larger than the contracts can hold") from error
    except NothingSentError as would:
        call, prepares = decode_call(deployment, would.to, would.data), would.name in _PREPARES
        says = said("{call}, for the step after this one; nothing moves yet", call=call.says) if prepares else call.says
        return Draft(would.to, would.data, call.contract, would.name, says, not action.repeats and not prepares)
    return None


def _whole(context: Context, action: Action, given: Mapping[str, str]) -> Mapping[str, str]:
    """Return a form's values with lines named whole: people name one by its first digits."""
    found = dict(given)
    for one in action.fields:
        digits = str(given.get(one.name, "")).strip().lower().removeprefix("0x")
        if one.kind is Kind.LINE and 0 < len(digits) < _LINE_DIGITS:
            known = [line.hex() for line in SettlementContract(context.deployment).line_ids()]
            matching = [line for line in known if line.startswith(digits)]
            if len(matching) != 1:
                raise UsageError(f"{one.label}: {digits!r}: {len(matching)} lines begin with this")
            found[one.name] = matching[0]
    return found


def visitor(address: str) -> LocalAccount:
    """Return an account whose key is elsewhere: it can only try."""
    return cast("LocalAccount", Visitor(str(to_checksum_address(address))))


def _read(one: Field, text: str) -> Any:
    if not text:
        if one.default is not None:
            text = one.default
        elif one.optional:
            return None
        else:
            raise UsageError(f"{one.label}: is missing")
    if len(text) > (_MOST_FILE if one.kind in {Kind.SYSTEM, Kind.PROOF, Kind.READING} else _MOST_TEXT):
        raise UsageError(f"{one.label}: is too long")
    try:
        text.encode()  # no half of a character
        return _READERS[one.kind](one, text)
    except (ArithmeticError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{one.label}: {text[:60]!r} is no {one.kind.value}") from error


def _number(one: Field, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:30]) > one.most:
        raise UsageError(f"{one.label}: {text[:60]!r}: expected a number")
    return int(text)


def _choice(one: Field, text: str) -> str:
    if text not in one.choices:
        raise UsageError(f"{one.label}: {text[:60]!r}: expected one of {', '.join(one.choices)}")
    return text


def _proposal(_one: Field, text: str) -> str:
    digits = text.lower().removeprefix("0x")
    int(digits, 16)
    return digits


def _address(one: Field, text: str) -> str:
    if not is_address(text):
        raise UsageError(f"{one.label}: {text[:60]!r}: expected 0x and 40 hex digits")
    return str(to_checksum_address(text))


_READERS: Final[Mapping[Kind, Callable[[Field, str], Any]]] = {
    Kind.AMOUNT: lambda _one, text: wei(text),
    Kind.ENERGY: lambda _one, text: mws(text),
    Kind.NUMBER: _number,
    Kind.LINE: lambda _one, text: line_id(text),
    Kind.METER: lambda _one, text: meter_of(text),
    Kind.TEXT: lambda _one, text: text,
    Kind.CHOICE: _choice,
    Kind.ADDRESS: _address,
    Kind.PROPOSAL: _proposal,
    Kind.SYSTEM: lambda _one, text: parse_system(text),
    Kind.PROOF: lambda _one, text: read_proof(json.loads(text)),
    Kind.READING: lambda _one, text: parse_attestation(json.loads(text)),
}
