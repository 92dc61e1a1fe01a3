"""Closing a period: chains are cut into segments, every line is derived from them, the run is kept. Done once.

What is kept goes into the store first, under names that its bytes give it, then into the ledger: killed at any point
and begun again, the same comes of it, or what another process closed in the meantime.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from maxgreen.chain.claims import claim_json, parse_claims
from maxgreen.chain.orders import Claim, Line, SettlementContract
from maxgreen.errors import UsageError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.segments import cut_segments
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.pack import write_pack
from maxgreen.store import Putting, Store
from settlement.before import Befores, Past, note_of
from settlement.gather import Gatherer, limits_now, systems_of
from settlement.loss import WINDOW_S
from settlement.outcomes import Outcomes
from settlement.packs import line_name, seal
from settlement.periods import day_of, period_bounds
from settlement.portions import in_portions
from settlement.run import Run, make_run
from settlement.statement import settle
from settlement.windows import DAY_S

R = TypeVar("R")
_TRIES: Final = 3


class NotReadyError(Exception):
    """A period cannot be closed yet; the message says what it waits for."""


class ChangedError(NotReadyError):
    """What all lines of a run have in common changed while they were derived."""


class NoLineError(NotReadyError):
    """There is nothing to settle: no line is open."""


class Begun(NamedTuple):
    """What the lines of a period have in common."""

    period: str
    revision: int  # that no later change of a verdict has
    rules: int  # the newest change of limits or decisions
    systems: Mapping[int, bytes]  # by token, what is registered (gather.systems_of)
    past: Past | None


Work = Callable[[Begun, Engine, Sequence[Line]], R]


class ClosedLine(NamedTuple):
    """What a close says of a line: its statement with its manifest, what it claims, and a row of line_notes."""

    statement: Mapping[str, Any]
    claim: Claim | None
    note: tuple[bytes, bytes, bytes] | None


class Made(NamedTuple):
    """A run, the revision that it follows from, and what is noted of its lines."""

    run: Run
    revision: int
    notes: Sequence[tuple[bytes, bytes, bytes]]


class DerivedDays(NamedTuple):
    """How many line-days were derived of how many lines, and how many were kept already."""

    lines: int
    derived: int
    kept: int


class Closer:
    """Closes periods: what it reads from, writes to and signs with."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        contract: SettlementContract,
        signer: Signer,
        network: str,
        *,
        processes: int = 1,
    ) -> None:
        """`processes` derive lines; 0 for as many as the machine has processors."""
        self._engine, self.store, self._contract = engine, store, contract
        self._signer, self._network, self._processes = signer, network, processes

    def close(self, period: str, now_ms: int) -> Run:
        """Close a period, or return it as it was closed; NotReadyError says what it still waits for."""
        _, until_s = period_bounds(period)
        lines = self._contract.opened_lines()
        with reader(self._engine).begin() as connection:
            book = Book(connection)
            row = book.period(until_s)
            if row is not None:
                return _reopened(row)
            if book.period_after(until_s) is not None:
                raise NotReadyError(f"{period} lies before a period that is closed already; orders are cumulative")
            _check_ready(book, lines, period, until_s, now_ms)
        made = self._make(lines, period)
        try:
            with self._engine.begin() as connection:
                self._keep(Book(connection), made, now_ms)
        except IntegrityError:  # another closed it in the meantime: its run is the one
            with reader(self._engine).begin() as connection:
                return _reopened(Book(connection).period(until_s))
        return made.run

    def revise(self, before: Run, now_ms: int) -> Run:
        """Close a period again, after its order was refused; the old close is set aside, not lost.

        UsageError when nothing changed since, or a later period is closed and contains it anyway.
        """
        lines = self._contract.opened_lines()
        with reader(self._engine).begin() as connection:
            if Book(connection).period_after(before.until_s) is not None:
                raise UsageError(f"{before.period}: a later period is closed already, and contains what was left out")
        made = self._make(lines, before.period, int(before.document["revision"]) + 1)
        if made.run.document["lines"] == before.document["lines"]:
            raise UsageError(
                f"{before.period}: it would be the same again; first record what the DAO found: maxgreen ingest decide"
            )
        with self._engine.begin() as connection:
            book = Book(connection)
            if not book.replace_period(before.until_s, before.digest, now_ms):
                raise NotReadyError(f"{before.period}: another run revised it in the meantime")
            self._keep(book, made, now_ms)
        return made.run

    def _keep(self, book: Book, made: Made, now_ms: int) -> None:
        """Keep a run; NotReadyError when another period was closed meanwhile, before or after it."""
        run = made.run
        book.lock_periods()
        before = book.period_before(run.until_s)
        named = None if before is None else bytes(before.run).hex()
        if book.period_after(run.until_s) is not None or run.document["previous"] != named:
            raise NotReadyError(f"{run.period}: another period was closed meanwhile; the next run closes this one")
        claims = json.dumps({"claims": [claim_json(claim) for claim in run.claims]})
        book.add_period(run.until_s, run.period, run.digest, run.data.decode(), claims, now_ms, made.revision)
        book.note_lines(made.notes)
        book.forget_line_days(period_bounds(run.period)[0] // DAY_S)

    def _make(self, lines: Sequence[Line], period: str, times: int = 0) -> Made:
        """Derive every line of a period and keep its evidence; return the run and what is kept with it.

        `times`: how often it was closed before.
        """
        _, until_s = period_bounds(period)
        begun, found = self._in_portions(lines, period, self._close_lines)
        closed = [one for portion in found for one in portion]
        statements = [one.statement for one in closed]
        claims = [one.claim for one in closed if one.claim is not None]
        previous = None if begun.past is None else begun.past.run
        run = make_run(self._network, period, until_s, previous, statements, claims, revision=times)
        return Made(run, begun.revision, [one.note for one in closed if one.note is not None])

    def _close_lines(self, begun: Begun, engine: Engine, lines: Sequence[Line]) -> Sequence[ClosedLine]:
        """Keep the evidence of some lines in the store, and return what the close says of them."""
        outcomes, found = Outcomes(engine, self.store), []
        with reader(engine).begin() as connection, Putting(self.store) as putting:
            book, gatherer, befores = self._read(connection, begun, lines)
            for line in lines:
                gathered = gatherer.line(line, befores)
                account = outcomes.account(book, gathered)
                if account is None and not gathered.is_whole:
                    gathered = gatherer.gather(line, befores.whole(line))
                outcome = outcomes.whole(gathered.inputs) if account is None else settle(gathered.inputs, account)
                sealed = seal(outcome, self._signer)
                putting.put(line_name(sealed.manifest), write_pack(sealed.entries))
                note = None if account is None else (line.ends.line_id, sealed.manifest, note_of(outcome, account))
                found.append(ClosedLine(sealed.statement, sealed.claim, note))
        return found

    def derive_days(self, now_ms: int) -> DerivedDays:
        """Derive the line-days that are over and are not kept yet, so that a close finds them."""
        lines = self._contract.opened_lines()
        over_s = (now_ms // 1000 - 2 * WINDOW_S) // DAY_S * DAY_S  # the first window of the next day has come, too
        period = day_of(over_s - DAY_S)  # whatever is closed next contains it, and all days that no period has
        _, counts = self._in_portions(lines, period, partial(self._derive_lines, over_s), over_s)
        return DerivedDays(len(lines), sum(derived for derived, _ in counts), sum(kept for _, kept in counts))

    def _in_portions(
        self, lines: Sequence[Line], period: str, work: Work[R], reached_s: int | None = None
    ) -> tuple[Begun, list[R]]:
        """Do work on all lines of a period; again, a few times, where rules or registrations change in the middle."""
        tries = _TRIES
        while True:
            tries -= 1
            begun = self._begin(lines, period, reached_s)
            try:
                return begun, list(in_portions(self._engine, self._processes, partial(work, begun), lines))
            except ChangedError:
                if not tries:
                    raise

    def _derive_lines(self, over_s: int, begun: Begun, engine: Engine, lines: Sequence[Line]) -> tuple[int, int]:
        outcomes, derived, kept = Outcomes(engine, self.store), 0, 0
        with reader(engine).begin() as connection:
            book, gatherer, befores = self._read(connection, begun, lines)
            for line in lines:
                gathered = gatherer.line(line, befores)
                days = {day_s: segments for day_s, segments in gathered.days.items() if day_s < over_s}
                if gathered.by_days and days:
                    _, fresh = outcomes.days(book, replace(gathered, days=days))
                    derived, kept = derived + fresh, kept + len(days) - fresh
        return derived, kept

    def _begin(self, lines: Sequence[Line], period: str, reached_s: int | None = None) -> Begun:
        """Cut the chains of the lines' devices into segments; return what the lines of a period have in common.

        `reached_s`: what was cut up to this time is not cut again, however often it is tried.
        """
        with reader(self._engine).begin() as connection:  # what is committed from here on has a later revision
            book = Book(connection)
            revision, rules = book.revision(), book.rules_change()
            tokens = {token for line in lines for token in (line.ends.miner_token, line.ends.node_token)}
            known = book.devices_of(tokens)
            devices = sorted(one.record.device for one in known)
            past = Past.before(book, period_bounds(period)[1])
        reached_ms = None if reached_s is None else reached_s * 1000
        cut_segments(self._engine, self.store, self._network, devices, reached_ms)
        return Begun(period, revision, rules, systems_of(known), past)

    def _read(self, connection: Connection, begun: Begun, lines: Sequence[Line]) -> tuple[Book, Gatherer, Befores]:
        """Return what reads some lines; ChangedError when what they have in common is not as at the beginning."""
        book = Book(connection)
        gatherer = Gatherer(book, self._network, begun.period, (self._signer.spki,), lines)
        if book.rules_change() != begun.rules or not gatherer.systems.items() <= begun.systems.items():
            raise ChangedError("limits, decisions or registrations changed meanwhile; the next run goes on")
        return book, gatherer, Befores(self.store, begun.past, book, lines)


def _reopened(row: object) -> Run:
    """Return a closed period as the ledger keeps it."""
    return Run(json.loads(row.document), tuple(parse_claims(row.claims.encode())))  # type: ignore[attr-defined]


def _check_ready(book: Book, lines: Sequence[Line], period: str, until_s: int, now_ms: int) -> None:
    """Pass when every chain reaches past the end, or the deadline is over (completeness gate)."""
    if not lines:
        raise NoLineError("no line is open; 'maxgreen settle open-line' opens one")
    if now_ms < until_s * 1000:
        raise NotReadyError(f"{period} is not over yet")
    devices = book.all_devices()
    tokens = {token for line in lines for token in (line.ends.miner_token, line.ends.node_token)}
    if missing := sorted(tokens - {device.token for device in devices}):
        named = ", ".join(map(str, missing))
        raise NotReadyError(f"{period}: not in the ledger's copy of the registry: system {named}; is ingest running?")
    close_days = limits_now(book).close_days
    if now_ms >= (until_s + close_days * DAY_S) * 1000:
        return
    states = book.states()
    reached_ms = dict.fromkeys(tokens, -1)
    for device in devices:
        state = states.get(device.record.device)
        if device.token in tokens and state is not None:
            reached_ms[device.token] = max(reached_ms[device.token], state.wall_ms)
    late = sorted(token for token, wall_ms in reached_ms.items() if wall_ms < until_s * 1000)
    if late:
        raise NotReadyError(
            f"{period}: who has not reported past the end: system {', '.join(map(str, late))}; it closes anyway "
            f"{close_days} days after it"
        )
