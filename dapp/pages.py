"""The pages, made on the server; every one works without a script, but for what a wallet signs."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final
from urllib.parse import quote

import segno
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from jinja2 import Environment, FunctionLoader, select_autoescape
from pydantic import ValidationError

from dapp import acting, words
from dapp.api import CommandBody, DecisionBody, give_command, record_decision
from dapp.charts import bars, calendar_rows
from dapp.guard import not_found
from dapp.signin import sign_in, text_to_sign
from dapp.views import council, everybody, fleet, metered, money
from dapp.visit import LINK, SESSION, Visit, Visitor
from maxgreen.actions.all import ACTIONS
from maxgreen.actions.catalog import Kind, Who
from maxgreen.actions.samples import sample_text
from maxgreen.errors import UsageError
from maxgreen.ledger.sums import DAY_S
from maxgreen.protocol.reasons import RELEASABLE
from maxgreen.verify.rules import Action as Decided
from settlement.packs import line_entries, write_pack_of
from settlement.page import statement_page, statement_pdf
from settlement.statement import read_windows

router: Final = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
_SESSION_S: Final = 7 * 86_400
_LINK_S: Final = 365 * 86_400
_TURNS: Final = {
    "opening": "opens when both agents have sent a reading; the operator sees to it",
    "trouble": "its evidence does not hold together; the operator looks at it",
    "hold": "held back by the DAO",
    "vote": "the DAO votes on it",
    "claim": "approved: you can claim it",
    "order": "waits for the next order",
    "room": "waits for room in the node's battery",
    "period": "waits for the end of its first period",
    "nothing": "all of it is paid",
}


@lru_cache(maxsize=len(words.LANGUAGES))
def _environment(language: str) -> Environment:
    said = words.said(language)
    pages = Environment(
        loader=FunctionLoader(lambda name: files("dapp").joinpath("templates", name).read_text()),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals.update(
        _=lambda text, **values: (said.get(text, text)).format(**values) if values else said.get(text, text),
        energy=words.energy, power=words.power, tokens=words.tokens, languages=words.LANGUAGES, turns=_TURNS,
    )  # fmt: skip
    return pages


def render(visit: Visit, name: str, /, **values: Any) -> HTMLResponse:
    """Return a page for a visitor."""
    page = _environment(visit.language).get_template(name)
    shown = {
        "who": visit.who, "language": visit.language, "zone": visit.zone, "now_ms": visit.world.now_ms,
        "moment": lambda t_ms: words.moment(t_ms, visit.zone), "ago": lambda t_ms: words.ago(t_ms, visit.world.now_ms),
        "named": visit.world.named, "trial": visit.world.trial, "network": visit.world.deployment.network,
    }  # fmt: skip
    return HTMLResponse(page.render(**shown, **values), headers={"Cache-Control": "private, no-store"})


def error_page(request: Request, status: int, detail: str) -> Response:
    """Return an error for people."""
    page = _environment("en").get_template("error.html")
    body = page.render(who=None, status=status, detail=detail, language="en", zone="UTC", here=request.url.path)
    return HTMLResponse(body, status)


# everybody


@router.get("/")
def front(visit: Visitor) -> Response:
    if visit.who.address:
        return RedirectResponse("/home", 303)
    return render(visit, "front.html", totals=everybody.totals(visit.world))


@router.get("/public")
def public(visit: Visitor) -> Response:
    return render(visit, "front.html", totals=everybody.totals(visit.world))


@router.get("/verify")
def verify(visit: Visitor) -> Response:
    return render(visit, "verify.html", totals=everybody.totals(visit.world), rpc_hint=visit.world.url)


@router.get("/docs")
def docs(visit: Visitor) -> Response:
    return render(visit, "docs.html", url=visit.world.url)


@router.get("/language/{language}")
def language(language: str, request: Request) -> Response:
    there = request.headers.get("referer", "")
    base = request.app.state.world.url
    answer = RedirectResponse(there.removeprefix(base) or "/" if there.startswith(f"{base}/") else "/", 303)
    answer.set_cookie("lang", language if language in words.LANGUAGES else "en", _LINK_S, samesite="lax")
    return answer


# signing in and out


@router.get("/sign-in")
def sign_in_page(visit: Visitor) -> Response:
    return render(visit, "sign-in.html", chain_id=visit.world.deployment.addresses.chain_id)


@router.post("/sign-in/text")
def sign_in_text(visit: Visitor, address: Annotated[str, Form(max_length=100)]) -> Response:
    world = visit.world
    text = text_to_sign(world.keep, world.url, world.deployment.addresses.chain_id, address, world.now_ms)
    return Response(text, media_type="text/plain; charset=utf-8")


@router.post("/sign-in")
def sign_in_done(
    visit: Visitor, text: Annotated[str, Form(max_length=4_000)], signature: Annotated[str, Form(max_length=10_000)]
) -> Response:
    world = visit.world
    _, secret = sign_in(world.keep, world.deployment.chain, text.replace("\r\n", "\n"), signature, world.now_ms)
    answer = Response(None, 204)
    answer.set_cookie(
        SESSION, secret, _SESSION_S, httponly=True, samesite="strict", secure=world.url.startswith("https:")
    )
    return answer


@router.post("/sign-out")
def sign_out(request: Request, visit: Visitor, everywhere: Annotated[str, Form(max_length=3)] = "") -> Response:
    if everywhere and visit.who.address:
        visit.world.keep.end_sessions(visit.who.address)
    visit.world.keep.end_session(request.cookies.get(SESSION, ""))
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(SESSION)
    return answer


@router.get("/account")
def account(visit: Visitor) -> Response:
    address = visit.needs_person()
    return render(visit, "account.html", kept=visit.world.keep.tokens(address), secret="")


@router.post("/account/tokens")
def new_token(
    visit: Visitor, label: Annotated[str, Form(max_length=100)], days: Annotated[int, Form(ge=1, le=366)]
) -> Response:
    address, keep = visit.needs_person(), visit.world.keep
    secret = keep.add_token(address, label, days, visit.world.now_ms)
    return render(visit, "account.html", kept=keep.tokens(address), secret=secret)


@router.post("/account/tokens/{number}/end")
def end_token(visit: Visitor, number: int) -> Response:
    visit.world.keep.end_token(visit.needs_person(), number)
    return RedirectResponse("/account", 303)


# owners


@router.get("/home")
def home(visit: Visitor) -> Response:
    address, world = visit.needs_account(), visit.world
    own = world.lines_of(set(visit.who.systems)) if visit.who.systems else []
    lines = [money.line_status(world, line) for line in own]
    cards = [_card(visit, token, lines) for token in sorted(visit.who.systems)]
    return render(
        visit, "home.html", cards=cards, lines=lines, requests=money.requests_of(world, visit.who),
        held=money.held_tokens(world, address),
        waiting=[a for a in council.applications(world) if a["applicant"].lower() == address.lower()],
        ballots=council.ballots(world, "technical") if visit.who.member else [],
        applications=council.applications(world) if visit.who.member else [],
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
        "name": world.named(token),
        "kind": known.system["kind"],
        "today": this_month[day.day - 1]["energy_mws"],
        "rejected": sum(one["rejected"] for one in this_month),
        "month": metered.total_by_role(this_month),
        "paid_mws": sum(int(line["paid_mws"]) for line in mine),
        "last": _last_statement(visit, token),
        "waiting_mws": sum(int(line["waiting_mws"]) for line in mine),
        "turns": sorted({line["turn"] for line in mine} - {"nothing"}),
        "room": money.room(world, token) if known.system["kind"] != "miner" else None,
    }


def _last_statement(visit: Visit, token: int) -> dict[str, Any] | None:
    """Return the newest period that a system has statements of, and what its lines came to together."""
    rows = money.statements(visit.world, token)
    newest = [row for row in rows if row["period"] == rows[0]["period"]]
    if not newest:
        return None
    return {"period": rows[0]["period"], "payable_mws": sum(int(row["payable_mws"]) for row in newest)}


@router.get("/systems/{system}")
def system_page(visit: Visitor, system: int, day: str = "", month: str = "", year: int = 0) -> Response:
    world = visit.world
    visit.sees(system)
    day = day or words.today(_newest_ms(visit, system), visit.zone)
    month, year = month or day[:7], year or int(day[:4])
    begin, end = _times(lambda: words.day_bounds(day, visit.zone))
    month_begin, month_end = _times(lambda: metered.month_bounds(month))
    if not 2000 <= year <= 2099:
        raise UsageError(f"year {year}: no such year")
    days = metered.days(world, system, month_begin, month_end)
    months = metered.months(world, system, year)
    known = world.systems[system]
    return render(
        visit, "system.html", system=system, state=visit.live.now(system), known=known.system,
        owner=known.owner, device=known.record.device.hex(), day=day, month=month, year=year,
        day_before=words.today(begin * 1000 - 1000, visit.zone), day_after=words.today(end * 1000 + 1000, visit.zone),
        day_curve=metered.curve(world, system, begin, end),
        calendar=calendar_rows(metered.calendar(world, system, begin, end), begin, end, visit.zone),
        month_bars=bars([(d["day"], d["energy_mws"]) for d in days]), days=days,
        year_bars=bars([(m["month"], m["energy_mws"]) for m in months]), months=months,
        lines=[money.line_status(world, line) for line in world.lines_of({system})],
        statements=money.statements(world, system),
        links=world.keep.links(visit.who.address, system) if visit.who.owns(system) else [], secret="",
    )  # fmt: skip


def _newest_ms(visit: Visit, system: int) -> int:
    """Return the time of a system's newest batch, else now: the day that a page opens with has something on it."""
    measured_ms = metered.now(visit.world, system)["measured_ms"]
    return measured_ms if measured_ms is not None else visit.world.now_ms


