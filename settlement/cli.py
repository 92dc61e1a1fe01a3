"""`maxgreen settle`: run, revise, days, status, statement, pack, explain, checks, modules, open-line, config."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from maxgreen.chain.client import connect_to_read
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.chain.orders import Ends
from maxgreen.chain.registry import module_history
from maxgreen.clock import make_clock
from maxgreen.errors import Retryable, UsageError
from maxgreen.ledger.engine import open_engine
from maxgreen.lock import FolderLock
from maxgreen.protocol.pack import PackError
from maxgreen.service import log_to_stderr, patiently
from maxgreen.settings import config_commands, load, load_to_run
from maxgreen.store import open_store
from maxgreen.textfile import write_figures
from maxgreen.units import counted, kwh
from settlement.audit_chain import module_files
from settlement.audit_cli import open_chain
from settlement.audit_order import read_order
from settlement.close import NoLineError, NotReadyError
from settlement.config import SettlementSettings
from settlement.evidence import Evidence, Judge
from settlement.explain import explain
from settlement.inputs import Inputs, entry
from settlement.orders import open_line
from settlement.packs import Pack, open_pack, stored_pack, write_pack_of
from settlement.page import signed_parts, statement_csv, statement_page, statement_pdf
from settlement.periods import month_before, period_bounds
from settlement.reports import VERSION, Check, check_line, check_neighbours, yield_of
from settlement.service import Settled, SettlementService
from settlement.statement import SIGNATURE, STATEMENT, LineResult, derive, read_windows
from settlement.status import look

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Close a period, order, vote and mint.")

DEFAULT_CONFIG = Path("/etc/maxgreen/settlement.toml")
app.add_typer(config_commands(SettlementSettings, DEFAULT_CONFIG), name="config")
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="settings file")]
PeriodOption = Annotated[str, typer.Option(help="where it is a store: YYYY-MM, or YYYY-MM-DD")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
NOT_READY = 75  # EX_TEMPFAIL of sysexits.h: the next run goes on


@app.command()
def run(
    period: Annotated[
        str, typer.Option(help="YYYY-MM, YYYY-MM-DD for a single day, or last: the month before this one")
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Take a period as far as it goes: statement, order, vote, mint. Safe to kill and to repeat."""
    log_to_stderr()
    settings = load_to_run(SettlementSettings, config)
    if period == "last":
        period = month_before(make_clock(settings.clock_file).now_ms())
    period_bounds(period)
    _tell(
        period,
        lambda: patiently(lambda: SettlementService.from_settings(settings).run(period, wait=settings.wait)),
        settings,
        as_json=as_json,
    )


