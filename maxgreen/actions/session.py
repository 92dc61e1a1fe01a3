"""What every command of a person needs: a chain, a deployment, an account, and one way to say what came of it."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from eth_account.signers.local import LocalAccount
from typer.core import TyperGroup

from maxgreen.actions.wallet import load_account
from maxgreen.chain.claims import parse_attestation
from maxgreen.chain.client import NothingSentError, connect
from maxgreen.chain.code import verify
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.clock import Clock, make_clock
from maxgreen.errors import UsageError
from maxgreen.protocol.attestation import Attestation
from maxgreen.units import MWS_PER_KWH

WEI: Final = 10**18
_DIGITS: Final = 18
_COMMA: Final = re.compile(r"\d+,\d+")

RpcOption = Annotated[
    str, typer.Option(envvar="MAXGREEN_RPC", help="JSON-RPC URL, or the file of an embedded chain", show_envvar=True)
]
DeploymentOption = Annotated[
    Path, typer.Option("--deployment", envvar="MAXGREEN_DEPLOYMENT", help="the contracts' addresses", show_envvar=True)
]
AccountOption = Annotated[
    str, typer.Option("--as", envvar="MAXGREEN_ACCOUNT", help="your wallet's name, or a key file", show_envvar=True)
]
ClockOption = Annotated[
    Path | None, typer.Option(envvar="MAXGREEN_CLOCK_FILE", help="trials only: a file that holds the time, ms")
]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="say what would be sent, and send nothing")]


@dataclass
class Session:
    """A person at a deployment; `account` is loaded when something is to be signed."""

    deployment: Deployment
    clock: Clock
    account_name: str
    as_json: bool
    _account: LocalAccount | None = None

    @property
    def account(self) -> LocalAccount:
        """Who acts; UsageError when nobody was named."""
        if self._account is None:
            if not self.account_name:
                raise UsageError("whose account? name a wallet with --as NAME (or MAXGREEN_ACCOUNT)")
            self._account = load_account(self.account_name)
        return self._account

    def tell(self, value: Mapping[str, Any], *lines: str, then: str = "") -> None:
        """Print what came of it: one JSON object, or lines for people, the last of which says what comes next."""
        if self.as_json:
            typer.echo(json.dumps({**value, **({"next": then} if then else {})}))
            return
        for line in lines:
            typer.echo(line)
        if then:
            typer.echo(f"next: {then}")

    def act(self, step: Callable[[], Any]) -> Any:
        """Take a step on the chain; with --dry-run say what would be sent, and end."""
        try:
            return step()
        except NothingSentError as would:
            self.tell({"would_send": str(would)}, f"would send: {would}")
            raise typer.Exit from would


class SharedOptions(TyperGroup):
    """Takes the shared options before or after a sub-command's name, as people write them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the shared options to the front."""
        flags = {name for p in self.params if getattr(p, "is_flag", False) for name in p.opts}
        valued = {name for p in self.params for name in p.opts} - flags
        front, rest, words = [], [], iter(args)
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                rest += [word, *words]
            elif word in flags - {"--help", "-h"}:
                front.append(word)
            elif name in valued:
                front += (
                    [word] if "=" in word else [word, *([value] if (value := next(words, None)) is not None else [])]
                )
            else:
                rest.append(word)
        return super().parse_args(ctx, [*front, *rest])


def group(help_text: str) -> typer.Typer:
    """Return a command group with the options that all commands of people share."""
    app = typer.Typer(cls=SharedOptions, add_completion=False, no_args_is_help=True, help=help_text)

    @app.callback()
    def shared(
        ctx: typer.Context,
        rpc: RpcOption = "http://127.0.0.1:8545",
        deployment: DeploymentOption = Path("deployment.json"),
        account: AccountOption = "",
        clock_file: ClockOption = None,
        as_json: JsonOption = False,
        dry_run: DryRunOption = False,
    ) -> None:
        ctx.obj = {
            "rpc": rpc,
            "deployment": deployment,
            "account": account,
            "clock_file": clock_file,
            "as_json": as_json,
            "dry_run": dry_run,
        }

    return app


def session(ctx: typer.Context) -> Session:
    """Connect as the group's options say; another chain or other code is refused."""
    options = ctx.obj
    clock = make_clock(options["clock_file"])
    chain = connect(options["rpc"], clock)
    deployment = Deployment(chain, Addresses.load(options["deployment"]))
    verify(chain, deployment.addresses)
    chain.sends = not options["dry_run"]
    return Session(deployment, clock, options["account"], options["as_json"])


def wei(text: str) -> int:
    """Return an amount of tokens (1.5) in wei; UsageError when it is none."""
    return _scaled(text, WEI)


def mws(text: str) -> int:
    """Return an energy in kWh (1.5) in mW·s; UsageError when it is none."""
    return _scaled(text, MWS_PER_KWH)


def tokens(amount_wei: int) -> str:
    """Return an amount for people: 1.5."""
    text = f"{Decimal(amount_wei) / WEI:.{_DIGITS}f}".rstrip("0").rstrip(".")
    return text or "0"


def kwh(energy_mws: int) -> str:
    """Return an energy for people: 1.5 kWh."""
    return f"{Decimal(energy_mws) / MWS_PER_KWH:.6f}".rstrip("0").rstrip(".") + " kWh"


def meter_of(text: str) -> tuple[int, int]:
    """Return token and channel of `TOKEN.CHANNEL`; UsageError when it is none."""
    token, _, channel = text.partition(".")
    if not (token.isdigit() and channel.isdigit()):
        raise UsageError(f"{text!r}: expected TOKEN.CHANNEL, like 1.1")
    return int(token), int(channel)


def line_id(text: str) -> bytes:
    """Return a line's id; UsageError when it is not 64 hex digits."""
    try:
        found = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        found = b""
    if len(found) != 32:
        raise UsageError(f"line {text!r}: expected 64 hex digits; 'maxgreen owner status' and 'chain show' print them")
    return found


def read_file(path: Path) -> bytes:
    """Read a file that a person named; UsageError says why it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def read_reading(path: Path) -> Attestation:
    """Read an attestation that `maxgreen operator reading` wrote; UsageError when it is none."""
    try:
        return parse_attestation(json.loads(path.read_text()))
    except OSError as error:
        raise UsageError(f"reading {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"reading {path}: not what 'maxgreen operator reading' writes; make it again") from error


def _scaled(text: str, unit: int) -> int:
    if _COMMA.fullmatch(text):  # as many people write it
        text = text.replace(",", ".")
    try:
        value = Decimal(text) * unit
    except ArithmeticError as error:
        raise UsageError(f"amount {text!r}: expected a number like 1.5") from error
    if not value.is_finite() or value <= 0 or value != value.to_integral_value() or value >= 2**128:
        # of kWh, 3.6e9 mW·s, nine decimals seldom fit
        decimals = len(str(unit)) - 1 - (unit % 10 ** (len(str(unit)) - 1) != 0)
        raise UsageError(f"amount {text!r}: expected a positive number with at most {decimals} decimals")
    return int(value)
