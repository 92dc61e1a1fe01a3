"""Pages of actions: a form for each, which a wallet then signs."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from dapp import acting
from dapp.choices import Choices, choices_of, hint
from dapp.pages.rendering import render
from dapp.views import council
from dapp.visit import Visit, Visitor
from maxgreen.actions.all import ACTIONS, COMMANDS
from maxgreen.actions.catalog import Action, Kind, Who
from maxgreen.errors import UsageError

router: Final = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
_FILES: Final = {Kind.SYSTEM, Kind.PROOF, Kind.READING}
_MOST: Final = 200  # characters of a value in an address


@router.get("/act/{name}")
def act_page(request: Request, visit: Visitor, name: str) -> Response:
    visit.needs_account()
    action = acting.find(name)
    given = {field.name: request.query_params.get(field.name, "")[:_MOST] for field in action.fields}
    ballot = _ballot(visit, given)
    if ballot is None and any(field.kind is Kind.PROPOSAL for field in action.fields):
        found = choices_of(visit, action).get("proposal", [])
        return render(visit, "choose.html", action=action, ballots=[(*one.split("/"), said) for one, said in found])
    fields = list(_shown(visit, action, given, choices_of(visit, action), ballot))
    return render(
        visit, "act.html", action=action, ballot=ballot, command=COMMANDS[action.name],
        fixed=[f for f in fields if f["fixed"]], fields=[f for f in fields if not f["fixed"]],
        held=visit.softly(lambda: hint(visit, action), {}), chain_id=visit.world.deployment.addresses.chain_id,
        done="/dao" if action.who is Who.MEMBER else "/home",
    )  # fmt: skip


def _ballot(visit: Visit, given: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the proposal that an action is about, where its address names one."""
    body = given.get("body") or "technical"
    if not given.get("proposal") or body not in visit.world.ballots:
        return None
    try:
        return council.ballot_page(visit.world, body, given["proposal"], visit.who.address)
    except UsageError:
        return None


def _shown(
    visit: Visit,
    action: Action,
    given: Mapping[str, str],
    choices: Mapping[str, Choices],
    ballot: Mapping[str, Any] | None,
) -> Iterator[dict[str, Any]]:
    """Yield the fields of a form: what the address gave is fixed, what can be chosen is a list."""
    for field in action.fields:
        options = choices.get(field.name) or [(choice, visit.say(choice)) for choice in field.choices]
        value = given[field.name]
        said = dict(options).get(value, value)
        if field.kind is Kind.PROPOSAL and ballot is not None:
            said = f"{ballot['description']} ({ballot['proposal']})"
        yield {
            "name": field.name, "label": field.label, "kind": field.kind.value, "optional": field.optional,
            "required": not field.optional and field.default is None, "file": field.kind in _FILES,
            "options": options, "none": field.of is not None and choices.get(field.name) == [],
            "fixed": bool(value) and field.kind not in _FILES and (not field.choices or value in field.choices),
            "value": value or field.default or "", "said": said,
        }  # fmt: skip


@router.get("/actions")
def actions_page(visit: Visitor) -> Response:
    visit.needs_account()
    who = visit.who
    open_to = {
        Who.OWNER: bool(who.systems), Who.NODE: bool(who.nodes), Who.MEMBER: who.member, Who.OPERATOR: who.operator,
        Who.ANYONE: True,
    }  # fmt: skip
    groups: dict[Who, list[Any]] = {}
    for action in ACTIONS.values():
        if open_to[action.who]:
            groups.setdefault(action.who, []).append(action)
    return render(visit, "actions.html", groups=groups)
