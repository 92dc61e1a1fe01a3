"""What a line's statement follows from, gathered from the ledger and the chain."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from maxgreen.chain.orders import Line, Reading
from maxgreen.ledger.book import Book
from maxgreen.ledger.registry import KnownDevice
from maxgreen.ledger.segments import Cut, cuts_of
from maxgreen.protocol.batch import parse_batch
from maxgreen.verify.rules import Decision, Limits, Rules
from settlement.before import Before, Befores
from settlement.inputs import (
    Ahead,
    Base,
    ChannelTerms,
    Inputs,
    KnownRegister,
    LineBase,
    LineTerms,
    Party,
)
from settlement.kept_days import Segments, is_by_days
from settlement.loss import WINDOW_S
from settlement.periods import period_bounds
from settlement.statement import WEI_DENOMINATOR, WEI_NUMERATOR
from settlement.windows import DAY_S

_MOST_DAYS: Final = 400  # of one close: what reaches further back is derived at once


@dataclass(frozen=True)
class Gathered:
    """A line's inputs, and which of its segments each of its days follows from."""

    inputs: Inputs
    by_days: bool  # whether its account follows from its days
    is_whole: bool  # whether `inputs` say of every window how it stood before
    days: Mapping[int, Segments]  # by midnight, unix s; those that nothing reaches are left out


