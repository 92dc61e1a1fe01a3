"""`maxgreen chain`: deploy, doctor, show, and a local chain for trials."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn

from maxgreen.actions.wallet import load_account
from maxgreen.chain.client import connect
from maxgreen.chain.code import verify
from maxgreen.chain.deploying import deploy
from maxgreen.chain.deployment import Addresses, Deployment, Governance
from maxgreen.chain.doctor import diagnose
from maxgreen.chain.orders import SettlementContract
from maxgreen.chain.registry import read_systems
from maxgreen.clock import make_clock
from maxgreen.errors import UsageError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Contracts, and a local chain for trials.")

RpcOption = Annotated[str, typer.Option(help="JSON-RPC URL, or the file of an embedded chain")]
ClockOption = Annotated[Path | None, typer.Option(help="trials only: a file that holds the time, ms")]
DeploymentOption = Annotated[Path, typer.Option("--deployment", help="the contracts' addresses")]


@app.command("deploy")
def deploy_command(
    rpc: RpcOption,
    deployer: Annotated[str, typer.Option(help="the deployer's wallet, or a file with its secret key, 0600")],
    operator: Annotated[str, typer.Option(help="address of the settlement service")],
    member: Annotated[list[str], typer.Option(help="address of a DAO member; repeat it")],
    guardian: Annotated[
        str | None, typer.Option(help="address that may stop single functions for a week, for a year")
    ] = None,
    out: DeploymentOption = Path("deployment.json"),
    voting_delay_s: Annotated[int, typer.Option(min=0, help="before a vote begins, s")] = Governance.voting_delay_s,
    voting_period_s: Annotated[int, typer.Option(min=1, help="how long a vote lasts, s")] = Governance.voting_period_s,
    timelock_s: Annotated[
        int, typer.Option(min=0, help="between a vote and what it decided, s")
    ] = Governance.timelock_s,
    clock_file: ClockOption = None,
) -> None:
    """Deploy the contracts and hand them to the DAO; writes their addresses. Repeated, it goes on where it ended."""
    if out.exists():
        raise UsageError(f"{out}: is there already; a deployment is made once: name another with --deployment")
    chain = connect(rpc, make_clock(clock_file))
    governance = Governance(voting_delay_s, voting_period_s, timelock_s)
    journal = out.with_name(out.name + ".steps")
    with Progress(SpinnerColumn(), "{task.description}", transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("")
        deployment = deploy(
            chain,
            load_account(deployer),
            operator,
            member,
            governance,
            guardian=guardian,
            journal=journal,
            progress=lambda step: progress.update(task, description=step),
        )
    deployment.addresses.save(out)
    found = diagnose(deployment)
    for text in (*found.wrong, *found.odd):
        print(f"note: {text}")
    print(f"network {deployment.network}\naddresses in {out}")
    if found.wrong:
        raise typer.Exit(1)


@app.command()
def doctor(
    rpc: RpcOption,
    addresses: DeploymentOption = Path("deployment.json"),
    clock_file: ClockOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Compare chain id, code, roles and parameters with what they should be; status 1 when something is wrong."""
    found = diagnose(Deployment(connect(rpc, make_clock(clock_file)), Addresses.load(addresses)))
    if as_json:
        print(json.dumps({**found.facts, "wrong": found.wrong, "odd": found.odd}))
    else:
        for name, value in found.facts.items():
            print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
        for text in found.wrong:
            print(f"WRONG: {text}")
        for text in found.odd:
            print(f"odd: {text}")
        if not found.wrong and not found.odd:
            print("everything is as it should be")
    if found.wrong:
        raise typer.Exit(1)


@app.command()
def show(
    rpc: RpcOption,
    addresses: DeploymentOption = Path("deployment.json"),
    clock_file: ClockOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Show systems, lines and what was paid."""
    deployment = Deployment(connect(rpc, make_clock(clock_file)), Addresses.load(addresses))
    verify(deployment.chain, deployment.addresses)
    contract = SettlementContract(deployment)
    systems = [
        {"token": s.token, "device": device.hex(), "kind": s.spec.kind.label, "owner": s.owner}
        for device, s in read_systems(deployment).items()
    ]
    lines = [{"line": line.hex(), **asdict(contract.line(line))} for line in contract.line_ids()]
    value = {"network": deployment.network, "systems": systems, "lines": lines}
    if as_json:
        print(json.dumps(value))
        return
    print(f"network {deployment.network}")
    for system in systems:
        print(f"system {system['token']}: {system['kind']}, device {system['device']}, owner {system['owner']}")
    for line in lines:
        print(f"line {line['line']}: paid {line['paid_mws']} mW·s, credit {line['credit_mws']} mW·s")


@app.command()
def run(
    file: Annotated[Path, typer.Option(help="the chain's file")] = Path("chain.db"),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="port on 127.0.0.1; 0 = any that is free")] = 8545,
    clock_file: ClockOption = None,
) -> None:
    """Serve the embedded chain as JSON-RPC on 127.0.0.1, so that several processes can use it."""
    from maxgreen.chain.rpc import serve  # noqa: PLC0415 - needs the extra 'ingest'

    serve(file, port, make_clock(clock_file))
