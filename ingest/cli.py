"""`maxgreen ingest`: run, identity, decide, command, check, rebuild-view, compare-view, aside, config."""

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import Progress, SpinnerColumn

from ingest.commands import command_json, command_text, give
from ingest.config import IngestSettings
from maxgreen.chain.deployment import Addresses
from maxgreen.clock import make_clock
from maxgreen.errors import Fatal, UsageError
from maxgreen.keyfile import load_key_file
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine, reader
from maxgreen.ledger.registry import KnownDevice
from maxgreen.ledger.segments import prune as pruned
from maxgreen.ledger.segments import verbatim_of
from maxgreen.protocol.backend import CommandKind
from maxgreen.protocol.batch import MAX_SEQ
from maxgreen.protocol.reasons import RELEASABLE
from maxgreen.service import collect_seldom, log_to_stderr
from maxgreen.settings import config_commands, load, load_to_run
from maxgreen.store import open_store
from maxgreen.units import MWS_PER_KWH, counted
from maxgreen.verify.rules import Action, Decision

_MOST_ASIDE: Final = 1_000  # lines of text
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Verify batches, keep the ledger, answer receipts.")

DEFAULT_CONFIG = Path("/etc/maxgreen/ingest.toml")
app.add_typer(config_commands(IngestSettings, DEFAULT_CONFIG), name="config")
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="settings file")]
DeviceArgument = Annotated[str, typer.Argument(help="device id, 32 hex digits")]
ChannelOption = Annotated[int, typer.Option(min=0, help="the channel whose line is meant")]
WhoOption = Annotated[str, typer.Option(help="who gives the command")]
ValidOption = Annotated[
    int, typer.Option(min=1, help="seconds until it expires; a device that is away ignores it then")
]
VALID_S = 60

command_app = typer.Typer(no_args_is_help=True, help="Give a device a signed command; the running service sends it.")
app.add_typer(command_app, name="command")


@app.command()
def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Judge what devices send until SIGTERM."""
    log_to_stderr()
    from ingest.service import IngestService  # noqa: PLC0415 - web3 and uvicorn only where they run

    service = IngestService.from_settings(load_to_run(IngestSettings, config))
    collect_seldom()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()


@app.command()
def identity(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Print what each device's agent.toml needs to know of this backend: the network's name, its public key."""
    settings = load(IngestSettings, config)
    if not settings.key_file.exists():
        raise Fatal(f"key {settings.key_file}: not there; the service makes it at its first start")
    network = Addresses.load(settings.chain.deployment).network
    key = load_key_file(settings.key_file).spki.hex()
    if as_json:
        print(json.dumps({"network": network, "backend_keys": [key]}))
    else:
        print(f'network = "{network}"\nbackend_keys = ["{key}"]')


