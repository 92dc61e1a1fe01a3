"""What systems earned: lines, statements and why, tokens, pools, requests."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import select

from dapp.people import Person
from dapp.world import BLOCK_S, World
from maxgreen.chain.claims import parse_claims
from maxgreen.chain.market import Exchange, Pool, RequestStatus, StorageRequest, TakeOut, balances, coin, wei_of
from maxgreen.chain.orders import Claim, Line, OrderStatus
from maxgreen.chain.payments import Payment
from maxgreen.errors import Retryable, UsageError
from maxgreen.ledger.schema import periods
from maxgreen.protocol.pack import PackError
from maxgreen.store import AbsentError
from settlement.explain import Explanation, explain
from settlement.packs import kept_order, line_entries
from settlement.run import Run
from settlement.statement import read_windows

_PERIODS: Final = 120
_PPM: Final = 10**6
_LONG_S: Final = 86_400
_IN_ESCROW: Final = {RequestStatus.OPEN, RequestStatus.ACCEPTED, RequestStatus.FINISHED}
_TURNS: Final = {
    OrderStatus.POSTED.label: "vote",
    OrderStatus.REJECTED.label: "rejected",
}


def closed(world: World) -> list[dict[str, Any]]:
    """Return the closed periods, the newest first: their run.json, and what follows from it."""

    def fetch() -> list[dict[str, Any]]:
        columns = (periods.c.period, periods.c.until_s, periods.c.closed_ms, periods.c.run)
        with world.book() as book:
            query = select(*columns).order_by(periods.c.until_s.desc()).limit(_PERIODS)
            rows = book.connection.execute(query).all()
        return [
            {
                "period": r.period, "until_s": r.until_s, "closed_ms": r.closed_ms, "digest": bytes(r.run).hex(),
                **world.lasting.get(("run", r.run), _LONG_S, partial(_read_run, world, r.until_s, bytes(r.run))),
            }
            for r in rows
        ]  # fmt: skip

    return world.memory.get("periods", BLOCK_S, fetch)


def _read_run(world: World, until_s: int, digest: bytes) -> dict[str, Any]:
    """Return a closed period's run, with its lines by their name, and by the system at either end."""
    with world.book() as book:
        query = select(periods.c.document).where(periods.c.until_s == until_s, periods.c.run == digest)
        document = book.connection.execute(query).scalar()
    if document is None:
        raise Retryable("a period was just closed again; try again in a moment")
    run = json.loads(document)
    by_system: dict[str, list[Any]] = defaultdict(list)
    for line in run["lines"]:
        for end in {str(line["miner"]), str(line["node"])}:
            by_system[end].append(line)
    return {"run": run, "by_line": {line["line"]: line for line in run["lines"]}, "by_system": by_system}


