"""The API: what pages show, as JSON and CSV, for scripts. `/docs` lists it."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from dapp import acting, words
from dapp.deciding import CommandBody, DecisionBody, give_command, record_decision
from dapp.guard import not_found
from dapp.views import council, everybody, fleet, metered, money
from dapp.visit import Visit, Visitor
from dapp.world import SOON_S
from maxgreen.actions.all import ACTIONS
from maxgreen.protocol.batch import MAX_SEQ

router: Final = APIRouter(prefix="/api/v1", tags=["api"])
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?")
_DAY: Final = r"^\d{4}-\d{2}-\d{2}$"
_MONTH: Final = r"^\d{4}-\d{2}$"

Day = Annotated[str, Query(pattern=_DAY, examples=["2026-10-01"], description="a day in the time zone `zone`")]
Month = Annotated[str, Query(pattern=_MONTH, examples=["2026-10"], description="a UTC month")]
Year = Annotated[int, Query(ge=2000, le=2099, examples=[2026], description="a UTC year")]
Limit = Annotated[int, Query(ge=1, le=1_000, description="how many at most")]
Zone = Annotated[str, Query(max_length=64, examples=["Europe/Madrid"], description="an IANA time zone")]
Token = Annotated[int, Query(ge=0, le=2**48)]
Body = Annotated[str, Query(pattern="^(technical|modules)$", description="who votes")]


def answer(request: Request, value: Any, rows: Sequence[Mapping[str, Any]] | None = None) -> Response:
    """Return a value as JSON, or its rows as CSV where the client wants that; 304 where it has it already."""
    as_csv = rows is not None and wants_csv(request)
    return known_answer(request, encoded(rows if as_csv else value, as_csv=as_csv))


def wants_csv(request: Request) -> bool:
    """Tell whether a client wants rows as CSV."""
    return "text/csv" in request.headers.get("accept", "")


def encoded(value: Any, *, as_csv: bool) -> tuple[bytes, str, str]:
    """Return a value's bytes, their media type and their tag."""
    data = _csv(value) if as_csv else json.dumps(value, separators=(",", ":")).encode()
    kind = "text/csv; charset=utf-8" if as_csv else "application/json"
    return data, kind, f'"{hashlib.sha256(data).hexdigest()[:24]}"'


def known_answer(request: Request, known: tuple[bytes, str, str]) -> Response:
    """Return what was encoded, or that the client has it."""
    data, kind, tag = known
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Accept, Cookie, Authorization"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    return Response(data, media_type=kind, headers=headers)


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    flat = [_flat(row) for row in rows]
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().encode()


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} and not _NUMBER.fullmatch(value):
            found[f"{prefix}{name}"] = f"'{value}"  # no formula in somebody's spreadsheet
        else:
            found[f"{prefix}{name}"] = value
    return found


# first, since a router tries one route after the other, and this one is asked for most
@router.get("/fleet", summary="Every device and how it is; `after` is the last token of the page before")
async def fleet_(
    request: Request, visit: Visitor, how: Annotated[str, Query(max_length=20)] = "", after: Token = 0,
    limit: Limit = 100,
) -> Response:  # fmt: skip
    as_csv, world = wants_csv(request), visit.world
    key = ("fleet page", how, after, limit, as_csv)

    def encode() -> tuple[bytes, str, str]:
        rows = [row for row in fleet.devices(world) if row["token"] > after and (not how or row["how"] == how)]
        return encoded(rows[:limit], as_csv=as_csv)

    def fetch() -> tuple[bytes, str, str]:
        visit.needs_operator()
        return world.encoded.get(key, SOON_S, encode)

    known = world.encoded.peek(key)
    if known is None or not visit.is_known():  # a thread for whatever may wait, and none for what is in memory
        return known_answer(request, await run_in_threadpool(fetch))
    visit.needs_operator()
    return known_answer(request, known)


@router.get("/me", summary="Who I am")
def me(request: Request, visit: Visitor) -> Response:
    who = visit.who
    value = {
        "address": who.address or None, "miners": sorted(who.miners), "nodes": sorted(who.nodes),
        "member": who.member, "operator": who.operator, "shared": sorted(who.shared),
    }  # fmt: skip
    return answer(request, value)


@router.get("/totals", summary="What everybody may know")
def totals(request: Request, visit: Visitor) -> Response:
    return answer(request, everybody.totals(visit.world))


