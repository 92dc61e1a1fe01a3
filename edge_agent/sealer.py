"""From readings to signed batches in the spool: what waits for a date, where a batch is cut, and that it is written.

tick ─▶ Cutter.observe ─▶ Undated ─▶ Cutter.add ─▶ drafts ─▶ Outbox ─▶ Spool
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from edge_agent.chain_tip import ChainTip
from edge_agent.cutter import Cutter
from edge_agent.draft import Draft, Happening
from edge_agent.outbox import Outbox
from edge_agent.source import Tick
from edge_agent.spool import Spool
from edge_agent.undated import Reading, Undated
from maxgreen.protocol.batch import Batch, Birth, EventKind, Health, Work
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.reasons import Refusal

_AT_ONCE: Final = 8  # batches written in one call: a slow medium must not keep relay, network and watchdog waiting
_STOP_S: Final = 10.0


class Sealer:
    """Seals the ticks of one boot; whatever key and medium do, it takes every tick."""

    def __init__(
        self,
        spool: Spool,
        signer: Signer,
        network: str,
        birth: Birth,
        boot_id: bytes,
        *,
        interval_ms: int,
        seal_ms: int,
        harvest: Callable[[bytes], Work | None],
        health: Callable[[], Health | None] = lambda: None,
        sealed: Callable[[Batch], None] = lambda _batch: None,
    ) -> None:
        """`harvest(prev)` returns the shares found for the batch that follows `prev`; `sealed` hears of each batch."""
        self._spool = spool
        self.outbox = Outbox(spool, signer, network, birth, harvest=harvest, health=health, sealed=sealed)
        self._undated = Undated(spool, boot_id, seal_ms)
        self._interval_ms = interval_ms
        waiting, tip = spool.held(), spool.tip
        own = waiting.pop(boot_id, [])
        for boot, readings in waiting.items():  # an earlier boot's will never have a date
            earlier = Cutter(birth, boot, tip, interval_ms=readings[0][1], seal_ms=seal_ms)
            self._add(earlier, readings)
            self._seal(earlier.cut())
        self._cutter = Cutter(birth, boot_id, tip, interval_ms=own[0][1] if own else interval_ms, seal_ms=seal_ms)
        self._add(self._cutter, self._undated.resume(own))
        self.work()

    @property
    def tip(self) -> ChainTip:
        """The end of the chain that the spool holds."""
        return self._spool.tip

    @property
    def interval_ms(self) -> int:
        """The nominal sampling interval."""
        return self._interval_ms

    @property
    def key_fault(self) -> str:
        """Why the key does not sign; empty when it does."""
        return self.outbox.key_fault

    @property
    def medium_fault(self) -> str:
        """Why the medium takes nothing; empty when it does."""
        return self.outbox.medium_fault or self._undated.medium_fault

    @property
    def stalled(self) -> int:
        """How many rounds of readings wait in memory because nothing can be signed or written."""
        return self.outbox.waiting_ticks

    def take(self, tick: Tick) -> None:
        """Add a round of readings; seals what was open when the tick lies beyond its cut."""
        self._seal(self._cutter.observe(tick))
        ready = self._undated.take(tick, self._interval_ms)
        if not ready and tick.samples:
            self._seal(self._cutter.cut())  # the clock is lost: what has a date is closed
        self._add(self._cutter, ready)
        self.work()

    def event(self, kind: EventKind, boot_ms: int, command: int | None = None, refusal: Refusal | None = None) -> None:
        """Note an event; it closes the batch, with attestations where P-ATT-1 wants them."""
        happening = Happening(kind, boot_ms, command, refusal)
        if not self._undated.event(happening):
            self._seal(self._cutter.event(happening))
        self.work()

    def set_interval(self, interval_ms: int) -> None:
        """Sample at another interval from the next batch on; what waits for a date keeps its own."""
        self._interval_ms = interval_ms
        if self._undated.is_empty:
            self._seal(self._cutter.set_interval(interval_ms))
        self.work()

    def state_birth(self) -> None:
        """State birth and registers in a batch at once (command 2)."""
        self._seal(self._cutter.state_birth())
        self.work()

    def finish_key(self, boot_ms: int, without: Iterable[int] = ()) -> bool:
        """Seal this key's last batch, with its channels attested (event 6); False while it is not written."""
        if self.outbox.is_empty:  # not while key or medium is away: nothing is measured after it
            self._seal(self._cutter.finish(boot_ms, without))
        self.work()
        return self.tip.closed

    def work(self) -> bool:
        """Sign and write some of what waits; False while key or medium does not take it."""
        return self.outbox.work(_AT_ONCE)

    def stop(self) -> None:
        """Seal what is open, with the attestations of a clean stop (P-ATT-1); what waits for a date waits on disk."""
        self._undated.hold()
        for happening in self._undated.rest():
            self._seal(self._cutter.event(happening))
        self._seal(self._cutter.end())
        deadline = time.monotonic() + _STOP_S
        while not self.outbox.is_empty and self.work() and time.monotonic() < deadline:
            pass

    def _add(self, cutter: Cutter, ready: Sequence[Reading | Happening]) -> None:
        for one in ready:
            if isinstance(one, Happening):
                self._seal(cutter.event(one))
                continue
            tick, interval_ms = one
            self._seal(cutter.set_interval(interval_ms))
            self._seal(cutter.add(tick))

    def _seal(self, drafts: list[Draft]) -> None:
        for draft in drafts:
            self.outbox.add(draft)
