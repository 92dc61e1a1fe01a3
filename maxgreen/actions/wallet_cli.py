"""`maxgreen wallet`: accounts as keystore files. A secret is never printed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from maxgreen.actions.session import JsonOption
from maxgreen.actions.wallet import folder, load_account, make_wallet, read_password, wallets
from maxgreen.errors import UsageError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Accounts as keystore files (version 3).")

NameArgument = Annotated[str, typer.Argument(help="a name of your choice")]


@app.command()
def new(name: NameArgument, as_json: JsonOption = False) -> None:
    """Make a wallet with a new key; prints its address."""
    wallet = make_wallet(name, read_password(f"a password for {name}: ", twice=True))
    if as_json:
        typer.echo(json.dumps({"name": wallet.name, "address": wallet.address, "file": str(wallet.path)}))
        return
    typer.echo(f"{wallet.name}: {wallet.address}")
    typer.echo(f"next: keep a copy of {wallet.path} and its password; nobody can give you another")


@app.command("import")
def import_(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(help="file with the secret key, 64 hex digits, 0600")],
    as_json: JsonOption = False,
) -> None:
    """Make a wallet of a key that you have."""
    secret = bytes(load_account(str(file)).key)
    wallet = make_wallet(name, read_password(f"a password for {name}: ", twice=True), secret)
    typer.echo(json.dumps({"name": wallet.name, "address": wallet.address}) if as_json else f"{name}: {wallet.address}")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List your wallets and their addresses."""
    found = wallets()
    if as_json:
        typer.echo(json.dumps([{"name": wallet.name, "address": wallet.address} for wallet in found]))
        return
    for wallet in found:
        typer.echo(f"{wallet.name}: {wallet.address}")
    if not found:
        typer.echo(f"none in {folder()}; 'maxgreen wallet new NAME' makes one")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="the wallet's name, as 'wallet list' prints it")],
    as_json: JsonOption = False,
) -> None:
    """Show a wallet's address."""
    for wallet in wallets():
        if wallet.name == name:
            typer.echo(json.dumps({"name": name, "address": wallet.address}) if as_json else wallet.address)
            return
    raise UsageError(f"wallet {name}: not in {folder()}; 'maxgreen wallet list' lists what is")
