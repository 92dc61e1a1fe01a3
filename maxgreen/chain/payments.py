"""What was ever minted on each line, with the split of that moment: followed from the chain's events."""

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from maxgreen.chain.client import LOG_SPAN
from maxgreen.chain.deployment import Deployment

_UNSURE: Final = 256  # blocks that a chain may still take back
_FIRST_SHARE_PPM: Final = 100_000  # EnergySettlement.nodeSharePpm as deployed
_PPM: Final = 10**6


@dataclass(frozen=True, slots=True)
class Payment:
    """Tokens that were minted for energy of a line (LineBook.Paid): mW·s, wei, and those that the node's owner got."""

    block: int
    energy_mws: int
    amount_wei: int
    to_node_wei: int

    def of_end(self, *, miner: bool) -> int:
        """Return what one end's owner got, wei."""
        return self.amount_wei - self.to_node_wei if miner else self.to_node_wei


class Payments:
    """All payments; blocks that were read stay read, but for the last ones."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._lock = threading.Lock()
        self._known: dict[bytes, list[Payment]] = defaultdict(list)  # of the blocks before the next
        self._newest: dict[bytes, list[Payment]] = {}
        self._next, self._share_ppm = 0, _FIRST_SHARE_PPM  # as of the block before the next
        self._seen = -1

    def of(self, line: bytes) -> list[Payment]:
        """Return a line's payments, oldest first."""
        with self._lock:
            self._follow()
            return [*self._known.get(line, ()), *self._newest.get(line, ())]

    def _follow(self) -> None:
        newest = self._deployment.chain.newest_block().number
        if newest == self._seen:
            return
        sure = max(newest - _UNSURE, self._next)
        while self._next < sure:
            last = min(self._next + LOG_SPAN, sure) - 1
            found, share_ppm = self._read(self._next, last, self._share_ppm)
            for line, payment in found:
                self._known[line].append(payment)
            self._next, self._share_ppm = last + 1, share_ppm
        self._newest = defaultdict(list)
        for line, payment in self._read(self._next, newest, self._share_ppm)[0]:
            self._newest[line].append(payment)
        self._seen = newest

    def _read(self, first: int, last: int, share_ppm: int) -> tuple[list[tuple[bytes, Payment]], int]:
        """Return the payments of some blocks with their lines, and the share as of the last."""
        chain, found = self._deployment.chain, []
        events = [
            *chain.all_events(self._deployment.line_book, first, last, ("Paid",)),
            *chain.all_events(self._deployment.settlement, first, last, ("ParametersChanged",)),
        ]
        for event in sorted(events, key=_place):
            values = event["args"]
            if event["event"] == "ParametersChanged":
                share_ppm = int(values["nodeSharePpm"])
                continue
            amount_wei = int(values["amount"])
            to_node_wei = amount_wei * share_ppm // _PPM
            payment = Payment(int(event["blockNumber"]), int(values["energy"]), amount_wei, to_node_wei)
            found.append((bytes(values["line"]), payment))
        return found, share_ppm


def _place(event: Any) -> tuple[int, int]:
    return int(event["blockNumber"]), int(event["logIndex"])
