"""`maxgreen demo`: a day of measured sunlight becomes tokens."""

import json
import logging
import os
import shutil
import signal
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from edge_agent.sensors.trace import read_trace
from maxgreen.errors import UsageError
from maxgreen.units import kwh
from simulator.bar import shown_progress
from simulator.by_hand import run_by_hand
from simulator.demo import DemoOptions, DemoResult, run_demo

DEFAULT_TRACE: Final = "sandia6kw_20151111_1min_ina219.csv"


def demo(
    trace: Annotated[Path | None, typer.Option(help="CSV with ts_utc, channel, v_bus_V, i_A")] = None,
    channel: Annotated[str | None, typer.Option(help="the trace's channel; default: its first")] = None,
    folder: Annotated[Path, typer.Option("--dir", help="where statement, pack, ledger and chain go")] = Path("demo"),
    peak_w: Annotated[float | None, typer.Option(min=0.001, help="panel peak to register, W")] = None,
    place: Annotated[str | None, typer.Option(help="LATITUDE,LONGITUDE in degrees; adds the night check")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
    serve: Annotated[bool, typer.Option(help="keep the pages up until Ctrl-C")] = False,
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="do yourself, in the browser, what owners and members do (docs/dapp.md)")
    ] = False,
) -> None:
    """Replay measured sunlight through real agents, broker, ledger and chain; vote, mint and audit."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    source = read_trace(trace or Path(str(files("simulator").joinpath("traces", DEFAULT_TRACE))))
    source.channel(channel)
    for remark in source.remarks:
        print(f"maxgreen: {remark}", file=sys.stderr)  # noqa: T201
    serve = serve or by_hand
    options = DemoOptions(source, channel or next(iter(source.channels)), folder, peak_w, _place(place), serve)
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, _interrupt)  # also where SIGINT is ignored: in the background of a shell
    try:
        with shown_progress() as (bar, progress):

            def serving(result: DemoResult) -> None:
                bar.stop()
                _show(result, as_json=as_json, folder=folder)
                if serve:
                    console.print(f"pages: {result.page}   Ctrl-C ends the demo")
                    signal.pause()

            if by_hand:
                run_by_hand(
                    options, progress, lambda text: console.print(f"\n> {text}", soft_wrap=True), serving=serving
                )
            else:
                run_demo(options, progress, serving=serving)
    except KeyboardInterrupt:
        console.print("stopped")
        sys.exit(0 if serve else 130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _show(result: DemoResult, *, as_json: bool, folder: Path) -> None:
    value = result.to_json()
    if as_json:
        print(json.dumps(value), flush=True)  # noqa: T201
        return
    table = Table(show_header=False, box=None)
    rows = [
        ("sent", f"{kwh(value['sent_mws'])} kWh"),
        ("received", f"{kwh(value['received_mws'])} kWh"),
        ("lost", f"{kwh(value['loss_mws'])} kWh (expected of the line: {kwh(value['expected_loss_mws'])} kWh)"),
        ("held, disputed", f"{kwh(value['held_mws'])} kWh, {kwh(value['disputed_mws'])} kWh"),
        ("other direction", f"{kwh(value['reverse_mws'])} kWh{_turned(value)}"),
        ("payable", f"{kwh(value['payable_mws'])} kWh"),
        ("tokens minted", f"{value['mint_wei'] / 1e18:.9f}"),
        *(
            (f"  to {name}", f"{balance / 1e18:.9f}  {result.owners[name]}")
            for name, balance in result.balances.items()
        ),
        ("votes", f"{value['votes_for']} of 3 for"),
        ("online", f"{result.online_windows} of {result.windows} windows"),
        ("work", f"{result.shares} shares, {result.hashes} hashes credited"),
        ("batches", f"{value['batches_accepted']} accepted, {value['batches_rejected']} rejected"),
        ("forged batch", f"rejected, {result.forged}"),
        ("audit", value["audit"]),
        ("statement", str(result.settled[-1].page)),
        ("evidence pack", value["pack"]),
    ]
    for name, text in rows:
        table.add_row(name, text)
    Console(width=max(120, Console().width)).print(table)
    pack = folder / os.path.relpath(value["pack"], folder)  # as the folder was given, like the others
    there = f"--rpc {folder / 'chain.db'} --deployment {folder / 'deployment.json'}"
    program = "maxgreen" if shutil.which("maxgreen") == sys.argv[0] else sys.argv[0]  # as it was called
    print(f"\ncheck the mint yourself:  {program} audit {pack} {there}")  # noqa: T201


def _turned(value: dict[str, Any]) -> str:
    """Return a hint where most energy flows against the channel's direction."""
    if value["reverse_mws"] <= value["sent_mws"]:
        return ""
    return ": the sensor seems to be reversed; swap Vin+ and Vin-, or change the sign of i_A"


def _place(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        latitude, longitude = (float(part) for part in text.split(","))
    except ValueError:
        latitude = longitude = 999.0
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise UsageError(f"--place {text!r}: expected LATITUDE,LONGITUDE in degrees, like 35.1,-106.6")
    return latitude, longitude