class Gatherer:
    """Gathers the inputs of the lines of one period from one state of the ledger."""

    def __init__(
        self, book: Book, network: str, period: str, backend_keys: tuple[bytes, ...], lines: Sequence[Line]
    ) -> None:
        """`lines`: those that will be asked for."""
        self._book, self._network, self._period, self._backend_keys = book, network, period, backend_keys
        self._begin_s, self._until_s = period_bounds(period)
        self._limits = tuple(book.limits())
        self._decisions: dict[bytes, list[Decision]] = {}
        for decision in book.decisions():
            self._decisions.setdefault(decision.device, []).append(decision)
        self._changes: dict[int, Mapping[bytes, int]] = {}
        self._parties: dict[int, list[Party]] = {}
        tokens = {token for line in lines for token in (line.ends.miner_token, line.ends.node_token)}
        devices = book.devices_of(tokens)
        self.systems = systems_of(devices)
        for known in devices:
            self._parties.setdefault(known.token, []).append(party_of(known))

    def line(self, line: Line, befores: Befores) -> Gathered:
        """Return what a line's statement follows from; of the period before it reads no more than that takes."""
        before = befores.noted(line)
        gathered = self.gather(line, before)
        if before is None or before.tells(gathered.inputs.start_s):
            return gathered
        return self.gather(line, befores.whole(line))

    def gather(self, line: Line, before: Before | None) -> Gathered:
        """Return what a line's statement follows from; `before`: the last period that has it, closed."""
        parties = self._of(line)
        start_s, base = self._start(line, before, parties)
        # what is judged by what was before: whether a reading stays the same, whether a neighbour is online
        context_s = max(limits.stuck_s for _, limits in self._limits) + WINDOW_S
        reaching: dict[bytes, Sequence[Cut]] = {}
        waiting: dict[bytes, tuple[Ahead, ...]] = {}
        for party in parties:
            cuts = cuts_of(self._book.connection, party.device)
            reaching[party.device] = _reaching(cuts, start_s - context_s, self._until_s)
            ahead = self._ahead(party, cuts)
            if ahead:
                waiting[party.device] = ahead
        node = max((p for p in parties if p.token == line.ends.node_token), key=lambda p: p.key_number)
        inputs = Inputs(
            network=self._network,
            period=self._period,
            until_s=self._until_s,
            start_s=start_s,
            previous=before.manifest if before is not None else None,
            parties=tuple(parties),
            line=_terms(line, base, node.efficiency_ppm),
            rules=Rules(
                self._network,
                limits=self._limits,
                decisions=[d for party in parties for d in self._decisions.get(party.device, ())],
            ),
            backend_keys=self._backend_keys,
            segments={device: _digests(cuts) for device, cuts in reaching.items()},
            waiting=waiting,
            windows_before=before.states if before is not None else {},
        )
        seqs = {device: (cuts[0].first_seq, cuts[-1].next_seq) for device, cuts in reaching.items() if cuts}
        by_days = self._until_s - start_s <= _MOST_DAYS * DAY_S and is_by_days(inputs, seqs)
        days: dict[int, dict[bytes, tuple[bytes, ...]]] = defaultdict(dict)
        for device, own in reaching.items() if by_days else ():
            for day_s, (first, last) in _by_day(own, start_s, self._until_s, context_s).items():
                days[day_s][device] = _digests(own[first : last + 1])
        is_whole = before is None or before.whole
        return Gathered(inputs, by_days, is_whole, {day_s: days[day_s] for day_s in sorted(days)})

    def _of(self, line: Line) -> list[Party]:
        tokens = {line.ends.miner_token, line.ends.node_token}
        return [party for token in sorted(tokens) for party in self._parties.get(token, ())]

    def _start(self, line: Line, before: Before | None, parties: Sequence[Party]) -> tuple[int, LineBase]:
        """Return from which midnight on windows are listed, and the sums of those before."""
        opened_s = line.base_sent.time_s // DAY_S * DAY_S
        if before is None:
            start_s = min(self._begin_s, opened_s)
            return start_s, LineBase(start_s)
        changes = self._changes_after(before.revision)
        changed = [changes.get(party.device) for party in parties]
        fresh = [d for p in parties for d in self._decisions.get(p.device, ()) if d not in before.decisions]
        changed += [self._book.earliest_of(d.device, d.from_seq, d.to_seq) for d in fresh]
        late = [t_ms // 1000 for t_ms in changed if t_ms is not None]
        unread = [before.start_s] if before.trouble else []
        # days that no period names are in the next one
        start_s = min([self._begin_s, before.until_s, *before.unpaid, *unread, *late])
        start_s = max(0, start_s) // DAY_S * DAY_S
        if start_s < before.start_s:  # something changed below the settled sums: add up everything again
            start_s = min(start_s, opened_s)
            return start_s, LineBase(start_s)
        return start_s, before.base_at(start_s)

    def _changes_after(self, revision: int) -> Mapping[bytes, int]:
        """Return the earliest time that changed since, by device; of all devices at once."""
        if revision not in self._changes:
            devices = [party.device for parties in self._parties.values() for party in parties]
            self._changes[revision] = self._book.earliest_changes(devices, revision)
        return self._changes[revision]

    def _ahead(self, party: Party, cuts: Sequence[Cut]) -> tuple[Ahead, ...]:
        """Return what waits behind a hole, unless the chain has passed the period anyway."""
        state = cuts[-1].state if cuts else None
        if state is not None and state.wall_ms >= (self._until_s + WINDOW_S) * 1000:
            return ()
        found = []
        for row in self._book.ahead_of(party.device, state.next_seq if state is not None else 0):
            batch = parse_batch(bytes(row.message)).batch
            t0_ms = batch.t0_ms if batch.synchronised else None
            found.append(Ahead(row.seq, row.received_ms, t0_ms, bytes(row.digest)))
        return tuple(found)


def _digests(cuts: Sequence[Cut]) -> tuple[bytes, ...]:
    return tuple(cut.digest for cut in cuts)


def _reaching(cuts: Sequence[Cut], from_s: int, until_s: int) -> Sequence[Cut]:
    """Return the segments from the first to the last with a batch from a time on until a window after another."""
    from_ms, to_ms = from_s * 1000, (until_s + WINDOW_S) * 1000
    hits = [
        k
        for k, cut in enumerate(cuts)
        if cut.first_ms is not None and cut.last_ms is not None and cut.first_ms < to_ms and cut.last_ms >= from_ms
    ]
    return cuts[hits[0] : hits[-1] + 1] if hits else ()


def _by_day(cuts: Sequence[Cut], start_s: int, until_s: int, context_s: int) -> dict[int, tuple[int, int]]:
    """Return for each day, by its midnight, the first and the last segment that `_reaching` has for it alone."""
    found: dict[int, tuple[int, int]] = {}
    for k, cut in enumerate(cuts):
        if cut.first_ms is None or cut.last_ms is None:
            continue
        first = (cut.first_ms - (DAY_S + WINDOW_S) * 1000) // (DAY_S * 1000) + 1
        last = (cut.last_ms + context_s * 1000) // (DAY_S * 1000)
        for day in range(max(first, start_s // DAY_S), min(last + 1, until_s // DAY_S)):
            found[day * DAY_S] = found.get(day * DAY_S, (k, k))[0], k
    return found


def systems_of(devices: Iterable[KnownDevice]) -> dict[int, bytes]:
    """Return by token a SHA-256 of what the ledger's copy of the registry says of a system."""
    found: dict[int, Any] = {}
    for known in sorted(devices, key=lambda known: known.record.device):
        own = json.dumps([known.record.device.hex(), known.system], sort_keys=True).encode()
        found[known.token] = hashlib.sha256(found.get(known.token, b"") + own).digest()
    return found


def party_of(known: KnownDevice) -> Party:
    """Return a device as devices.json has it, from the ledger's copy of the registry."""
    system = known.system
    since_ms = system["since_ms"]
    place = system["place_deci"]
    return Party(
        device=known.record.device,
        record=known.record,
        kind=system["kind"],
        token=known.token,
        channels=tuple(
            ChannelTerms(since_ms, c["number"], c["role"], c["peak_mw"], c["error_ppm"], c["offset_mw"])
            for c in sorted(system["channels"], key=lambda c: c["number"])
        ),
        place=(place[0] / 10, place[1] / 10) if place else None,
        efficiency_ppm=system["efficiency_ppm"],
        battery_wh=system["battery_wh"],
        online_required=system["online_required"],
        key_number=system.get("key_number", 0),
    )


def limits_now(book: Book) -> Limits:
    """Return the limits that hold now."""
    return book.limits()[-1][1]


def _base(reading: Reading) -> Base:
    return Base(reading.time_s, reading.seq, reading.register_mws, reading.key_number)


def _terms(line: Line, base: LineBase, efficiency_ppm: int) -> LineTerms:
    return LineTerms(
        line=line.ends.line_id,
        miner=line.ends.miner_token,
        miner_channel=line.ends.miner_channel,
        node=line.ends.node_token,
        node_channel=line.ends.node_channel,
        resistance_uohm=line.loss.resistance_uohm,
        loss_ppm=line.loss.loss_ppm,
        max_loss_ppm=line.loss.max_loss_ppm,
        sent_base=_base(line.base_sent),
        received_base=_base(line.base_received),
        base=base,
        closed_s=line.closed_s,
        known_sent=KnownRegister(line.sent.key_number, line.sent.register_mws, line.carried_sent_mws),
        known_received=KnownRegister(line.received.key_number, line.received.register_mws, line.carried_received_mws),
        paid_mws=line.paid_mws,
        paid_until_s=line.until_s,
        acc=line.minted_mws * efficiency_ppm * WEI_NUMERATOR % WEI_DENOMINATOR,
        epoch=line.ends.epoch,
    )
