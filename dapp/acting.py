"""Actions as pages offer them: what a wallet is asked to sign, and what became of it."""

from collections.abc import Mapping
from typing import Any

from dapp import words
from dapp.views import council, money
from dapp.world import World
from maxgreen.actions.all import ACTIONS
from maxgreen.actions.catalog import Action, Context, Draft, draft, visitor
from maxgreen.actions.readings import newest_reading
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.errors import MaxgreenError, UsageError
from maxgreen.protocol.attestation import Attestation
from maxgreen.said import Said, joined, said


def find(name: str) -> Action:
    """Return an action by name; UsageError when there is none."""
    if name not in ACTIONS:
        raise UsageError(f"there is no action {name[:40]!r}; there are {', '.join(ACTIONS)}")
    return ACTIONS[name]


def next_transaction(world: World, address: str, action: Action, given: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what an account's wallet is asked to sign next; None when nothing is left to do."""

    def reading(token: int, channel: int) -> Attestation | None:
        with world.book() as book:
            try:
                return newest_reading(book, token, channel)
            except UsageError:
                return None

    context = Context(world.deployment, world.clock, visitor(address), lambda: money.claims(world), reading)
    found = draft(action, context, given)
    if found is None:
        world.memory.forget()
        return None
    return {
        "from": address,
        "to": found.to,
        "data": f"0x{found.data.hex()}",
        "chain_id": world.deployment.addresses.chain_id,
        "contract": found.contract,
        "function": found.function,
        "says": _with_content(world, address, found, given),
        "last": found.last,
    }


def _with_content(world: World, address: str, found: Draft, given: Mapping[str, str]) -> Said:
    """Return what is signed, with what the bytes do not say: what a proposal would do, how much comes back."""
    if found.contract == "EnergyExchange" and found.function == "withdraw":
        owed = money.escrow(world, address)["owed"]
        amounts = (
            said("{amount} {token}", amount=words.tokens(wei), token=words.coin(name)) for name, wei in owed.items()
        )
        return said("{call} ({amounts})", call=found.says, amounts=joined(", ", amounts))
    if found.function != "castVoteWithReason":
        return found.says
    ballot = council.ballot_page(world, given.get("body") or "technical", given["proposal"], "")
    return said("{vote}: {calls}", vote=found.says, calls=joined("; ", (call["says"] for call in ballot["calls"])))


def outcome(world: World, digest: str) -> dict[str, Any]:
    """Return what became of a transaction: waits, done, failed; UsageError when that is no transaction."""
    try:
        data = bytes.fromhex(digest.removeprefix("0x"))
    except ValueError:
        data = b""
    if len(data) != 32:
        raise UsageError(f"transaction {digest[:70]!r}: expected 0x and 64 hex digits")
    found = world.deployment.chain.receipt(data)
    if found is None:
        return {"state": "waits"}
    world.memory.forget()
    block = int(found["blockNumber"])
    if found["status"] == 1:
        return {"state": "done", "block": block}
    return {"state": "failed", "block": block, "why": _why(world, data, block)}


def _why(world: World, data: bytes, block: int) -> str:
    """Return why a transaction failed, as the chain says it when it is tried again where it failed."""
    try:
        world.deployment.chain.retry(data, block)
    except ChainRefusedError as error:
        return str(error)
    except MaxgreenError:
        return ""
    return ""
