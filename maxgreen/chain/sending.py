"""Sending a transaction until it is in a block: one in flight for each account, its fee raised at the same nonce.

A process may end at any instant. What it left in the pool is replaced by the next transaction of the account, which
takes the same nonce; who sends looks at the chain first, so what was replaced is asked for again, and nothing twice.
"""

import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.exceptions import TransactionNotFound

from maxgreen.chain.explain import refusal
from maxgreen.errors import Retryable

_LOG: Final = logging.getLogger(__name__)
RAISE_AFTER_S: Final = 45.0  # in the pool, before its fee is raised
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
_ACCOUNT_WAIT_S: Final = 120.0
_TAKEN_AGAIN: Final = 20  # times that another process may take the nonce first
_DEAR: Final = 40  # raises by a quarter: 7,500 times the first fee
_LATER_S: Final = 3.0  # for the receipt of a nonce that is used
_PRIORITY_WEI: Final = 10**9
_KNOWN: Final = re.compile("already known|already imported|known transaction", re.IGNORECASE)
_UNDERPRICED: Final = re.compile("underpriced|fee too low|max fee per gas less than", re.IGNORECASE)
_USED: Final = re.compile("nonce too low|nonce is too low|invalid nonce|nonce .* too low", re.IGNORECASE)
Fields = dict[str, Any]


class NonceTakenError(Exception):
    """Another process used the account's nonce: whether ours is still wanted is to be asked again."""


class Sender:
    """Sends the transactions of a chain that has a pool."""

    def __init__(self, web3: Web3, ask: Callable[[Callable[[], Any]], Any], locks: Path | None = None) -> None:
        """`ask` answers a question to the chain, or raises Retryable or ChainRefusedError."""
        self._web3 = web3
        self._ask = ask
        self._locks = locks or Path(tempfile.gettempdir())

    def send(self, account: LocalAccount, build: Callable[[Fields], Fields], purpose: str, *, timeout_s: float) -> Any:
        """Send what `build` makes of nonce and fees, and return its receipt; ChainRefusedError when it would revert.

        Retryable when it is in no block after `timeout_s`: the next call replaces it.
        """
        chain_id = self._ask(lambda: int(self._web3.eth.chain_id))
        with self._alone(chain_id, account.address):
            for _ in range(_TAKEN_AGAIN):
                try:
                    return self._once(account, build, purpose, chain_id, timeout_s)
                except NonceTakenError:
                    _LOG.info("%s: another process used account %s meanwhile; looking again", purpose, account.address)
        raise Retryable(f"{purpose}: other processes keep using account {account.address}; give each its own")

    def _once(
        self, account: LocalAccount, build: Callable[[Fields], Fields], purpose: str, chain_id: int, timeout_s: float
    ) -> Any:
        nonce = self._nonce(account.address)
        priority, most = self._fees()
        fields = build({"from": account.address, "nonce": nonce, "chainId": chain_id})
        deadline, pause_s = time.monotonic() + timeout_s, _FIRST_PAUSE_S
        versions: list[bytes] = []
        raised = 0
        while True:
            fields |= {"maxPriorityFeePerGas": priority, "maxFeePerGas": most}
            dear = self._put(account, fields, versions)
            raise_at = time.monotonic() + RAISE_AFTER_S
            while not dear and time.monotonic() < min(raise_at, deadline):
                receipt = self._receipt(versions)
                if receipt is not None:
                    return receipt
                if self._nonce(account.address) > nonce:
                    return self._late_receipt(versions)
                time.sleep(pause_s)
                pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
            if time.monotonic() >= deadline or raised >= _DEAR:
                raise Retryable(
                    f"{purpose}: transaction 0x{versions[-1].hex()} is in no block yet, at {most} wei a gas; "
                    "run it again: the fee is raised, nothing is done twice"
                )
            raised += 1
            base_priority, base_most = self._fees()
            priority, most = max(priority * 5 // 4 + 1, base_priority), max(most * 5 // 4 + 1, base_most)

    def _put(self, account: LocalAccount, fields: Fields, versions: list[bytes]) -> bool:
        """Put a transaction into the pool; True when one of this nonce is there that pays as much."""
        signed = account.sign_transaction(fields)
        digest = bytes(signed.hash)
        if digest not in versions:
            versions.append(digest)
        try:
            said = bytes(self._web3.eth.send_raw_transaction(signed.raw_transaction))
        except Exception as error:
            text = str(error)
            if _KNOWN.search(text):
                return False
            if _USED.search(text):
                if self._receipt(versions) is None:
                    raise NonceTakenError from error
                return False
            if _UNDERPRICED.search(text):
                return True
            refused = refusal(error)
            if refused is not None:
                raise refused from error
            _LOG.warning("the chain's RPC did not say whether it took a transaction: %s", error)
            return False
        if said != digest:
            raise Retryable(f"the chain's RPC answers another transaction, 0x{said.hex()}, than it was given")
        return False

    def _receipt(self, versions: list[bytes]) -> Any:
        """Return the receipt of the version that is in a block, if one is."""
        for digest in versions:
            try:
                receipt = self._web3.eth.get_transaction_receipt(digest)  # type: ignore[arg-type]
                if bytes(receipt["transactionHash"]) == digest and int(receipt["status"]) in {0, 1}:
                    return receipt
            except TransactionNotFound:
                continue
            except Exception as error:  # noqa: BLE001 - whatever the RPC answers, it is asked again
                _LOG.debug("no receipt: %s", error)
        return None

    def _late_receipt(self, versions: list[bytes]) -> Any:
        """Return the receipt of a nonce that is used; NonceTakenError when it was not one of these that used it."""
        deadline = time.monotonic() + _LATER_S
        while (receipt := self._receipt(versions)) is None:
            if time.monotonic() >= deadline:
                raise NonceTakenError
            time.sleep(_FIRST_PAUSE_S)
        return receipt

    def _nonce(self, address: str) -> int:
        return int(self._ask(lambda: int(self._web3.eth.get_transaction_count(Web3.to_checksum_address(address)))))

    def _fees(self) -> tuple[int, int]:
        """Return priority fee and fee limit, wei a gas: twice the base fee covers six full blocks (EIP-1559)."""
        base = self._ask(lambda: int(self._web3.eth.get_block("latest")["baseFeePerGas"]))
        try:
            priority = int(self._web3.eth.max_priority_fee)
        except Exception:  # noqa: BLE001 - not every RPC has it
            priority = _PRIORITY_WEI
        return priority, 2 * base + priority

    @contextmanager
    def _alone(self, chain_id: int, address: str) -> Iterator[None]:
        """Keep other processes of this machine's user from the account."""
        path = self._locks / f"maxgreen-{os.getuid()}-{chain_id}-{address.lower()}.lock"
        with path.open("a") as lock:
            deadline = time.monotonic() + _ACCOUNT_WAIT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() >= deadline:
                        raise Retryable(f"another process has used account {address} for long") from None
                    time.sleep(0.1)
            yield
