"""A run: what all lines of a period come to; its SHA-256 and the root over its claims are what the DAO votes on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from maxgreen.chain.merkle import LINE_LEAF, MerkleTree
from maxgreen.chain.orders import Claim
from maxgreen.protocol.pack import RUN, canonical_json
from settlement.inputs import VERSION
from settlement.shapes import RUN_SHAPE, read_shape


@dataclass(frozen=True)
class Run:
    """A closed period: run.json, which is public, and the claims of the lines that have something to be paid."""

    document: Mapping[str, Any]
    claims: tuple[Claim, ...]  # by line, with their proofs

    @cached_property
    def data(self) -> bytes:
        """The bytes of run.json."""
        return canonical_json(self.document)

    @property
    def digest(self) -> bytes:
        """Its SHA-256, which the order stores."""
        return hashlib.sha256(self.data).digest()

    @property
    def period(self) -> str:
        """YYYY-MM, or YYYY-MM-DD."""
        return str(self.document["period"])

    @property
    def until_s(self) -> int:
        """When it ends, unix s."""
        return int(self.document["until"])

    @property
    def root(self) -> bytes:
        """The root over the claims' leaves."""
        return bytes.fromhex(self.document["root"])

    @property
    def total_mws(self) -> int:
        """What the lines are due or were paid since they opened, all together."""
        return int(self.document["total_mws"])

    @property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """The lines' statements, each with the SHA-256 of its manifest, by line."""
        lines: list[Mapping[str, Any]] = self.document["lines"]
        return lines

    @cached_property
    def by_line(self) -> Mapping[str, Mapping[str, Any]]:
        """The lines' statements by the line's id in hex."""
        return {one["line"]: one for one in self.lines}


def make_run(
    network: str,
    period: str,
    until_s: int,
    previous: bytes | None,
    lines: Sequence[Mapping[str, Any]],
    claims: Sequence[Claim],
    *,
    revision: int = 0,
) -> Run:
    """Return the run of these lines; `lines` are statements with manifests, `claims` have no proofs yet.

    `revision`: how often the period was closed before.
    """
    lines = sorted(lines, key=lambda line: line["line"])
    claims = sorted(claims, key=lambda claim: claim.line)
    tree = MerkleTree.of(LINE_LEAF, [claim.leaf(until_s) for claim in claims])
    document = {
        "version": VERSION,
        "network": network,
        "period": period,
        "until": until_s,
        "revision": revision,
        "previous": previous.hex() if previous else None,
        "lines": list(lines),
        "root": tree.root.hex() if claims else None,
        "count": len(claims),
        "total_mws": str(total_of(lines)),
    }
    return Run(document, tuple(replace(claim, proof=tuple(tree.proof(k))) for k, claim in enumerate(claims)))


def total_of(lines: Sequence[Mapping[str, Any]]) -> int:
    """Return the larger of due and paid of each line, added up."""
    return sum(max(int(line["payable_total_mws"]), int(line["paid_before_mws"])) for line in lines)


def read_run(entries: Mapping[str, bytes]) -> Run:
    """Return the run of a pack, without claims; PackError unless run.json has its shape."""
    return Run(read_shape(entries, RUN, RUN_SHAPE), ())
