"""What the pages look at: ledger, evidence store, chain; and a short memory, so that no page asks them twice."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeVar

from sqlalchemy import Engine

from dapp.config import DappSettings
from dapp.keep import Keep
from maxgreen.actions.ballots import Ballots
from maxgreen.chain.client import connect
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.chain.orders import Ends, Line, SettlementContract
from maxgreen.chain.payments import Payments
from maxgreen.clock import Clock, make_clock
from maxgreen.errors import MaxgreenError
from maxgreen.keyfile import load_key_file
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine, reader
from maxgreen.ledger.registry import KnownDevice
from maxgreen.protocol.keys import Signer
from maxgreen.store import Store, open_store

T = TypeVar("T")

OWNED: Final = "owned"
SOON_S: Final = 5.0  # what the ledger says of devices
BLOCK_S: Final = 12.0  # what the chain says
_MOST: Final = 4_096
_FORGETS: Final = 10
_REST_S: Final = 10.0  # after the chain did not answer: no page waits for it meanwhile


class Memory:
    """Remembers answers for some seconds; of those who ask for the same at once, one fetches it.

    The others get what was known before, as long as that is at most once more as old, and else wait for it.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._known: OrderedDict[Any, tuple[float, Any]] = OrderedDict()
        self._fetching: dict[Any, threading.Lock] = {}
        self._forgot_s = self._often = 0.0
        self._era = 0  # what is being fetched may be of before something was forgotten
        self._due_s = 0.0  # when to forget, where somebody has just asked for that

    def get(self, key: Any, seconds: float, fetch: Callable[[], T]) -> T:
        """Return what is remembered, or what `fetch` returns."""
        with self._lock:
            if self._due_s and time.monotonic() >= self._due_s:
                self._clear()
            found = self._known.get(key)
            if found is not None and found[0] > time.monotonic():
                return found[1]  # type: ignore[no-any-return]
            fetching = self._fetching.setdefault(key, threading.Lock())
            if found is not None and fetching.locked() and found[0] + seconds > time.monotonic():
                return found[1]  # type: ignore[no-any-return]
        with fetching:
            with self._lock:
                found = self._known.get(key)
                if found is not None and found[0] > time.monotonic():
                    return found[1]  # type: ignore[no-any-return]
                begun = self._era
            try:
                value = fetch()
                with self._lock:
                    if begun != self._era or self._due_s:
                        return value  # it may be of before what somebody has changed
                    self._known[key] = (time.monotonic() + seconds, value)
                    self._known.move_to_end(key)
                    while len(self._known) > self._most:
                        self._known.popitem(last=False)
            finally:
                with self._lock:
                    self._fetching.pop(key, None)
        return value

    def peek(self, key: Any) -> Any:
        """Return what is remembered and fresh, or None; nothing is waited for."""
        with self._lock:
            found = self._known.get(key)
            due = self._due_s and time.monotonic() >= self._due_s
            return found[1] if found is not None and not due and found[0] > time.monotonic() else None

    def forget(self) -> None:
        """Forget everything: somebody has just changed something. Ten times at once, then once a second."""
        with self._lock:
            now_s = time.monotonic()
            self._often = max(0.0, self._often - (now_s - self._forgot_s)) + 1
            if self._often <= _FORGETS:
                self._clear()
            else:
                self._due_s = now_s + 1

    def drop(self, key: Any) -> None:
        """Forget one answer."""
        with self._lock:
            self._known.pop(key, None)
            self._era += 1

    def _clear(self) -> None:
        self._known.clear()
        self._era += 1
        self._forgot_s, self._due_s = time.monotonic(), 0.0


