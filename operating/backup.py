"""Backup and restore of all that an operator would lose: ledger, keys, authority, deployment, settings, evidence.

    TARGET/store/…                    the evidence store's objects: they never change, so each is copied once
    TARGET/2026-11-27T021500Z/        one backup: manifest.json, ledger.sqlite or ledger.dump, files/<absolute path>

The ledger is copied first, as one state, while services run: whatever it says that the store holds, the store holds
when it is copied after. A backup is whole or not there: it is written as NAME.part and renamed.
"""

import grp
import hashlib
import json
import os
import pwd
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, inspect, select
from sqlalchemy.engine import URL, make_url

from maxgreen import __version__
from maxgreen.errors import Fatal, UsageError
from maxgreen.keyfile import sync_folder
from maxgreen.ledger.engine import open_engine, reader
from maxgreen.ledger.lease import living_holders
from maxgreen.ledger.schema import batches
from maxgreen.lock import FolderLock
from maxgreen.store import FolderStore, Store, open_store
from operating.site import Site

MANIFEST: Final = "manifest.json"
STORE: Final = "store"
FORMAT: Final = 1
_FILES: Final = "files"
_LEDGERS: Final = ("ledger.sqlite", "ledger.dump")
_CHUNK: Final = 1 << 20
Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Kept:
    """A backup: where, how many batches, how many bytes of its own, and how many objects of evidence were new."""

    folder: Path
    batches: int
    size: int
    new_objects: int