@app.command()
def decide(
    action: Annotated[Action, typer.Argument(help="what is decided")],
    device: DeviceArgument,
    from_seq: Annotated[int, typer.Argument(min=0, max=MAX_SEQ, help="the first batch that it speaks of")],
    to_seq: Annotated[int, typer.Argument(min=0, max=MAX_SEQ, help="the last one; of skip: where the chain goes on")],
    text: Annotated[str, typer.Option(help="why: the owner and the auditor read it")],
    who: Annotated[str, typer.Option(help="who decided")],
    reason: Annotated[str, typer.Option(help="of a release: the numbers of the reasons that it lifts, '41 43'")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Record a decision; the running service lets the chain go on where it allows that (P-ING-3, P-ING-4)."""
    if to_seq < from_seq:
        raise UsageError(f"from {from_seq} to {to_seq}: the range is reversed")
    if action is Action.RELEASE:
        _check_reasons(reason)
    settings = load(IngestSettings, config)
    now_ms = make_clock(settings.clock_file).now_ms()
    with open_engine(settings.ledger).begin() as connection:
        book = Book(connection)
        device_id = _known(book, device).record.device
        book.add_decision(Decision(device_id, from_seq, to_seq, action, reason, who, now_ms, text))
    print("recorded; the running service lets the chain go on within a second, where the decision allows that")


def _check_reasons(reason: str) -> None:
    """Pass when a release names reasons that it may lift."""
    known = {str(int(r)): r.label for r in sorted(RELEASABLE)}
    if not reason.split() or set(reason.split()) - known.keys():
        choices = ", ".join(f"{number} {label}" for number, label in known.items())
        raise UsageError(f"--reason {reason!r}: a release names what it lifts, as in --reason '41 43': {choices}")


@app.command()
def check(
    repair: Annotated[bool, typer.Option("--repair", help="count counters again; stop the service before")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Check the ledger: every message, every chain judged again, every counter; status 1 when something is wrong."""
    from ingest.check import check as checked  # noqa: PLC0415

    settings = load(IngestSettings, config)
    network = Addresses.load(settings.chain.deployment).network
    with Progress(SpinnerColumn(), "{task.completed} batches checked", transient=True) as progress:
        task = progress.add_task("", total=None)
        found = checked(
            open_engine(settings.ledger),
            network,
            verbatim_of(settings.evidence),
            repair=repair,
            progress=lambda done: progress.update(task, completed=done),
        )
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        for text in found.damages:
            print(f"damaged: {text}")
        for text in found.counters:
            print(f"{'counted again' if repair and not found.damages else 'counter'}: {text}")
        for text in found.differing:
            print(f"judged otherwise today: {text}")
        whole = "whole" if found.whole else "not whole"
        print(f"{counted(found.devices, 'device')}, {counted(found.batches, 'batch', 'batches')}: {whole}")
    if found.damages or (found.counters and not repair):
        raise typer.Exit(1)


@app.command()
def prune(
    older_than: Annotated[float, typer.Option(min=7, max=36_500, help="days since a batch came")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say how much it would be")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Forget the bytes of old batches that the evidence store holds, after looking at them there.

    The service may run. Verdicts, sums and everything else stay; check, rebuild-view and compare-view then read these
    bytes from the store.
    """
    settings = load(IngestSettings, config)
    if not settings.evidence:
        raise UsageError("name the evidence store in the settings first: evidence = the one of settlement.toml")
    engine, store = open_engine(settings.ledger), open_store(settings.evidence)
    before_ms = make_clock(settings.clock_file).now_ms() - round(older_than * 86_400_000)
    with reader(engine).begin() as connection:
        devices = [known.record.device for known in Book(connection).all_devices()]
    count, size = pruned(engine, store, devices, before_ms, dry_run=dry_run)
    if as_json:
        print(json.dumps({"batches": count, "bytes": size, "dry_run": dry_run}))
    else:
        print(f"{count} batches, {size} bytes{' would be' if dry_run else ''} pruned; {settings.evidence} holds them")


@app.command("rebuild-view")
def rebuild_view(
    afresh: Annotated[bool, typer.Option(help="begin again, instead of where an earlier run was interrupted")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Fill an InfluxDB from the ledger; the service may run beside it, and it goes on where it was interrupted."""
    from ingest.view.days import Days  # noqa: PLC0415
    from ingest.view.influx import InfluxSink  # noqa: PLC0415
    from ingest.view.projector import Projector, rebuilding  # noqa: PLC0415
    from ingest.view.records import Records  # noqa: PLC0415

    settings = _with_view(config)
    engine, sink, name = open_engine(settings.ledger), InfluxSink(settings.influx), rebuilding(settings.influx)
    projector = Projector(engine, sink, name, verbatim=verbatim_of(settings.evidence))
    with Progress(SpinnerColumn(), "{task.completed} rows written", transient=True) as progress:
        task = progress.add_task("", total=None)
        count = projector.rebuild(afresh=afresh, progress=lambda done: progress.update(task, completed=done))
        Days(engine, sink, name).rebuild(afresh=afresh)
        Records(engine, sink, name, make_clock(settings.clock_file)).rebuild(afresh=afresh)
    print(f"{count} rows written")


@app.command("compare-view")
def compare_view(
    days: Annotated[float, typer.Option(min=0, max=36_500, help="only what came in the last days; 0 = all")] = 0,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Compare InfluxDB with the ledger, point by point; name the first difference, and end with status 1."""
    from ingest.view.compare import asker, compare  # noqa: PLC0415
    from ingest.view.projector import running  # noqa: PLC0415

    settings = _with_view(config)
    since_ms = make_clock(settings.clock_file).now_ms() - round(days * 86_400_000) if days else 0
    with Progress(SpinnerColumn(), "{task.completed} batches compared", transient=True) as progress:
        task = progress.add_task("", total=None)
        compared = compare(
            open_engine(settings.ledger),
            asker(settings.influx),
            running(settings.influx),
            verbatim_of(settings.evidence),
            since_ms=since_ms,
            progress=lambda done: progress.update(task, completed=done),
        )
    if compared.difference is not None:
        print(compared.difference)
        raise typer.Exit(1)
    print(f"{compared.batches} batches agree")


@app.command()
def aside(
    replay: Annotated[bool, typer.Option("--replay", help="write them again")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON list on stdout")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """List what InfluxDB refused for what it is (a field of another type, for instance), or write it again."""
    settings = _with_view(config)
    engine = open_engine(settings.ledger)
    if replay:
        from ingest.view.influx import InfluxSink  # noqa: PLC0415
        from ingest.view.projector import Projector, running  # noqa: PLC0415

        batches, rejected = Projector(engine, InfluxSink(settings.influx), running(settings.influx)).replay()
        print(f"the running service writes {batches} batches again; {rejected} rejected messages are written")
        return
    with reader(engine).begin() as connection:
        rows = [
            {"device": bytes(row.device).hex(), "number": row.number, "text": row.text}
            for row in Book(connection).all_aside(None if as_json else _MOST_ASIDE + 1)
        ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows[:_MOST_ASIDE]:
        what = f"{row['device']} seq {row['number']}" if row["device"] else f"rejected message {row['number']}"
        print(f"{what}: {row['text']}")
    if len(rows) > _MOST_ASIDE:
        print("… and more; --json lists all")
    if not rows:
        print("InfluxDB refused nothing")


@command_app.command("start-transfer")
def start_transfer(
    device: DeviceArgument,
    channel: ChannelOption,
    seconds: Annotated[int, typer.Option(min=1, help="the line opens after this time")],
    kwh: Annotated[float, typer.Option(min=1e-9, help="the line opens after this energy")],
    who: WhoOption,
    valid_s: ValidOption = VALID_S,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Close a device's line until a time or an energy is reached, whichever is first."""
    arguments = {0: channel, 1: seconds, 2: round(kwh * MWS_PER_KWH)}
    _give(config, device, CommandKind.START_TRANSFER, arguments, who, valid_s)


@command_app.command("stop-transfer")
def stop_transfer(
    device: DeviceArgument,
    channel: ChannelOption,
    who: WhoOption,
    valid_s: ValidOption = VALID_S,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Open a device's line."""
    _give(config, device, CommandKind.STOP_TRANSFER, {0: channel}, who, valid_s)


@command_app.command()
def registers(
    device: DeviceArgument, who: WhoOption, valid_s: ValidOption = VALID_S, config: ConfigOption = DEFAULT_CONFIG
) -> None:
    """Ask a device for its registers and its description."""
    _give(config, device, CommandKind.SEND_REGISTERS, {}, who, valid_s)


@command_app.command()
def interval(
    device: DeviceArgument,
    milliseconds: Annotated[int, typer.Argument(min=1, help="between two samples")],
    who: WhoOption,
    valid_s: ValidOption = VALID_S,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Change a device's sampling interval."""
    _give(config, device, CommandKind.SAMPLING_INTERVAL, {0: milliseconds}, who, valid_s)


@command_app.command("list")
def list_commands(
    as_json: Annotated[bool, typer.Option("--json", help="a JSON list on stdout")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """List the newest commands, and what became of them by what the devices say."""
    settings = load(IngestSettings, config)
    now_ms = make_clock(settings.clock_file).now_ms()
    with reader(open_engine(settings.ledger)).begin() as connection:
        given = [command_json(row, now_ms) for row in Book(connection).all_commands()]
    if as_json:
        print(json.dumps(given))
        return
    if not given:
        print("no command was given yet")
    for one in given:
        issued = datetime.fromtimestamp(one["issued_ms"] / 1000, UTC)
        why = f": {one['refusal']}" if one["refusal"] else ""
        said = command_text(one["kind"], one["arguments"])
        print(f"{issued:%Y-%m-%d %H:%M:%S} UTC  {one['device']}  {said}  by {one['who']}  {one['fate']}{why}")


def _give(config: Path, device: str, kind: CommandKind, arguments: Mapping[int, int], who: str, valid_s: int) -> None:
    settings = load(IngestSettings, config)
    if not settings.key_file.exists():
        raise Fatal(f"key {settings.key_file}: not there; the service makes it: run this on its machine, as its user")
    signer = load_key_file(settings.key_file)
    network = Addresses.load(settings.chain.deployment).network
    now_ms = make_clock(settings.clock_file).now_ms()
    with open_engine(settings.ledger).begin() as connection:
        book = Book(connection)
        known = _known(book, device)
        state = book.state(known.record.device)
        command = give(
            book, signer, network, known, state, kind, arguments, who=who, now_ms=now_ms, valid_ms=valid_s * 1000
        )
    print(f"command {command.number} is in the ledger; the running service sends it within a second, for {valid_s} s")


def _with_view(config: Path) -> IngestSettings:
    settings = load(IngestSettings, config)
    if not settings.influx.url:
        raise Fatal("influx.url is empty: there is no view")
    return settings


def _known(book: Book, device: str) -> KnownDevice:
    """Return the registered device of an id in hex; UsageError when there is none."""
    try:
        known = book.device(bytes.fromhex(device))
    except ValueError as error:
        raise UsageError(f"device {device!r}: expected 32 hex digits") from error
    if known is None:
        raise UsageError(
            f"device {device}: not registered, or the ledger does not know it yet; "
            "'maxgreen chain show --rpc URL --deployment FILE' lists the devices"
        )
    return known
