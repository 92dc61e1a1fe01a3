"""OpenZeppelin's standard Merkle tree: double-hashed leaves, sorted pairs, so that contracts can check proofs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_abi.abi import encode as abi_encode
from eth_utils import keccak

BATCH_LEAF: Final = ("bytes32",)
# end of the period, line, registers of both cuts, payableTotal, manifest, times of both cuts (settlement.md, 7)
LINE_LEAF: Final = ("uint64", "bytes32", "uint256", "uint256", "uint256", "bytes32", "uint64", "uint64")
EMPTY_ROOT: Final = bytes(32)


def leaf_hash(types: Sequence[str], values: Sequence[Any]) -> bytes:
    """Return keccak256(keccak256(abi.encode(values)))."""
    return bytes(keccak(keccak(abi_encode(list(types), list(values)))))


@dataclass(frozen=True, slots=True)
class MerkleTree:
    """A tree over leaves in any order; `nodes` is the array form, the root first."""

    nodes: tuple[bytes, ...]
    positions: tuple[int, ...]

    @classmethod
    def of(cls, types: Sequence[str], leaves: Sequence[Sequence[Any]]) -> "MerkleTree":
        """Build the tree; without leaves its root is 32 zero bytes."""
        hashed = [(leaf_hash(types, values), index) for index, values in enumerate(leaves)]
        if not hashed:
            return cls((EMPTY_ROOT,), ())
        hashed.sort()
        size = 2 * len(hashed) - 1
        nodes = [b""] * size
        positions = [0] * len(hashed)
        for order, (digest, index) in enumerate(hashed):
            nodes[size - 1 - order] = digest
            positions[index] = size - 1 - order
        for k in range(size - 1 - len(hashed), -1, -1):
            nodes[k] = _pair(nodes[2 * k + 1], nodes[2 * k + 2])
        return cls(tuple(nodes), tuple(positions))

    @property
    def root(self) -> bytes:
        """The root, 32 bytes."""
        return self.nodes[0]

    def proof(self, index: int) -> list[bytes]:
        """Return the siblings from the leaf up to the root."""
        position, siblings = self.positions[index], []
        while position:
            siblings.append(self.nodes[position + 1 if position % 2 else position - 1])
            position = (position - 1) // 2
        return siblings


def root_of(leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the root that a leaf's hash and its proof lead to."""
    for sibling in proof:
        leaf = _pair(leaf, sibling)
    return leaf


def _pair(a: bytes, b: bytes) -> bytes:
    return bytes(keccak(min(a, b) + max(a, b)))
