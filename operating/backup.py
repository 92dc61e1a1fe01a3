"""Writing a backup of all that an operator would lose: ledger, keys, authority, deployment, settings, evidence.

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
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import URL, make_url

from maxgreen import __version__
from maxgreen.errors import Fatal, UsageError
from maxgreen.keyfile import sync_folder
from maxgreen.ledger.engine import open_engine, reader, without_password
from maxgreen.ledger.schema import batches
from maxgreen.lock import FolderLock
from maxgreen.store import FolderStore, open_store
from operating.layout import (
    EVIDENCE,
    FILES,
    FORMAT,
    MANIFEST,
    NAME,
    STORE,
    Progress,
    digest_of,
    in_words,
    libpq,
    objects_of,
    run,
)
from operating.site import Site


@dataclass(frozen=True, slots=True)
class Kept:
    """A backup: where, how many batches, how many bytes of its own, and how many objects of evidence were new."""

    folder: Path
    batches: int
    size: int
    new_objects: int


def back_up(site: Site, target: Path, now: datetime, progress: Progress) -> Kept:
    """Write a backup; Fatal and Retryable say why there is none, and nothing half of it is left."""
    if site.evidence and "://" not in site.evidence and target.resolve().is_relative_to(Path(site.evidence).resolve()):
        raise UsageError(f"{target}: lies in the evidence store that is to be kept; name another folder")
    with in_words(target):
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FolderLock(target, "maxgreen backup"):
            return _back_up(site, target, now, progress)


def _back_up(site: Site, target: Path, now: datetime, progress: Progress) -> Kept:
    name = now.astimezone(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    final, part = target / name, target / f"{name}.part"
    if final.exists():
        raise UsageError(f"{final}: is there already")
    for left in target.iterdir():  # of one that was killed
        if left.suffix == ".part" and NAME.fullmatch(left.stem) and left.is_dir():
            shutil.rmtree(left)
    for folder in (part, target / STORE):  # whoever may look at the medium may not look into it
        folder.mkdir(mode=0o700, exist_ok=True)
    try:
        progress("ledger")
        ledger = _copy_ledger(make_url(site.ledger), part)
        progress("keys, certificates, settings")
        files = _copy_files(site, part)
        progress("evidence")
        objects, new = _copy_evidence(site.evidence, target, progress) if site.evidence else ({}, 0)
        (part / EVIDENCE).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(objects.items())))
        manifest = {
            "format": FORMAT, "version": __version__, "made": now.astimezone(UTC).isoformat(),
            "evidence": site.evidence, "objects": digest_of(part / EVIDENCE), "ledger": ledger, "files": files,
        }  # fmt: skip
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in (part / EVIDENCE, part / MANIFEST):
            _sync(path)
        part.rename(final)
        sync_folder(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    return Kept(final, ledger["batches"], size, new)


def forget(kept: Path, keep: int) -> list[Path]:
    """Remove the oldest backups beside `kept`, which stays, until `keep` are left; what they share stays."""
    others = sorted(path for path in kept.parent.iterdir() if NAME.fullmatch(path.name) and path != kept)
    old = others[: max(0, len(others) - keep + 1)]
    for path in old:  # renamed it is none any more, and the next backup removes what is left of it
        shutil.rmtree(path.rename(path.with_name(f"{path.name}.part")))
    return old


def _copy_evidence(where: str, target: Path, progress: Progress) -> tuple[dict[str, str], int]:
    """Copy what the backups' store has not; return all names with their digests, and how many were new."""
    source, store = open_store(where), FolderStore(target / STORE)
    before = max((path for path in target.iterdir() if NAME.fullmatch(path.name)), default=None)
    known = objects_of(before) if before is not None else {}
    found: dict[str, str] = {}
    new = 0
    for name in source.names(""):
        if name in known and store.has(name):
            found[name] = known[name]
            continue
        data = source.get(name)
        store.put(name, data)
        found[name] = hashlib.sha256(data).hexdigest()
        new += 1
        progress(f"evidence, {new} objects")
    return found, new


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
            run([*command, f"--dbname={libpq(url)}"], url)
    _sync(target)
    return {
        "kind": "sqlite" if target.suffix == ".sqlite" else "postgresql", "file": target.name, "batches": count,
        "url": without_password(url).render_as_string(hide_password=False),
        "sha256": digest_of(target),
    }  # fmt: skip


def _copy_files(site: Site, part: Path) -> dict[str, dict[str, Any]]:
    found = {}
    databases = {path.absolute() for path in site.databases() if path.exists()}
    for path in sorted({path.absolute() for path in site.files()} | databases):
        target = part / FILES / str(path).lstrip("/")
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
            "sha256": digest_of(target), "mode": stat.st_mode & 0o777, "owner": _name(pwd.getpwuid, stat.st_uid),
            "group": _name(grp.getgrgid, stat.st_gid),
        }  # fmt: skip
    return found


def _copy_file(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except PermissionError as error:
        owner = _name(pwd.getpwuid, source.stat().st_uid)
        raise Fatal(f"{source}: this user cannot read it; back up as the services' user: sudo -u {owner} …") from error


def _name(find: Callable[[int], Any], number: int) -> str | int:
    try:
        return str(find(number)[0])
    except KeyError:
        return number


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