def period_of(world: World, order: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the closed period that an order is of; None where it is another run, since it was closed again."""
    return next((one for one in closed(world) if one["digest"] == order["run"]), None)


def find_period(world: World, period: str) -> dict[str, Any]:
    """Return a closed period; UsageError when it is none."""
    for one in closed(world):
        if one["period"] == period:
            return one
    raise UsageError(f"{period[:20]!r} is no closed period")


def statements(world: World, system: int) -> list[dict[str, Any]]:
    """Return a system's statements, the newest first: a row for each line and period."""
    return [
        {"period": one["period"], "until_s": one["until_s"], **line}
        for one in closed(world)
        for line in one["by_system"].get(str(system), ())
    ]


def with_state(world: World, system: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a system's statement with what became of it, and what of its tokens is its owner's: wei and ppm.

    `claimed_mws` is what of it was claimed already; `in_period` names the later one that contains it.
    """
    line, minted = world.line(bytes.fromhex(row["line"])), int(row["mint_wei"])
    state, in_period = _state_of(world, row, line)
    payment = _payment_of(world, row, line) if state == "paid" else None
    node_ppm = _node_share_ppm(world)
    if payment is not None and payment.amount_wei:  # as it was split then
        node_ppm = -(-payment.to_node_wei * _PPM // payment.amount_wei)
    to_node, miner_end = minted * node_ppm // _PPM, str(row["miner"]) == str(system)
    before_mws, total_mws = int(row["paid_before_mws"]), int(row["payable_total_mws"])
    return {
        **row,
        "yours_wei": str(minted - to_node if miner_end else to_node),
        "yours_ppm": _PPM - node_ppm if miner_end else node_ppm,
        "state": state,
        "in_period": in_period,
        "claimed_mws": str(min(max(0, line.paid_mws - before_mws), total_mws - before_mws)),
    }


def _node_share_ppm(world: World) -> int:
    """Return what of the tokens the node's owner gets now."""
    return world.memory.get("node share", 10 * BLOCK_S, world.contract.node_share_ppm)


def _state_of(world: World, row: Mapping[str, Any], line: Line) -> tuple[str, str]:
    """Return what became of a statement, as a word that pages put into a sentence, and the period that contains it."""
    total_mws = int(row["payable_total_mws"])
    if not int(row["payable_mws"]):
        return "nothing", ""
    if line.paid_mws < total_mws and _approved_mws(world, line) == total_mws and not line.hold:
        return "claim", ""
    for one in reversed(closed(world)):  # the oldest of those that came later
        later = one["by_line"].get(row["line"])
        if one["until_s"] > row["until_s"] and later is not None and int(later["paid_before_mws"]) < total_mws:
            return "later", one["period"]
    if line.minted_mws >= total_mws:
        return "paid", ""
    if line.hold:
        return "hold", ""
    if line.paid_mws >= total_mws:
        return ("room" if line.credit_mws else "forfeited"), ""
    return _turn_of(world, find_period(world, row["period"])["digest"]), ""


def _payment_of(world: World, row: Mapping[str, Any], line: Line) -> Payment | None:
    """Return the payment with which all of a statement was minted; None where it was forfeited in part."""
    left_mws = int(row["payable_total_mws"]) - line.forfeited_mws
    for payment in world.payments.of(bytes.fromhex(row["line"])):
        left_mws -= payment.energy_mws
        if left_mws <= 0:
            return payment
    return None


def paid_ms(world: World, row: Mapping[str, Any]) -> int | None:
    """Return when all of a statement was paid; None where that is not known."""
    payment = _payment_of(world, row, world.line(bytes.fromhex(row["line"])))
    if payment is None:
        return None
    return 1000 * world.lasting.get(("block", payment.block), 3_600, lambda: world.contract.time_of(payment.block))


def yours_in_all(world: World, system: int, line: Mapping[str, Any]) -> int:
    """Return what a system's owner got for a line, wei, as it was split at each payment."""
    miner = line["miner"] == system
    return sum(payment.of_end(miner=miner) for payment in world.payments.of(bytes.fromhex(line["line"])))


def explained(world: World, period: str, line: Mapping[str, Any]) -> Explanation | None:
    """Return where a line's energy went; None where the evidence store does not have it."""

    def fetch() -> Explanation | None:
        try:
            return explain(period, line, read_windows(line_entries(world.store, bytes.fromhex(line["manifest"]))))
        except (AbsentError, PackError):
            return None

    return world.lasting.get(("explained", line["manifest"]), 3_600, fetch)


def run_of(world: World, period: str) -> tuple[Run, bytes | None]:
    """Return a closed period's run, and its order.json where there is one."""
    run = Run(find_period(world, period)["run"], ())
    return run, kept_order(world.store, run)


def claims(world: World) -> Sequence[Claim]:
    """Return the claims of the newest approved order."""
    until_s = _approved_until(world)
    if until_s is None:
        return ()

    def fetch() -> Sequence[Claim]:
        with world.book() as book:
            row = book.period(until_s)
        return () if row is None else parse_claims(row.claims.encode())

    return world.memory.get(("claims", until_s), BLOCK_S, fetch)


def _approved_until(world: World) -> int | None:
    def fetch() -> int | None:
        number = world.contract.claimable()
        return world.contract.posting(number).until_s if number else None

    return world.memory.get("approved", BLOCK_S, fetch)


def newest_order(world: World) -> dict[str, Any] | None:
    """Return the order that was posted last: number, status, why it was rejected, and when it ends."""

    def fetch() -> dict[str, Any] | None:
        count = world.contract.order_count()
        return order(world, count) if count else None

    return world.memory.get("order", BLOCK_S, fetch)


def order(world: World, number: int) -> dict[str, Any]:
    """Return an order as the chain has it; ChainRefusedError when there is none."""
    found, posting = world.contract.order(number), world.contract.posting(number)
    return {
        "order": number,
        "status": found.status.label,
        "code": found.code,
        "text": found.text,
        "posted_s": found.posted_s,
        "until_s": posting.until_s,
        "lines": posting.count,
        "total_mws": str(posting.total_mws),
        "root": posting.root.hex(),
        "run": posting.manifest_digest.hex(),
        "evidence": posting.evidence,
    }


def lines_of(world: World, systems: set[int]) -> list[dict[str, Any]]:
    """Return the lines with an end at one of these systems, oldest first, with what is their owners', wei."""
    return (
        [_with_yours(world, line_status(world, line), systems) for line in world.lines_of(systems)] if systems else []
    )


def _with_yours(world: World, line: dict[str, Any], systems: set[int]) -> dict[str, Any]:
    """Return a line with what its ends at these systems got, and what waits for them, at the present split."""
    node_ppm = _node_share_ppm(world)
    parts = {line["miner"]: _PPM - node_ppm, line["node"]: node_ppm}
    ppm = sum(part for system, part in parts.items() if system in systems)
    ends = {system for system in parts if system in systems}
    waits_wei = wei_of(int(line["waiting_mws"]) + int(line["credit_mws"])) * line["efficiency_ppm"] // _PPM
    got_wei = sum(yours_in_all(world, system, line) for system in ends)
    return {**line, "yours_wei": str(got_wei), "yours_waiting_wei": str(waits_wei * ppm // _PPM)}


def line_status(world: World, line: Line) -> dict[str, Any]:
    """Return a line: its ends, what it was paid, what waits, and for whom it waits."""
    name = line.ends.line_id
    newest = next((one for one in closed(world)), None)
    said = None if newest is None else newest["by_line"].get(name.hex())
    total_mws = int(said["payable_total_mws"]) if said is not None else 0
    waiting_mws = max(0, total_mws - line.paid_mws)
    last = newest_order(world)
    return {
        "line": name.hex(),
        "miner": line.ends.miner_token,
        "miner_channel": line.ends.miner_channel,
        "node": line.ends.node_token,
        "node_channel": line.ends.node_channel,
        "opened_s": line.opened_s,
        "closed_s": line.closed_s,
        "paid_mws": str(line.paid_mws),
        "minted_wei": str(line.minted_wei),
        "efficiency_ppm": int(world.systems[line.ends.node_token].system.get("efficiency_ppm", _PPM))
        if line.ends.node_token in world.systems
        else _PPM,
        "credit_mws": str(line.credit_mws),
        "waiting_mws": str(waiting_mws),
        "hold": line.hold,
        "hold_text": world.contract.hold_text(name) if line.hold else "",
        "rejected": f"{last['code']}: {last['text']}" if last is not None and last["code"] else "",
        "turn": _turn(world, line, said, waiting_mws),
    }


def _turn(world: World, line: Line, said: Mapping[str, Any] | None, waiting_mws: int) -> str:
    """Return what a line waits for, as a word that pages put into a sentence."""
    if not line.opened_s:
        return "opening"
    if said is not None and said["trouble"]:
        return "trouble"
    if line.hold:
        return "hold"
    if _approved_mws(world, line) > line.paid_mws:
        return "claim"
    if waiting_mws:
        return _turn_of(world, closed(world)[0]["digest"])
    if line.credit_mws:
        return "room"
    return "period" if said is None else "nothing"


def _approved_mws(world: World, line: Line) -> int:
    """Return what the newest approved order lets be claimed for a line since it opened; 0 where nothing."""

    def fetch() -> dict[bytes, int]:
        return {claim.line: claim.payable_total_mws for claim in claims(world)}

    return world.memory.get("approved totals", BLOCK_S, fetch).get(line.ends.line_id, 0)


def _turn_of(world: World, digest: str) -> str:
    """Return what a period's run waits for, whose digest is given: where the newest order is another's, for one."""
    last = newest_order(world)
    return _TURNS.get(last["status"], "order") if last is not None and last["run"] == digest else "order"


def held_tokens(world: World, address: str) -> dict[str, int]:
    """Return what an account holds, wei, by token (`energy N` of node N); zeros are left out."""

    def fetch() -> dict[str, int]:
        return {name: amount for name, amount in balances(world.deployment, address, world.storing).items() if amount}

    return world.memory.get(("tokens", address), BLOCK_S, fetch)


def escrow(world: World, address: str) -> dict[str, dict[str, int]]:
    """Return what of an account's tokens is in escrow, and what is out of it and not taken back: wei, by token."""

    def fetch() -> dict[str, dict[str, int]]:
        held: dict[str, int] = defaultdict(int)
        for one in requests(world)[1]:
            if one.buyer.lower() == address.lower() and one.status in _IN_ESCROW:
                held[f"energy {one.node}"] += one.amount_wei
                held["carbon"] += one.carbon_wei
        exchange, names = Exchange(world.deployment), [*(f"energy {node}" for node in world.storing), "carbon"]
        owed = {name: exchange.owed(address, _token_of(world, name)) for name in names}
        return {
            name: {n: wei for n, wei in amounts.items() if wei} for name, amounts in (("held", held), ("owed", owed))
        }

    return world.memory.get(("escrow", address), BLOCK_S, fetch)


def _token_of(world: World, name: str) -> str:
    kind, _, node = name.partition(" ")
    return str(coin(world.deployment, kind, int(node or 0)).address)


def pools(world: World, address: str) -> list[dict[str, Any]]:
    """Return every node's pool: what it holds, its parity, and what an account has of it, wei."""

    def fetch() -> list[dict[str, Any]]:
        found = []
        for node in world.storing:
            try:
                pool = Pool(world.deployment, node)
            except UsageError:  # the DAO has opened none
                continue
            shares, value = pool.shares(address) if address else (0, 0)
            found.append(
                {
                    "node": node,
                    "reserves": {name: str(amount) for name, amount in pool.reserves().items()},
                    "per_kwh": {name: str(amount) for name, amount in pool.per_kwh().items()},
                    "shares": str(shares),
                    "value": str(value),
                }
            )
        return found

    return world.memory.get(("pools", address), BLOCK_S, fetch)


def requests(world: World) -> tuple[list[StorageRequest], list[TakeOut]]:
    """Return all requests, the newest first."""

    def fetch() -> tuple[list[StorageRequest], list[TakeOut]]:
        exchange = Exchange(world.deployment)
        return list(exchange.storage_requests()), list(exchange.take_outs())

    return world.memory.get("requests", BLOCK_S, fetch)


def requests_of(world: World, who: Person) -> dict[str, list[dict[str, Any]]]:
    """Return the requests in which somebody has a part, and whether it is their turn."""
    storage, take_outs = requests(world)
    joined = {(ends.miner_token, ends.node_token) for ends in world.ends.values()}
    wanted, now_s = who.address.lower(), world.now_ms // 1000

    def status(request: StorageRequest | TakeOut) -> str:
        over = request.status is RequestStatus.OPEN and request.expires_s < now_s
        return "expired" if over else request.status.label

    return {
        "storage": [
            {
                "number": r.number, "miner": r.miner, "node": r.node, "energy_mws": str(r.energy_mws),
                "expires_s": r.expires_s, "status": status(r),
                "yours": status(r) == "open" and who.owns(r.node), "mine": who.owns(r.miner),
                "has_line": (r.miner, r.node) in joined,
            }
            for r in storage
            if who.owns(r.miner) or who.owns(r.node)
        ],
        "take_outs": [
            {
                "number": t.number, "buyer": t.buyer, "buyer_token": t.buyer_token, "node": t.node,
                "amount_wei": str(t.amount_wei), "carbon_wei": str(t.carbon_wei), "status": status(t),
                "expires_s": t.expires_s, "deliver_by_s": t.deliver_by_s, "silent_at_s": t.silent_at_s,
                "settles": 0 < t.silent_at_s < now_s,
                "yours": status(t) in {"open", "accepted"} and who.owns(t.node), "mine": t.buyer.lower() == wanted,
            }
            for t in take_outs
            if t.buyer.lower() == wanted or who.owns(t.node)
        ],
    }  # fmt: skip


def room(world: World, node: int) -> dict[str, Any]:
    """Return a node's battery in tokens, wei: how many there are, and may be."""

    def fetch() -> dict[str, Any]:
        supply = int(world.deployment.chain.call(world.deployment.energy_token(node).functions.totalSupply()))
        capacity = int(world.systems[node].system["battery_wh"]) * 10**15
        return {
            "node": node, "supply_wei": str(supply), "capacity_wei": str(capacity),
            "room_wei": str(max(0, capacity - supply)),
        }  # fmt: skip

    return world.memory.get(("room", node), BLOCK_S, fetch)
