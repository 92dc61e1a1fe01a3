"""`maxgreen ca`: certificates of the broker, services and devices, by the registry."""

import json
import os
import time
import tomllib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from sqlalchemy.engine import make_url

from maxgreen.authority import DEVICE, Authority, Issued, Request, checked, key_request, make_key, read_request
from maxgreen.errors import EXIT_USAGE, UsageError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine, reader
from maxgreen.textfile import write_figures
from maxgreen.verify.rules import Status

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Certificates of the broker, services and devices, by the registry.",
)
_DAY_S: Final = 86_400
_SOON_S: Final = 30 * _DAY_S
_DRAIN_S: Final = 30 * _DAY_S
_BROKER: Final = (
    "give the broker crl.pem (crlfile in mosquitto.conf) and reload it: systemctl reload mosquitto; who is connected "
    "stays until the connection ends"
)
FolderOption = Annotated[
    Path, typer.Option("--dir", envvar="MAXGREEN_CA", help="the authority's folder", show_envvar=True)
]
OutOption = Annotated[Path, typer.Option("--out", help="the folder that the files go to")]
DaysOption = Annotated[int, typer.Option(min=1, max=7_320, help="how long it is valid")]
LedgerOption = Annotated[
    str,
    typer.Option(
        help="the ledger, whose copy of the registry says who is registered: a URL, or a settings file (.toml)"
    ),
]
MetricsOption = Annotated[Path | None, typer.Option(help="where maxgreen_ca.prom goes, for node_exporter")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
HERE: Final = Path("/var/lib/maxgreen/ca")


@app.command()
def init(
    folder: FolderOption = HERE,
    name: Annotated[str, typer.Option(help="what the authority is called")] = "MaxCoin authority",
    years: Annotated[int, typer.Option(min=1, max=50, help="how long it is valid")] = 20,
) -> None:
    """Make an authority: ca.key, which never leaves its folder, ca.crt for everybody, crl.pem for the broker."""
    made = Authority.create(folder, name, years)
    typer.echo(f"{made.folder / 'ca.crt'}: valid until {made.certificate.not_valid_after_utc:%Y-%m-%d}")
    typer.echo(f"keep {made.folder} in your backup, and away from the broker: whoever has ca.key can be any device")


@app.command()
def server(
    hosts: Annotated[list[str], typer.Argument(help="the broker's names and addresses, as devices reach it")],
    out: OutOption,
    folder: FolderOption = HERE,
    days: DaysOption = 825,
) -> None:
    """Make a broker's key and certificate: server.key and server.crt; again before it ends, with the same key."""
    _make(Authority(folder), out, "server", hosts, days)


@app.command()
def client(
    name: Annotated[str, typer.Argument(help="the service, as the broker's acl names it: ingest, dapp")],
    out: OutOption,
    folder: FolderOption = HERE,
    days: DaysOption = 825,
) -> None:
    """Make a service's key and certificate: NAME.key and NAME.crt."""
    if DEVICE.fullmatch(name):
        raise UsageError("that is a device's name: a device makes its key itself; use 'maxgreen ca sign'")
    _make(Authority(folder), out, name, (), days)


def _make(authority: Authority, out: Path, name: str, hosts: list[str] | tuple[str, ...], days: int) -> None:
    key = out / f"{name}.key"
    checked(hosts)
    request = key_request(key, name) if key.exists() else make_key(key, name)  # it goes on with its key
    issued = authority.issue(request, days, hosts=hosts, server=bool(hosts), replace=True)
    _write(issued, out, authority)


@app.command()
def sign(
    requests: Annotated[list[Path], typer.Argument(help="tls.csr, as the agent made it")],
    out: OutOption,
    ledger: LedgerOption = "",
    folder: FolderOption = HERE,
    days: DaysOption = 825,
    replace: Annotated[bool, typer.Option("--replace", help="revoke what the device has of another key")] = False,
    unregistered: Annotated[bool, typer.Option("--unregistered", help="do not ask the registry (trials)")] = False,
) -> None:
    """Sign the requests of registered devices; the key never leaves a device."""
    authority, failed, ledger = Authority(folder), 0, _ledger(ledger)
    for path in requests:
        try:
            request = _device_request(path)
            if not unregistered:
                _registered(ledger, request.name)
            _write(authority.issue(request, days, replace=replace), out, authority)
        except UsageError as error:
            failed += 1
            typer.echo(f"{path}: {error}", err=True)
    if failed:
        raise typer.Exit(EXIT_USAGE)


@app.command()
def renew(
    out: OutOption,
    ledger: LedgerOption,
    folder: FolderOption = HERE,
    within: Annotated[int, typer.Option(min=1, help="days until they end")] = 60,
    days: DaysOption = 825,
    services: Annotated[
        Path | None, typer.Option(help="where those of broker and services go; empty = not them")
    ] = None,
) -> None:
    """Issue again what ends soon, for the same key, where the device is still registered.

    In the folder that ingest's settings name (`certificates`) ingest finds them, and sends each to its device.
    """
    authority, now_s, ledger = Authority(folder), time.time(), _ledger(ledger)
    valid = authority.valid()
    counts = Counter(one.name for one in valid)
    for one in {one.name: one for one in valid}.values():
        is_device = DEVICE.fullmatch(one.name) is not None
        where = out if is_device else services
        if where is None:
            continue
        if one.until_s - now_s > within * _DAY_S:
            if counts[one.name] > 1 and not _holds(
                where, one
            ):  # it was issued, and not written: a full disk, a power cut
                _write(one, where, authority)
            continue
        try:
            if is_device:
                _registered(ledger, one.name)
            hosts = one.hosts()
            again = authority.issue(one.again(), days, hosts=hosts, server=bool(hosts))
        except UsageError as error:
            typer.echo(f"{one.name}: not renewed: {error}", err=True)
            continue
        _write(again, where, authority)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="a device's or a service's name")], folder: FolderOption = HERE
) -> None:
    """Revoke what a name has."""
    found = Authority(folder).revoke(name)
    if not found:
        raise UsageError(f"{name} has no certificate that is valid")
    typer.echo(f"revoked: {', '.join(one.serial for one in found)}; {_BROKER}")


