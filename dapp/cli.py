"""`maxgreen dapp`: run, config."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from dapp.config import DappSettings
from maxgreen.service import log_to_stderr
from maxgreen.settings import config_commands, load_to_run

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Pages for owners, nodes, the DAO and operators.")

DEFAULT_CONFIG = Path("/etc/maxgreen/dapp.toml")
app.add_typer(config_commands(DappSettings, DEFAULT_CONFIG), name="config")


@app.command()
def run(config: Annotated[Path, typer.Option("--config", "-c", help="settings file")] = DEFAULT_CONFIG) -> None:
    """Serve the pages until SIGTERM."""
    log_to_stderr()
    from dapp.service import DappService  # noqa: PLC0415 - web3 and uvicorn only where they run

    service = DappService.from_settings(load_to_run(DappSettings, config))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()