@router.post("/systems/{system}/name")
def name_system(visit: Visitor, system: int, name: Annotated[str, Form(max_length=60)] = "") -> Response:
    visit.owns(system)
    visit.world.keep.name_system(system, name)
    visit.world.memory.forget()
    return RedirectResponse(f"/systems/{system}", 303)


@router.post("/systems/{system}/links")
def new_link(visit: Visitor, system: int, label: Annotated[str, Form(max_length=100)] = "") -> Response:
    secret = visit.world.keep.add_link(visit.owns(system), system, label, visit.world.now_ms)
    url = f"{visit.world.url}/shared/{secret}"
    return render(visit, "link.html", system=system, url=url, qr=_qr(url))


@router.post("/systems/{system}/links/{number}/end")
def end_link(visit: Visitor, system: int, number: int) -> Response:
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


@router.get("/systems/{system}/statements/{period}.pdf")
def pdf(visit: Visitor, system: int, period: str) -> Response:
    world = visit.world
    visit.sees(system)
    lines = [line for line in money.statements(world, system) if line["period"] == period]
    if not lines:
        raise not_found(f"no statement of {period[:10]} for system {system}")
    windows = [(line, read_windows(line_entries(world.store, bytes.fromhex(line["manifest"])))) for line in lines]
    owners = {str(token): known.owner for token, known in world.systems.items()}
    page = statement_page(period, world.deployment.network, windows, None, owners)
    name = f"attachment; filename=statement-{period}-{system}.pdf"
    return Response(statement_pdf(page), media_type="application/pdf", headers={"Content-Disposition": name})


