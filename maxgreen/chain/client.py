"""One client for any EIP-1559 chain: transactions with local keys, refusals as sentences."""

import copy
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from eth_abi.codec import ABICodec
from eth_abi.decoding import StringDecoder
from eth_abi.registry import ABIRegistry, BaseEquals
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.abi import event_abi_to_log_topic
from hexbytes import HexBytes
from requests.exceptions import HTTPError, RequestException, Timeout
from web3 import HTTPProvider, Web3
from web3._utils.abi import build_strict_registry
from web3.contract.contract import Contract, ContractFunction
from web3.exceptions import TransactionNotFound, Web3Exception, Web3RPCError
from web3.types import RPCEndpoint

from maxgreen.chain.artifacts import artifact
from maxgreen.chain.explain import NO_FUNDS, ChainRefusedError, refusal
from maxgreen.chain.sending import Sender
from maxgreen.clock import Clock
from maxgreen.errors import Fatal, MaxgreenError, Retryable
from maxgreen.protocol.keys import MemorySigner, public_point

_LOG: Final = logging.getLogger(__name__)
RECEIPT_TIMEOUT_S = 180.0
LOCAL_CHAINS: Final = frozenset({1337, 31337})
FINAL_DEPTH: Final = 64  # blocks, where a chain names none that is final
ANSWER_S = 20.0  # for one question, all attempts together
CONNECT_S: Final = 5.0
SILENT_S: Final = 10.0
LOG_SPAN: Final = 10_000  # blocks whose events are asked for at once
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 4.0
_SHOWN: Final = 200
P256_ADDRESS: Final = Web3.to_checksum_address("0x" + "100".rjust(40, "0"))
_FUNDED: Final = str(Account.from_key((1).to_bytes(32, "big")).address)  # embedded.dev_secret(0)
_NO_FEES: Final = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
# A fixed limit keeps the embedded chain from running every transaction many times to estimate it.
_STRANGERS_GAS: Final = 1_000_000
EMBEDDED_GAS: Final = 12_000_000


class NothingSentError(MaxgreenError):
    """A transaction would be sent, and was not: a dry run, or somebody else's wallet signs it."""

    def __init__(self, function: ContractFunction, sender: str) -> None:
        super().__init__(f"{function.fn_name}{function.args} to {function.address} by {sender}")
        self.to = str(function.address)
        self.name = str(function.fn_name)
        self.data = bytes.fromhex(function._encode_transaction_data()[2:])  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody whose key is elsewhere: an account for questions and for transactions that are only tried."""

    address: str


@dataclass(frozen=True, slots=True)
class Block:
    """A block's number, hash and time (unix s)."""

    number: int
    hash: bytes
    time_s: int


