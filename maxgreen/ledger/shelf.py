"""The shelf: what judging needs of a database, in as few statements as it can be."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, Final

from sqlalchemy import Connection, Engine, and_, bindparam, func, or_, select, tuple_

from maxgreen.ledger.bulk import one_of, portions
from maxgreen.ledger.desk import Chain, Desk, Due, Kept
from maxgreen.ledger.registry import Records
from maxgreen.ledger.schema import RULES, batches, chains, counters, devices
from maxgreen.protocol import cbor
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.chain import ChainState

_STATES: Final = 2_000  # remembered decoded
_DUES: Final = tuple(Due)
# made once: to build a statement takes longer than to run it
_KNOWN: Final = (
    select(
        devices.c.device, devices.c.system, chains.c.version, chains.c.state, chains.c.waiting, chains.c.waiting_bytes,
        chains.c.due, chains.c.credited, chains.c.rejection,
        select(counters.c.value).where(counters.c.name == RULES).scalar_subquery(),
    )
    .join(chains, chains.c.device == devices.c.device, isouter=True)
)  # fmt: skip
_KEPT: Final = select(batches.c.device, batches.c.seq, batches.c.digest).where(
    tuple_(batches.c.device, batches.c.seq).in_(bindparam("places", expanding=True))
)
_DUE: Final = (
    select(chains.c.device)
    .where(chains.c.due > 0, chains.c.device.not_in(bindparam("without", expanding=True)))
    .limit(bindparam("most"))
)


class Shelf:
    """Reads what judging needs, and remembers what it decoded."""

    def __init__(self, engine: Engine, network: str) -> None:
        """`engine` is one for readers."""
        self._engine = engine
        self._known = _KNOWN.where(one_of(engine.dialect, devices.c.device, "ids"))
        self._records = Records()
        self._start = ChainState.start(network)
        self._states: OrderedDict[bytes, tuple[int, ChainState]] = OrderedDict()  # by device, with the row's version

    def known(self, connection: Connection, ids: Collection[bytes]) -> tuple[dict[bytes, Chain], int | None]:
        """Return the chains of the devices that are registered, and at which change the rules stand.

        One statement reads both, so a decision that marked a chain is among those rules; None where no device is known.
        """
        found: dict[bytes, Chain] = {}
        change: int | None = None
        for some in portions(list(ids)):
            rows = connection.execute(self._known, {"ids": some})
            for device, system, version, state, waiting, waiting_bytes, due, credited, rejection, change_now in rows:
                change = change_now
                record = self._records.record(device, system)
                if version is None:
                    found[device] = Chain(record, self._start)
                    continue
                last = self._state(device, version, state)
                found[device] = Chain(
                    record, last, version, waiting, waiting_bytes, _DUES[due], cbor.read(credited), rejection
                )
        return found, change

    def kept(self, places: Collection[tuple[bytes, int]]) -> dict[tuple[bytes, int], bytes]:
        """Return the SHA-256 of the messages that hold these places."""
        found: dict[tuple[bytes, int], bytes] = {}
        if not places:
            return found
        with self._engine.begin() as connection:
            for some in portions(list(places)):
                for device, seq, digest in connection.execute(_KEPT, {"places": some}):
                    found[device, seq] = digest
        return found

    def waiting(self, device: bytes, from_seq: int, limit: int) -> list[Kept]:
        """Return batches that wait ahead of the chain, lowest seq first."""
        return self._batches(device, from_seq, limit, ~batches.c.in_chain)

    def undated(self, device: bytes, from_seq: int, limit: int) -> list[Kept]:
        """Return batches that wait for the date of their boot."""
        wanted = and_(batches.c.in_chain, batches.c.reason == int(Reason.CLOCK_UNSYNCHRONISED))
        return self._batches(device, from_seq, limit, wanted)

    def suspended(self, device: bytes, limit: int) -> list[Kept]:
        """Return batches in the chain that are held since the device was suspended."""
        wanted = and_(batches.c.in_chain, batches.c.reason == int(Reason.SUSPENDED_DEVICE))
        return self._batches(device, 0, limit, wanted)

    def seqs_waiting(self, from_seqs: Mapping[bytes, int], each: int) -> dict[bytes, list[int]]:
        """Return the first seqs that wait from a seq on, by device."""
        found: dict[bytes, list[int]] = {}
        if not from_seqs:
            return found
        asked = or_(*[and_(batches.c.device == device, batches.c.seq >= seq) for device, seq in from_seqs.items()])
        number = func.row_number().over(partition_by=batches.c.device, order_by=batches.c.seq).label("number")
        numbered = select(batches.c.device, batches.c.seq, number).where(~batches.c.in_chain, asked).subquery()
        with self._engine.begin() as connection:
            query = select(numbered.c.device, numbered.c.seq).where(numbered.c.number <= each)
            for device, seq in connection.execute(query.order_by(numbered.c.seq)):
                found.setdefault(bytes(device), []).append(int(seq))
        return found

    def due(self, limit: int, without: Collection[bytes] = ()) -> list[bytes]:
        """Return devices whose waiting batches can be judged now, but for some."""
        with self._engine.begin() as connection:
            return list(connection.execute(_DUE, {"without": list(without), "most": limit}).scalars())

    def _batches(self, device: bytes, from_seq: int, limit: int, wanted: Any) -> list[Kept]:
        query = (
            select(
                batches.c.seq,
                batches.c.message,
                batches.c.received_ms,
                batches.c.reason,
                batches.c.state_before,
                batches.c.skipped_to,
            )
            .where(batches.c.device == device, batches.c.seq >= from_seq, wanted)
            .order_by(batches.c.seq)
            .limit(limit)
        )
        with self._engine.begin() as connection:
            return [
                Kept(
                    int(row.seq),
                    bytes(row.message),
                    int(row.received_ms),
                    Reason(row.reason),
                    None if row.state_before is None else bytes(row.state_before),
                    row.skipped_to,
                )
                for row in connection.execute(query)
            ]

    def _state(self, device: bytes, version: int, state: bytes) -> ChainState:
        """Return the state of a row; the newest ones are remembered, since a version is written once."""
        known_version, known = self._states.get(device, (0, self._start))
        return known if known_version == version else ChainState.from_bytes(state)

    def remember(self, desk: Desk) -> None:
        """Know the states that were written, so that they need not be decoded again."""
        for chain in desk.chains.values():
            if chain.changed:
                self._states[chain.device] = (chain.version + 1, chain.state)
                self._states.move_to_end(chain.device)
        while len(self._states) > _STATES:
            self._states.popitem(last=False)