@router.get("/systems/{system}/statements/{period}")
def statement(visit: Visitor, system: int, period: str) -> Response:
    world = visit.world
    visit.sees(system)
    lines = [line for line in money.statements(world, system) if line["period"] == period]
    if not lines:
        raise not_found(f"no statement of {period[:10]} for system {system}")
    shown = []
    for line in lines:
        found = money.explained(world, period, line)
        chart = None
        if found is not None:
            chart = bars(
                [(words.moment(s.begin_s * 1000, "UTC"), _slot(s)) for s in found.slots],
                ("counted", "lost", "held", "disputed"),
            )
        shown.append({"line": line, "found": found, "chart": chart})
    return render(visit, "statement.html", system=system, period=period, lines=shown)


def _slot(slot: Any) -> dict[str, int]:
    return {
        "counted": slot.counted_mws, "lost": slot.lost_mws, "held": slot.held_mws, "disputed": slot.disputed_mws,
    }  # fmt: skip


@router.get("/systems/{system}/evidence/{period}/{line}.zip")
def evidence(visit: Visitor, system: int, period: str, line: str) -> Response:
    visit.sees(system)
    lines = [x["line"] for x in money.statements(visit.world, system) if x["period"] == period]
    if line not in lines:
        raise not_found(f"no evidence of {period[:10]} for this line of system {system}")
    return _pack(visit, period, line)


