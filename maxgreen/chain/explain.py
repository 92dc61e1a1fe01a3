"""Every way in which a contract refuses, as a sentence for a person."""

import ast
import re
from typing import Any, Final

from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError

from maxgreen.chain.artifacts import errors_by_selector
from maxgreen.errors import MaxgreenError

_ERROR_STRING: Final = bytes.fromhex("08c379a0")  # Error(string)
_PANIC: Final = bytes.fromhex("4e487b71")  # Panic(uint256)
NO_FUNDS: Final = "InsufficientFunds"
_FUNDS: Final = re.compile(
    "insufficient (funds|balance)|gas required exceeds allowance|does not have enough balance|lack of funds",
    re.IGNORECASE,
)
_REFUSALS: Final = {"TransactionFailed", "ContractLogicError", "ContractCustomError"}
_SENTENCES: Final = {
    "AccessManagedUnauthorized": "{caller} may not call this; the role table in docs/contracts.md says who may",
    "AlreadyMember": "{member} holds a badge already",
    "AttestationInFuture": "the attestation's time {time} is more than 300 s after the block's {blockTime}",
    "BadAttestation": "the device of token {token} did not sign this register of channel {channel}",
    "ChannelInUse": "channel {channel} of token {token} belongs to line {line} already",
    "ChannelTwice": "channel {channel} is named twice; each channel of a system has a number of its own",
    "DataRootChanged": "order {orderId} has data root {stored}, not {voted} as voted on; vote again",
    "DeviceAlreadyRegistered": "device {deviceId} is registered already, as token {tokenId}",
    "EfficiencyOutOfRange": "an efficiency of {efficiencyPpm} ppm is not in 1..1,000,000",
    "LineExists": "line {line} is open already",
    "NoRoom": "node {nodeToken} has no room: {supply} wei of tokens for a battery of {capacity} wei",
    "NoSuchApplication": "there is no application {applicationId}",
    "NoSuchChannel": "token {token} has no channel {channel} with role {role}",
    "NoSuchLine": "there is no line {line}; open it first",
    "NoSuchOrder": "there is no order {orderId}",
    "NotMinter": "{caller} may not mint; only EnergySettlement may",
    "NotRegistered": "token {tokenId} is not registered",
    "NothingPayable": "line {line} has {payableTotal} mW·s payable and {paid} paid: nothing new",
    "NothingToCollect": "line {line} has no credit to collect",
    "OrderNotOpen": "order {orderId} is not open any more (status {status})",
    "OrderOpen": "line {line} has order {orderId} open; it must be decided first",
    "PayableExceedsCapacity": "{payableTotal} mW·s is more than the panel can have made ({capacity} mW·s)",
    "PayableExceedsGrowth": "{payableTotal} mW·s is more than the registers grew (sent {sentGrowth}, "
    "received {receivedGrowth})",
    "PossessionNotProved": "{applicant} did not prove that it holds the key of device {deviceId}; "
    "sign the proof with the agent's key for this address",
    "ReadingWentBack": "the reading of token {token} (time {time}, seq {seq}) is older than one that the chain knows",
    "RegisterWentBack": "register {register} of token {token} is lower than {known}, which the chain knows",
    "SystemNotActive": "token {token} is not active; the DAO suspended or revoked it",
    "TokenIsSoulBound": "token {tokenId} is soul-bound and cannot be transferred",
    "TooManyChannels": "{count} channels; a system has at most 16",
    "UriTooLong": "a URI of {bytes_} bytes; at most 512",
    "WrongKind": "token {token} is not of the kind that this end of a line needs",
}


class ChainRefusedError(MaxgreenError):
    """A contract refused a call; the message is a sentence, `name` the custom error."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(f"the chain refused: {sentence} ({name})" if name else f"the chain refused: {sentence}")
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


def _sentence(name: str, values: dict[str, str]) -> str:
    if name in _SENTENCES:
        return _SENTENCES[name].format(**values)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    return f"{words}: " + ", ".join(f"{key} {value}" for key, value in values.items()) if values else words


def _readable(value: Any) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
