"""Every way in which a contract refuses, as a sentence for a person."""

import ast
import re
from typing import Any, Final

from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError

from maxgreen.chain.artifacts import errors_by_selector
from maxgreen.clock import utc
from maxgreen.errors import MaxgreenError
from maxgreen.protocol.batch import Role
from maxgreen.said import said
from maxgreen.units import kwh

_ERROR_STRING: Final = bytes.fromhex("08c379a0")  # Error(string)
_PANIC: Final = bytes.fromhex("4e487b71")  # Panic(uint256)
NO_FUNDS: Final = "InsufficientFunds"
_FUNDS: Final = re.compile(
    "insufficient (funds|balance)|gas required exceeds allowance|does not have enough balance|lack of funds",
    re.IGNORECASE,
)
_FAR_S: Final = 2**33
_REFUSALS: Final = {"TransactionFailed", "ContractLogicError", "ContractCustomError"}
SENTENCES: Final = {
    "AccessManagedUnauthorized": "{caller} may not call this, or the guardian stopped it (docs/contracts.md, roles)",
    "AlreadyMember": "{member} holds a badge already",
    "AnnouncedBefore": "the lapse of badge {tokenId} was announced at {time:utc}",
    "AttestationInFuture": "the attestation's time {time:utc} is ahead of the block's {blockTime:utc}",
    "BadAttestation": "the device of token {token} did not sign this register of channel {channel}",
    "ChannelInUse": "channel {channel} of token {token} belongs to line {line} already",
    "ChannelTwice": "channel {channel} is named twice; each channel of a system has a number of its own",
    "CapReached": "the pool keeps at most {cap:coins} of {token}, and would have {reserve:coins}",
    "ChannelBusy": "channel {channel} of token {token} is busy with take-out {id}",
    "ChannelWithoutPeak": "channel {channel} has no peak power",
    "ContentChanged": "order {orderId} is {stored}, not {voted} as voted on; vote on what is there",
    "DeviceAlreadyRegistered": "device {deviceId} is registered already, as token {tokenId}",
    "EfficiencyOutOfRange": "an efficiency of {efficiencyPpm} ppm is not in 1..1,000,000",
    "ERC20InsufficientBalance": "{sender} holds {balance:coins} of this token, and {needed:coins} are needed",
    "Expired": "request {id} ended at {time:utc}",
    "GovernorAlreadyCastVote": "{voter} has voted on this proposal already",
    "GovernorInsufficientProposerVotes": "{proposer} may not propose: it takes a badge that is older than this block",
    "GovernorNonexistentProposal": "there is no such proposal",
    "GovernorUnexpectedProposalState": "the proposal is not where this can be done: its vote has not begun or is not "
    "over, or it was carried out already",
    "HandOverNotProved": "device {oldDevice} did not sign that {newDevice} takes its place",
    "KeyNotRequested": "the owner of token {tokenId} did not ask for device {deviceId}",
    "LineWasNotOpened": "line {line} was never opened",
    "LineExists": "line {line} is open already",
    "LineIsHeld": "line {line} is held by the DAO (code {code}) until it releases it",
    "LineNotOpen": "line {line} is not open",
    "NoEnergyToken": "token {node} is no storage node",
    "NoFraud": "the two attestations of token {token} do not contradict each other",
    "NoKeyAt": "token {tokenId} had no key at {time:utc}: the reading is of before its registration",
    "NoOrderApproved": "no order was approved yet",
    "NoRoom": "node {nodeToken} has no room: {supply:coins} tokens for a battery of {capacity:coins} kWh",
    "NoSuchChannel": "token {tokenId} has no channel {channel}",
    "NoSuchLine": "the DAO approved no line {line}",
    "NoSuchOrder": "there is no order {orderId}",
    "NotEnough": "the pool has {reserve:coins} of {token}, not {wanted:coins}",
    "NotFresh": "the reading of token {token} at {time:utc} is more than an hour old; take one of now",
    "NotOfThisPool": "{token} is no token of this pool",
    "NotYet": "request {id} waits for a meter until {time:utc}",
    "NotAnnounced": "badge {tokenId} lapses a month after that was announced (announced at {time:utc})",
    "NotAnOwner": "{caller} owns neither end of line {line}",
    "NotInOrder": "this is no leaf of order {orderId}, the newest approved one; take the claim from its order.json",
    "NotOwner": "{caller} does not own token {tokenId}",
    "NotRegistered": "token {tokenId} is not registered",
    "NothingAsked": "nothing is asked for, or by a take-out less than 0.001 kWh",
    "NothingOwed": "nothing is owed to {account}",
    "NothingNew": "line {line} has {payableTotal:kwh} payable and {paid:kwh} paid: nothing new",
    "NothingPayable": "the order's lines are due {total:kwh} together, and {paid:kwh} were paid: nothing new",
    "NothingToCollect": "line {line} has no credit to collect",
    "OfferOutOfRange": "an offer ends within 30 days, not at {expiresAt:utc}",
    "OrderExceeded": "order {orderId} pays {total:kwh} for all lines together, and that was paid; the next goes on",
    "OrderLapsed": "order {orderId} was not decided in time; the operator posts it again",
    "OrderNotOpen": "order {orderId} is not open any more (status {status})",
    "OrderOpen": "order {orderId} waits for the DAO; it must be decided first",
    "OtherKey": "the reading of token {token} is of key {keyNumber}, the one before of key {known}; "
    "a line goes on with the next key by nextKey",
    "PayableExceedsGrowth": "{payableTotal:kwh} is more than the registers grew (sent {sentGrowth:kwh}, "
    "received {receivedGrowth:kwh})",
    "PeriodNotNew": "a period until {until:utc} is not after the approved one until {approved:utc}",
    "PeriodNotOver": "the period until {until:utc} is not over",
    "PossessionNotProved": "{applicant} did not prove that it holds the key of device {deviceId}, for these fields; "
    "sign the proof with the agent's key for this address, this system and the next nonce",
    "ProvedBefore": "this fraud of token {token} (channel {channel}, seq {seq}) was proved before",
    "ReadingAfterClosing": "the reading of {time:utc} is of after the line was closed, at {closedAt:utc}",
    "ReadingTooEarly": "the reading of token {token} at {time:utc} is of before {wanted:utc}",
    "ReadingWentBack": "the reading of token {token} ({time:utc}, seq {seq}) is older than one that the chain knows",
    "RegisterTooFast": "the register of token {token} grew by {growth:kwh}, more than its channel can have measured "
    "({capacity:kwh})",
    "RegisterWentBack": "register {register} of token {token} is lower than {known}, which the chain knows",
    "SeenLately": "badge {tokenId} took part at {time:utc}, less than half a year ago",
    "SystemNotActive": "token {token} is not active; the DAO suspended or revoked it",
    "TermTooLong": "a guardian's term ends within 366 days, not at {until:utc}",
    "TextTooLong": "a text of {bytes_} bytes is too long",
    "TokenIsSoulBound": "token {tokenId} is soul-bound and cannot be transferred",
    "TooSoon": "token {tokenId} may change its key again at {time:utc}",
    "TooLate": "the deadline {deadline:utc} is over",
    "TooLittle": "it would give {amount:coins}, less than {wanted:coins}",
    "TooMuch": "{amount:coins} is more than the most, {most:coins}",
    "TooManyChannels": "{count} channels; a system has at most 16",
    "UriTooLong": "a URI of {bytes_} bytes; at most 512",
    "VotesAreNotDelegated": "{member} votes for itself only",
    "WrongChannel": "channel {channel} of token {token} is not of the kind '{role:role}'",
    "WrongKind": "token {token} is no storage node",
    "WrongStatus": "request {id} is {status:request}, which is no state for this",
    "WrongEnd": "channel {channel} of token {token} is not of the kind that this end of a line needs",
}