def _pack(visit: Visit, period: str, line: str | None) -> Response:
    run, order = money.run_of(visit.world, period)
    folder = TemporaryDirectory(prefix="maxgreen-dapp-")
    path = Path(folder.name) / "pack.zip"
    write_pack_of(visit.world.store, run, order, path, line)

    def parts() -> Any:
        with folder, path.open("rb") as file:
            while data := file.read(1 << 16):
                yield data

    name = f"evidence-{period}{f'-{line[:8]}' if line else ''}.zip"
    headers = {"Content-Disposition": f"attachment; filename={name}", "Content-Length": str(path.stat().st_size)}
    return StreamingResponse(parts(), media_type="application/zip", headers=headers)


@router.get("/wallet")
def wallet(visit: Visitor) -> Response:
    address, world = visit.needs_account(), visit.world
    return render(
        visit, "wallet.html", held=money.held_tokens(world, address), pools=money.pools(world, address),
        requests=money.requests_of(world, visit.who), has_claims=bool(money.claims(world)),
    )  # fmt: skip


@router.get("/apply")
def apply_page(visit: Visitor) -> Response:
    visit.needs_account()
    samples = {kind: sample_text(kind) for kind in ("miner", "storage_node")}
    return render(visit, "apply.html", action=ACTIONS["apply"], samples=samples)


# actions


@router.get("/act/{name}")
def act_page(request: Request, visit: Visitor, name: str) -> Response:
    visit.needs_account()
    action = acting.find(name)
    given = {field.name: request.query_params.get(field.name, field.default or "")[:200] for field in action.fields}
    return render(
        visit, "act.html", action=action, given=given, big={Kind.SYSTEM, Kind.PROOF, Kind.READING},
        chain_id=visit.world.deployment.addresses.chain_id,
    )  # fmt: skip


@router.get("/actions")
def actions_page(visit: Visitor) -> Response:
    visit.needs_account()
    groups: dict[Who, list[Any]] = {}
    for action in ACTIONS.values():
        groups.setdefault(action.who, []).append(action)
    return render(visit, "actions.html", groups=groups)


# storage nodes


@router.get("/nodes/{node}")
def node_page(visit: Visitor, node: int) -> Response:
    world = visit.world
    visit.sees(node)
    if world.systems[node].system["kind"] == "miner":
        raise not_found(f"system {node} is no storage node")
    found = money.requests_of(world, visit.who)
    return render(
        visit, "node.html", node=node, room=money.room(world, node), state=visit.live.now(node),
        storage=[r for r in found["storage"] if r["node"] == node],
        take_outs=[t for t in found["take_outs"] if t["node"] == node],
        lines=[money.line_status(world, line) for line in world.lines_of({node})],
        statements=money.statements(world, node),
    )  # fmt: skip


# the DAO


@router.get("/dao")
def dao(visit: Visitor, ended: str = "") -> Response:
    world = visit.world
    return render(
        visit, "dao.html", ballots=council.ballots(world, "technical", ended=bool(ended)),
        module_ballots=council.ballots(world, "modules", ended=bool(ended)), ended=bool(ended),
        applications=council.applications(world), orders=council.orders(world),
        proposals=[a for a in ACTIONS.values() if a.who is Who.MEMBER and a.name != "vote"],
    )  # fmt: skip


@router.get("/dao/members")
def members(visit: Visitor) -> Response:
    return render(visit, "members.html", facts=council.members(visit.world), modules=council.modules(visit.world))


@router.get("/dao/ballots/{body}/{proposal}")
def ballot(visit: Visitor, body: str, proposal: str) -> Response:
    if body not in visit.world.ballots:
        raise not_found("there is no such body")
    found = council.ballot_page(visit.world, body, proposal, visit.who.address)
    return render(visit, "ballot.html", ballot=found)


@router.get("/dao/orders/{number}")
def order(visit: Visitor, number: int) -> Response:
    found = money.order(visit.world, min(max(number, 0), 2**48))
    lines = council.order_lines(visit.world, found) if visit.who.member else []
    return render(visit, "order.html", order=found, lines=lines)


