"""Pages for members of the DAO."""

from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from dapp import words
from dapp.guard import not_found
from dapp.pages.rendering import pack, render
from dapp.views import council, money
from dapp.visit import Visit, Visitor
from maxgreen.actions.all import ACTIONS
from maxgreen.actions.catalog import Who

router: Final = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/dao")
def dao(visit: Visitor, ended: str = "") -> Response:
    world = visit.world
    wanted = council.wanted_lines(world) if visit.who.member else []
    return render(
        visit, "dao.html", ballots=council.ballots(world, "technical", ended=bool(ended)),
        module_ballots=council.ballots(world, "modules", ended=bool(ended)), ended=bool(ended),
        applications=council.applications(world), wanted=wanted,
        voted_on=council.voted_on(world) if visit.who.member else {}, orders=council.orders(world),
        proposals=[a for a in ACTIONS.values() if a.who is Who.MEMBER and a.name != "vote"],
    )  # fmt: skip


@router.get("/dao/members")
def members(visit: Visitor) -> Response:
    return render(
        visit, "members.html", facts=council.members(visit.world), modules=council.modules(visit.world),
        labels=council.LABELS, span=words.span,
    )  # fmt: skip


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
    new_mws = sum(int(line["payable_mws"]) for line in lines)
    return render(visit, "order.html", order=found, lines=lines, new_mws=new_mws)


def _period_of(visit: Visit, number: int) -> str:
    """Return the closed period that an order is of, for a member of the DAO; 404 when its evidence is not here."""
    visit.needs_member()
    period = money.period_of(visit.world, money.order(visit.world, min(max(number, 0), 2**48)))
    if period is None:
        raise not_found("the evidence of this order is not here")
    return str(period["period"])


@router.get("/dao/orders/{number}/evidence.zip")
def order_evidence(visit: Visitor, number: int) -> Response:
    return pack(visit, _period_of(visit, number), None)


@router.post("/dao/orders/{number}/audit")
def begin_audit(visit: Visitor, number: int) -> Response:
    visit.audits.begin(visit.world, number, _period_of(visit, number))
    return RedirectResponse(f"/dao/orders/{number}/audit", 303)


@router.get("/dao/orders/{number}/audit")
def audit_page(visit: Visitor, number: int) -> Response:
    visit.needs_member()
    return render(visit, "audit.html", number=number, audit=visit.audits.of(number))