@router.get("/systems", summary="The systems that I may see by name: my own, and those of links")
def systems(request: Request, visit: Visitor) -> Response:
    rows = [
        {"system": token, "name": visit.named(token), "kind": visit.world.systems[token].system["kind"]}
        for token in sorted(visit.who.systems | visit.who.shared)
        if token in visit.world.systems
    ]
    return answer(request, rows, rows)


@router.get("/systems/{system}", summary="How a system is now")
def system_(request: Request, visit: Visitor, system: int) -> Response:
    return answer(request, metered.now(visit.world, visit.sees(system)))


@router.get("/systems/{system}/curve", summary="A day: mean power of each channel by ten minutes, W")
def curve(request: Request, visit: Visitor, system: int, day: Day, zone: Zone = "UTC") -> Response:
    begin, end = _day(day, zone)
    found = metered.curve(visit.world, visit.sees(system), begin, end)
    rows = [
        {"window": t, **{name: watts[k] for name, watts in found["watts"].items()}}
        for k, t in enumerate(found["times"])
    ]
    return answer(request, found, rows)


@router.get("/systems/{system}/days", summary="A month: energy by UTC day, mW·s")
def days(request: Request, visit: Visitor, system: int, month: Month) -> Response:
    begin, end = _month(month)
    rows = metered.days(visit.world, visit.sees(system), begin, end)
    return answer(request, rows, rows)


@router.get("/systems/{system}/months", summary="A year: energy by UTC month, mW·s")
def months(request: Request, visit: Visitor, system: int, year: Year) -> Response:
    rows = metered.months(visit.world, visit.sees(system), year)
    return answer(request, rows, rows)


@router.get("/systems/{system}/windows", summary="A UTC day: how many batches of each ten minutes count")
def windows(request: Request, visit: Visitor, system: int, day: Day) -> Response:
    begin, end = _day(day, "UTC")
    rows = metered.calendar(visit.world, visit.sees(system), begin, end)
    return answer(request, rows, rows)


@router.get("/systems/{system}/statements", summary="What a system's lines came to, by period")
def statements(request: Request, visit: Visitor, system: int) -> Response:
    found = money.statements(visit.world, visit.sees_payment(system))
    rows = [money.with_state(visit.world, system, row) for row in found]
    return answer(request, rows, rows)


@router.get("/systems/{system}/lines", summary="A system's lines, and what each waits for")
def lines(request: Request, visit: Visitor, system: int) -> Response:
    rows = money.lines_of(visit.world, {visit.sees_payment(system)})
    return answer(request, rows, rows)


@router.get("/periods", summary="Closed periods: what all lines came to, with run.json's root")
def periods(request: Request, visit: Visitor) -> Response:
    rows = everybody.totals(visit.world)["periods"]
    return answer(request, rows, rows)


@router.get("/periods/{period}/run", summary="run.json of a period, which is public, as it was hashed")
def run(visit: Visitor, period: str) -> Response:
    found, _ = money.run_of(visit.world, period)
    return Response(found.data, media_type="application/json")


@router.get("/tokens", summary="What I hold, wei")
def tokens(request: Request, visit: Visitor) -> Response:
    held = money.held_tokens(visit.world, visit.needs_account())
    return answer(request, {name: str(amount) for name, amount in held.items()})


@router.get("/pools", summary="The nodes' pools, and my part")
def pools(request: Request, visit: Visitor) -> Response:
    rows = money.pools(visit.world, visit.who.address)
    return answer(request, rows, rows)


@router.get("/requests", summary="Requests for storage and energy in which I have a part")
def requests(request: Request, visit: Visitor) -> Response:
    visit.needs_account()
    return answer(request, money.requests_of(visit.world, visit.who))


@router.get("/ballots", summary="Proposals, decoded from their calls")
def ballots(request: Request, visit: Visitor, body: Body = "technical", *, ended: bool = False) -> Response:
    rows = council.ballots(visit.world, body, ended=ended)
    return answer(request, rows, rows)


@router.get("/ballots/{proposal}", summary="A proposal: what it would do")
def ballot(request: Request, visit: Visitor, proposal: str, body: Body = "technical") -> Response:
    return answer(request, council.ballot_page(visit.world, body, proposal, visit.who.address))


@router.get("/applications", summary="Applications that wait for the DAO")
def applications(request: Request, visit: Visitor) -> Response:
    rows = council.applications(visit.world)
    return answer(request, rows, rows)


