"""The command `maxgreen`: sub-commands are found by entry points, so nothing is imported upwards."""

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from maxgreen import __version__
from maxgreen.errors import EXIT_CONFIG, EXIT_USAGE, Fatal, MaxgreenError, UsageError

GROUP: Final = "maxgreen.commands"
SUMMARIES: Final = {
    "agent": "measure, sign and send on a Raspberry Pi",
    "ingest": "verify batches, keep the ledger, answer receipts",
    "settle": "close a period, order, vote and mint",
    "audit": "check an evidence pack and its mint alone",
    "dapp": "pages for owners, nodes, the DAO and operators",
    "wallet": "accounts as keystore files",
    "owner": "owners of systems: apply, claim, pool, store and take out energy",
    "node": "storage nodes: requests, deliveries, room",
    "dao": "members of the DAO: look, propose, vote, carry out",
    "operator": "orders, records, readings for owners",
    "doctor": "look at everything the services need, and say what to do",
    "backup": "copy ledger, keys, settings and evidence while all runs",
    "restore": "put a backup back",
    "ca": "certificates of the broker, services and devices",
    "chain": "contracts, and a local chain for trials",
    "selftest": "test and time what this machine computes",
    "demo": "a day of measured sunlight becomes tokens",
    "simulate": "virtual panels and storage nodes over real MQTT",
}


_EXTRAS: Final = {"agent": "agent", "ingest": "ingest", "ca": "ingest"} | dict.fromkeys(
    ("dapp", "backup", "restore", "doctor"), "dapp"
)


class LazyGroup(TyperGroup):
    """Loads a sub-command only when it is called, so that an agent needs no web3 and a node no sensor driver."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return the names in the order of a user's day."""
        names = {point.name for point in entry_points(group=GROUP)}
        return [name for name in SUMMARIES if name in names] + sorted(names - set(SUMMARIES))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Load a sub-command; one whose extra is not installed says how to install it."""
        points = entry_points(group=GROUP, name=cmd_name)
        return _load(next(iter(points))) if points else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)])


def _load(point: EntryPoint) -> Any:
    try:
        target: Any = point.load()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(point.name, "settlement")
        raise Fatal(
            f"'maxgreen {point.name}' needs the Python module {error.name!r}; install it with: "
            f"pip install 'maxgreen[{extra}]'"
        ) from error
    if isinstance(target, typer.Typer):
        _as_written(target)
        return typer.main.get_command(target)
    app = typer.Typer(add_completion=False)
    app.command(name=point.name)(target)
    _as_written(app)
    return typer.main.get_command(app)


def _as_written(target: typer.Typer) -> None:
    """Let help say what is written: as markup, `[keys]` and other names of tables would be taken out of it."""
    target.rich_markup_mode = None
    for group in target.registered_groups:
        if group.typer_instance is not None:
            _as_written(group.typer_instance)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"maxgreen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """Measured solar energy becomes tokens that anyone can check."""


def main() -> None:
    """Run the command line; errors made on purpose print one sentence and no traceback."""
    try:
        app()
    except UsageError as error:
        _fail(error, EXIT_USAGE)
    except Fatal as error:
        _fail(error, EXIT_CONFIG)
    except MaxgreenError as error:
        _fail(error, 1)
    except OSError as error:  # a file or folder that cannot be made or read
        if error.filename is None:
            raise
        more = "; run it as the user that owns it: sudo -u …" if isinstance(error, PermissionError) else ""
        _fail(Fatal(f"{error.filename}: {error.strerror}{more}"), EXIT_CONFIG)


def _fail(error: MaxgreenError, status: int) -> None:
    print(f"maxgreen: {error}", file=sys.stderr)
    sys.exit(status)
