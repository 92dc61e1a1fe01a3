"""What a form's field can name: the lists that people choose from, as the visitor may see them."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from dapp import words
from dapp.views import council, metered, money
from dapp.visit import Visit
from maxgreen.actions.catalog import Action, Of
from maxgreen.chain.market import RequestStatus, balances
from maxgreen.protocol.batch import Role

Choices = list[tuple[str, str]]  # values, and how people read them
_FEW: Final = 20  # of which the chain is asked for more
MOST: Final = 200  # in a list; more are asked for by their digits


def choices_of(visit: Visit, action: Action) -> dict[str, Choices]:
    """Return what can be chosen for an action's fields; nothing for what has to be written, or is too much."""
    found: dict[str, Choices] = {}
    for field in action.fields:
        if field.of is not None:
            listed: Choices = visit.softly(partial(_listed, visit, action.name, field.of), [])
            if len(listed) <= MOST:
                found[field.name] = listed
    return found


def hint(visit: Visit, action: Action) -> dict[str, int]:
    """Return what there is of the tokens that an action is about, wei: the visitor's, or the vault's."""
    if action.name in {"take-out", "deposit", "swap"}:
        return money.held_tokens(visit.world, visit.who.address)
    if action.name == "redeem":
        pools = money.pools(visit.world, visit.who.address)
        return {f"energy {pool['node']}": int(pool["value"]) for pool in pools if int(pool["value"])}
    if action.name in {"give", "provide"}:
        vault = visit.world.deployment.addresses.timelock
        return {name: amount for name, amount in balances(visit.world.deployment, vault, ()).items() if amount}
    return {}


def _listed(visit: Visit, action: str, of: Of) -> Choices:
    if of is Of.NODE and action == "take-out":
        return list(_deliverers(visit))
    if of is Of.TAKE_OUT:
        return list(_take_outs(visit, action))
    if of is Of.PROPOSAL:
        return list(_proposals(visit, action))
    return list(_LISTS[of](visit))


def _systems(visit: Visit, tokens: Any) -> Iterator[tuple[str, str]]:
    for token in sorted(tokens):
        named = visit.named(token)
        yield str(token), named if named.endswith(str(token)) else f"{named} ({token})"


def _nodes(visit: Visit) -> Iterator[tuple[str, str]]:
    nodes = [token for token, known in visit.world.systems.items() if known.system["kind"] != "miner"]
    for token, name in _systems(visit, nodes):
        if len(nodes) > _FEW:
            yield token, name
        else:
            room = money.room(visit.world, int(token))
            yield token, f"{name}, {visit.say('room for {energy}', energy=visit.worth(room['room_wei']))}"


def _deliverers(visit: Visit) -> Iterator[tuple[str, str]]:
    """Yield the nodes out of which energy can be taken, with what the visitor holds of it."""
    held = money.held_tokens(visit.world, visit.who.address)
    for meter, _ in _meters(visit, Role.DELIVERED, visit.world.systems):
        token = meter.partition(".")[0]
        energy = visit.worth(held.get(f"energy {token}", 0))
        yield token, f"{visit.named(int(token))}, {visit.say('you hold {energy}', energy=energy)}"


def _meters(visit: Visit, role: Role, tokens: Any) -> Iterator[tuple[str, str]]:
    for token in sorted(tokens):
        for number in metered.channels_of(visit.world.systems[token], role):
            yield f"{token}.{number}", f"{visit.named(token)}, {visit.say('channel {number}', number=number)}"


def _lines(visit: Visit, tokens: set[int] | None) -> Iterator[tuple[str, str]]:
    for line, ends in visit.world.ends.items():
        if tokens is None or {ends.miner_token, ends.node_token} & tokens:
            yield line.hex(), f"{visit.named(ends.miner_token)} → {visit.named(ends.node_token)} ({line.hex()[:8]})"


def _orders(visit: Visit) -> Iterator[tuple[str, str]]:
    for one in council.orders(visit.world):
        if one["status"] == "posted":
            yield str(one["order"]), f"{one['order']}, {words.moment(one['until_s'] * 1000, 'UTC')}"


def _applications(visit: Visit) -> Iterator[tuple[str, str]]:
    for one in council.applications(visit.world):
        yield str(one["number"]), f"{one['number']}, {visit.say(one['kind'])}, {visit.power(one['peak_w'])}"


def _storage_requests(visit: Visit) -> Iterator[tuple[str, str]]:
    for one in money.requests_of(visit.world, visit.who)["storage"]:
        if one["status"] == "open":
            name = visit.named(one["miner"])
            yield str(one["number"]), f"{one['number']}, {name}, {visit.energy(one['energy_mws'])}"


_TAKE_OUT_IN: Final[Mapping[str, tuple[str, ...]]] = {
    "accept": ("open",), "refuse": ("open",), "cancel": ("open", "expired"), "finish": ("accepted",),
    "confirm": ("accepted", "finished"), "settle": ("accepted", "finished"),
}  # fmt: skip


def _take_outs(visit: Visit, action: str) -> Iterator[tuple[str, str]]:
    if action == "decide":  # it is others' dispute that the DAO decides
        for other in money.requests(visit.world)[1]:
            if other.status in {RequestStatus.ACCEPTED, RequestStatus.FINISHED}:
                yield str(other.number), f"{other.number}, {visit.named(other.node)}, {visit.worth(other.amount_wei)}"
        return
    for one in money.requests_of(visit.world, visit.who)["take_outs"]:
        if one["status"] in _TAKE_OUT_IN[action]:
            name = visit.named(one["node"])
            yield str(one["number"]), f"{one['number']}, {name}, {visit.worth(one['amount_wei'])}"


def _proposals(visit: Visit, action: str) -> Iterator[tuple[str, str]]:
    for body in visit.world.ballots:
        for one in council.ballots(visit.world, body):
            if one["next"] == action:
                yield f"{body}/{one['id']}", f"{one['description']} ({one['proposal']})"


_LISTS: Final[Mapping[Of, Callable[[Visit], Iterator[tuple[str, str]]]]] = {
    Of.MY_MINER: lambda v: _systems(v, v.who.miners),
    Of.MY_SYSTEM: lambda v: _systems(v, v.who.systems),
    Of.MY_METER: lambda v: _meters(v, Role.RECEIVED, v.who.systems),
    Of.MY_LINE: lambda v: _lines(v, set(v.who.systems)),
    Of.SYSTEM: lambda v: _systems(v, v.world.systems),
    Of.NODE: _nodes,
    Of.POOL: lambda v: _systems(v, [p["node"] for p in money.pools(v.world, v.who.address)]),
    Of.SENDING: lambda v: _meters(v, Role.SENT, v.world.systems),
    Of.RECEIVING: lambda v: _meters(v, Role.RECEIVED, v.world.systems),
    Of.LINE: lambda v: _lines(v, None),
    Of.ORDER: _orders,
    Of.APPLICATION: _applications,
    Of.STORAGE_REQUEST: _storage_requests,
}