@app.command()
def revise(
    period: Annotated[str, typer.Option(help="YYYY-MM, or YYYY-MM-DD for a single day")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Close a period again whose order was rejected, withdrawn or lapsed, after decisions were recorded; and go on."""
    log_to_stderr()
    settings = load_to_run(SettlementSettings, config)
    period_bounds(period)
    _tell(
        period,
        lambda: patiently(lambda: SettlementService.from_settings(settings).revise(period, wait=settings.wait)),
        settings,
        as_json=as_json,
    )


def _tell(period: str, step: Callable[[], Settled], settings: SettlementSettings, *, as_json: bool) -> None:
    """Do a step while no other run of this machine does, and say how far it came."""
    begun_s, failed, waits = time.time(), True, True
    try:
        with _alone(settings.output_dir):
            settled = step()
            failed, waits = False, not settled.is_paid
    except NotReadyError as error:
        failed, waits = False, not isinstance(error, NoLineError)
        raise _not_ready(error, {"period": period}, as_json=as_json) from error
    finally:
        write_figures(settings.metrics_dir, "settlement", _figures(period, begun_s, failed=failed, waits=waits))
    summary = settled.summary()
    if as_json:
        print(json.dumps(summary))
        return
    refused = summary.pop("refused")
    then = summary.pop("next")
    minted = int(summary.pop("minted_wei"))
    for name, value in {**summary, "minted": f"{minted / 1e18:.9f} tokens"}.items():
        print(f"{name.replace('_', ' '):<12} {'-' if value is None else value}")
    for line, text in refused.items():
        print(f"line {line}: {text}")
    print(f"next: {then}")


def _not_ready(error: NotReadyError, known: dict[str, str], *, as_json: bool) -> typer.Exit:
    """Say what is waited for, and return how the command ends."""
    print(json.dumps({**known, "state": "not ready", "why": str(error)}) if as_json else f"not yet: {error}")
    return typer.Exit(NOT_READY)


def _figures(period: str, begun_s: float, *, failed: bool, waits: bool) -> dict[str, tuple[str, float]]:
    return {
        "last_run_timestamp_seconds": ("When the last run began", begun_s),
        "last_run_failed": ("1 when it ended with an error", float(failed)),
        "period_end_timestamp_seconds": ("When the period that it was for ended", float(period_bounds(period)[1])),
        "period_paid": ("1 when nothing of it waits any more", float(not waits)),
    }


def _alone(folder: Path) -> FolderLock:
    """Hold the folder of a settlement; NotReadyError names the run that has it."""
    try:
        return FolderLock(folder, "maxgreen settle")
    except Retryable as error:
        raise NotReadyError(f"another run is under way: {error}") from error


@app.command()
def days(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Derive what each line comes to on the days that are over: the close of a period then adds them up."""
    log_to_stderr()
    settings = load_to_run(SettlementSettings, config)
    try:
        with _alone(settings.output_dir):
            found = patiently(lambda: SettlementService.from_settings(settings).derive_days())
    except NotReadyError as error:
        raise _not_ready(error, {}, as_json=as_json) from error
    said = f"{counted(found.derived, 'line-day')} of {counted(found.lines, 'line')} derived, {found.kept} were kept"
    print(json.dumps(found._asdict()) if as_json else said)


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show what the newest period and every line wait for, and on whom; nothing is sent."""
    settings = load(SettlementSettings, config)
    chain = connect_to_read(settings.rpc, make_clock(settings.clock_file))
    found = look(open_engine(settings.ledger), Deployment(chain, Addresses.load(settings.deployment)))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(f"period {found.period or '-'}, order {found.order or '-'}: {found.state}\nnext: {found.next}")
    for line in found.lines:
        amounts = f"paid {kwh(line.paid_mws)} kWh, payable {kwh(line.payable_mws)} kWh"
        print(f"line {line.line[:8]}…, {line.miner} to {line.node}: {amounts}; waits for {line.waits_for}")


@app.command()
def checks(
    pack: Annotated[Path, typer.Argument(help="an evidence pack, or a store")],
    period: PeriodOption = "",
    rpc: Annotated[str | None, typer.Option(help="to compare software with the DAO's releases")] = None,
    deployment: Annotated[
        Path | None, typer.Option(envvar="MAXGREEN_DEPLOYMENT", help="the contracts' addresses")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check what a member looks at before a vote: data, mining, hardware, software, metering and loss of each line."""
    releases = None
    if rpc is not None:
        if deployment is None:
            raise UsageError("--rpc: name the contracts with --deployment")
        there = Deployment(open_chain(rpc), Addresses.load(deployment))
        releases = dict.fromkeys(module_history(there, "agent"), "agent")
    found, yields = list[Check](), []
    for result, evidence in _derived(pack, period):
        found += check_line(result, evidence, releases)
        yields.append(yield_of(result))
    found = sorted([*found, *check_neighbours(yields)], key=lambda check: check.line)
    if as_json:
        print(json.dumps({"version": VERSION, "checks": [asdict(check) for check in found]}))
        return
    line = ""
    for check in found:
        if check.line != line:
            line = check.line
            print(f"line {line}")
        print(f"  {check.found.value:<8} {check.end:<6} {check.name}: {check.evidence}")


@app.command()
def modules(
    pack: Annotated[Path, typer.Argument(help="an evidence pack of the deployment, or a store")],
    period: PeriodOption = "",
    into: Annotated[Path, typer.Option(help="the folder that the files are written to")] = Path(),
) -> None:
    """Write what the DAO registers so that audits need not believe it: limits, backend's keys, version of checks."""
    try:
        opened = open_pack(pack, period)
        found = module_files(opened.entries(min(opened.lines)))
    except (PackError, KeyError, ValueError) as error:
        raise UsageError(f"{pack}: not an evidence pack: {error}") from error
    try:
        into.mkdir(parents=True, exist_ok=True)
        for name, data in found.values():
            (into / name).write_bytes(data)
    except OSError as error:
        raise UsageError(f"--into {into}: {error.strerror}") from error
    for module, (name, _) in found.items():
        print(f"maxgreen dao module '{module}' VERSION {into / name}")


def _derived(where: Path, period: str) -> Iterator[tuple[LineResult, Evidence]]:
    """Yield what follows from the evidence of each line of a pack; UsageError when it is none."""
    try:
        pack = open_pack(where, period)
        judge = Judge(pack.segment)
        for line in sorted(pack.lines):
            inputs = Inputs.from_entries(pack.entries(line))
            evidence = judge.evidence(inputs)
            yield derive(inputs, evidence), evidence
    except PackError as error:
        raise UsageError(str(error)) from error


@app.command("pack")
def pack_command(
    period: Annotated[str, typer.Option(help="YYYY-MM, or YYYY-MM-DD")],
    out: Annotated[Path, typer.Option(help="the file that is written")],
    line: Annotated[str, typer.Option(help="one line alone, by its id or the first digits: what its owner gets")] = "",
    store: Annotated[str, typer.Option(help="the evidence store, instead of the settings'")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Write the evidence of a period, or of one of its lines, into one file that anybody can audit."""
    period_bounds(period)
    kept = open_store(store or load(SettlementSettings, config).evidence)
    try:
        pack = stored_pack(kept, period)
        name = pack.line(_digits(line)) if line else None
        write_pack_of(kept, pack.run, pack.order_data, out, name)
    except PackError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error
    what = f"line {name[:8]}…" if name else counted(len(pack.lines), "line")
    print(f"{out}: {what} of {period}; maxgreen audit {out}")


@app.command()
def statement(
    out: Annotated[Path, typer.Option(help="the file that is written: .html, .pdf, .csv or .json, by its name")],
    line: Annotated[str, typer.Option(help="one line alone, by its id or the first digits")] = "",
    period: Annotated[str, typer.Option(help="of the evidence store: YYYY-MM, or YYYY-MM-DD")] = "",
    pack: Annotated[Path | None, typer.Option(help="an evidence pack, instead of the store")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Write a statement for people, of all lines of a period or of one: page, PDF, CSV, or JSON as it was signed.

    Beside JSON goes its signature (.cose); a PDF has both attached.
    """
    try:
        opened = _opened(pack, period, config)
        names = [opened.line(_digits(line))] if line else sorted(opened.lines)
        out.write_bytes(_statement(opened, names, out))
        if out.suffix == ".json":
            out.with_suffix(".cose").write_bytes(entry(opened.entries(names[0]), SIGNATURE))
    except PackError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error
    print(f"{out}: {counted(len(names), 'line')} of {opened.run.period}")


def _statement(pack: Pack, names: Sequence[str], out: Path) -> bytes:
    """Return a statement in the form that a file's name asks for."""
    run = pack.run
    said = [pack.statement(name) for name in names]
    match out.suffix:
        case ".csv":
            return statement_csv(run.period, said).encode()
        case ".json":
            if len(names) != 1:
                raise UsageError("--out …json: name one line with --line; what all lines come to is run.json")
            return entry(pack.entries(names[0]), STATEMENT)
        case ".html" | ".pdf":
            order = None
            if pack.order_data is not None:
                read = read_order(pack.order_data)
                order = {"order": read.number, "contracts": read.contracts, "transactions": read.transactions}
            lines = [(one, read_windows(pack.entries(one["line"]))) for one in said]
            page = statement_page(run.period, run.document["network"], lines, order)
            if out.suffix == ".html":
                return page.encode()
            return statement_pdf(page, signed_parts({name: pack.entries(name) for name in names}))
    raise UsageError(f"--out {out}: expected a name that ends in .html, .pdf, .csv or .json")


@app.command("explain")
def explain_command(
    line: Annotated[str, typer.Argument(help="the line's id, or its first digits; not needed where there is one")] = "",
    period: Annotated[str, typer.Option(help="of the evidence store: YYYY-MM, or YYYY-MM-DD")] = "",
    pack: Annotated[Path | None, typer.Option(help="an evidence pack, instead of the store")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Say where each watt-second of a line went: counted, lost, held by reason, disputed, not metered."""
    try:
        opened = _opened(pack, period, config)
        name = opened.line(_digits(line))
        explained = explain(opened.run.period, opened.statement(name), read_windows(opened.entries(name)))
    except PackError as error:
        raise UsageError(str(error)) from error
    if as_json:
        print(json.dumps(asdict(explained)))
        return
    print(f"line {explained.line}, {opened.run.period}: {kwh(explained.sent_mws)} kWh sent")
    for part in explained.parts:
        if part.energy_mws or part.windows:
            print(f"  {kwh(part.energy_mws):>12} kWh  {part.name}, {counted(part.windows, 'window')}: {part.why}")
    print(f"  {kwh(explained.received_mws):>12} kWh  were received in all")
    for name, energy_mws in (("miner", explained.reverse_sent_mws), ("node", explained.reverse_received_mws)):
        if energy_mws:
            print(f"  {kwh(energy_mws):>12} kWh  went the other way at the {name}'s meter")
    for name, seconds in (("miner", explained.dark_sent_s), ("node", explained.dark_received_s)):
        if seconds:
            print(f"the {name} did not meter for {seconds} s while the other end did")
    print(f"{explained.counted_windows} of {explained.windows} windows count; {explained.payable_mws} mW·s are payable")


def _opened(pack: Path | None, period: str, config: Path) -> Pack:
    """Return a pack by its file, or of a period in the settings' store."""
    if pack is not None:
        return open_pack(pack, period)
    if not period:
        raise UsageError("name a period with --period, or an evidence pack with --pack")
    return stored_pack(open_store(load(SettlementSettings, config).evidence), period)


def _digits(line: str) -> str:
    return line.lower().removeprefix("0x")


@app.command("open-line")
def open_line_command(
    miner: Annotated[int, typer.Option(help="the miner's token")],
    node: Annotated[int, typer.Option(help="the storage node's token")],
    miner_channel: Annotated[int, typer.Option(help="its sent channel")] = 1,
    node_channel: Annotated[int, typer.Option(help="its received channel")] = 0,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Open a line that the DAO approved, with the first attestation of each end."""
    service = SettlementService.from_settings(load(SettlementSettings, config))
    ends = Ends(miner, miner_channel, node, node_channel)
    print(open_line(service.engine, service.deployment, service.operator, ends).hex())
