"""The embedded chain: py-evm in this process, kept in one SQLite file.

It has the P-256 precompile at 0x100 (EIP-7951), and its block times are the given clock's.
A block is committed whole or not at all, so the process may be killed at any instant.
"""

import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from eth.chains.base import MiningChain
from eth.db.atomic import AtomicDB
from eth.db.backends.base import BaseDB
from eth.vm.forks.prague import PragueVM
from eth.vm.forks.prague.computation import PRAGUE_PRECOMPILES, PragueComputation
from eth.vm.forks.prague.state import PragueState
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.backends.pyevm.main import (
    generate_genesis_state_for_keys,
    get_default_account_keys,
    get_default_genesis_params,
)
from web3 import EthereumTesterProvider, Web3

from maxgreen.clock import Clock
from maxgreen.errors import Fatal

CHAIN_ID: Final = 131277322940537  # eth-tester's
P256_GAS: Final = 6_900
_P256_ADDRESS: Final = (0x100).to_bytes(20, "big")
_GENESIS_GAS_LIMIT: Final = 60_000_000


def open_embedded(path: Path | None, clock: Clock) -> Web3:
    """Open (or begin, at the clock's time) the chain in a file; None keeps it in memory. Fatal when it is in use."""
    return _open(_SqliteDB(path), clock)


def copy_embedded(path: Path, clock: Clock) -> Web3:
    """Read the chain in a file up to its last whole block, also while another process writes it."""
    database = _SqliteDB(None)
    database.fill_from(path)
    return _open(database, clock)


def _open(database: "_SqliteDB", clock: Clock) -> Web3:
    return Web3(EthereumTesterProvider(EthereumTester(_Backend(database, clock))))


def dev_secret(index: int) -> bytes:
    """Return the secret of one of the embedded chain's ten funded accounts: known to everybody."""
    if not 0 <= index < 10:
        raise ValueError("the embedded chain has ten accounts")
    return (index + 1).to_bytes(32, "big")


def _p256verify(computation: Any) -> Any:
    """EIP-7951: hash ‖ r ‖ s ‖ x ‖ y → 1, or nothing."""
    computation.consume_gas(P256_GAS, reason="P256VERIFY")
    data = bytes(computation.msg.data)
    computation.output = b""
    if len(data) == 160:
        digest, r, s, x, y = (data[k : k + 32] for k in range(0, 160, 32))
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)
            signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
            key.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
            computation.output = (1).to_bytes(32, "big")
        except (ValueError, InvalidSignature):
            pass
    return computation


class _Computation(PragueComputation):  # type: ignore[misc]
    _precompiles = {**PRAGUE_PRECOMPILES, _P256_ADDRESS: _p256verify}  # noqa: RUF012


class _State(PragueState):  # type: ignore[misc]
    computation_class = _Computation


class _VM(PragueVM):  # type: ignore[misc]
    _state_class = _State


class _SqliteDB(BaseDB):  # type: ignore[misc]
    """py-evm's key/value store in one SQLite transaction per block."""

    def __init__(self, path: Path | None) -> None:
        try:
            self._connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise Fatal(
                f"chain file {path}: {error}; name a URL (http://…), or a file in a folder that is there"
            ) from error
        weakref.finalize(self, self._connection.close)  # at the process's end too: then all of it is in one file
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID"
            )
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            raise Fatal(
                f"chain file {path}: {error}; one process opens it: 'maxgreen chain run' serves it to several"
            ) from error

    def fill_from(self, path: Path) -> None:
        """Take over what a file has committed."""
        self._connection.execute("COMMIT")
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source:
                source.backup(self._connection)
        except sqlite3.Error as error:
            raise Fatal(f"chain file {path}: {error}; it is not the file of an embedded chain") from error
        self._connection.execute("BEGIN IMMEDIATE")

    def close(self) -> None:
        self._connection.close()

    def commit(self) -> None:
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")

    def __getitem__(self, key: bytes) -> bytes:
        row = self._connection.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return bytes(row[0])

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._connection.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def _exists(self, key: bytes) -> bool:
        return self._connection.execute("SELECT 1 FROM kv WHERE k = ?", (key,)).fetchone() is not None

    def __delitem__(self, key: bytes) -> None:
        if not self._connection.execute("DELETE FROM kv WHERE k = ?", (key,)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        return (bytes(row[0]) for row in self._connection.execute("SELECT k FROM kv"))

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM kv").fetchone()[0])


class _Backend(PyEVMBackend):  # type: ignore[misc]
    """eth-tester's backend over the SQLite store and the given clock."""

    def __init__(self, database: _SqliteDB, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        super().__init__()

    def reset_to_genesis(self, *_arguments: Any, **_names: Any) -> None:
        clock = self._clock

        class Chain(MiningChain):  # type: ignore[misc]
            chain_id = CHAIN_ID
            vm_configuration = ((0, _VM),)

            def create_header_from_parent(self, parent_header: Any, **header: Any) -> Any:
                header.setdefault("gas_limit", parent_header.gas_limit)
                header.setdefault("timestamp", max(parent_header.timestamp + 1, clock.now_ms() // 1000))
                return super().create_header_from_parent(parent_header, **header)

            def get_transaction_builder(self) -> Any:
                return super().get_vm().get_transaction_builder()

        self.account_keys = get_default_account_keys()
        base = AtomicDB(self._db)
        if len(self._db):
            self.chain = Chain(base)
            return
        parameters = get_default_genesis_params({"timestamp": clock.now_ms() // 1000, "gas_limit": _GENESIS_GAS_LIMIT})
        self.chain = Chain.from_genesis(base, parameters, generate_genesis_state_for_keys(self.account_keys))
        self._db.commit()

    def mine_blocks(self, *arguments: Any, **names: Any) -> Any:
        if not self.chain.get_block().transactions:
            self._tick()
        mined = super().mine_blocks(*arguments, **names)
        self._db.commit()
        return mined

    def send_transaction(self, transaction: Any) -> Any:
        self._tick()
        return super().send_transaction(transaction)

    def send_raw_transaction(self, raw_transaction: Any) -> Any:
        self._tick()
        return super().send_raw_transaction(raw_transaction)

    def _tick(self) -> None:
        """Let the pending block's time be the clock's."""
        now_s = self._clock.now_ms() // 1000
        if now_s > self.chain.header.timestamp:
            self.chain.set_header_timestamp(now_s)
