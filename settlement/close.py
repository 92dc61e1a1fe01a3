"""Closing a period: gather what the ledger has, derive the statement, make the pack. Done once."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from maxgreen.chain.orders import Line, Reading, SettlementContract
from maxgreen.errors import UsageError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.registry import KnownDevice
from maxgreen.protocol import cose
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.pack import MANIFEST, manifest_bytes, parse_pack, write_pack
from maxgreen.verify.chain import ChainState
from maxgreen.verify.replay import Replay
from maxgreen.verify.rules import Rules
from settlement.inputs import (
    STATES_AFTER,
    Arrival,
    Base,
    ChannelTerms,
    Inputs,
    KnownRegister,
    LineBase,
    LineTerms,
    Party,
    Taken,
    read_decisions,
    read_states,
)
from settlement.loss import WINDOW_S
from settlement.periods import period_bounds
from settlement.statement import WEI_DENOMINATOR, WEI_NUMERATOR, Derived, derive, fold
from settlement.windows import DAY_S


class NotReadyError(Exception):
    """A period cannot be closed yet; the message says what it waits for."""


@dataclass(frozen=True)
class Closed:
    """A closed period: the pack's entries (without an order) and what follows from them."""

    period: str
    until_s: int
    entries: dict[str, bytes]
    derived: Derived

    @property
    def manifest_digest(self) -> bytes:
        """SHA-256 of manifest.json, which the order stores."""
        return hashlib.sha256(self.entries[MANIFEST]).digest()


def close_period(
    engine: Engine, contract: SettlementContract, signer: Signer, network: str, period: str, now_ms: int
) -> Closed:
    """Close a period, or return it as it was closed; NotReadyError says what it still waits for."""
    _, until_s = period_bounds(period)
    lines = contract.opened_lines()
    # one state of the ledger, which no writer waits for; what is committed meanwhile has a later revision
    with reader(engine).begin() as connection:
        book = Book(connection)
        revision = book.revision()
        row = book.period(until_s)
        if row is not None:
            return reopened(bytes(row.pack))
        if book.period_after(until_s) is not None:
            raise NotReadyError(f"{period} lies before a period that is closed already; orders are cumulative")
        _check_ready(book, lines, period, until_s, now_ms)
        closed = _close(book, lines, signer, network, period)
    try:
        with engine.begin() as connection:
            _keep(Book(connection), closed, now_ms, revision)
    except IntegrityError:  # another closed it in the meantime: its pack is the one
        with reader(engine).begin() as connection:
            return reopened(bytes(Book(connection).period(until_s).pack))
    return closed


def revise_period(
    engine: Engine, contract: SettlementContract, signer: Signer, network: str, before: Closed, now_ms: int
) -> Closed:
    """Close a period again, after its order was refused; the old close is set aside, not lost.

    UsageError when nothing changed since, or a later period is closed and contains it anyway.
    """
    lines = contract.opened_lines()
    with reader(engine).begin() as connection:
        book = Book(connection)
        revision = book.revision()
        if book.period_after(before.until_s) is not None:
            raise UsageError(f"{before.period}: a later period is closed already, and contains what was left out")
        closed = _close(book, lines, signer, network, before.period)
    if closed.manifest_digest == before.manifest_digest:
        raise UsageError(
            f"{before.period}: it would be the same again; first record what the DAO found: maxgreen ingest decide"
        )
    with engine.begin() as connection:
        book = Book(connection)
        if not book.replace_period(before.until_s, before.manifest_digest, now_ms):
            raise NotReadyError(f"{before.period}: another run revised it in the meantime")
        _keep(book, closed, now_ms, revision)
    return closed


def _close(book: Book, lines: list[Line], signer: Signer, network: str, period: str) -> Closed:
    """Derive a period from the ledger and the chain's lines, and sign its statement."""
    _, until_s = period_bounds(period)
    inputs = gather(book, lines, signer, network, period)
    derived = derive(inputs)
    entries = {**inputs.entries(), **derived.entries}
    entries["statement.cose"] = cose.sign(
        derived.entries["statement.json"], signer, network, "statement", detached=True
    )
    entries[MANIFEST] = manifest_bytes(network, period, until_s, inputs.previous, entries)
    return Closed(period, until_s, entries, derived)