@router.get("/orders", summary="Orders, the newest first")
def orders(request: Request, visit: Visitor) -> Response:
    rows = council.orders(visit.world)
    return answer(request, rows, rows)


@router.get("/orders/{number}/lines", summary="The lines of an order, the oddest first")
def order_lines(request: Request, visit: Visitor, number: Annotated[int, Field(ge=1, le=2**48)]) -> Response:
    visit.needs_member()
    rows = council.order_lines(visit.world, money.order(visit.world, number))
    return answer(request, rows, rows)


@router.get("/devices/{device}/batches", summary="A device's batches and verdicts; `before` is the last seq before")
def batches(
    request: Request, visit: Visitor, device: str, before: Annotated[int | None, Query(ge=0, le=MAX_SEQ)] = None,
    limit: Limit = 50,
) -> Response:  # fmt: skip
    known = fleet.find(visit.world, device)
    _looks_after(visit, known.token)
    rows = fleet.batches_of(visit.world, known.record.device, before, limit)
    return answer(request, rows, rows)


@router.get("/devices/{device}/commands", summary="A device's commands, and what became of them")
def commands(request: Request, visit: Visitor, device: str, limit: Limit = 50) -> Response:
    known = fleet.find(visit.world, device)
    _looks_after(visit, known.token)
    rows = fleet.commands_of(visit.world, known.record.device, limit)
    return answer(request, rows, rows)


@router.get("/devices/{device}/decisions", summary="What was decided on a device")
def decisions(request: Request, visit: Visitor, device: str) -> Response:
    known = fleet.find(visit.world, device)
    _looks_after(visit, known.token)
    rows = fleet.decisions_of(visit.world, known.record.device)
    return answer(request, rows, rows)


@router.post("/devices/{device}/decisions", summary="Record a decision", status_code=201)
def decide(visit: Visitor, device: str, body: DecisionBody) -> dict[str, str]:
    record_decision(visit, device, body)
    return {"status": "recorded; the running service lets the chain go on within a second, where it allows that"}


@router.post("/devices/{device}/commands", summary="Give a device a signed command", status_code=201)
def command(visit: Visitor, device: str, body: CommandBody) -> dict[str, str]:
    give_command(visit, device, body)
    return {"status": "given; the running service sends it, and its fate is in the list of commands"}


@router.get("/rejected", summary="Messages that were refused before they took a place in a chain")
def rejected(request: Request, visit: Visitor, limit: Limit = 100) -> Response:
    visit.needs_operator()
    rows = fleet.rejected(visit.world, limit)
    return answer(request, rows, rows)


@router.get("/verdicts", summary="How many batches have each verdict")
def verdicts(request: Request, visit: Visitor) -> Response:
    return answer(request, fleet.counts(visit.world))


@router.get("/actions", summary="What people can do, and the fields of each")
def actions(request: Request) -> Response:
    rows = [
        {
            "action": a.name, "who": a.who.value, "title": a.title, "about": a.about,
            "fields": [
                {
                    "name": f.name, "kind": f.kind.value, "label": f.label, "default": f.default,
                    "choices": list(f.choices), "optional": f.optional,
                }
                for f in a.fields
            ],
        }
        for a in ACTIONS.values()
    ]  # fmt: skip
    return answer(request, rows)


@router.post("/actions/{name}", summary="The transaction that my wallet signs next; null when nothing is left to do")
def act(visit: Visitor, name: str, given: dict[str, str]) -> dict[str, Any]:
    address = visit.needs_account()
    action = acting.find(name)
    found = acting.next_transaction(visit.world, address, action, given)
    if found is None:
        return {"transaction": None, "why": visit.say(action.nothing)}
    return {"transaction": {**found, "says": visit.in_words(found["says"])}}


@router.get("/transactions/{digest}", summary="What became of a transaction")
def transaction(visit: Visitor, digest: str) -> dict[str, Any]:
    visit.needs_account()
    return acting.outcome(visit.world, digest)


def _looks_after(visit: Visit, system: int) -> None:
    if not visit.who.may_look_after(system):
        raise not_found("there is no such device that you may see")


def _day(day: str, zone: str) -> tuple[int, int]:
    return words.bounds(lambda: words.day_bounds(day, zone))


def _month(month: str) -> tuple[int, int]:
    return words.bounds(lambda: metered.month_bounds(month))
