"""Pages for operators."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError

from dapp.charts import map_of
from dapp.deciding import CommandBody, DecisionBody, give_command, record_decision
from dapp.guard import not_found
from dapp.pages.rendering import render
from dapp.views import fleet
from dapp.visit import Visit, Visitor
from maxgreen.errors import UsageError
from maxgreen.protocol.batch import MAX_SEQ
from maxgreen.protocol.reasons import RELEASABLE
from maxgreen.verify.rules import Action as Decided

_MOST_DOTS: Final = 5_000
router: Final = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/fleet")
def fleet_page(
    visit: Visitor, how: Annotated[str, Query(max_length=20)] = "", after: Annotated[int, Query(ge=0, le=2**48)] = 0
) -> Response:
    visit.needs_operator()
    rows = [row for row in fleet.devices(visit.world) if not how or row["how"] == how]
    shown = [row for row in rows if row["token"] > after][:100]
    return render(
        visit, "fleet.html", rows=shown, how=how, count=len(rows), map=map_of(rows[:_MOST_DOTS]),
        facts=fleet.facts(visit.world), wrong=fleet.wrong_now(visit.world),
        counts=fleet.counts(visit.world), rejected=fleet.rejected(visit.world, 10),
        hows=sorted({row["how"] for row in fleet.devices(visit.world)}),
        more=shown[-1]["token"] if shown and shown[-1]["token"] < rows[-1]["token"] else None,
    )  # fmt: skip


@router.get("/devices/{device}")
def device_page(visit: Visitor, device: str, before: Annotated[int | None, Query(ge=0, le=MAX_SEQ)] = None) -> Response:
    return _device(visit, device, before)


def _device(
    visit: Visit,
    device: str,
    before: int | None = None,
    wrong: str = "",
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Response:
    """Return a device's page; `wrong` is what is wrong with what was `given` in one of its forms."""
    known = fleet.find(visit.world, device)
    if not visit.who.may_look_after(known.token):
        raise not_found("there is no such device that you may see")
    row = next((r for r in fleet.devices(visit.world) if r["device"] == device.lower()), None)
    found = fleet.batches_of(visit.world, known.record.device, before, 200)
    return render(
        visit, "device.html", device=device.lower(), row=row, token=known.token, batches=fleet.in_runs(found),
        commands=fleet.commands_of(visit.world, known.record.device, 10),
        decisions=fleet.decisions_of(visit.world, known.record.device), kinds=list(Decided), effects=fleet.EFFECTS,
        reasons=[(int(r), r.label) for r in sorted(RELEASABLE)], can_command=visit.world.signer is not None,
        wrong=wrong, given=given, status=400 if wrong else 200,
    )  # fmt: skip


@router.post("/devices/{device}/decisions")
def decide(
    visit: Visitor, device: str, action: Annotated[str, Form()], from_seq: Annotated[int, Form()],
    to_seq: Annotated[int, Form()], text: Annotated[str, Form()], reason: Annotated[str, Form()] = "",
) -> Response:  # fmt: skip
    visit.needs_to_decide()
    values = {"action": action, "from_seq": from_seq, "to_seq": to_seq, "text": text, "reason": reason}
    try:
        record_decision(visit, device, _checked(DecisionBody, values))
    except UsageError as error:
        return _device(visit, device, wrong=visit.in_words(error.args[0]), given=values)
    return RedirectResponse(f"/devices/{quote(device)}", 303)


@router.post("/devices/{device}/commands")
def command(
    visit: Visitor, device: str, kind: Annotated[str, Form()], channel: Annotated[int, Form()] = 0,
    seconds: Annotated[int, Form()] = 600,
) -> Response:  # fmt: skip
    visit.needs_to_decide()
    values = {"kind": kind, "channel": channel, "seconds": seconds}
    try:
        give_command(visit, device, _checked(CommandBody, values))
    except UsageError as error:
        return _device(visit, device, wrong=visit.in_words(error.args[0]), given=values)
    return RedirectResponse(f"/devices/{quote(device)}", 303)


def _checked(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
