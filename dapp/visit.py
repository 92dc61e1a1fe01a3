"""One request's visitor: who it is, in which language and time zone."""

import re
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Final
from urllib.parse import unquote

from fastapi import Depends, HTTPException, Request

from dapp import words
from dapp.audits import Audits
from dapp.guard import not_found
from dapp.live import Live
from dapp.people import Person, person, recent_person
from dapp.words import KINDS, known_zone, language_of, translated, with_commas
from dapp.world import World
from maxgreen.errors import Retryable
from maxgreen.said import in_words

SESSION: Final = "mg_session"
LINK: Final = "mg_link"
_MOST_LINKS: Final = 5
INSIDE: Final = re.compile(r"/(?![/\\])[^\x00-\x20\x7f\\]{0,1000}\Z")
_BEARER: Final = "bearer "


class Visit:
    """Who asks, and how answers are worded."""

    def __init__(self, request: Request) -> None:
        self._request = request
        parts = request.app.state
        self.world: World = parts.world
        self.live: Live = parts.live
        self.audits: Audits = parts.audits
        cookies = request.cookies
        self.language = language_of(cookies, request.headers)
        self.zone = known_zone(unquote(cookies.get("tz", "UTC")))
        self.energy, self.worth, self.power = (
            with_commas(way, self.language) for way in (words.energy, words.worth, words.power)
        )
        self.path = _path(request)  # and query of what is asked for
        self.missing: list[str] = []  # what a page is shown without

    @cached_property
    def who(self) -> Person:
        """Who asks, found out when it is first needed; HTTPException 401 for a token that is over."""
        request, world, now_ms = self._request, self.world, self.world.now_ms
        secret = request.headers.get("authorization", "")
        by_token = secret[: len(_BEARER)].lower() == _BEARER
        if by_token:
            address = world.keep.token(secret[len(_BEARER) :].strip(), now_ms)
            if address is None:
                raise HTTPException(401, "this token is over, or was never given", {"WWW-Authenticate": "Bearer"})
        else:
            session = request.cookies.get(SESSION, "")
            address = (world.keep.session(session, now_ms) if session else None) or ""
        return person(world, address, _shared(world, request), by_token=by_token)

    def is_known(self) -> bool:
        """Tell whether who asks by a session is remembered, so that `who` waits for nothing."""
        request = self._request
        if "authorization" in request.headers or LINK in request.cookies:
            return False
        address = self.world.keep.recent_session(request.cookies.get(SESSION, ""), self.world.now_ms)
        found = recent_person(self.world, address) if address else None
        if found is not None:
            self.__dict__["who"] = found
        return found is not None

    def softly(self, fetch: Callable[[], Any], default: Any) -> Any:
        """Return what is fetched; where what knows it is away, a default, and the page says so."""
        try:
            return fetch()
        except Retryable as error:
            if str(error) not in self.missing:
                self.missing.append(str(error))
            return default

    def say(self, text: str, **values: object) -> str:
        """Return a text in the visitor's language."""
        return translated(text, self.language).format(**values)

    def in_words(self, sentence: object) -> str:
        """Return a sentence of ours in the visitor's language."""
        return in_words(sentence, lambda template: translated(template, self.language))

    def named(self, system: int) -> str:
        """Return a system's name; what its owner calls it, for the owner and those whom a link shows it."""
        own = self.world.named(system) if self.who.owns(system) or system in self.who.shared else ""
        known = self.world.systems.get(system)
        kind = "System" if known is None else KINDS[known.system["kind"]]
        return own or f"{self.say(kind)} {system}"

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

    def sees_payment(self, system: int) -> int:
        """Return a system whose payment the visitor may see: its owner's and the DAO's, no link shows it."""
        self.sees(system)
        if not (self.who.owns(system) or self.who.member):
            raise not_found("what a system earned is for its owner and members of the DAO")
        return system

    def owns(self, system: int) -> str:
        """Return the address of the person who owns a system."""
        address = self.needs_person()
        if not self.who.owns(system):
            raise HTTPException(403, "only its owner may do this")
        return address


async def visit(request: Request) -> Visit:
    """Return who makes a request; nothing is asked yet, so it needs no thread."""
    return Visit(request)


def came_from(request: Request, otherwise: str) -> str:
    """Return the page of ours that a visitor came from."""
    there = request.headers.get("referer", "").removeprefix(request.app.state.world.url)
    return there if INSIDE.match(there) else otherwise


def _path(request: Request) -> str:
    """Return what a visitor asks for, or the first page where coming back to it makes no sense."""
    query = f"?{request.url.query}" if request.url.query else ""
    there = f"{request.url.path}{query}"
    return there if request.method == "GET" and INSIDE.match(there) else "/"


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
