"""One request's visitor: who it is, in which language and time zone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import unquote

from fastapi import Depends, HTTPException, Request

from dapp.audits import Audits
from dapp.guard import not_found
from dapp.live import Live
from dapp.people import Person, person
from dapp.words import LANGUAGES, known_zone
from dapp.world import World
from maxgreen.errors import Retryable

SESSION: Final = "mg_session"
LINK: Final = "mg_link"
_MOST_LINKS: Final = 5
_BEARER: Final = "bearer "


@dataclass(frozen=True, slots=True)
class Visit:
    """Who asks, and how answers are worded."""

    world: World
    live: Live
    audits: Audits
    who: Person
    language: str
    zone: str
    missing: list[str] = field(default_factory=list)  # what a page is shown without

    def softly(self, fetch: Callable[[], Any], default: Any) -> Any:
        """Return what is fetched; where what knows it is away, a default, and the page says so."""
        try:
            return fetch()
        except Retryable as error:
            if str(error) not in self.missing:
                self.missing.append(str(error))
            return default

    def needs_account(self) -> str:
        """Return the visitor's address; 401 for a stranger."""
        if not self.who.address:
            raise HTTPException(401, "sign in first", {"WWW-Authenticate": "Bearer"})
        return self.who.address

    def needs_person(self) -> str:
        """Return the address of a person who signed in; 403 for a script's token."""
        address = self.needs_account()
        if self.who.by_token:
            raise HTTPException(403, "a token reads; this needs a person who signed in")
        return address

    def needs_member(self) -> None:
        """Pass for a member of the DAO."""
        self.needs_account()
        if not self.who.member:
            raise HTTPException(403, "only members of the DAO see this")

    def needs_operator(self) -> None:
        """Pass for the operator, and for members of the DAO, who decide on devices."""
        self.needs_account()
        if not (self.who.operator or self.who.member):
            raise HTTPException(403, "only the operator and members of the DAO see this")

    def needs_to_decide(self) -> str:
        """Return the address of an operator who signed in: decisions and commands are recorded with it."""
        address = self.needs_person()
        if not self.who.operator:
            raise HTTPException(403, "only the operator decides this")
        return address

    def sees(self, system: int) -> int:
        """Return a system that the visitor may see; 404 also for one that it may not: strangers learn nothing."""
        if system not in self.world.systems or not self.who.may_see(system):
            raise not_found(f"there is no system {system} that you may see; sign in as its owner")
        return system

    def owns(self, system: int) -> str:
        """Return the address of the person who owns a system."""
        address = self.needs_person()
        if not self.who.owns(system):
            raise HTTPException(403, "only its owner may do this")
        return address


def visit(request: Request) -> Visit:
    """Return who makes a request."""
    world: World = request.app.state.world
    now_ms, secret = world.now_ms, request.headers.get("authorization", "")
    by_token = secret[: len(_BEARER)].lower() == _BEARER
    if by_token:
        address = world.keep.token(secret[len(_BEARER) :].strip(), now_ms)
        if address is None:
            raise HTTPException(401, "this token is over, or was never given", {"WWW-Authenticate": "Bearer"})
    else:
        session = request.cookies.get(SESSION, "")
        address = (world.keep.session(session, now_ms) if session else None) or ""
    who = person(world, address, _shared(world, request), by_token=by_token)
    chosen = request.cookies.get("lang") or request.headers.get("accept-language", "")[:2]
    language = chosen if chosen in LANGUAGES else "en"
    parts = request.app.state
    return Visit(world, parts.live, parts.audits, who, language, known_zone(unquote(request.cookies.get("tz", "UTC"))))


def _shared(world: World, request: Request) -> frozenset[int]:
    """Return the systems that links show which their owners gave and still own."""
    found = set()
    for secret in request.cookies.get(LINK, "").split(".")[:_MOST_LINKS]:
        link = world.keep.link(secret) if secret else None
        if link is not None:
            owner, system = link
            known = world.systems.get(system)
            if known is not None and known.owner.lower() == owner.lower():
                found.add(system)
    return frozenset(found)


Visitor = Annotated[Visit, Depends(visit)]