@app.command()
def follow(ledger: LedgerOption, folder: FolderOption = HERE, metrics: MetricsOption = None) -> None:
    """Revoke what devices have that the DAO suspended or revoked, or whose key was replaced; for a timer."""
    authority, gone, ledger = Authority(folder), [], _ledger(ledger)
    for name in sorted({one.name for one in authority.valid() if DEVICE.fullmatch(one.name)}):
        try:
            _registered(ledger, name)
        except EndedError as error:  # only what the registry says: a ledger that does not know a device says nothing
            authority.revoke(name)
            gone.append(name)
            typer.echo(f"revoked {name}: {error}")
        except UnknownError as error:
            typer.echo(f"not revoked: {error}", err=True)
    typer.echo(f"{len(gone)} revoked; {_BROKER}" if gone else "nothing to revoke")
    newest, now_s = {one.name: one for one in authority.valid()}, time.time()
    expiring = sum(one.until_s - now_s < _SOON_S for one in newest.values())
    write_figures(
        metrics,
        "ca",
        {
            "last_run_timestamp_seconds": ("When certificates were last looked after", now_s),
            "valid_certificates": ("Names that have a certificate", len(newest)),
            "expiring_certificates": ("Of those, whose newest ends within 30 days", expiring),
            "revoked_certificates": ("Revoked so far", sum(one.revoked_s is not None for one in authority.all())),
        },
    )


@app.command("list")
def list_(
    folder: FolderOption = HERE,
    within: Annotated[int | None, typer.Option(min=0, help="only names whose newest ends in so many days")] = None,
    as_json: JsonOption = False,
) -> None:
    """List certificates: whose, until when, revoked."""
    now_s = time.time()
    authority = Authority(folder)
    if within is None:
        rows = authority.all()
    else:  # of each name that which counts: what was renewed ends, and nobody has to do anything
        newest = {one.name: one for one in authority.valid()}
        rows = [one for one in newest.values() if one.until_s <= now_s + within * _DAY_S]
    if as_json:
        shown = [{"serial": r.serial, "name": r.name, "until_s": r.until_s, "revoked_s": r.revoked_s} for r in rows]
        typer.echo(json.dumps({"certificates": shown}))
        return
    for row in rows:
        state = "over" if row.until_s <= now_s else "valid"
        state = f"revoked {_day(row.revoked_s)}" if row.revoked_s is not None else state
        typer.echo(f"{row.name:<34} until {_day(row.until_s)}  {state:<20} {row.serial}")


def _device_request(path: Path) -> Request:
    request = read_request(_read(path))
    if not DEVICE.fullmatch(request.name):
        raise UsageError(f"{request.name!r} is no device's name (32 hex digits)")
    return request


def _ledger(ledger: str) -> str:
    """Return a ledger's URL; of a settings file, what it names."""
    if not ledger.endswith(".toml"):
        return ledger
    try:
        found = tomllib.loads(Path(ledger).read_text()).get("ledger")
    except OSError as error:
        raise UsageError(f"--ledger {ledger}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--ledger {ledger}: {error}") from error
    if not isinstance(found, str):
        raise UsageError(f'--ledger {ledger}: it names no ledger; write ledger = "…" into it, or give the URL')
    return found


class UnknownError(UsageError):
    """The ledger does not know a device: it may be new, or the ledger."""


class EndedError(UsageError):
    """The registry says that a device's key does not count any more."""


def _registered(ledger: str, device: str) -> None:
    """Pass when a device's key counts now; UnknownError and EndedError say why it does not."""
    if not ledger:
        raise UsageError("name the ledger with --ledger: only registered devices get a certificate")
    if "://" not in ledger:
        raise UsageError(f"--ledger {ledger}: expected sqlite:///FILE, postgresql://USER@HOST/NAME or a settings file")
    url = make_url(ledger)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise UsageError(f"ledger {url.database}: not there")  # and none is made by a command that looks
    with reader(open_engine(ledger)).begin() as connection:
        known = Book(connection).device(bytes.fromhex(device))
    if known is None:
        raise UnknownError(f"{device} is not registered, or the ledger does not know it yet")
    if known.record.statuses[-1][1] != Status.ACTIVE:
        raise EndedError(f"{device} is suspended or revoked by the DAO")
    until_ms = known.record.until_ms
    if until_ms is not None and until_ms / 1000 + _DRAIN_S < time.time():  # it may still send what it measured before
        raise EndedError(f"{device}: its key was replaced more than a month ago")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(str(error.strerror)) from error


def _holds(folder: Path, one: Issued) -> bool:
    try:
        return (folder / f"{one.name}.crt").read_text() == one.pem
    except OSError:
        return False


def _write(issued: Issued, out: Path, authority: Authority) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, text in ((f"{issued.name}.crt", issued.pem), ("ca.crt", (authority.folder / "ca.crt").read_text())):
        fresh = out / f".{name}"
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(out / name)
    typer.echo(f"{out / f'{issued.name}.crt'}: {issued.name}, valid until {_day(issued.until_s)}")


def _day(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")
