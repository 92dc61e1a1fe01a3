"""The pages, made on the server; every one works without a script, but for what a wallet signs."""

from typing import Final

from fastapi import APIRouter

from dapp.pages import actions, council, front, operator, owner

ROUTERS: Final[tuple[APIRouter, ...]] = tuple(one.router for one in (front, owner, actions, council, operator))
