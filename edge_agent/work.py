"""Mining: beacons in, shares out; a share belongs to one key, one history and one beacon (P-POW-1)."""

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import Final

from maxgreen.protocol.backend import Beacon
from maxgreen.protocol.batch import MAX_NONCES, Work
from maxgreen.protocol.reasons import Rejected
from maxgreen.protocol.work import header_prefix, target_of
from native.scrypt import Miner

_NICE: Final = 19
_RETRY_S: Final = 60.0
_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    """Shares for the batch that follows `prev`."""

    prev: bytes
    beacon: Beacon
    nbits: int
    miner: Miner
    nonces: list[int] = field(default_factory=list)


class Worker:
    """One mining thread of low priority; it never touches sampling (P-POW-5)."""

    def __init__(self, device: bytes, *, nbits: int, duty: float, wait_shares: int = 0, wait_s: float = 60) -> None:
        """`wait_shares`: find so many before a batch is sealed (replays), for at most `wait_s`."""
        self._device = device
        self._nbits = nbits
        self._duty = duty
        self._wait_shares = wait_shares
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._prev: bytes | None = None
        self._beacon: Beacon | None = None
        self._job: _Job | None = None
        self._stopping = False
        self._paused = False
        self._finished_hashes = 0
        self.fault = ""  # why mining failed; empty when it goes on
        self._thread = threading.Thread(target=self._run, name="mining", daemon=True)

    def start(self) -> None:
        """Begin to mine as soon as there is a beacon."""
        self._thread.start()

    def stop(self) -> None:
        """End mining within milliseconds."""
        with self._changed:
            self._stopping = True
            self._abandon()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def duty_permille(self) -> int:
        """The share of one core that mining may use now, ‰."""
        return 0 if self._paused else round(1000 * self._duty)

    @property
    def paused(self) -> bool:
        """Whether mining pauses."""
        return self._paused

    def pause(self, reason: str | None) -> None:
        """Stop mining within milliseconds while there is a reason; None lets it go on. Shares found so far are kept."""
        with self._changed:
            if self._paused == (reason is not None):
                return
            self._paused = reason is not None
            _LOG.info("mining pauses: %s", reason) if reason else _LOG.info("mining goes on")
            if self._paused and self._job is not None:
                self._job.miner.stop()
            self._changed.notify_all()

    @property
    def hashes(self) -> int:
        """Hashes computed since the start."""
        with self._changed:
            return self._finished_hashes + (self._job.miner.hashes if self._job else 0)

    @property
    def lacks_beacon(self) -> bool:
        """Whether shares are waited for that no beacon allows to find yet."""
        with self._changed:
            return bool(self._wait_shares) and self._beacon is None

    def take_beacon(self, beacon: Beacon) -> None:
        """Work on a newer beacon from the next batch on; at once when nothing was found yet."""
        with self._changed:
            known = self._beacon
            if known is not None and (beacon.issued_s, beacon.number) <= (known.issued_s, known.number):
                return
            self._beacon = beacon
            if self._job is None or not self._job.nonces:
                self._abandon()
            self._changed.notify_all()

    def take_nbits(self, nbits: int) -> None:
        """Mine at the difficulty that a receipt asks for, from the next batch on; one that is none is not."""
        try:
            target_of(nbits)
        except Rejected:
            return
        with self._changed:
            self._nbits = nbits

    def harvest(self, prev: bytes) -> Work | None:
        """Return the shares for the batch that follows `prev`, and turn to the one after it."""
        with self._changed:
            if self._prev != prev:
                self._prev = prev
                self._abandon()
                self._changed.notify_all()
            if self._wait_shares:
                self._changed.wait_for(self._has_enough, timeout=self._wait_s)
            job = self._job
            self._prev = None
            self._abandon()
            if job is None or job.prev != prev or not job.nonces:
                return None
            return Work(job.beacon.number, job.nbits, tuple(sorted(job.nonces)[:MAX_NONCES]))

    def follow(self, head: bytes) -> None:
        """Mine for the batch that will follow `head`."""
        with self._changed:
            if self._prev != head:
                self._prev = head
                self._abandon()
                self._changed.notify_all()

    def _has_enough(self) -> bool:
        return self._stopping or (self._job is not None and len(self._job.nonces) >= self._wait_shares)

    def _is_over(self, job: _Job) -> bool:
        return self._stopping or self._job is not job

    def _abandon(self) -> None:
        if self._job is not None:
            self._job.miner.stop()
            self._finished_hashes += self._job.miner.hashes
            self._job = None

    def _run(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # this thread: only what nobody else wants
        except OSError as error:
            _LOG.info("mining runs, but not at the lowest priority: %s", error)
        while not self._stopping:
            try:
                self._mine()
                if self.fault:
                    _LOG.warning("mining goes on")
                self.fault = ""
            except Exception as error:  # noqa: BLE001 - whatever happens here is said, and tried again
                said = str(error) or type(error).__name__
                if said != self.fault:
                    _LOG.error("mining failed: %s", said)
                self.fault = said
                with self._changed:
                    self._job = None
                    self._changed.wait_for(lambda: self._stopping, timeout=_RETRY_S)

    def _mine(self) -> None:
        """Look for one share of the batch that comes, or wait until there is something to look for."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or (not self._paused and self._prev is not None and self._beacon is not None)
            )
            if self._stopping or self._prev is None or self._beacon is None:
                return
            if self._job is None:
                self._job = self._new_job(self._prev, self._beacon)
            job = self._job
            job.miner.resume()
            if len(job.nonces) >= max(1, self._wait_shares or MAX_NONCES):
                # enough for a batch: rest until it is sealed
                self._changed.wait_for(lambda: self._is_over(job))
                return
        nonce = job.miner.find()
        with self._changed:
            if nonce is not None and self._job is job:
                job.nonces.append(nonce)
                self._changed.notify_all()

    def _new_job(self, prev: bytes, beacon: Beacon) -> _Job:
        prefix = header_prefix(prev, beacon.value, self._device, beacon.issued_s, self._nbits)
        return _Job(prev, beacon, self._nbits, Miner(prefix, target_of(self._nbits), duty=self._duty))
