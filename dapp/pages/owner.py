"""Pages for owners: home, systems, statements, tokens, links; and power as it is now."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import segno
from fastapi import APIRouter, Form, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse

from dapp import words
from dapp.charts import bars, calendar_rows
from dapp.guard import not_found
from dapp.pages.rendering import pack, render
from dapp.views import council, fleet, metered, money
from dapp.views.standing import standing
from dapp.visit import LINK, Visit, Visitor, came_from
from maxgreen.actions.all import ACTIONS
from maxgreen.actions.samples import sample_text
from maxgreen.errors import UsageError
from maxgreen.protocol.batch import Role
from settlement.packs import line_entries
from settlement.page import signed_parts, statement_page, statement_pdf
from settlement.statement import read_windows

Number = Annotated[int, Path(ge=0, le=2**48)]
router: Final = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
_DAY: Final = r"^(\d{4}-\d{2}-\d{2})?$"
_MONTH: Final = r"^(\d{4}-\d{2})?$"
_HOURS: Final = 24
_LINK_S: Final = 365 * 86_400


@router.get("/home")
def home(visit: Visitor) -> Response:
    address, world = visit.needs_account(), visit.world
    lines = visit.softly(lambda: money.lines_of(world, set(visit.who.systems)), [])
    waiting = visit.softly(lambda: council.applications(world), [])
    cards = [_card(visit, token, lines) for token in sorted(visit.who.systems)]
    return render(
        visit, "home.html", cards=cards, lines=lines,
        requests=visit.softly(lambda: money.requests_of(world, visit.who), {"storage": [], "take_outs": []}),
        held=visit.softly(lambda: money.held_tokens(world, address), {}),
        waiting=[a for a in waiting if a["applicant"].lower() == address.lower()],
        ballots=visit.softly(lambda: council.ballots(world, "technical"), []) if visit.who.member else [],
        wanted=visit.softly(lambda: council.wanted_lines(world), []) if visit.who.member else [],
        orders=visit.softly(lambda: council.waiting_orders(world), []) if visit.who.member else [],
        voted_on=visit.softly(lambda: council.voted_on(world), {"applications": {}}) if visit.who.member else {},
        claimable_wei=sum(int(line["yours_waiting_wei"]) for line in lines if line["turn"] == "claim"),
        applications=waiting if visit.who.member else [],
        wrong=fleet.wrong_now(world) if visit.who.operator else [],
    )  # fmt: skip


def _card(visit: Visit, token: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what an owner wants to know of a system in five seconds."""
    world = visit.world
    day = datetime.fromtimestamp(world.now_ms / 1000, UTC)
    begin, end = metered.month_bounds(f"{day:%Y-%m}")
    this_month = metered.days(world, token, begin, end)
    mine = [line for line in lines if token in {line["miner"], line["node"]}]
    known = world.systems[token]
    return {
        **visit.live.now(token),
        "name": visit.named(token),
        "device": known.record.device.hex(),
        "standing": visit.softly(lambda: standing(world, token), None),
        "kind": known.system["kind"],
        "today": this_month[day.day - 1],
        "rejected": sum(one["rejected"] for one in this_month),
        "month": metered.total_by_role(this_month) if any(one["windows"] for one in this_month) else None,
        "got_wei": visit.softly(lambda: sum(money.yours_in_all(world, token, line) for line in mine), 0),
        "last": visit.softly(lambda: _last_statement(visit, token), None),
        "waiting_mws": sum(int(line["waiting_mws"]) for line in mine),
        "turns": sorted({line["turn"] for line in mine} - {"nothing"}),
        "room": visit.softly(lambda: money.room(world, token), None) if known.system["kind"] != "miner" else None,
    }


def _last_statement(visit: Visit, token: int) -> dict[str, Any] | None:
    """Return the newest period that a system has statements of, and what its lines came to together."""
    rows = money.statements(visit.world, token)
    newest = [money.with_state(visit.world, token, row) for row in rows if row["period"] == rows[0]["period"]]
    if not newest:
        return None
    return {
        "period": rows[0]["period"],
        "payable_mws": sum(int(row["payable_mws"]) for row in newest),
        "yours_wei": sum(int(row["yours_wei"]) for row in newest),
        "paid": all(row["state"] == "paid" for row in newest),
    }


