"""`maxgreen node`: what the operator of a storage node sees and does."""

from pathlib import Path
from typing import Annotated

import typer

from maxgreen.actions.owner_cli import NumberArgument, ReadingOption, tell_take_out
from maxgreen.actions.session import group, kwh, read_reading, session, tokens
from maxgreen.chain.market import Exchange, RequestStatus
from maxgreen.chain.registry import each_system
from maxgreen.clock import utc
from maxgreen.errors import UsageError
from maxgreen.protocol.system import Kind

app = group("Operators of storage nodes: requests, deliveries, room. Apply and claim as an owner does.")


@app.command()
def status(ctx: typer.Context, token: Annotated[int, typer.Option(help="one node; else all of yours")] = 0) -> None:
    """Show room, tokens out, and the requests that wait."""
    with_ = session(ctx)
    chain = with_.deployment.chain
    nodes = [
        s for s in each_system(with_.deployment)
        if s.spec.kind is Kind.STORAGE_NODE and (s.token == token or (not token and s.owner == with_.account.address))
    ]  # fmt: skip
    if not nodes:
        raise UsageError("you have no storage node here; 'maxgreen owner apply' applies for one")
    rows, lines, then = [], [], "nothing waits for you"
    exchange = Exchange(with_.deployment)
    for node in nodes:
        supply = int(chain.call(with_.deployment.energy_token(node.token).functions.totalSupply()))
        capacity = node.spec.battery_wh * 10**15
        storage = [r for r in exchange.storage_requests() if r.node == node.token and r.status is RequestStatus.OPEN]
        under_way = {RequestStatus.OPEN, RequestStatus.ACCEPTED, RequestStatus.FINISHED}
        take_outs = [t for t in exchange.take_outs() if t.node == node.token and t.status in under_way]
        rows.append(
            {
                "token": node.token,
                "supply_wei": str(supply),
                "room_wei": str(max(0, capacity - supply)),
                "storage_requests": [r.number for r in storage],
                "take_outs": [{"request": t.number, "status": t.status.label} for t in take_outs],
            }
        )
        lines.append(
            f"node {node.token}: {tokens(supply)} kWh of tokens out, room for {tokens(max(0, capacity - supply))} kWh"
        )
        for request in storage:
            lines.append(f"  storage request {request.number}: {kwh(request.energy_mws)} of system {request.miner}")
            then = f"you: maxgreen node accept-storage {request.number}, or refuse-storage {request.number}"
        for found in take_outs:
            lines.append(f"  take-out {found.number}: {tokens(found.amount_wei)} kWh, {found.status.label}")
            if found.status is RequestStatus.OPEN:
                then = (
                    f"you: maxgreen node accept {found.number} --reading F --buyer-reading F, or refuse {found.number}"
                )
            elif found.status is RequestStatus.ACCEPTED:
                then = f"deliver until {utc(found.deliver_by_s * 1000)}, then maxgreen node finish {found.number}"
    with_.tell({"nodes": rows}, *lines, then=then)


@app.command("accept-storage")
def accept_storage(ctx: typer.Context, number: NumberArgument) -> None:
    """Accept to store energy."""
    with_ = session(ctx)
    with_.act(lambda: Exchange(with_.deployment).answer_storage(with_.account, number, accept=True))
    with_.tell(
        {"request": number, "status": "accepted"},
        f"storage request {number}: accepted",
        then="the DAO approves the line: maxgreen dao line MINER.CHANNEL NODE.CHANNEL",
    )


@app.command("refuse-storage")
def refuse_storage(ctx: typer.Context, number: NumberArgument) -> None:
    """Refuse to store energy (as the miner's owner: cancel the request)."""
    with_ = session(ctx)
    with_.act(lambda: Exchange(with_.deployment).answer_storage(with_.account, number, accept=False))
    with_.tell({"request": number, "status": "over"}, f"storage request {number}: over")


@app.command()
def accept(
    ctx: typer.Context,
    number: NumberArgument,
    reading: ReadingOption,
    buyer_reading: Annotated[Path, typer.Option(help="the buyer's meter's register of now")],
) -> None:
    """Accept a take-out, with the registers of both meters of now (not older than an hour)."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    with_.act(lambda: exchange.accept(with_.account, number, read_reading(reading), read_reading(buyer_reading)))
    tell_take_out(with_, exchange, number)


@app.command()
def refuse(ctx: typer.Context, number: NumberArgument) -> None:
    """Refuse a take-out: the buyer has its tokens again."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    with_.act(lambda: exchange.decline(with_.account, number))
    tell_take_out(with_, exchange, number)


@app.command()
def finish(ctx: typer.Context, number: NumberArgument, reading: ReadingOption) -> None:
    """Close a delivery with your meter's register."""
    with_ = session(ctx)
    exchange = Exchange(with_.deployment)
    with_.act(lambda: exchange.finish(with_.account, number, read_reading(reading)))
    tell_take_out(with_, exchange, number)
