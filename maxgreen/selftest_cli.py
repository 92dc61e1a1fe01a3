"""`maxgreen selftest`: what this machine can do, and whether it does it right."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from native import kernels

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Test what this machine computes.")


@app.callback()
def selftest() -> None:
    """Test what this machine computes."""


@app.command()
def scrypt(as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False) -> None:
    """Test and time every scrypt kernel of this processor, and remember the quickest."""
    found = kernels.kernels()
    right = {kernel.name: kernels.passes(kernel.name) for kernel in found}
    rates = kernels.measure((name for name, ok in right.items() if ok), round_s=0.05)
    kernels.remember(rates)
    used = kernels.chosen()
    value: dict[str, Any] = {
        "processor": kernels.processor(),
        "used": used,
        "kernels": [
            {**asdict(kernel), "passes": right[kernel.name], "hashes_per_s": round(rates.get(kernel.name, 0))}
            for kernel in found
        ],
    }
    if as_json:
        typer.echo(json.dumps(value))
    else:
        _show(value)
    if not all(right.values()):
        raise typer.Exit(1)


def _show(value: dict[str, Any]) -> None:
    table = Table(box=None)
    table.add_column("kernel")
    for name in ("hashes/s", "lanes", "scratch KiB"):
        table.add_column(name, justify="right")
    table.add_column("self-test")
    table.add_column("")
    for kernel in value["kernels"]:
        table.add_row(
            kernel["name"],
            f"{kernel['hashes_per_s']:,}",
            str(kernel["lanes"]),
            f"{kernel['scratch_bytes'] // 1024:,}",
            "ok" if kernel["passes"] else "WRONG: not used",
            "used" if kernel["name"] == value["used"] else "",
        )
    console = Console(width=max(100, Console().width), highlight=False)
    console.print(f"{value['processor']}, one thread")
    console.print(table)
    console.print(f"kept in {kernels.cache_file()}; {kernels.KERNEL_VARIABLE}=NAME forces one")
