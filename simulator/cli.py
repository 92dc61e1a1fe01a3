"""`maxgreen simulate`: the two agents of a site on a running deployment."""

import json
import threading
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.compose import build_agent
from edge_agent.sensors.trace import interval_of, read_trace
from maxgreen.chain.deployment import Addresses
from maxgreen.errors import UsageError
from maxgreen.keyfile import load_key_file
from maxgreen.service import log_to_stderr
from simulator.site import Site, make_key


def simulate(
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
    site = Site(
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
    agents = [build_agent(site.miner(folder / "miner")), build_agent(site.node(folder / "node"))]
    threads = [threading.Thread(target=agent.run) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