def back_up(site: Site, target: Path, now: datetime, progress: Progress) -> Kept:
    """Write a backup; Fatal and Retryable say why there is none, and nothing half of it is left."""
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FolderLock(target, "maxgreen backup"):
        name = now.astimezone(UTC).strftime("%Y-%m-%dT%H%M%SZ")
        final, part = target / name, target / f"{name}.part"
        if final.exists():
            raise UsageError(f"{final}: is there already")
        for left in target.glob("*.part"):  # of one that was killed
            shutil.rmtree(left)
        for folder in (part, target / STORE):  # whoever may look at the medium may not look into it
            folder.mkdir(mode=0o700, exist_ok=True)
        try:
            progress("ledger")
            ledger = _copy_ledger(make_url(site.ledger), part)
            progress("keys, certificates, settings")
            files = _copy_files(site, part)
            progress("evidence")
            new = copy_store(open_store(site.evidence), FolderStore(target / STORE), progress) if site.evidence else 0
            manifest = {
                "format": FORMAT, "version": __version__, "made": now.astimezone(UTC).isoformat(),
                "home": str(Path.cwd()), "evidence": site.evidence, "ledger": ledger, "files": files,
            }  # fmt: skip
            (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            _sync(part / MANIFEST)
            part.rename(final)
            sync_folder(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    return Kept(final, ledger["batches"], size, new)


def forget(target: Path, keep: int) -> list[Path]:
    """Remove all but the newest backups; what they share in the store stays."""
    old = sorted(path for path in target.glob("*Z") if (path / MANIFEST).exists())[:-keep]
    for path in old:
        (path / MANIFEST).unlink()  # from here on it is none
        shutil.rmtree(path)
    return old


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a backup holds, after every file of it was compared with its digest; Fatal where one is damaged."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        _check_names(manifest)
        entries = {manifest["ledger"]["file"]: manifest["ledger"], **_stored(manifest["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Fatal(f"{folder}: no backup ({error}); name a folder like 2026-11-27T021500Z") from error
    if manifest["format"] != FORMAT:
        raise Fatal(f"{folder}: made by a version whose backups this one does not know")
    for name, entry in entries.items():
        if not (folder / name).is_file() or _digest(folder / name) != entry["sha256"]:
            raise Fatal(f"{folder / name}: damaged or missing; take an older backup")
    return manifest


def restore(folder: Path, ledger: str, progress: Progress, *, dry_run: bool = False) -> dict[str, Any]:
    """Put back what a backup holds, files where they were, the ledger into `ledger` (empty: where it was).

    Whatever is there and is something else is kept beside, as NAME.before-restore. Fatal while a service runs on it.
    """
    manifest = read_manifest(folder)
    url = make_url(ledger or manifest["ledger"]["url"])
    kind = "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"
    if kind != manifest["ledger"]["kind"]:
        raise UsageError(f"the backup is of {manifest['ledger']['kind']}: a ledger does not change its database")
    with _as_owner(folder):
        _refuse_running(url)
    for name, entry in manifest["files"].items():
        progress(name)
        if not dry_run:
            _put_file(folder / _FILES / name.lstrip("/"), Path(name), entry)
    progress("ledger")
    if not dry_run and kind == "sqlite":
        _put_sqlite(folder / manifest["ledger"]["file"], Path(manifest["home"]) / (url.database or ""))
    elif not dry_run:
        with _as_owner(folder):
            _put_postgresql(folder / manifest["ledger"]["file"], url)
    if manifest["evidence"] and not dry_run:
        progress("evidence")
        copy_store(FolderStore(folder.parent / STORE), open_store(manifest["evidence"]), progress)
    return manifest


def copy_store(source: Store, target: Store, progress: Progress) -> int:
    """Copy what a store has and another has not; return how much that was."""
    count = 0
    for name in source.names(""):
        if not target.has(name):
            target.put(name, source.get(name))
            count += 1
            progress(f"evidence, {count} objects")
    return count


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite file as one state while others write it; Fatal when the copy is damaged.

    In one step: a copy in several begins again with each commit of another process (SQLite, "Online Backup API").
    """
    try:
        with closing(sqlite3.connect(source)) as ours, closing(sqlite3.connect(target)) as copy:
            ours.backup(copy)
            answer = copy.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as error:
        raise Fatal(f"{source}: {error}") from error
    if answer != "ok":
        raise Fatal(f"{target}: the copy is damaged ({answer}); so is {source}: maxgreen ingest check")


def _copy_ledger(url: URL, part: Path) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        source = Path(url.database or "")
        if not source.exists():
            raise Fatal(f"ledger {source}: not there; is --home the folder where the services' relative paths begin?")
        target = part / "ledger.sqlite"
        copy_sqlite(source, target)
        with closing(sqlite3.connect(target)) as copy:
            count = copy.execute("SELECT count(*) FROM batches").fetchone()[0]
            copy.execute("PRAGMA journal_mode=DELETE")  # one file
    else:
        target = part / "ledger.dump"
        with reader(open_engine(url.render_as_string(hide_password=False))).begin() as connection:
            snapshot = connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
            count = connection.execute(select(func.count()).select_from(batches)).scalar_one()
            command = ["pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={target}"]
            _run([*command, f"--dbname={_libpq(url)}"], url)
    _sync(target)
    return {
        "kind": "sqlite" if target.suffix == ".sqlite" else "postgresql", "file": target.name, "batches": count,
        "url": url.render_as_string(hide_password=True) if url.password else url.render_as_string(),
        "sha256": _digest(target),
    }  # fmt: skip


def _copy_files(site: Site, part: Path) -> dict[str, dict[str, Any]]:
    found = {}
    databases = {path.absolute() for path in site.databases() if path.exists()}
    for path in sorted({path.absolute() for path in site.files()} | databases):
        target = part / _FILES / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in databases:
            copy_sqlite(path, target)
        elif path.is_file():
            _copy_file(path, target)
        else:
            continue  # what is not there yet: a key that a service makes, a list that an authority writes
        stat = path.stat()
        target.chmod(stat.st_mode & 0o777)
        found[str(path)] = {
            "sha256": _digest(target), "mode": stat.st_mode & 0o777, "owner": _name(pwd.getpwuid, stat.st_uid),
            "group": _name(grp.getgrgid, stat.st_gid),
        }  # fmt: skip
    return found


def _copy_file(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except PermissionError as error:
        owner = _name(pwd.getpwuid, source.stat().st_uid)
        raise Fatal(f"{source}: this user cannot read it; back up as the services' user: sudo -u {owner} …") from error


def _put_file(source: Path, target: Path, entry: Mapping[str, Any]) -> None:
    if target.exists():
        if _digest(target) == entry["sha256"]:
            return
        _aside(target)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fresh = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, fresh)
    fresh.chmod(entry["mode"])
    if os.geteuid() == 0:
        with suppress(LookupError):  # a machine on which the users are not made yet
            shutil.chown(fresh, entry["owner"], entry["group"])
    _sync(fresh)
    fresh.replace(target)


@contextmanager
def _as_owner(folder: Path) -> Iterator[None]:
    """As root, be whose backup it is: PostgreSQL lets its own user in by who it is ("peer")."""
    if os.geteuid() != 0:
        yield
        return
    stat = folder.stat()
    os.setegid(stat.st_gid)
    os.seteuid(stat.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _put_postgresql(source: Path, url: URL) -> None:
    open_engine(url.render_as_string(hide_password=False)).dispose()
    _run(["pg_restore", "--clean", "--if-exists", "--no-owner", "--exit-on-error", "--single-transaction",
          f"--dbname={_libpq(url)}", str(source)], url)  # fmt: skip


def _put_sqlite(source: Path, target: Path) -> None:
    for path in (target, *(target.with_name(target.name + end) for end in ("-wal", "-shm"))):
        if path.exists():
            _aside(path)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, fresh)
    if os.geteuid() == 0:
        stat = target.parent.stat()
        os.chown(fresh, stat.st_uid, stat.st_gid)
    _sync(fresh)
    fresh.replace(target)


def _refuse_running(url: URL) -> None:
    """Fatal where a service uses the ledger, or a PostgreSQL one holds something that would be lost."""
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return
    engine = open_engine(url.render_as_string(hide_password=False))
    with engine.begin() as connection:
        if running := living_holders(connection):
            raise Fatal(
                f"a service runs on this ledger ({', '.join(running)}); stop it first: systemctl stop maxgreen-ingest"
            )
        held = engine.dialect.name == "postgresql" and inspect(connection).has_table("batches")
        count = connection.execute(select(func.count()).select_from(batches)).scalar_one() if held else 0
    engine.dispose()
    if count:
        name = url.database
        raise Fatal(
            f"database {name} holds {count} batches; restore into an empty one: "
            f"ALTER DATABASE {name} RENAME TO before_restore; CREATE DATABASE {name} OWNER {url.username}"
        )


def _check_names(manifest: Mapping[str, Any]) -> None:
    """ValueError where a manifest names what no backup of ours does: it says where files go, and may be edited."""
    if manifest["ledger"]["file"] not in _LEDGERS:
        raise ValueError(f"its ledger is called {manifest['ledger']['file']!r}")
    for name, entry in manifest["files"].items():
        if not Path(name).is_absolute() or ".." in Path(name).parts or entry["mode"] & ~0o777:
            raise ValueError(f"it names {name!r}")


def _stored(files: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{_FILES}/{name.lstrip('/')}": entry for name, entry in files.items()}


def _aside(path: Path) -> None:
    number = 0
    while (kept := path.with_name(f"{path.name}.before-restore{f'-{number}' if number else ''}")).exists():
        number += 1
    path.rename(kept)


def _run(command: Iterable[str], url: URL) -> None:
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    try:
        done = subprocess.run([*command], capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError as error:
        raise Fatal(f"{error.filename}: not installed; apt-get install postgresql-client") from error
    if done.returncode:
        raise Fatal(f"{next(iter(command))}: {(done.stderr.strip().splitlines() or ['it failed'])[0]}")


def _libpq(url: URL) -> str:
    return url.set(drivername="postgresql", password=None).render_as_string()


def _name(find: Callable[[int], Any], number: int) -> str | int:
    try:
        return str(find(number)[0])
    except KeyError:
        return number


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
