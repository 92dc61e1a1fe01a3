"""Beacons: one every `beacon_every_s`, made from a block that is at most 60 s old."""

import logging
import time
from typing import Final

from maxgreen.chain.client import Block, Chain
from maxgreen.errors import Retryable
from maxgreen.ledger.book import Book
from maxgreen.protocol.backend import Beacon, sign_beacon
from maxgreen.protocol.keys import Signer

MAX_BLOCK_AGE_S: Final = 60
_LONGEST_PATIENCE_S: Final = 60
_NEXT_BLOCK_S: Final = 1.0  # after one that was not new
_LOG: Final = logging.getLogger(__name__)


class BeaconIssuer:
    """Issues beacons in time; without a new block there is none, and `alarm` says so."""

    def __init__(self, chain: Chain, signer: Signer, network: str) -> None:
        self._chain = chain
        self._signer = signer
        self._network = network
        self._due_s = 0
        self._ask_at = 0.0
        self._patience_s = 1
        self.alarm: str | None = None

    def is_due(self, now_s: int) -> bool:
        """Tell whether `issue` may have something to do, without asking the ledger."""
        return now_s >= self._due_s and time.monotonic() >= self._ask_at

    def fetch(self) -> Block | None:
        """Return the chain's newest block, None when it can't be had now; it is asked again later, ever more rarely."""
        if time.monotonic() < self._ask_at:
            return None
        try:
            block = self._chain.newest_block(fresh=True)
        except Retryable as error:
            self._raise_alarm(str(error))
            self._patience_s = min(2 * self._patience_s, _LONGEST_PATIENCE_S)
            self._ask_at = time.monotonic() + self._patience_s
            return None
        self._patience_s = 1
        return block

    def issue(self, book: Book, now_s: int, block: Block | None) -> tuple[Beacon, bytes] | None:
        """Return a new signed beacon of a block when one is due, kept in the ledger already."""
        limits = book.limits()[-1][1]
        newest = book.newest_beacon()
        if newest is not None and now_s < newest[0].issued_s + limits.beacon_every_s:
            self._due_s = newest[0].issued_s + limits.beacon_every_s
            return None
        if block is None:
            return None
        known = newest[0].block_number if newest else -1
        if block.number <= known or block.time_s < now_s - MAX_BLOCK_AGE_S:
            self._ask_at = time.monotonic() + _NEXT_BLOCK_S
            self._raise_alarm(f"no new block: the newest is {block.number}, {now_s - block.time_s} s old")
            return None
        if self.alarm is not None:
            _LOG.warning("beacons go on")
            self.alarm = None
        number = newest[0].number + 1 if newest else 0
        beacon = Beacon(number, now_s, limits.beacon_valid_s, block.number, block.hash)
        message = sign_beacon(beacon, self._signer, self._network)
        book.add_beacon(beacon, message)
        self._due_s = now_s + limits.beacon_every_s
        return beacon, message

    def _raise_alarm(self, text: str) -> None:
        if self.alarm is None:
            _LOG.warning("no beacon: %s", text)
        self.alarm = text