@dataclass
class World:
    """All that pages ask."""

    engine: Engine  # for recorded decisions and commands; everything else reads
    store: Store
    deployment: Deployment
    clock: Clock
    keep: Keep
    url: str
    signer: Signer | None = None
    per_minute: int = 600
    trial: bool = False  # a wallet for trials is served beside the pages
    memory: Memory = field(default_factory=Memory)
    ended: dict[Any, dict[str, Any]] = field(default_factory=dict)  # proposals that are over
    admitted: set[int] = field(default_factory=set)  # applications that are over
    _ends: dict[bytes, Ends] = field(default_factory=dict)  # which never change
    encoded: Memory = field(default_factory=lambda: Memory(64))  # answers as bytes
    lasting: Memory = field(default_factory=lambda: Memory(512))  # what never changes: closed evidence

    @classmethod
    def from_settings(cls, settings: DappSettings) -> "World":
        """Connect as the settings say."""
        clock = make_clock(settings.clock_file)
        chain = connect(settings.rpc, clock).trying(_REST_S)
        deployment = Deployment(chain, Addresses.load(settings.deployment))
        signer = load_key_file(settings.key_file) if settings.key_file else None
        return cls(
            open_engine(settings.ledger),
            open_store(settings.evidence),
            deployment,
            clock,
            Keep(settings.state_file),
            settings.http.url.rstrip("/"),
            signer,
            settings.http.per_minute,
        )

    @cached_property
    def _readers(self) -> Engine:
        return reader(self.engine)

    @contextmanager
    def book(self) -> Iterator[Book]:
        """Read one state of the ledger."""
        with self._readers.begin() as connection:
            yield Book(connection)

    def missing(self) -> str | None:
        """Return what keeps pages from being whole, or None: ledger and chain are asked."""
        try:
            with self.book() as book:
                book.revision()
            self.memory.get("block", SOON_S, self.deployment.chain.newest_block)
        except MaxgreenError as error:
            return str(error)
        return None

    @property
    def now_ms(self) -> int:
        """The time."""
        return self.clock.now_ms()

    @cached_property
    def contract(self) -> SettlementContract:
        """Orders and lines."""
        return SettlementContract(self.deployment)

    @cached_property
    def payments(self) -> Payments:
        """What was ever minted on each line."""
        return Payments(self.deployment)

    @cached_property
    def ballots(self) -> Mapping[str, Ballots]:
        """The proposals of both bodies: technical, modules."""
        return {
            "technical": Ballots(self.deployment, self.clock),
            "modules": Ballots(self.deployment, self.clock, "ModuleGovernor"),
        }

    @property
    def devices(self) -> list[KnownDevice]:
        """Every device of the ledger, by token and key."""

        def fetch() -> list[KnownDevice]:
            with self.book() as book:
                return book.all_devices()

        return self.memory.get("devices", SOON_S, fetch)

    @property
    def systems(self) -> Mapping[int, KnownDevice]:
        """The device that counts now for each system, by token."""

        def fetch() -> Mapping[int, KnownDevice]:
            found: dict[int, KnownDevice] = {}
            for known in self.devices:
                other = found.get(known.token)
                if other is None or known.system.get("key_number", 0) >= other.system.get("key_number", 0):
                    found[known.token] = known
            return found

        return self.memory.get("systems", SOON_S, fetch)

    @property
    def owned(self) -> Mapping[str, Mapping[int, str]]:
        """The kinds of the systems that each owner has, by address (lower case) and token."""

        def fetch() -> Mapping[str, Mapping[int, str]]:
            found: dict[str, dict[int, str]] = {}
            for token, known in self.systems.items():
                found.setdefault(known.owner.lower(), {})[token] = str(known.system["kind"])
            return found

        return self.memory.get(OWNED, SOON_S, fetch)

    @property
    def ends(self) -> Mapping[bytes, Ends]:
        """The ends of every line that the DAO approved, by the line's id."""

        def fetch() -> Mapping[bytes, Ends]:
            for line in self.contract.line_ids():
                if line not in self._ends:
                    self._ends[line] = self.line(line).ends
            return dict(self._ends)

        return self.memory.get("ends", BLOCK_S, fetch)

    @property
    def storing(self) -> list[int]:
        """The storage nodes that a line leads to, by token."""
        return sorted({ends.node_token for ends in self.ends.values()})

    def line(self, line: bytes) -> Line:
        """Return a line as the chain has it."""
        return self.memory.get(("line", line), BLOCK_S, lambda: self.contract.line(line))

    def lines_of(self, tokens: set[int]) -> list[Line]:
        """Return the lines with an end at one of these systems, oldest first."""
        own = [line for line, ends in self.ends.items() if {ends.miner_token, ends.node_token} & tokens]
        return [self.line(line) for line in own]

    def name(self, token: int, name: str) -> None:
        """Keep what an owner calls a system."""
        self.keep.name_system(token, name)
        self.memory.drop("names")

    def named(self, token: int) -> str:
        """Return what its owner calls a system, or nothing."""
        return self.memory.get("names", SOON_S, self.keep.names).get(token, "")
