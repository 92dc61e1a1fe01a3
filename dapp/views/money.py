"""What systems earned: lines, statements and why, tokens, pools, requests."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import select

from dapp.people import Person
from dapp.world import BLOCK_S, World
from maxgreen.chain.claims import parse_claims
from maxgreen.chain.market import Exchange, Pool, RequestStatus, StorageRequest, TakeOut, balances
from maxgreen.chain.orders import Claim, Line, OrderStatus
from maxgreen.errors import UsageError
from maxgreen.ledger.schema import periods
from maxgreen.protocol.pack import PackError
from maxgreen.store import AbsentError
from settlement.explain import Explanation, explain
from settlement.packs import kept_order, line_entries
from settlement.run import Run
from settlement.statement import read_windows

_PERIODS: Final = 120
_PPM: Final = 10**6
_TURNS: Final = {
    OrderStatus.POSTED.label: "vote",
    OrderStatus.APPROVED.label: "claim",
    OrderStatus.REJECTED.label: "rejected",
}


def closed(world: World) -> list[dict[str, Any]]:
    """Return the closed periods, the newest first: their run.json, and what follows from it."""

    def fetch() -> list[dict[str, Any]]:
        with world.book() as book:
            query = select(periods)
            rows = book.connection.execute(query.order_by(periods.c.until_s.desc()).limit(_PERIODS)).all()
        return [
            {
                "period": r.period,
                "until_s": r.until_s,
                "closed_ms": r.closed_ms,
                "run": json.loads(r.document),
                "digest": bytes(r.run).hex(),
            }
            for r in rows
        ]

    return world.memory.get("periods", BLOCK_S, fetch)


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
    token = str(system)
    return [
        {"period": one["period"], "until_s": one["until_s"], **line}
        for one in closed(world)
        for line in one["run"]["lines"]
        if token in {str(line["miner"]), str(line["node"])}
    ]


def with_state(world: World, system: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a system's statement with what its owner gets of it, wei and ppm, and what became of that."""
    minted, ppm = int(row["mint_wei"]), world.memory.get("node share", 10 * BLOCK_S, world.contract.node_share_ppm)
    to_node = minted * ppm // _PPM
    miner_end = str(row["miner"]) == str(system)
    return {
        **row,
        "yours_wei": str(minted - to_node if miner_end else to_node),
        "yours_ppm": _PPM - ppm if miner_end else ppm,
        "state": _state_of(world, row),
    }


def _state_of(world: World, row: Mapping[str, Any]) -> str:
    """Return what became of a statement, as a word that pages put into a sentence."""
    if not int(row["payable_mws"]):
        return "nothing"
    line, total_mws = world.line(bytes.fromhex(row["line"])), int(row["payable_total_mws"])
    if line.paid_mws >= total_mws:
        return "room" if line.credit_mws else "paid"
    newer = any(
        one["until_s"] > row["until_s"] and any(x["line"] == row["line"] for x in one["run"]["lines"])
        for one in closed(world)
    )
    if newer:
        return "later"
    return "hold" if line.hold else _turn_of(newest_order(world))


def paid_ms(world: World, row: Mapping[str, Any]) -> int | None:
    """Return when what a statement says was claimed; None where that is not known."""
    period = find_period(world, row["period"])

    def fetch() -> int | None:
        for number in range(world.contract.order_count(), 0, -1):
            if order(world, number)["run"] == period["digest"]:
                posted_block = world.contract.order(number).posted_block
                line, total_mws = bytes.fromhex(row["line"]), int(row["payable_total_mws"])
                block = world.contract.claimed_block(line, total_mws, posted_block)
                return None if block is None else 1000 * world.contract.time_of(block)
        return None

    return world.lasting.get(("paid", row["line"], period["digest"]), 3_600, fetch)


def yours_in_all(world: World, system: int, line: Mapping[str, Any]) -> int:
    """Return what a system's owner got for a line, wei, at the present split."""
    ppm = world.memory.get("node share", 10 * BLOCK_S, world.contract.node_share_ppm)
    to_node = int(line["minted_wei"]) * ppm // _PPM
    return int(line["minted_wei"]) - to_node if line["miner"] == system else to_node


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
    with world.book() as book:
        row = book.period(until_s)
    return () if row is None else parse_claims(row.claims.encode())


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
    """Return the lines with an end at one of these systems, oldest first."""
    return [line_status(world, line) for line in world.lines_of(systems)] if systems else []


def line_status(world: World, line: Line) -> dict[str, Any]:
    """Return a line: its ends, what it was paid, what waits, and for whom it waits."""
    name = line.ends.line_id
    newest = next((one for one in closed(world)), None)
    said = None if newest is None else next((x for x in newest["run"]["lines"] if x["line"] == name.hex()), None)
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
        "credit_mws": str(line.credit_mws),
        "waiting_mws": str(waiting_mws),
        "hold": line.hold,
        "hold_text": world.contract.hold_text(name) if line.hold else "",
        "rejected": f"{last['code']}: {last['text']}" if last is not None and last["code"] else "",
        "turn": _turn(line, said, waiting_mws, last),
    }


def _turn(line: Line, said: Mapping[str, Any] | None, waiting_mws: int, last: Mapping[str, Any] | None) -> str:
    """Return what a line waits for, as a word that pages put into a sentence."""
    if not line.opened_s:
        return "opening"
    if said is not None and said["trouble"]:
        return "trouble"
    if line.hold:
        return "hold"
    if waiting_mws:
        return _turn_of(last)
    if line.credit_mws:
        return "room"
    return "period" if said is None else "nothing"


def _turn_of(last: Mapping[str, Any] | None) -> str:
    return "order" if last is None else _TURNS.get(last["status"], "order")


def held_tokens(world: World, address: str) -> dict[str, int]:
    """Return what an account holds, wei, by token (`energy N` of node N); zeros are left out."""

    def fetch() -> dict[str, int]:
        return {name: amount for name, amount in balances(world.deployment, address, world.storing).items() if amount}

    return world.memory.get(("tokens", address), BLOCK_S, fetch)


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
    wanted = who.address.lower()
    return {
        "storage": [
            {
                "number": r.number, "miner": r.miner, "node": r.node, "energy_mws": str(r.energy_mws),
                "expires_s": r.expires_s, "status": r.status.label,
                "yours": r.status is RequestStatus.OPEN and who.owns(r.node),
                "has_line": (r.miner, r.node) in joined,
            }
            for r in storage
            if who.owns(r.miner) or who.owns(r.node)
        ],
        "take_outs": [
            {
                "number": t.number, "buyer": t.buyer, "buyer_token": t.buyer_token, "node": t.node,
                "amount_wei": str(t.amount_wei), "carbon_wei": str(t.carbon_wei), "status": t.status.label,
                "expires_s": t.expires_s, "deliver_by_s": t.deliver_by_s,
                "yours": (t.status in {RequestStatus.OPEN, RequestStatus.ACCEPTED} and who.owns(t.node))
                or (t.status is RequestStatus.FINISHED and t.buyer.lower() == wanted),
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