def _keep(book: Book, closed: Closed, now_ms: int, revision: int) -> None:
    statement = closed.entries["statement.json"].decode()
    pack = write_pack(closed.entries)
    book.add_period(closed.until_s, closed.period, closed.manifest_digest, statement, pack, now_ms, revision)


def reopened(pack: bytes) -> Closed:
    """Return a closed period from the pack that the ledger keeps."""
    entries = parse_pack(pack, "ledger")
    manifest = json.loads(entries[MANIFEST])
    inputs = Inputs.from_entries(entries)
    return Closed(manifest["period"], manifest["until"], entries, derive(inputs))


def gather(
    book: Book,
    lines: list[Line],
    signer: Signer,
    network: str,
    period: str,
) -> Inputs:
    """Return the inputs of a period from the ledger and the chain's lines."""
    begin_s, until_s = period_bounds(period)
    tokens = {token for line in lines for token in (line.ends.miner_token, line.ends.node_token)}
    parties = tuple(party_of(known) for known in book.all_devices() if known.token in tokens)
    efficiency_ppm = {party.token: party.efficiency_ppm for party in parties}
    before = book.period_before(until_s)
    opened_s = min(line.base_sent.time_s for line in lines) // DAY_S * DAY_S
    closed = reopened(bytes(before.pack)) if before is not None else None
    revision = before.revision if before is not None else 0
    start_s, bases, states = _bases(book, lines, closed, revision, parties, begin_s, opened_s)
    earlier = _starts(closed)
    rules = book.rules(network)
    # what is judged by what was before: whether a reading stays the same, whether a neighbour is online
    context_s = max(limits.stuck_s for _, limits in rules.limits) + WINDOW_S
    states_now = book.states()
    batches: dict[bytes, tuple[bytes, ...]] = {}
    arrivals: dict[bytes, tuple[Arrival, ...]] = {}
    starts: dict[bytes, ChainState] = {}
    for party in parties:
        rows = book.evidence_of(party.device, (start_s - context_s) * 1000, (until_s + WINDOW_S) * 1000)
        batches[party.device] = tuple(bytes(row.message) for row in rows)
        arrivals[party.device] = tuple(Arrival(row.seq, row.received_ms, _taken(row)) for row in rows)
        now = states_now.get(party.device)
        seq = rows[0].seq if rows else now.next_seq if now is not None else 0  # a key that follows goes on from its end
        starts[party.device] = _state_at(book, party, rules, seq, earlier.get(party.device))
    signed_beacons = book.all_beacons()
    used = sorted(_beacons_used(message for messages in batches.values() for message in messages))
    used = [number for number in used if number in signed_beacons]
    return Inputs(
        network=network,
        period=period,
        until_s=until_s,
        start_s=start_s,
        previous=bytes(before.manifest) if before is not None else None,
        parties=parties,
        lines=tuple(
            _terms(
                line,
                bases.get(line.ends.line_id, LineBase(start_s)),
                efficiency_ppm[line.ends.node_token],
            )
            for line in lines
        ),
        rules=Rules(
            network,
            limits=rules.limits,
            beacons={number: rules.beacons[number] for number in used},
            decisions=[d for d in rules.decisions if d.device in batches],
        ),
        backend_keys=(signer.spki,),
        beacon_messages=tuple(signed_beacons[number] for number in used),
        receipts={party.device: tuple(book.receipts_of(party.device)) for party in parties},
        batches=batches,
        arrivals=arrivals,
        starts=starts,
        windows_before=states,
    )


def _taken(row: Any) -> Taken:
    if not row.in_chain:
        return Taken.NOT
    return Taken.SKIPPED_TO if row.skipped_to else Taken.NEXT


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


