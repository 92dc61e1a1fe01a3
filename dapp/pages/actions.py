"""Pages of actions: a form for each, which a wallet then signs."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from dapp import acting
from dapp.pages.rendering import render
from dapp.visit import Visitor
from maxgreen.actions.all import ACTIONS
from maxgreen.actions.catalog import Kind, Who

router: Final = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


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
