"""One client for any EIP-1559 chain: transactions with local keys, refusals as sentences."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.abi import event_abi_to_log_topic
from web3 import HTTPProvider, Web3
from web3.contract.contract import Contract, ContractFunction
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

from maxgreen.chain.artifacts import artifact
from maxgreen.chain.embedded import copy_embedded, open_embedded
from maxgreen.chain.explain import ChainRefusedError, refusal
from maxgreen.clock import Clock
from maxgreen.errors import Fatal, Retryable

RECEIPT_TIMEOUT_S: Final = 180
# A fixed limit keeps the embedded chain from running every transaction many times to estimate it.
EMBEDDED_GAS: Final = 12_000_000


@dataclass(frozen=True, slots=True)
class Block:
    """A block's number, hash and time (unix s)."""

    number: int
    hash: bytes
    time_s: int


class Chain:
    """A connection to a chain."""

    def __init__(self, web3: Web3, *, mine: Callable[[], None] | None = None) -> None:
        """Take a web3; `mine` makes a block on a chain that has none of its own accord."""
        self.web3 = web3
        self._mine = mine
        self._lock = threading.RLock()  # py-evm is not made for threads, and a nonce is used once

    @property
    def chain_id(self) -> int:
        """The chain's id (EIP-155)."""
        return int(self._asked(lambda: self.web3.eth.chain_id))

    def newest_block(self, *, fresh: bool = False) -> Block:
        """Return the newest block; `fresh` asks the embedded chain to mine one first."""
        if fresh and self._mine is not None:
            self._asked(self._mine)
        return self.block("latest")

    def block(self, which: Any) -> Block:
        """Return a block by number or name."""
        block = self._asked(lambda: self.web3.eth.get_block(which))
        return Block(int(block["number"]), bytes(block["hash"]), int(block["timestamp"]))

    def contract(self, name: str, address: str) -> Contract:
        """Return a deployed contract of ours."""
        return self.web3.eth.contract(address=Web3.to_checksum_address(address), abi=artifact(name)["abi"])

    def call(self, function: ContractFunction) -> Any:
        """Return what a view function answers; ChainRefusedError when it reverts."""
        return self._asked(function.call)

    def deploy(self, account: LocalAccount, name: str, *arguments: Any) -> Contract:
        """Deploy a contract and return it."""
        factory = self.web3.eth.contract(abi=artifact(name)["abi"], bytecode=artifact(name)["bytecode"])
        receipt = self._send(account, factory.constructor(*arguments))
        return self.contract(name, receipt["contractAddress"])

    def transact(self, account: LocalAccount, function: ContractFunction) -> Any:
        """Send a transaction, wait for its receipt and return it; ChainRefusedError when it reverts."""
        return self._send(account, function)

    def events(self, event: Any, block: int) -> list[Any]:
        """Return a contract's events in one block."""
        return list(self._asked(lambda: event.get_logs(from_block=block, to_block=block)))

    def all_events(self, contract: Contract, from_block: int, to_block: int) -> list[Any]:
        """Return all events of a contract in some blocks, decoded; what its ABI does not know is left out."""
        logs = self._asked(
            lambda: self.web3.eth.get_logs({"address": contract.address, "fromBlock": from_block, "toBlock": to_block})
        )
        known = {bytes(event_abi_to_log_topic(event.abi)): event for event in contract.all_events()}
        named = [(known.get(bytes(log["topics"][0])), log) for log in logs if log["topics"]]
        return [event.process_log(log) for event, log in named if event is not None]

    def _send(self, account: LocalAccount, function: Any) -> Any:
        def send() -> Any:
            fields: dict[str, Any] = {
                "from": account.address,
                "nonce": self.web3.eth.get_transaction_count(account.address),
                "chainId": self.web3.eth.chain_id,
            }
            # the embedded chain's estimates are made at the machine's time, not at its clock's
            embedded = _is_embedded(self.web3)
            if embedded:
                fields["gas"] = EMBEDDED_GAS
            transaction = function.build_transaction(fields)
            if not embedded:  # an estimate is exact for the block before; leave room for the next
                transaction["gas"] = transaction["gas"] * 6 // 5
            signed = account.sign_transaction(transaction)
            digest = self.web3.eth.send_raw_transaction(signed.raw_transaction)
            return self.web3.eth.wait_for_transaction_receipt(digest, timeout=RECEIPT_TIMEOUT_S)

        receipt = self._asked(send)
        if receipt["status"] != 1:
            if isinstance(function, ContractFunction):
                self._asked(lambda: function.call({"from": account.address}))
            raise ChainRefusedError("", f"transaction {receipt['transactionHash'].hex()} failed")
        return receipt

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            with self._lock:
                return ask()
        except Exception as error:
            refused = refusal(error)
            if refused is not None:
                raise refused from error
            if isinstance(error, (OSError, Web3Exception)):
                raise Retryable(f"the chain does not answer: {error}") from error
            raise


def connect(where: str, clock: Clock) -> Chain:
    """Connect to a JSON-RPC URL, or open the embedded chain that a file keeps."""
    if where.startswith(("http://", "https://")):
        served = Web3(HTTPProvider(where, request_kwargs={"timeout": 30}))
        return Chain(served, mine=lambda: _mine_if_embedded(served))
    web3 = open_embedded(Path(where), clock)
    return Chain(web3, mine=web3.provider.ethereum_tester.mine_block)  # type: ignore[attr-defined]


def connect_to_read(where: str, clock: Clock) -> Chain:
    """Connect to a JSON-RPC URL, or to a copy of an embedded chain as its file has it now."""
    if where.startswith(("http://", "https://")):
        return connect(where, clock)
    return Chain(copy_embedded(Path(where), clock), mine=lambda: None)


def _mine_if_embedded(web3: Web3) -> None:
    """Ask for a block where the embedded chain is served (`maxgreen chain run`); other chains make their own."""
    if _is_embedded(web3):
        web3.provider.make_request(RPCEndpoint("evm_mine"), [])


def _is_embedded(web3: Web3) -> bool:
    return web3.client_version.startswith("EthereumTester")


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
