"""`maxgreen operator`: what the operator does on the chain and hands to owners. Fleet and ledger: `maxgreen ingest`."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.engine import make_url

from maxgreen.actions.dao_actions import TOPICS
from maxgreen.actions.readings import newest_reading
from maxgreen.actions.session import group, read_file, session
from maxgreen.chain.claims import attestation_json
from maxgreen.chain.market import balances, sweep
from maxgreen.chain.orders import OrderStatus, SettlementContract
from maxgreen.errors import UsageError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine, reader

app = group("Operators: orders, records, readings for owners.")


@app.command()
def orders(ctx: typer.Context) -> None:
    """List the orders, the newest first, and where each stands."""
    with_ = session(ctx)
    contract = SettlementContract(with_.deployment)
    rows: list[dict[str, Any]] = []
    for number, posting in contract.posted():
        order = contract.order(number)
        rows.append({"order": number, "until": posting.until_s, "status": order.status.label, "code": order.code})
    waits = bool(rows) and rows[0]["status"] == OrderStatus.POSTED.label
    with_.tell(
        {"orders": rows},
        *(f"order {row['order']}: {row['status']}" for row in rows),
        then=f"the DAO: maxgreen dao approve {rows[0]['order']}" if waits else "maxgreen settle run --period …",
    )


@app.command()
def withdraw(ctx: typer.Context, number: Annotated[int, typer.Argument(help="the order's number")]) -> None:
    """Take an undecided order back; the next settlement run posts what is due then."""
    with_ = session(ctx)
    with_.act(lambda: SettlementContract(with_.deployment).withdraw(with_.account, number))
    then = "maxgreen settle run --period PERIOD"
    with_.tell({"order": number, "status": "withdrawn"}, f"order {number} is withdrawn", then=then)


@app.command("sweep")
def sweep_(ctx: typer.Context) -> None:
    """Mint the DECA, MaxCoin and CarbonToken that are due on paid energy, to the vault. Anyone may."""
    with_ = session(ctx)
    with_.act(lambda: sweep(with_.deployment, with_.account))
    held = balances(with_.deployment, with_.deployment.addresses.timelock, [])
    with_.tell(
        {"vault_wei": {name: str(amount) for name, amount in held.items()}},
        *(f"vault: {amount / 10**18:g} {name}" for name, amount in held.items()),
    )


@app.command()
def record(
    ctx: typer.Context,
    token: Annotated[int, typer.Argument(help="the system's token")],
    topic: Annotated[str, typer.Argument(help="hardware or pool")],
    file: Annotated[Path, typer.Argument(help="what the record is; its SHA-256 goes on the chain")],
    uri: Annotated[str, typer.Option(help="where it can be had")] = "",
) -> None:
    """Keep a system's hardware status or mining pool data on its token."""
    if topic not in TOPICS:
        raise UsageError(f"topic {topic!r}: expected one of {', '.join(TOPICS)}")
    with_ = session(ctx)
    digest = hashlib.sha256(read_file(file)).digest()
    functions: Any = with_.deployment.registry.functions
    call = functions.setRecord(token, TOPICS[topic], digest, uri)
    with_.act(lambda: with_.deployment.chain.transact(with_.account, call))
    with_.tell({"token": token, "topic": topic, "digest": digest.hex()}, f"system {token}: {topic} {digest.hex()}")


@app.command()
def reading(
    token: Annotated[int, typer.Argument(help="the system's token")],
    channel: Annotated[int, typer.Argument(help="its channel")],
    ledger: Annotated[str, typer.Option(help="SQLAlchemy URL of the ledger")] = "sqlite:///ledger.db",
) -> None:
    """Print the newest attested register of a channel: what owners show in take-outs (JSON)."""
    url = make_url(ledger) if "://" in ledger else None
    if url is None or (url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()):
        raise UsageError(
            f"--ledger {ledger}: not there; name the ledger of ingest.toml (sqlite:///FILE, postgresql://…)"
        )
    engine = open_engine(ledger)
    with reader(engine).begin() as connection:
        found = newest_reading(Book(connection), token, channel)
    typer.echo(json.dumps(attestation_json(found)))