@router.get("/dao/orders/{number}/evidence.zip")
def order_evidence(visit: Visitor, number: int) -> Response:
    visit.needs_member()
    found = money.order(visit.world, min(max(number, 0), 2**48))
    for one in money.closed(visit.world):
        if one["until_s"] == found["until_s"]:
            return _pack(visit, one["period"], None)
    raise not_found("the evidence of this order is not here")


@router.post("/dao/orders/{number}/audit")
def begin_audit(visit: Visitor, number: int) -> Response:
    visit.needs_member()
    found = money.order(visit.world, min(max(number, 0), 2**48))
    period = next((one["period"] for one in money.closed(visit.world) if one["until_s"] == found["until_s"]), None)
    if period is None:
        raise not_found("the evidence of this order is not here")
    visit.audits.begin(visit.world, number, period)
    return RedirectResponse(f"/dao/orders/{number}/audit", 303)


@router.get("/dao/orders/{number}/audit")
def audit_page(visit: Visitor, number: int) -> Response:
    visit.needs_member()
    return render(visit, "audit.html", number=number, audit=visit.audits.of(number))


# operators


@router.get("/fleet")
def fleet_page(visit: Visitor, how: str = "", after: int = 0) -> Response:
    visit.needs_operator()
    rows = [row for row in fleet.devices(visit.world) if not how or row["how"] == how]
    shown = [row for row in rows if row["token"] > after][:100]
    return render(
        visit, "fleet.html", rows=shown, how=how, count=len(rows), wrong=fleet.wrong_now(visit.world),
        counts=fleet.counts(visit.world), rejected=fleet.rejected(visit.world, 10),
        hows=sorted({row["how"] for row in fleet.devices(visit.world)}),
        more=shown[-1]["token"] if shown and shown[-1]["token"] < rows[-1]["token"] else None,
    )  # fmt: skip


@router.get("/devices/{device}")
def device_page(visit: Visitor, device: str, before: int | None = None) -> Response:
    known = fleet.find(visit.world, device)
    if not visit.who.may_look_after(known.token):
        raise not_found("there is no such device that you may see")
    row = next((r for r in fleet.devices(visit.world) if r["device"] == device.lower()), None)
    found = fleet.batches_of(visit.world, known.record.device, before, 50)
    return render(
        visit, "device.html", device=device.lower(), row=row, token=known.token, batches=found,
        commands=fleet.commands_of(visit.world, known.record.device, 10),
        decisions=fleet.decisions_of(visit.world, known.record.device), kinds=list(Decided),
        reasons=[(int(r), r.label) for r in sorted(RELEASABLE)], can_command=visit.world.signer is not None,
    )  # fmt: skip


@router.post("/devices/{device}/decisions")
def decide(
    visit: Visitor, device: str, action: Annotated[str, Form()], from_seq: Annotated[int, Form()],
    to_seq: Annotated[int, Form()], text: Annotated[str, Form()], reason: Annotated[str, Form()] = "",
) -> Response:  # fmt: skip
    visit.needs_to_decide()
    values = {"action": action, "from_seq": from_seq, "to_seq": to_seq, "text": text, "reason": reason}
    record_decision(visit, device, _checked(DecisionBody, values))
    return RedirectResponse(f"/devices/{quote(device)}", 303)


@router.post("/devices/{device}/commands")
def command(
    visit: Visitor, device: str, kind: Annotated[str, Form()], channel: Annotated[int, Form()] = 0,
    seconds: Annotated[int, Form()] = 600,
) -> Response:  # fmt: skip
    visit.needs_to_decide()
    give_command(visit, device, _checked(CommandBody, {"kind": kind, "channel": channel, "seconds": seconds}))
    return RedirectResponse(f"/devices/{quote(device)}", 303)


# power as it is now


@router.get("/live/{system}")
async def live(visit: Visitor, system: int) -> Response:
    visit.sees(system)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(visit.live.events(system), media_type="text/event-stream", headers=headers)


def _checked(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _times(of: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    try:
        begin, end = of()
    except (ValueError, OverflowError) as error:
        raise UsageError("no such day or month") from error
    if not 0 < begin < end < 2**33 or end - begin > 40 * DAY_S:
        raise UsageError("no such day or month")
    return begin, end


def _qr(text: str) -> list[str]:
    """Return a QR code as rows of 0 and 1, with its quiet zone."""
    return ["".join("1" if dark else "0" for dark in row) for row in segno.make_qr(text).matrix_iter(border=4)]