class Chain:
    """A connection to a chain."""

    def __init__(self, web3: Web3, *, mine: Callable[[], None] | None = None, where: str = "") -> None:
        """Take a web3; `mine` makes a block of the embedded chain in this process, `where` is the URL of another."""
        self.web3 = web3
        web3.codec = ABICodec(_strings_of_strangers())
        self._mine = mine
        self._of = f" at {urlsplit(where).hostname}" if where else ""  # a path may hold a key
        self._served: bool | None = None if where else False
        self._lock = threading.RLock()  # py-evm is not made for threads, and a nonce is used once
        self._sender = Sender(web3, self._asked)
        self.rests_s, self._rests_until_s, self._away = 0.0, 0.0, ""
        self.sends = True  # else a transaction is only tried, and NothingSentError says what it would be

    def trying(self, rests_s: float = 0.0) -> "Chain":
        """Return this connection with transactions only tried: NothingSentError says what they would be.

        `rests_s`: so long nothing is asked after the chain did not answer; Retryable says so at once.
        """
        found = copy.copy(self)
        found.sends, found.rests_s = False, rests_s
        return found

    @property
    def embedded(self) -> bool:
        """Whether it is the embedded chain, in this process."""
        return self._mine is not None

    @property
    def chain_id(self) -> int:
        """The chain's id (EIP-155)."""
        return int(self._asked(lambda: int(self.web3.eth.chain_id)))

    def newest_block(self, *, fresh: bool = False) -> Block:
        """Return the newest block; `fresh` asks the embedded chain to mine one first."""
        if fresh:
            if self._mine is not None:
                self._asked(self._mine)
            elif self.is_served:
                self._asked(lambda: self.web3.provider.make_request(RPCEndpoint("evm_mine"), []))
        return self.block("latest")

    @property
    def is_served(self) -> bool:
        """Whether it is an embedded chain that another process serves (`maxgreen chain run`)."""
        if self._served is None:
            self._served = bool(self._asked(lambda: self.web3.client_version.startswith("EthereumTester")))
        return self._served

    @property
    def is_eth_tester(self) -> bool:
        """Whether it is an embedded chain, here or served: its newest block, made when asked for, is of now."""
        return self.embedded or self.is_served

    def is_final(self, block: int) -> bool:
        """Tell whether a block can be taken back no more; on local chains, for trials, every block is final."""
        if self.is_eth_tester or self.chain_id in LOCAL_CHAINS:
            return True
        try:
            return self.block("finalized").number >= block
        except Retryable:  # not every chain finalizes: then depth counts
            return self.newest_block().number >= block + FINAL_DEPTH

    def now_s(self) -> int:
        """Return the time that a transaction would see, unix s: of the block that begins now, where the chain has one.

        A chain that is quiet has made no block for long.
        """
        newest = self.newest_block(fresh=True)
        if self.is_eth_tester:
            return newest.time_s
        try:
            return max(newest.time_s, self.block("pending").time_s)
        except Retryable:
            return newest.time_s

    def block(self, which: Any) -> Block:
        """Return a block by number or name."""

        def ask() -> Block:
            block = self.web3.eth.get_block(which)
            return Block(int(block["number"] or 0), bytes(block["hash"] or b""), int(block["timestamp"]))

        return cast("Block", self._asked(ask))

    def contract(self, name: str, address: str) -> Contract:
        """Return a deployed contract of ours."""
        return self.web3.eth.contract(address=Web3.to_checksum_address(address), abi=artifact(name)["abi"])

    def call(self, function: ContractFunction, *, at: Any = "latest", sender: str | None = None) -> Any:
        """Return what a function would answer in a block, to a sender; ChainRefusedError when it reverts."""
        # the embedded chain would look for an account that can pay, with every call
        asking = sender or (_FUNDED if self.embedded else None)
        options: Any = {"from": asking} if asking is not None else {}
        return self._asked(lambda: function.call(options, block_identifier=at))

    def deploy(self, account: LocalAccount, name: str, *arguments: Any) -> Contract:
        """Deploy a contract and return it."""
        factory = self.web3.eth.contract(abi=artifact(name)["abi"], bytecode=artifact(name)["bytecode"])
        receipt = self._send(account, factory.constructor(*arguments), f"deploy {name}")
        return self.contract(name, receipt["contractAddress"])

    def transact(self, account: LocalAccount, function: ContractFunction) -> Any:
        """Send a transaction, wait for its receipt and return it; ChainRefusedError when it reverts."""
        if not self.sends:
            self.call(function, sender=account.address)
            raise NothingSentError(function, account.address)
        return self._send(account, function, str(function.fn_name))

    def send(self, account: LocalAccount, to: str, data: bytes) -> bytes:
        """Send a call's bytes; return the transaction's hash once it is in a block, whether it failed or not."""
        target: Any = Web3.to_checksum_address(to)
        fields: Any = {
            "from": account.address, "to": target, "data": HexBytes(data), "value": 0, "gas": EMBEDDED_GAS,
            "chainId": self.chain_id,
        }  # fmt: skip

        def step() -> bytes:
            price = self.web3.eth.gas_price
            fields.update(
                nonce=self.web3.eth.get_transaction_count(account.address), maxFeePerGas=2 * price + 10**9,
                maxPriorityFeePerGas=10**9,
            )  # fmt: skip
            sent = self.web3.eth.send_raw_transaction(account.sign_transaction(fields).raw_transaction)
            return bytes(self.web3.eth.wait_for_transaction_receipt(sent)["transactionHash"])

        return bytes(self._asked(step))

    def ask_once(self, to: str, data: bytes) -> bytes:
        """Return what any contract at all answers to some bytes; nothing where it does not, or the chain does not."""
        call: Any = {"to": Web3.to_checksum_address(to), "data": HexBytes(data), "gas": _STRANGERS_GAS}
        try:
            with self._lock:
                return bytes(self.web3.eth.call(call))
        except Exception:  # noqa: BLE001 - it is a stranger's code, and may do what it likes
            return b""

    def receipt(self, transaction: bytes) -> Any | None:
        """Return the receipt of a transaction, or None while it is in no block."""

        def ask() -> Any | None:
            try:
                return self.web3.eth.get_transaction_receipt(HexBytes(transaction))
            except TransactionNotFound:
                return None

        return self._asked(ask)

    def retry(self, transaction: bytes, block: int) -> None:
        """Call what a failed transaction called, before its block and after; ChainRefusedError says why it failed."""

        def ask() -> None:
            sent = self.web3.eth.get_transaction(HexBytes(transaction))
            again: Any = {"from": sent["from"], "to": sent["to"], "data": sent["input"]}
            for at in (block - 1, block):  # what others did in its block may be why, or that it is later
                self.web3.eth.call(again, block_identifier=at)

        self._asked(ask)

    def gas_price(self) -> int:
        """Return what a unit of gas costs about now, wei."""
        return int(self._asked(lambda: int(self.web3.eth.gas_price)))

    def has_p256(self) -> bool:
        """Tell whether the chain verifies P-256 signatures at 0x100 (EIP-7951)."""
        signer, message = MemorySigner.from_secret(1), b"maxgreen"
        x, y = public_point(signer.spki)
        point = x.to_bytes(32, "big") + y.to_bytes(32, "big")
        data = hashlib.sha256(message).digest() + signer.sign(message) + point
        answer = self._asked(lambda: bytes(self.web3.eth.call({"to": P256_ADDRESS, "data": data})))
        return bool(int.from_bytes(answer, "big") == 1)

    def balance(self, address: str) -> int:
        """Return an account's balance, wei."""
        return int(self._asked(lambda: int(self.web3.eth.get_balance(Web3.to_checksum_address(address)))))

    def code(self, address: str) -> bytes:
        """Return the code at an address; empty where there is no contract."""
        return bytes(self._asked(lambda: bytes(self.web3.eth.get_code(Web3.to_checksum_address(address)))))

    def events(self, event: Any, block: int, until: int | None = None, **where: Any) -> list[Any]:
        """Return a contract's events in one block, or from it until another; `where`: only with these arguments."""
        last, wanted = block if until is None else until, where or None
        return list(self._asked(lambda: event.get_logs(from_block=block, to_block=last, argument_filters=wanted)))

    def all_events(self, contract: Contract, from_block: int, to_block: int, names: Collection[str] = ()) -> list[Any]:
        """Return a contract's events in some blocks, decoded: those of these names, or all that its ABI knows."""
        known = {
            bytes(event_abi_to_log_topic(event.abi)): event
            for event in contract.all_events()
            if not names or event.event_name in names
        }
        topics = {"topics": [[f"0x{topic.hex()}" for topic in known]]} if names else {}
        span: Any = {"address": contract.address, "fromBlock": from_block, "toBlock": to_block, **topics}
        logs = self._asked(lambda: self.web3.eth.get_logs(span))
        named = [(known.get(bytes(log["topics"][0])), log) for log in logs if log["topics"]]
        return [event.process_log(log) for event, log in named if event is not None]

    def _send(self, account: LocalAccount, function: Any, purpose: str) -> Any:
        try:
            if self.embedded:
                receipt = self._asked(lambda: self._send_embedded(account, function))
            else:
                build = partial(self._built, function)
                receipt = self._sender.send(account, build, purpose, timeout_s=RECEIPT_TIMEOUT_S)
        except ChainRefusedError as error:
            if error.name == NO_FUNDS:
                raise ChainRefusedError(
                    NO_FUNDS,
                    f"{purpose}: account {account.address} has {self.balance(account.address)} wei, too little for the "
                    "transaction's gas; send it some of the chain's own currency",
                ) from error
            raise
        if receipt["status"] != 1:
            if isinstance(function, ContractFunction):
                number = int(receipt["blockNumber"])
                for block in (number - 1, number):  # what others did in its block may be why
                    self.call(function, at=block, sender=account.address)
            raise ChainRefusedError("", f"transaction 0x{bytes(receipt['transactionHash']).hex()} failed")
        return receipt

    def _send_embedded(self, account: LocalAccount, function: Any) -> Any:
        """The embedded chain has no pool; a fixed limit, as its estimates are made at the machine's time."""
        nonce = self.web3.eth.get_transaction_count(account.address)
        fields = {"from": account.address, "nonce": nonce, "chainId": self.web3.eth.chain_id, "gas": EMBEDDED_GAS}
        signed = account.sign_transaction(function.build_transaction(fields))
        return self.web3.eth.wait_for_transaction_receipt(self.web3.eth.send_raw_transaction(signed.raw_transaction))

    def _built(self, function: Any, fields: dict[str, Any]) -> dict[str, Any]:
        """Return a transaction with a limit of gas; it is tried in the newest block, and in one that begins now.

        On a chain that is quiet the newest block is of long ago, and what time allows is allowed only now.
        """
        if self.is_served:
            return dict(function.build_transaction({**fields, "gas": EMBEDDED_GAS, **_NO_FEES}))
        sender = {"from": fields["from"]}
        try:
            gas = self._asked(lambda: int(function.estimate_gas(sender, block_identifier="latest")))
        except ChainRefusedError:
            try:
                gas = self._asked(lambda: int(function.estimate_gas(sender, block_identifier="pending")))
            except (ChainRefusedError, Retryable):
                gas = 0
            if not gas:
                raise
        # an estimate is exact for the block before; leave room for the next. The fees are the sender's to set.
        return dict(function.build_transaction({**fields, "gas": gas * 6 // 5, **_NO_FEES}))

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """Return an answer; what is no answer is asked for again for a while, then Retryable says why."""
        if time.monotonic() < self._rests_until_s:
            raise Retryable(self._away)
        try:
            return self._patiently(ask)
        except Retryable as error:
            self._rests_until_s, self._away = time.monotonic() + self.rests_s, str(error)
            raise

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        deadline, pause_s = time.monotonic() + (0.0 if self.embedded else ANSWER_S), _FIRST_PAUSE_S
        while True:
            try:
                with self._lock:
                    return ask()
            except Exception as error:
                refused = refusal(error)
                if refused is not None:
                    raise refused from error
                if isinstance(error, MaxgreenError):
                    raise
                if self.embedded and not isinstance(error, (OSError, Web3Exception)):
                    raise
                if time.monotonic() + pause_s >= deadline:
                    raise Retryable(
                        f"the chain does not answer{self._of}: {_said(error)}; does it run, and is its URL right "
                        "(--rpc, or rpc in the settings)?"
                    ) from error
                _LOG.debug("asked again: %s", _said(error))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _AnyString(StringDecoder):
    """A string of the chain: no contract checks that its bytes are UTF-8, and nobody shall stop readers with others."""

    def __init__(self) -> None:
        super().__init__(handle_string_errors="replace")  # type: ignore[no-untyped-call]


def _strings_of_strangers() -> ABIRegistry:
    registry = build_strict_registry()
    registry.unregister_decoder("string")
    registry.register_decoder(BaseEquals("string"), _AnyString, label="string")  # type: ignore[no-untyped-call]
    return registry


def connect(where: str, clock: Clock) -> Chain:
    """Connect to a JSON-RPC URL, or open the embedded chain that a file keeps."""
    if where.startswith(("http://", "https://")):
        # web3's own retries are off: there is one budget, `Chain`'s
        web3 = Web3(HTTPProvider(where, {"timeout": (CONNECT_S, SILENT_S)}, exception_retry_configuration=None))
        web3.middleware_onion.remove("validation")  # asks for the chain's id with every call; `code.verify` does once
        return Chain(web3, where=where)
    from maxgreen.chain.embedded import open_embedded  # noqa: PLC0415 - py-evm only where it is the chain

    web3 = open_embedded(Path(where), clock)
    return Chain(web3, mine=web3.provider.ethereum_tester.mine_block)  # type: ignore[attr-defined]


def connect_to_read(where: str, clock: Clock) -> Chain:
    """Connect to a JSON-RPC URL, or to a copy of an embedded chain as its file has it now."""
    if where.startswith(("http://", "https://")):
        return connect(where, clock)
    from maxgreen.chain.embedded import copy_embedded  # noqa: PLC0415

    return Chain(copy_embedded(Path(where), clock), mine=lambda: None)


def _said(error: Exception) -> str:
    """Return what an error says, without the page that a proxy may have sent and without a URL's secrets."""
    if isinstance(error, HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, Timeout):
        return f"nothing within {SILENT_S:.0f} s"
    if isinstance(error, RequestException):
        return "no connection"
    if isinstance(error, Web3RPCError) and isinstance(said := (error.rpc_response or {}).get("error"), dict):
        return str(said.get("message", ""))[:_SHOWN]
    return f"an answer that cannot be read ({type(error).__name__}: {error!s:.{_SHOWN}})"


def account_from_file(path: Path) -> LocalAccount:
    """Read a secret key, 64 hex digits, from a file that only its owner can read."""
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except OSError as error:
        raise Fatal(f"account file {path}: {error.strerror}") from error
    if mode & 0o077:
        raise Fatal(f"account file {path}: others can read it; run: chmod 600 {path}")
    try:
        account: LocalAccount = Account.from_key(text)
    except ValueError as error:
        raise Fatal(f"account file {path}: not a secret key of 64 hex digits") from error
    return account
