"""The desk: what a group of messages is judged against, read at once, and what is to be written, written at once.

Judging itself touches no database: it reads and changes the desk in memory. `ledger.writing` compares the version of
every chain that was read with the one that is there: where another process was first, nothing is written, and the group
is read and judged again. So two workers, or a worker and a decision, never overwrite each other, on either database.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from maxgreen.protocol.reasons import Reason, Rejected, Verdict
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import DeviceRecord
from maxgreen.verify.sums import Sums
from maxgreen.verify.verdict import Judgement

NOBODY: Final = b""


class Due(IntEnum):
    """What a chain waits for that nobody sends."""

    NOTHING = 0
    MORE = 1  # some of what waits can take its place, or get a date, now
    DECIDED = 2  # a decision may let it go on
    CONTINUED = 3  # so may one to continue after a halt


@dataclass(slots=True)
class Chain:
    """One device's chain on the desk."""

    record: DeviceRecord
    state: ChainState
    version: int = 0  # 0: no row yet
    waiting: int = 0
    waiting_bytes: int = 0
    due: Due = Due.NOTHING
    credited: dict[int, int] = field(default_factory=dict)  # hashes by proof window, the newest ones
    rejection: bytes | None = None  # what receipts tell of the DAO's no
    changed: bool = False

    @property
    def device(self) -> bytes:
        """The device id."""
        return self.record.device


class Kept(NamedTuple):
    """A batch as the ledger keeps it."""

    seq: int
    message: bytes
    received_ms: int
    reason: Reason
    state_before: bytes | None = None
    skipped_to: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A batch that is new to the ledger: with its judgement in the chain, or without one ahead of it."""

    device: bytes
    seq: int
    digest: bytes
    message: bytes
    received_ms: int
    judgement: Judgement | None
    state_before: bytes | None
    reason: Reason = Reason.GAP_BEFORE  # of one that waits


@dataclass(frozen=True, slots=True)
class Evidence:
    """A message that was rejected before it took a place."""

    error: Rejected
    topic: str
    message: bytes
    received_ms: int
    device: bytes
    seq: int | None


class Fate(NamedTuple):
    """What a device says in a batch of a command (P-CMD-2)."""

    device: bytes
    number: int
    refusal: int | None  # None: obeyed
    told_ms: int


@dataclass(slots=True)
class Desk:
    """The chains of a group's devices, what is kept under the seqs that it names, and what it changes."""

    chains: dict[bytes, Chain] = field(default_factory=dict)
    kept: dict[tuple[bytes, int], bytes] = field(default_factory=dict)  # SHA-256 by place
    rows: dict[tuple[bytes, int], Row] = field(default_factory=dict)
    judged: dict[tuple[bytes, int], tuple[Judgement, bytes | None]] = field(default_factory=dict)
    removed: dict[tuple[bytes, int], Reason] = field(default_factory=dict)  # and for what they waited
    evidence: list[Evidence] = field(default_factory=list)
    receipts: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # device, server time, message
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    fates: list[Fate] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)  # what is to be added to the ledger's
    rules_change: int | None = None  # of the rules that it was judged by

    def add(self, row: Row) -> None:
        """Keep a new batch."""
        place = (row.device, row.seq)
        self.rows[place] = row
        self.kept[place] = row.digest
        self.counts[_counted(row.judgement, row.reason)] += 1
        if row.judgement is not None:
            self.sums.add(row.device, row.judgement)

    def judge(
        self, device: bytes, was: Reason, judgement: Judgement, state_before: bytes | None, *, reinstated: bool = False
    ) -> None:
        """Give a batch that is held its place, or its verdict; `was` is the reason for which it was held.

        `reinstated`: it had its place already, and was held there since its device is suspended.
        """
        place = (device, judgement.seq)
        row = self.rows.get(place)
        self.counts[Verdict.HELD.value, int(was)] -= 1
        self.counts[_counted(judgement, Reason.NONE)] += 1
        self.sums.add(device, judgement, reinstated=reinstated)
        if row is None:
            self.judged[place] = (judgement, state_before)
        else:
            self.rows[place] = Row(
                row.device, row.seq, row.digest, row.message, row.received_ms, judgement, state_before
            )

    def remove(self, device: bytes, seq: int, was: Reason) -> None:
        """Take a batch that waits out of its place."""
        place = (device, seq)
        self.counts[Verdict.HELD.value, int(was)] -= 1
        self.kept.pop(place, None)
        if self.rows.pop(place, None) is None:
            self.removed[place] = was

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is to be written."""
        return not (self.rows or self.judged or self.removed or self.evidence or self.receipts or self.changed())

    def changed(self) -> list[Chain]:
        """Return the chains that are to be written, by device."""
        return sorted((chain for chain in self.chains.values() if chain.changed), key=lambda chain: chain.device)


def _counted(judgement: Judgement | None, reason: Reason) -> tuple[str, int]:
    if judgement is None:
        return Verdict.HELD.value, int(reason)
    return judgement.verdict.value, int(judgement.reason)
