"""`maxgreen simulate`: the two agents of a site on a running deployment, or a fleet to look at."""

import json
import logging
import signal
import threading
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final

import typer

from edge_agent.compose import build_agent
from edge_agent.sensors.trace import interval_of, read_trace
from ingest.config import InfluxSettings
from maxgreen.chain.deployment import Addresses
from maxgreen.errors import UsageError
from maxgreen.keyfile import load_key_file
from maxgreen.service import log_to_stderr
from maxgreen.units import kwh
from simulator.bar import shown_progress
from simulator.site import Site, make_key

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Virtual panels and storage nodes over real MQTT.")
DEFAULT_TRACE: Final = "sandia6kw_20151111_1min_ina219.csv"


@app.command()
def site(
    trace: Annotated[Path, typer.Option(help="CSV with ts_utc, channel, v_bus_V, i_A")],
    folder: Annotated[Path, typer.Option("--dir", help="keys and spools of both devices")],
    deployment: Annotated[Path, typer.Option(help="the contracts' addresses")],
    backend_key: Annotated[Path, typer.Option(help="the backend's key file")],
    port: Annotated[int, typer.Option(help="the broker's port on 127.0.0.1")],
    clock_file: Annotated[Path, typer.Option(help="the file that holds the time")],
    channel: Annotated[str | None, typer.Option(help="the trace's channel; default: its first")] = None,
    resistance_uohm: Annotated[int, typer.Option(min=0, help="the line's resistance, µΩ")] = 150_000,
    seal_s: Annotated[int, typer.Option(help="sealing interval, s")] = 600,
    nbits: Annotated[int, typer.Option(help="difficulty before the first receipt")] = 0x1F100000,
    wait_shares: Annotated[int, typer.Option(help="shares to find before a batch is sealed")] = 1,
    keys_only: Annotated[bool, typer.Option(help="make the keys, print the device ids, and end")] = False,
) -> None:
    """Replay a trace through a miner and its storage node, as fast as it can be metered."""
    log_to_stderr()
    source = read_trace(trace)
    points = source.channel(channel)
    spkis = {}
    for name in ("miner", "node"):
        key_file = folder / name / "signing.pem"
        signer = load_key_file(key_file) if key_file.exists() else make_key(folder / name)
        spkis[name] = signer.spki.hex()
    if keys_only:
        print(json.dumps(spkis))
        return
    if not backend_key.exists():
        raise UsageError(f"--backend-key {backend_key}: not there; start the ingest service first")
    made = Site(
        network=Addresses.load(deployment).network,
        backend_spki=load_key_file(backend_key).spki,
        port=port,
        trace=trace,
        channel=channel or next(iter(source.channels)),
        interval_ms=interval_of(points),
        seal_s=seal_s,
        clock_file=clock_file,
        resistance_uohm=resistance_uohm,
        nbits=nbits,
        wait_shares=wait_shares,
    )
    agents = [build_agent(made.miner(folder / "miner")), build_agent(made.node(folder / "node"))]
    threads = [threading.Thread(target=agent.run) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@app.command()
def fleet(
    devices: Annotated[int, typer.Option(min=2, max=10_000, help="half of them panels, half storage nodes")] = 20,
    days: Annotated[int, typer.Option(min=1, max=400, help="how many whole days, besides today")] = 3,
    folder: Annotated[Path, typer.Option("--dir", help="chain, evidence, keys; a new folder")] = Path("fleet"),
    ledger: Annotated[str, typer.Option(help="an empty ledger's URL; default: a file in the folder")] = "",
    influx_url: Annotated[str, typer.Option(help="InfluxDB; empty = no view")] = "",
    influx_token_file: Annotated[Path | None, typer.Option(help="file with its token")] = None,
    influx_bucket: Annotated[str, typer.Option(help="its bucket")] = "maxgreen",
    influx_org: Annotated[str, typer.Option(help="its organisation (2.x)")] = "maxgreen",
    broker: Annotated[str, typer.Option(help="HOST:PORT of a broker without TLS; empty = one of its own")] = "",
    http_port: Annotated[int, typer.Option(min=0, max=65_535, help="where ingest has its metrics; 0 = nowhere")] = 0,
    serve: Annotated[bool, typer.Option(help="keep pages, ingest and devices up until Ctrl-C")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Fill broker, ledger, view, store and chain with days of a fleet, some of it in trouble, to look at.

    Everybody knows the devices' keys: never do it beside real devices.
    """
    from simulator.fleet import FleetOptions, FleetResult, run_fleet  # noqa: PLC0415 - web3 only where it runs

    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    host, _, port = broker.rpartition(":")
    if broker and (not host or not port.isdecimal()):
        raise UsageError(f"--broker {broker!r}: expected HOST:PORT")
    view = InfluxSettings(url=influx_url, token_file=influx_token_file, bucket=influx_bucket, org=influx_org)
    source = read_trace(Path(str(files("simulator").joinpath("traces", DEFAULT_TRACE))))
    options = FleetOptions(
        devices, days, folder, source, ledger, view, (host, int(port)) if broker else None, http_port, serve
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with shown_progress() as (bar, progress):

            def serving(result: FleetResult) -> None:
                bar.stop()
                if as_json:
                    print(json.dumps(result.to_json()), flush=True)
                else:
                    batches = result.to_json()["batches"]
                    print(f"{result.devices} devices: {', '.join(f'{n} {verdict}' for verdict, n in batches.items())}")
                    for period, total in result.periods.items():
                        print(f"{period}: {kwh(total)} kWh to be paid")
                if serve:
                    print(f"pages: {result.page}   Ctrl-C ends it", flush=True)
                    signal.pause()

            run_fleet(options, progress, serving=serving)
    except KeyboardInterrupt:
        raise typer.Exit(0 if serve else 130) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