@router.get("/systems/{system}")
def system_page(
    visit: Visitor,
    system: int,
    day: Annotated[str, Query(pattern=_DAY)] = "",
    month: Annotated[str, Query(pattern=_MONTH)] = "",
    year: int = 0,
) -> Response:
    world = visit.world
    visit.sees(system)
    day = day or words.today(_newest_ms(visit, system), visit.zone)
    month, year = month or day[:7], year or int(day[:4])
    begin, end = words.bounds(lambda: words.day_bounds(day, visit.zone))
    month_begin, month_end = words.bounds(lambda: metered.month_bounds(month))
    if not 2000 <= year <= 2099:
        raise UsageError(f"year {year}: no such year")
    days = metered.days(world, system, month_begin, month_end)
    months = metered.months(world, system, year)
    known = world.systems[system]
    payment = visit.who.owns(system) or visit.who.member
    curve = metered.curve(world, system, begin, end)
    return render(
        visit, "system.html", standing=visit.softly(lambda: standing(world, system), None), payment=payment,
        system=system, state=visit.live.now(system), known=known.system, receives=_receives(visit),
        owner=known.owner, device=known.record.device.hex(), day=day, month=month, year=year,
        day_before=words.today(begin * 1000 - 1000, visit.zone), day_after=words.today(end * 1000 + 1000, visit.zone),
        day_curve=curve, names=_names(visit, curve["watts"]), own_name=world.named(system),
        calendar=calendar_rows(metered.calendar(world, system, begin // 600 * 600, end), begin, end, visit),
        month_bars=bars([(d["day"], d["energy_mws"]) for d in days], visit), days=days,
        year_bars=bars([(m["month"], m["energy_mws"]) for m in months], visit), months=months,
        lines=visit.softly(lambda: money.lines_of(world, {system}), []) if payment else [],
        statements=_stated(visit, system) if payment else [],
        links=world.keep.links(visit.who.address, system) if visit.who.owns(system) else [],
    )  # fmt: skip


def _stated(visit: Visit, system: int) -> list[dict[str, Any]]:
    """Return a system's statements with what became of each; without that where the chain is away."""
    rows = money.statements(visit.world, system)
    found: list[dict[str, Any]] = visit.softly(lambda: [money.with_state(visit.world, system, r) for r in rows], rows)
    return found


def _receives(visit: Visit) -> bool:
    """Tell whether a visitor has a meter that could receive energy."""
    return any(metered.channels_of(visit.world.systems[token], Role.RECEIVED) for token in visit.who.systems)


def _names(visit: Visit, curves: Iterable[str]) -> dict[str, str]:
    """Return what people call a day's curves: what a channel is, and its number where there are several such."""
    roles = [name.rpartition(" ")[0] for name in curves]
    return {
        name: visit.say(role) if roles.count(role) == 1 else f"{visit.say(role)} {name.rpartition(' ')[2]}"
        for name, role in zip(curves, roles, strict=True)
    }


def _newest_ms(visit: Visit, system: int) -> int:
    """Return the time of a system's newest batch, else now: the day that a page opens with has something on it."""
    measured_ms = metered.now(visit.world, system)["measured_ms"]
    return measured_ms if measured_ms is not None else visit.world.now_ms


@router.post("/systems/{system}/name")
def name_system(
    request: Request, visit: Visitor, system: int, name: Annotated[str, Form(max_length=60)] = ""
) -> Response:
    visit.owns(system)
    visit.world.name(system, name)
    return RedirectResponse(came_from(request, f"/systems/{system}"), 303)


@router.post("/systems/{system}/links")
def new_link(visit: Visitor, system: int, label: Annotated[str, Form(max_length=100)] = "") -> Response:
    secret = visit.world.keep.add_link(visit.owns(system), system, label, visit.world.now_ms)
    url = f"{visit.world.url}/shared/{secret}"
    return render(visit, "link.html", system=system, url=url, qr=_qr(url))


@router.post("/systems/{system}/links/{number}/end")
def end_link(visit: Visitor, system: int, number: Number) -> Response:
    visit.world.keep.end_link(visit.owns(system), number)
    return RedirectResponse(f"/systems/{system}", 303)


@router.get("/shared/{secret}")
def shared(request: Request, visit: Visitor, secret: str) -> Response:
    found = visit.world.keep.link(secret)
    if found is None:
        raise not_found("this link was taken back, or was never given")
    kept = [one for one in request.cookies.get(LINK, "").split(".") if one and one != secret][-4:]
    answer = RedirectResponse(f"/systems/{found[1]}", 303)
    answer.set_cookie(
        LINK, ".".join([*kept, secret]), _LINK_S, httponly=True, samesite="lax",
        secure=visit.world.url.startswith("https:"),
    )  # fmt: skip
    return answer


def _statements(visit: Visit, system: int, period: str) -> list[dict[str, Any]]:
    """Return a system's statements of a period, for who may see it; 404 when there are none."""
    visit.sees_payment(system)
    lines = [line for line in money.statements(visit.world, system) if line["period"] == period]
    if not lines:
        raise not_found(f"no statement of {period[:10]} for system {system}")
    return lines


@router.get("/systems/{system}/statements/{period}.pdf")
def pdf(visit: Visitor, system: int, period: str) -> Response:
    world = visit.world
    lines = _statements(visit, system, period)
    entries = {line["line"]: line_entries(world.store, bytes.fromhex(line["manifest"])) for line in lines}
    windows = [(line, read_windows(entries[line["line"]])) for line in lines]
    owners = {str(token): known.owner for token, known in world.systems.items()}
    share_ppm = visit.softly(world.contract.node_share_ppm, None)
    page = statement_page(period, world.deployment.network, windows, None, owners, share_ppm)
    name = f"attachment; filename=statement-{period}-{system}.pdf"
    made = statement_pdf(page, signed_parts(entries))
    return Response(made, media_type="application/pdf", headers={"Content-Disposition": name})


@router.get("/systems/{system}/statements/{period}")
def statement(visit: Visitor, system: int, period: str) -> Response:
    lines = [_explained(visit, system, line) for line in _statements(visit, system, period)]
    return render(visit, "statement.html", system=system, period=period, lines=lines)


def _explained(visit: Visit, system: int, line: dict[str, Any]) -> dict[str, Any]:
    """Return a statement, why it says this amount, and what became of that."""
    world = visit.world
    found = money.explained(world, line["period"], line)
    chart = None
    if found is not None:
        by_day = len(found.slots) != _HOURS
        rows = [(words.iso(s.begin_s, "UTC")[slice(10) if by_day else slice(11, 16)], _slot(s)) for s in found.slots]
        chart = bars(rows, visit, ("counted", "lost", "held", "disputed"))
    stated = visit.softly(lambda: money.with_state(world, system, line), None)
    paid_ms = visit.softly(lambda: money.paid_ms(world, line), None) if stated and stated["state"] == "paid" else None
    return {"line": line, "found": found, "chart": chart, "stated": stated, "paid_ms": paid_ms}


def _slot(slot: Any) -> dict[str, int]:
    return {
        "counted": slot.counted_mws, "lost": slot.lost_mws, "held": slot.held_mws, "disputed": slot.disputed_mws,
    }  # fmt: skip


@router.get("/systems/{system}/evidence/{period}/{line}.zip")
def evidence(visit: Visitor, system: int, period: str, line: str) -> Response:
    if line not in {one["line"] for one in _statements(visit, system, period)}:
        raise not_found(f"no evidence of {period[:10]} for this line of system {system}")
    return pack(visit, period, line)


@router.get("/wallet")
def wallet(visit: Visitor) -> Response:
    address, world = visit.needs_account(), visit.world
    lines = money.lines_of(world, set(visit.who.systems))
    delivering = {t for t, known in world.systems.items() if metered.channels_of(known, Role.DELIVERED)}
    return render(
        visit, "wallet.html", held=money.held_tokens(world, address), escrow=money.escrow(world, address),
        pools=money.pools(world, address), requests=money.requests_of(world, visit.who), meters=_receives(visit),
        delivering=delivering, due=any(line["turn"] == "claim" for line in lines),
    )  # fmt: skip


@router.get("/apply")
def apply_page(visit: Visitor) -> Response:
    visit.needs_account()
    samples = {kind: sample_text(kind) for kind in ("miner", "storage_node")}
    action = ACTIONS["apply"]
    fields = [{"name": f.name, "label": f.label, "file": True, "required": True, "value": ""} for f in action.fields]
    return render(visit, "apply.html", action=action, samples=samples, fields=fields)


@router.get("/nodes/{node}")
def node_page(visit: Visitor, node: int) -> Response:
    world = visit.world
    visit.sees_payment(node)
    if world.systems[node].system["kind"] == "miner":
        raise not_found(f"system {node} is no storage node")
    found = money.requests_of(world, visit.who)
    return render(
        visit, "node.html", node=node, room=money.room(world, node), state=visit.live.now(node),
        storage=[r for r in found["storage"] if r["node"] == node],
        take_outs=[t for t in found["take_outs"] if t["node"] == node],
        lines=visit.softly(lambda: money.lines_of(world, {node}), []),
        statements=_stated(visit, node),
    )  # fmt: skip


@router.get("/live/{system}")
async def live(request: Request, visit: Visitor, system: int) -> Response:
    await run_in_threadpool(visit.sees, system)

    def may_see() -> bool:
        try:
            return Visit(request).who.may_see(system)
        except HTTPException:  # the token is over
            return False

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    events = visit.live.events(system, visit.who.address or f"a link to {system}", may_see)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def _qr(text: str) -> list[str]:
    """Return a QR code as rows of 0 and 1, with its quiet zone."""
    return ["".join("1" if dark else "0" for dark in row) for row in segno.make_qr(text).matrix_iter(border=4)]
