"""`maxgreen audit`: check an evidence pack and its mint alone."""

import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from maxgreen.chain.client import Chain, connect_to_read
from maxgreen.chain.deployment import Addresses
from maxgreen.clock import SystemClock
from maxgreen.errors import UsageError
from maxgreen.protocol.pack import PackError
from settlement.audit import audit as audit_pack
from settlement.audit_chain import Pinned
from settlement.engines import open_engine
from settlement.packs import open_pack


def audit(
    pack: Annotated[Path, typer.Argument(help="the evidence pack, a ZIP file; or a folder that is an evidence store")],
    period: Annotated[str, typer.Option(help="where it is a store: YYYY-MM, or YYYY-MM-DD")] = "",
    line: Annotated[
        list[str] | None, typer.Option(help="of one line alone, by its id or the first digits; may be repeated")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="processes beside each other; 0: one for each processor")] = 1,
    rpc: Annotated[str | None, typer.Option(help="JSON-RPC URL, or the file of an embedded chain")] = None,
    deployment: Annotated[
        Path | None,
        typer.Option(
            envvar="MAXGREEN_DEPLOYMENT", help="the contracts that you mean, from somewhere else than the pack"
        ),
    ] = None,
    network: Annotated[str | None, typer.Option(help="the network that you mean, without a deployment file")] = None,
    settlement: Annotated[str | None, typer.Option(help="the settlement contract that you mean")] = None,
    engine: Annotated[
        str, typer.Option(help="what runs the tasks: local, or a Dask scheduler's address, tcp://HOST:PORT")
    ] = "local",
    previous: Annotated[Path | None, typer.Option(help="the pack of the period before, or the store")] = None,
    previous_period: Annotated[str, typer.Option(help="where that is a store: its period")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Verify everything from the evidence pack, and with --rpc against the chain; names the first difference.

    Anybody can deploy the same contracts: say which ones are meant, by --deployment, or --network and --settlement.
    """
    pinned = Pinned(network, settlement, Addresses.load(deployment) if deployment is not None else None)
    if rpc is not None and deployment is None and (network is None or settlement is None):
        raise UsageError("--rpc: say which contracts you mean: --deployment FILE, or --network and --settlement")
    for path in filter(None, (pack, previous)):
        if not path.exists():
            raise UsageError(f"{path}: No such file or directory; name an evidence pack, or a store and --period")
    gc.disable()  # millions of small objects without cycles: looking for some took a quarter of the time
    try:
        chain = open_chain(rpc) if rpc is not None else None
        before = open_pack(previous, previous_period) if previous else None
        opened = open_pack(pack, period)
        lines = [opened.line(digits.lower().removeprefix("0x")) for digits in line] if line else None
        with open_engine(engine, jobs) as tasks:
            report = audit_pack(opened, previous=before, chain=chain, pinned=pinned, lines=lines, run_tasks=tasks.run)
    except PackError as error:
        print(json.dumps({"audit": str(error)}) if as_json else f"DIFFERENCE  {error}")  # noqa: T201
        raise typer.Exit(1) from error
    if as_json:
        said = {**asdict(report), "statement": json.loads(report.statement)}
        print(json.dumps({"audit": "ok", **said}))  # noqa: T201
    else:
        print(report.text())  # noqa: T201


def open_chain(rpc: str) -> Chain:
    """Connect to the chain that a pack is compared with; UsageError when a file is not there."""
    if not rpc.startswith(("http://", "https://")) and not Path(rpc).is_file():
        raise UsageError(f"--rpc {rpc}: neither a URL nor the file of an embedded chain")
    return connect_to_read(rpc, SystemClock())
