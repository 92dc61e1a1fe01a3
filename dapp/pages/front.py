"""Pages for everybody, and the way in and out."""

from typing import Annotated, Final

from fastapi import APIRouter, Form, Path, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from dapp import words
from dapp.pages.rendering import render
from dapp.signin import sign_in, text_to_sign
from dapp.views import everybody
from dapp.visit import INSIDE, SESSION, Visitor, came_from

Number = Annotated[int, Path(ge=0, le=2**48)]
router: Final = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
_SESSION_S: Final = 7 * 86_400
_LINK_S: Final = 365 * 86_400


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
    return render(visit, "verify.html", totals=everybody.totals(visit.world))


@router.get("/docs")
def docs(visit: Visitor) -> Response:
    return render(visit, "docs.html", url=visit.world.url)


@router.get("/language/{language}")
def language(language: str, request: Request) -> Response:
    answer = RedirectResponse(came_from(request, "/"), 303)
    answer.set_cookie("lang", language if language in words.LANGUAGES else "en", _LINK_S, samesite="lax")
    return answer


@router.get("/sign-in")
def sign_in_page(visit: Visitor, to: str = "") -> Response:
    to = to if INSIDE.match(to) and to != "/" and not to.startswith("/sign-in") else "/home"
    return render(visit, "sign-in.html", chain_id=visit.world.deployment.addresses.chain_id, to=to)


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
    if everywhere and visit.who.address and not visit.who.by_token:
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
def end_token(visit: Visitor, number: Number) -> Response:
    visit.world.keep.end_token(visit.needs_person(), number)
    return RedirectResponse("/account", 303)