def _check_ready(book: Book, lines: list[Line], period: str, until_s: int, now_ms: int) -> None:
    """Pass when every chain reaches past the end, or the deadline is over (completeness gate)."""
    if not lines:
        raise NotReadyError("no line is open; 'maxgreen settle open-line' opens one")
    if now_ms < until_s * 1000:
        raise NotReadyError(f"{period} is not over yet")
    limits = book.limits()[-1][1]
    if now_ms >= (until_s + limits.close_days * DAY_S) * 1000:
        return
    tokens = {token for line in lines for token in (line.ends.miner_token, line.ends.node_token)}
    states = book.states()
    reached_ms = dict.fromkeys(tokens, -1)
    for device in book.all_devices():
        state = states.get(device.record.device)
        if device.token in tokens and state is not None:
            reached_ms[device.token] = max(reached_ms[device.token], state.wall_ms)
    late = sorted(token for token, wall_ms in reached_ms.items() if wall_ms < until_s * 1000)
    if late:
        raise NotReadyError(
            f"{period}: system {', '.join(map(str, late))} has not reported past the end; it closes anyway "
            f"{limits.close_days} days after it"
        )


def _starts(closed: Closed | None) -> dict[bytes, ChainState]:
    """Return the chain states that an earlier pack begins with: replay need not go back further."""
    return {
        bytes.fromhex(name[len("start/") : -len(".json")]): ChainState.from_json(json.loads(data)[0])
        for name, data in (closed.entries if closed else {}).items()
        if name.startswith("start/")
    }


def _bases(
    book: Book,
    lines: list[Line],
    closed: Closed | None,
    revision: int,
    parties: tuple[Party, ...],
    begin_s: int,
    opened_s: int,
) -> tuple[int, dict[bytes, LineBase], dict[bytes, dict[int, tuple[str, str]]]]:
    """Return where the windows of this pack begin, the sums before them, and the states at the last close."""
    if closed is None:
        return min(begin_s, opened_s), {}, {}
    inputs_start_s = json.loads(closed.entries["period.json"])["start"]
    changed = [t_ms // 1000 for party in parties if (t_ms := book.earliest_change(party.device, revision)) is not None]
    changed += _newly_decided(book, closed, parties)
    known = {result.terms.line for result in closed.derived.lines}
    changed += [line.base_sent.time_s for line in lines if line.ends.line_id not in known]  # opened since
    unpaid = [
        window.window_s
        for result in closed.derived.lines
        for window in result.windows.windows
        if not window.counts and window.measured.has_energy
    ]
    unpaid += [inputs_start_s for result in closed.derived.lines if result.statement["trouble"]]
    start_s = min([begin_s, *changed, *unpaid]) // DAY_S * DAY_S
    states = read_states(closed.entries, STATES_AFTER)
    if start_s < inputs_start_s:  # something changed below the settled sums: add up everything again
        return min(start_s, opened_s), {}, states
    bases = {
        result.terms.line: fold(result.terms.base, result.windows.windows, start_s) for result in closed.derived.lines
    }
    return start_s, bases, states


def _newly_decided(book: Book, closed: Closed, parties: tuple[Party, ...]) -> list[int]:
    """Return when the first batches were measured of which decisions speak since an earlier close, unix s."""
    known = set(read_decisions(closed.entries))
    fresh = [d for party in parties for d in book.decisions() if d.device == party.device and d not in known]
    found = (book.earliest_of(d.device, d.from_seq, d.to_seq) for d in fresh)
    return [t_ms // 1000 for t_ms in found if t_ms is not None]


def _state_at(book: Book, party: Party, rules: Rules, seq: int, earlier: ChainState | None) -> ChainState:
    """Return a chain's state before `seq`, by judging it again from an earlier state or its beginning."""
    state = ChainState.start(rules.network)
    if earlier is not None and earlier.next_seq <= seq and earlier.undated_from is None:
        state = earlier
    chain = Replay(state, party.record, rules)
    before = party.record.predecessor
    for row in book.chain_of(party.device, from_seq=state.next_seq):
        if row.seq >= seq:
            break
        signed = parse_batch(bytes(row.message))
        predecessor = book.state(before) if before is not None and signed.batch.succeeds is not None else None
        chain.take(signed, row.received_ms, skipped_to=row.skipped_to, predecessor=predecessor)
    return chain.state


def _beacons_used(messages: Iterable[bytes]) -> set[int]:
    works = (parse_batch(message).batch.work for message in messages)
    return {work.beacon for work in works if work is not None}


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
    )
