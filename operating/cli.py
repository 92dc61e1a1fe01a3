"""`maxgreen backup`, `maxgreen restore`, `maxgreen doctor`."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn

from maxgreen.errors import Fatal
from maxgreen.textfile import write_figures
from operating.backup import back_up, forget
from operating.doctor import State, examine
from operating.restore import restore as put_back
from operating.site import AUTHORITY, SETTINGS, Site

HOME = Path("/var/lib/maxgreen")


def _here(path: Path | None) -> Path | None:
    """Return a path as it is meant where the command is given, and not in --home."""
    return path.absolute() if path is not None else None


SettingsOption = Annotated[
    Path, typer.Option("--settings", callback=_here, help="the folder with ingest.toml, settlement.toml, dapp.toml")
]
AuthorityOption = Annotated[
    Path, typer.Option("--ca", envvar="MAXGREEN_CA", callback=_here, help="the folder of 'maxgreen ca'")
]
HomeOption = Annotated[Path, typer.Option("--home", callback=_here, help="where the services' relative paths begin")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]


def backup(
    target: Annotated[
        Path, typer.Argument(callback=_here, help="the folder that holds backups; another disk, or machine")
    ],
    keep: Annotated[int, typer.Option(min=0, help="how many backups stay; 0 = all")] = 0,
    metrics: Annotated[
        Path | None, typer.Option(callback=_here, help="where maxgreen_backup.prom goes, for node_exporter")
    ] = None,
    settings: SettingsOption = SETTINGS,
    authority: AuthorityOption = AUTHORITY,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Copy ledger, keys, certificates, settings and evidence, while all of it runs. It holds keys: guard it so."""
    _go(home)
    with _shown() as progress:
        kept = back_up(Site.read(settings, authority), target, datetime.now(UTC), progress)
        gone = forget(kept.folder, keep) if keep else []
    write_figures(
        metrics,
        "backup",
        {"timestamp_seconds": ("When it was made", time.time()), "bytes": ("Its own size", kept.size)},
    )
    if as_json:
        print(json.dumps({"folder": str(kept.folder), "batches": kept.batches, "bytes": kept.size,
                          "new_objects": kept.new_objects, "forgotten": [str(path) for path in gone]}))  # fmt: skip
        return
    print(
        f"{kept.folder}: {kept.batches} batches, {kept.size / 1e6:.1f} MB, {kept.new_objects} new objects of evidence"
    )
    for path in gone:
        print(f"forgotten: {path}")


def restore(
    folder: Annotated[Path, typer.Argument(callback=_here, help="a backup: TARGET/2026-11-27T021500Z")],
    ledger: Annotated[str, typer.Option(help="another URL for the ledger than it had")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check the backup, and say what would be put back")
    ] = False,
    settings: SettingsOption = SETTINGS,
    authority: AuthorityOption = AUTHORITY,
    home: HomeOption = HOME,
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="also files that go to other places than home, settings and authority")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a backup back. Stop the services first; what is there and differs is kept as NAME.before-restore."""
    _go(home)
    with _shown() as progress:
        roots = [Path("/")] if anywhere else [home, settings, authority]
        manifest = put_back(folder, ledger, roots, progress, dry_run=dry_run)
    if as_json:
        print(
            json.dumps(
                {"batches": manifest["ledger"]["batches"], "files": sorted(manifest["files"]), "dry_run": dry_run}
            )
        )
        return
    for name in manifest["files"]:
        print(name)
    print(f"ledger of {manifest['made']}: {manifest['ledger']['batches']} batches{', not put back' if dry_run else ''}")
    if not dry_run:
        print("next: maxgreen ingest check; start the services: devices send again what this ledger lacks")


def _go(home: Path) -> None:
    try:
        os.chdir(home)
    except OSError as error:
        raise Fatal(f"--home {home}: {error.strerror}") from error


@contextmanager
def _shown() -> Iterator[Callable[[str], object]]:
    with Progress(SpinnerColumn(), "{task.description}", transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text: bar.update(task, description=text)


def doctor(
    backups: Annotated[Path | None, typer.Option(callback=_here, help="the folder that holds backups")] = None,
    settings: SettingsOption = SETTINGS,
    authority: AuthorityOption = AUTHORITY,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Look at everything the services need, and say what to do; status 1 when something is wrong."""
    _go(home)
    found = []
    for one in examine(Site.read(settings, authority), backups):
        found.append(one)
        if not as_json:
            mark = {State.FINE: "  ok  ", State.ODD: " odd  ", State.WRONG: "WRONG "}[one.state]
            print(f"{mark} {one.part:<13} {one.text}", flush=True)
            if one.cure:
                print(f"{'':<20}   do: {one.cure}", flush=True)
    wrong = sum(one.state is State.WRONG for one in found)
    odd = sum(one.state is State.ODD for one in found)
    if as_json:
        print(json.dumps({"wrong": wrong, "odd": odd, "findings": [asdict(one) for one in found]}))
    else:
        print("all is well" if not wrong + odd else f"{wrong} wrong, {odd} odd")
    if wrong:
        raise typer.Exit(1)