class ChainRefusedError(MaxgreenError):
    """A contract refused a call; the message is a sentence, `name` the custom error."""

    def __init__(self, name: str, sentence: str) -> None:
        text = "the chain refused: {sentence} ({name})" if name else "the chain refused: {sentence}"
        super().__init__(said(text, sentence=sentence, name=name))
        self.name = name


def explain(data: bytes) -> ChainRefusedError:
    """Return the error that revert data stands for; never raises."""
    selector, body = data[:4], data[4:]
    try:
        if selector == _ERROR_STRING:
            return ChainRefusedError("", str(abi_decode(["string"], body)[0]))
        if selector == _PANIC:
            return ChainRefusedError("Panic", f"code {abi_decode(['uint256'], body)[0]:#x}")
        entry = errors_by_selector().get(selector)
        if entry is None:
            return ChainRefusedError("", f"revert data 0x{data.hex()}" if data else "without a reason")
        values = abi_decode([parameter["type"] for parameter in entry["inputs"]], body)
    except (DecodingError, OverflowError, UnicodeDecodeError):
        return ChainRefusedError("", f"revert data 0x{data.hex()}")
    names = {p["name"]: _readable(v) for p, v in zip(entry["inputs"], values, strict=True)}
    return ChainRefusedError(entry["name"], _sentence(entry["name"], names))


def refusal(error: Exception) -> ChainRefusedError | None:
    """Return what a client library's exception stands for, or None when it is no refusal of a contract."""
    data = revert_data(error)
    if data is not None:
        return explain(data)
    if _FUNDS.search(str(error)):
        return ChainRefusedError(NO_FUNDS, "the account has too little for the transaction's gas")
    return ChainRefusedError("", str(error)) if type(error).__name__ in _REFUSALS else None


def revert_data(error: Exception) -> bytes | None:
    """Return the revert data that an exception carries, in whatever form its library gives it."""
    data = getattr(error, "data", None)
    if isinstance(data, str) and re.fullmatch(r"0x(?:[0-9a-f]{2})*", data):
        return bytes.fromhex(data[2:])
    if type(error).__name__ not in _REFUSALS:
        return None
    for argument in map(str, error.args):
        # eth-tester hands the revert bytes over as their repr()
        if found := re.search(r"""b(?:'.*'|".*")$""", argument, re.DOTALL):
            return bytes(ast.literal_eval(found[0]))
        if found := re.search(r"0x((?:[0-9a-f]{2})*)$", argument):
            return bytes.fromhex(found[1])
    return None


def _sentence(name: str, values: dict[str, Any]) -> str:
    if name in SENTENCES:
        return said(SENTENCES[name], **values)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    return f"{words}: " + ", ".join(f"{key} {value}" for key, value in values.items()) if values else words


_REQUESTS: Final = ("none that there is", "open", "accepted", "finished", "settled", "refused", "cancelled")


class _Number(int):
    """A number of a contract, which sentences show as `utc` (unix s), `kwh` (mW·s), `coins` (wei), `role`, others."""

    def __format__(self, how: str) -> str:
        match how:
            case "utc" if 0 < self < _FAR_S:
                return utc(1000 * self)
            case "kwh":
                return f"{kwh(self)} kWh"
            case "coins":
                return f"{self / 10**18:.9f}".rstrip("0").rstrip(".")
            case "request" if self < len(_REQUESTS):
                return _REQUESTS[self]
            case "role" if 0 <= self < len(Role):
                return Role(self).name.lower()
            case _:
                return str(int(self))


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    return _Number(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
