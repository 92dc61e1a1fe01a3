"""What every line waits for, and on whom: from the ledger's newest closed period, and the chain."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from maxgreen.chain.deployment import Deployment
from maxgreen.chain.orders import Line, Order, OrderStatus, SettlementContract
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.units import kwh


@dataclass(frozen=True)
class LineStatus:
    """A line; energies mW·s. `payable_mws` is what the newest close has beyond what the book has paid."""

    line: str
    miner: int
    node: int
    paid_mws: int
    credit_mws: int
    payable_mws: int
    waits_for: str


@dataclass(frozen=True)
class Status:
    """The newest closed period, its order, and every open line."""

    period: str | None
    order: int | None
    state: str
    next: str
    lines: tuple[LineStatus, ...]


def look(engine: Engine, deployment: Deployment) -> Status:
    """Return where settlement stands."""
    contract = SettlementContract(deployment)
    with reader(engine).begin() as connection:
        row = Book(connection).newest_period()
    statement: Mapping[str, Any] = json.loads(row.document) if row is not None else {"lines": []}
    order_id = None if row is None else next((n for n, p in contract.posted() if p.until_s == row.until_s), None)
    order = None if order_id is None else contract.order(order_id)
    by_line = {line["line"]: line for line in statement["lines"]}
    return Status(
        period=None if row is None else row.period,
        order=order_id,
        state=_state(row is not None, order),
        next=_next(row.period if row is not None else "", order_id, order),
        lines=tuple(
            _line(line, by_line.get(line.ends.line_id.hex()), order_id, order, contract)
            for line in contract.opened_lines()
        ),
    )


def _state(closed: bool, order: Order | None) -> str:
    if not closed:
        return "no period is closed yet"
    return "no order: nothing was payable, or it was not posted yet" if order is None else order.status.label


def _next(period: str, order_id: int | None, order: Order | None) -> str:
    if not period:
        return "the operator: maxgreen settle run --period YYYY-MM, when a month is over"
    if order is None:
        return f"the operator: maxgreen settle run --period {period}"
    match order.status:
        case OrderStatus.POSTED:
            return f"the DAO: it votes on order {order_id} (maxgreen dao list)"
        case OrderStatus.REJECTED:
            revise = f"maxgreen settle revise --period {period}"
            return f"the operator: rejected with {order.code}: {order.text}; record decisions, then {revise}"
        case OrderStatus.APPROVED:
            return "nothing but what the lines below wait for"
        case _:
            return f"the operator: maxgreen settle run --period {period} posts it again"


def _line(
    line: Line, said: Mapping[str, Any] | None, order_id: int | None, order: Order | None, contract: SettlementContract
) -> LineStatus:
    total_mws = int(said["payable_total_mws"]) if said is not None else 0
    payable_mws = max(0, total_mws - line.paid_mws)
    return LineStatus(
        line=line.ends.line_id.hex(),
        miner=line.ends.miner_token,
        node=line.ends.node_token,
        paid_mws=line.paid_mws,
        credit_mws=line.credit_mws,
        payable_mws=payable_mws,
        waits_for=_waits_for(line, said, payable_mws, order_id, order, contract),
    )


def _waits_for(
    line: Line,
    said: Mapping[str, Any] | None,
    payable_mws: int,
    order_id: int | None,
    order: Order | None,
    contract: SettlementContract,
) -> str:
    if said is not None and said["trouble"]:
        return f"the operator: {said['trouble']}"
    if line.hold:
        return f"the DAO, which holds it with code {line.hold}: {contract.hold_text(line.ends.line_id)}"
    if payable_mws and order is not None and order.status is OrderStatus.POSTED:
        return f"the DAO's vote on order {order_id}"
    if payable_mws and order is not None and order.status is OrderStatus.APPROVED:
        return "anybody: maxgreen owner claim, or the next run"
    if payable_mws:
        return "an order"
    if line.credit_mws:
        return f"room in the battery of node {line.ends.node_token}; then the next run pays it out"
    if said is None:
        return "the end of its first period"
    held = [f"{kwh(mws)} kWh ({reason})" for reason, mws in {**said["held"], **said["disputed"]}.items()]
    return f"nothing; not counted: {', '.join(held)}" if held else "nothing: all of it is paid"
