"""Limits, decisions and beacons as a judge takes them, read again only when they changed."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from sqlalchemy import Connection, Engine, select

from maxgreen.ledger.messages import beacon_of
from maxgreen.ledger.rules import RuleBook
from maxgreen.ledger.schema import beacons
from maxgreen.protocol.backend import Beacon
from maxgreen.verify.rules import Rules

_BEACONS: Final = 20_000  # two weeks of them, about 8 MB


class Beacons(Mapping[int, Beacon]):
    """The deployment's beacons by number; those that were asked for last stay in memory."""

    def __init__(self, engine: Engine) -> None:
        """`engine` is one for readers."""
        self._engine = engine
        self._known: OrderedDict[int, Beacon] = OrderedDict()
        self._absent: set[int] = set()  # of those that were fetched last

    def fetch(self, numbers: Iterable[int]) -> None:
        """Read what of these is not in memory, in one statement; until the next call nobody asks for them again."""
        missing = sorted(set(numbers) - self._known.keys())
        self._absent = set(missing)
        if not missing:
            return
        with self._engine.begin() as connection:
            query = select(beacons.c.number, beacons.c.message).where(beacons.c.number.in_(missing))
            for number, message in connection.execute(query):
                self._known[int(number)] = beacon_of(message)
                self._absent.discard(int(number))
        while len(self._known) > _BEACONS:
            self._known.popitem(last=False)

    def __getitem__(self, number: int) -> Beacon:
        if number not in self._known and number not in self._absent:
            absent = self._absent
            self.fetch([number])
            self._absent |= absent
        beacon = self._known[number]
        self._known.move_to_end(number)
        return beacon

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


class Rulings:
    """The newest rules of a deployment."""

    def __init__(self, engine: Engine, network: str) -> None:
        """`engine` is one for readers."""
        self._network = network
        self._beacons = Beacons(engine)
        self._change = -1
        self._rules = Rules(network, beacons=self._beacons)

    @property
    def change(self) -> int:
        """The change that the rules returned last stand at."""
        return self._change

    def rules(self, connection: Connection, beacon_numbers: Iterable[int] = (), *, change: int | None = None) -> Rules:
        """Return the rules as a connection sees them; these beacons are at hand.

        `change` is where they stand by this connection's snapshot, where that is known.
        """
        book = RuleBook(connection)
        if change is None:
            change = book.rules_change()
        if change != self._change:
            self._rules = Rules(self._network, limits=book.limits(), beacons=self._beacons, decisions=book.decisions())
            self._change = change
        self._beacons.fetch(beacon_numbers)
        return self._rules
