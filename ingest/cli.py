"""`maxgreen ingest`: run, decide, rebuild-view, config."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from ingest.config import IngestSettings
from ingest.intake import Intake
from maxgreen.chain.deployment import Addresses
from maxgreen.clock import make_clock
from maxgreen.errors import Fatal, UsageError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.service import log_to_stderr
from maxgreen.settings import config_commands, load
from maxgreen.verify.rules import Action, Decision

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Verify batches, keep the ledger, answer receipts.")

DEFAULT_CONFIG = Path("/etc/maxgreen/ingest.toml")
app.add_typer(config_commands(IngestSettings, DEFAULT_CONFIG), name="config")
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="settings file")]


@app.command()
def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Judge what devices send until SIGTERM."""
    log_to_stderr()
    from ingest.service import IngestService  # noqa: PLC0415 - web3 and uvicorn only where they run

    service = IngestService.from_settings(load(IngestSettings, config))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()


@app.command()
def decide(
    action: Annotated[Action, typer.Argument(help="what is decided")],
    device: Annotated[str, typer.Argument(help="device id, 32 hex digits")],
    from_seq: Annotated[int, typer.Argument(min=0)],
    to_seq: Annotated[int, typer.Argument(min=0)],
    text: Annotated[str, typer.Option(help="why: the owner and the auditor read it")],
    who: Annotated[str, typer.Option(help="who decided")],
    reason: Annotated[str, typer.Option(help="the reason code that it answers")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Record a decision, and let the chain go on where it allows that (P-ING-3, P-ING-4)."""
    settings = load(IngestSettings, config)
    try:
        device_id = bytes.fromhex(device)
    except ValueError as error:
        raise UsageError(f"device {device!r}: expected 32 hex digits") from error
    now_ms = make_clock(settings.clock_file).now_ms()
    network = Addresses.load(settings.chain.deployment).network
    with open_engine(settings.ledger).begin() as connection:
        book = Book(connection)
        if book.device(device_id) is None:
            raise UsageError(f"device {device}: not registered; /api/devices lists them")
        book.add_decision(Decision(device_id, from_seq, to_seq, action, reason, who, now_ms, text))
        Intake(book, network, book.rules(network)).resume(device_id)


@app.command("rebuild-view")
def rebuild_view(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Fill an empty InfluxDB from the ledger."""
    settings = load(IngestSettings, config)
    if not settings.influx.url:
        raise Fatal("influx.url is empty: there is no view to rebuild")
    from ingest.influx import InfluxSink, Projector  # noqa: PLC0415

    count = Projector(open_engine(settings.ledger), InfluxSink(settings.influx)).rebuild()
    print(f"{count} batches written")
