"""`maxgreen settle`: run, open-line, config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from maxgreen.chain.orders import Ends
from maxgreen.clock import make_clock
from maxgreen.service import log_to_stderr
from maxgreen.settings import config_commands, load
from settlement.close import NotReadyError
from settlement.config import SettlementSettings
from settlement.orders import open_line
from settlement.periods import month_before, period_bounds
from settlement.service import Settled, SettlementService

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Close a period, order, vote and mint.")

DEFAULT_CONFIG = Path("/etc/maxgreen/settlement.toml")
app.add_typer(config_commands(SettlementSettings, DEFAULT_CONFIG), name="config")
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="settings file")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
NOT_READY = 75  # EX_TEMPFAIL of sysexits.h: the next run goes on


@app.command()
def run(
    period: Annotated[
        str, typer.Option(help="YYYY-MM, YYYY-MM-DD for a single day, or last: the month before this one")
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Take a period as far as it goes: statement, order, vote, mint. Safe to kill and to repeat."""
    log_to_stderr()
    settings = load(SettlementSettings, config)
    if period == "last":
        period = month_before(make_clock(settings.clock_file).now_ms())
    period_bounds(period)
    service = SettlementService.from_settings(settings)
    _tell(period, lambda: service.run(period, wait=settings.wait), as_json=as_json)


@app.command()
def revise(
    period: Annotated[str, typer.Option(help="YYYY-MM, or YYYY-MM-DD for a single day")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Close a period again whose order was rejected, withdrawn or lapsed, after decisions were recorded; and go on."""
    log_to_stderr()
    settings = load(SettlementSettings, config)
    period_bounds(period)
    service = SettlementService.from_settings(settings)
    _tell(period, lambda: service.revise(period, wait=settings.wait), as_json=as_json)


def _tell(period: str, step: Callable[[], Settled], *, as_json: bool) -> None:
    try:
        settled = step()
    except NotReadyError as error:
        print(
            json.dumps({"period": period, "state": "not ready", "why": str(error)}) if as_json else f"not yet: {error}"
        )
        raise typer.Exit(NOT_READY) from error
    summary = settled.summary()
    if as_json:
        print(json.dumps(summary))
        return
    refused = summary.pop("refused")
    then = summary.pop("next")
    for name, value in summary.items():
        print(f"{name:<12} {value}")
    for line, text in refused.items():
        print(f"line {line}: {text}")
    print(f"next: {then}")


@app.command("open-line")
def open_line_command(
    miner: Annotated[int, typer.Option(help="the miner's token")],
    node: Annotated[int, typer.Option(help="the storage node's token")],
    miner_channel: Annotated[int, typer.Option(help="its sent channel")] = 1,
    node_channel: Annotated[int, typer.Option(help="its received channel")] = 0,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Open a line that the DAO approved, with the first attestation of each end."""
    service = SettlementService.from_settings(load(SettlementSettings, config))
    ends = Ends(miner, miner_channel, node, node_channel)
    print(open_line(service.engine, service.deployment, service.operator, ends).hex())
