"""Drafts become signed batches in the spool, in order, some at a time (P-BAT-2, P-BAT-3).

While the key does not sign or the medium takes nothing, drafts wait in memory; nothing of them was sent, so nothing is
lost but by a power cut. What was signed once is written as it was signed.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from edge_agent.batch_builder import attested, build
from edge_agent.chain_tip import ChainTip
from edge_agent.draft import Draft
from edge_agent.spool import MediumError, Spool
from maxgreen.errors import Retryable
from maxgreen.protocol.batch import Batch, Birth, Health, Work, sign_batch
from maxgreen.protocol.keys import Signer

_MOST_TICKS: Final = 100_000  # in memory: a day at 1 Hz
_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    draft: Draft
    harvested: bool = False
    work: Work | None = None
    signed: tuple[bytes, ChainTip, Batch] | None = None


class Outbox:
    """Signs and writes what the cutter gives it; the one writer of batches."""

    def __init__(
        self,
        spool: Spool,
        signer: Signer,
        network: str,
        birth: Birth,
        *,
        harvest: Callable[[bytes], Work | None],
        health: Callable[[], Health | None] = lambda: None,
        sealed: Callable[[Batch], None] = lambda _batch: None,
    ) -> None:
        """`harvest(prev)` returns the shares found for the batch that follows `prev`; `sealed` hears of each batch."""
        self._spool = spool
        self._signer = signer
        self._network = network
        self._birth = birth
        self._harvest = harvest
        self._health = health
        self._sealed = sealed
        self._waiting: deque[_Waiting] = deque()
        self._ticks = 0
        self.lost_ticks = 0  # rounds of readings that memory had no room for
        self.key_fault = ""
        self.medium_fault = ""

    @property
    def waiting_ticks(self) -> int:
        """How many rounds of readings wait in memory for key or medium."""
        return self._ticks

    def add(self, draft: Draft) -> None:
        """Take a draft; when memory is full the oldest goes: a gap, and the meter counts it as one."""
        self._waiting.append(_Waiting(draft))
        self._ticks += len(draft.ticks)
        while self._ticks > _MOST_TICKS and len(self._waiting) > 2:
            oldest = self._waiting[1]  # the first may be signed
            del self._waiting[1]
            self._ticks -= len(oldest.draft.ticks)
            self.lost_ticks += len(oldest.draft.ticks)

    def work(self, most: int) -> bool:
        """Sign and write up to `most` drafts; False when some wait for key or medium."""
        for _ in range(most):
            if not self._waiting:
                break
            first = self._waiting[0]
            if first.signed is None and not self._sign(first):
                return False
            if first.signed is None or not self._write(*first.signed):
                return False
            self._waiting.popleft()
            self._ticks -= len(first.draft.ticks)
        return True

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def _sign(self, waiting: _Waiting) -> bool:
        tip = self._spool.tip
        if not waiting.harvested:  # shares are found for one batch; they are kept until it is signed
            waiting.work, waiting.harvested = self._harvest(tip.head), True
        batch, after = build(
            waiting.draft,
            tip,
            self._birth,
            work=waiting.work,
            health=self._health(),
            predecessor=self._spool.predecessor,
        )
        try:
            if waiting.draft.attesting:
                batch = attested(batch, self._signer, self._network)
            message = sign_batch(batch, self._signer, self._network)
        except Retryable as error:
            if not self.key_fault:
                _LOG.error("signing key: %s; readings wait in memory", error)
            self.key_fault = str(error)
            return False
        if self.key_fault:
            _LOG.warning("signing key: it signs again")
        self.key_fault = ""
        waiting.signed = message, replace(after, head=hashlib.sha256(message).digest()), batch
        return True

    def _write(self, message: bytes, tip: ChainTip, batch: Batch) -> bool:
        try:
            self._spool.append(message, tip)
        except MediumError as error:
            if not self.medium_fault:
                _LOG.error("%s; readings wait in memory", error)
            self.medium_fault = str(error)
            return False
        if self.medium_fault:
            _LOG.warning("spool: batches are written again")
        self.medium_fault = ""
        self._sealed(batch)
        return True
