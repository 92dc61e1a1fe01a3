"""Backup and restore of all that an operator would lose: ledger, keys, authority, deployment, settings, evidence.

    TARGET/store/…                    the evidence store's objects: they never change, so each is copied once
    TARGET/2026-11-27T021500Z/        one backup: manifest.json, ledger.sqlite or ledger.dump,
                                      files/<absolute path>, evidence.sha256: the objects that belong to it

The ledger is copied first, as one state, while services run: whatever it says that the store holds, the store holds
when it is copied after. A backup is whole or not there: it is written as NAME.part and renamed.
"""

import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, inspect, select
from sqlalchemy.engine import URL, make_url

from maxgreen import __version__
from maxgreen.errors import Fatal, UsageError
from maxgreen.keyfile import sync_folder
from maxgreen.ledger.engine import open_engine, password_of, reader, unmigrated, without_password
from maxgreen.ledger.lease import living
from maxgreen.ledger.schema import batches, leases
from maxgreen.lock import FolderLock
from maxgreen.store import FolderStore, open_store
from operating.site import Site

MANIFEST: Final = "manifest.json"
EVIDENCE: Final = "evidence.sha256"
STORE: Final = "store"
FORMAT: Final = 1
_FILES: Final = "files"
_NAME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")
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
    if site.evidence and "://" not in site.evidence and target.resolve().is_relative_to(Path(site.evidence).resolve()):
        raise UsageError(f"{target}: lies in the evidence store that is to be kept; name another folder")
    with _in_words(target):
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FolderLock(target, "maxgreen backup"):
            return _back_up(site, target, now, progress)


def _back_up(site: Site, target: Path, now: datetime, progress: Progress) -> Kept:
    name = now.astimezone(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    final, part = target / name, target / f"{name}.part"
    if final.exists():
        raise UsageError(f"{final}: is there already")
    for left in target.iterdir():  # of one that was killed
        if left.suffix == ".part" and _NAME.fullmatch(left.stem) and left.is_dir():
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
            "evidence": site.evidence, "objects": _digest(part / EVIDENCE), "ledger": ledger, "files": files,
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
    others = sorted(path for path in kept.parent.iterdir() if _NAME.fullmatch(path.name) and path != kept)
    old = others[: max(0, len(others) - keep + 1)]
    for path in old:  # renamed it is none any more, and the next backup removes what is left of it
        shutil.rmtree(path.rename(path.with_name(f"{path.name}.part")))
    return old


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a backup holds, after every file of it was compared with its digest; Fatal where one is damaged."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise Fatal(f"{folder}: made by a version whose backups this one does not know")
        _check_names(manifest)
        entries = {manifest["ledger"]["file"]: manifest["ledger"]["sha256"], EVIDENCE: manifest["objects"]}
        entries |= {f"{_FILES}/{name.lstrip('/')}": entry["sha256"] for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Fatal(f"{folder}: no backup ({error}); name a folder like 2026-11-27T021500Z") from error
    for name, digest in entries.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or _digest(path) != digest:
            raise Fatal(f"{path}: damaged or missing; take an older backup")
    return manifest


def restore(
    folder: Path, ledger: str, roots: Sequence[Path], progress: Progress, *, dry_run: bool = False
) -> dict[str, Any]:
    """Put back what a backup holds: files where they were, the ledger into `ledger` (empty: where it was).

    Whatever is there and is something else is kept beside, as NAME.before-restore. Files go nowhere but below `roots`.
    Fatal while a service runs on the ledger. A relative place begins at the current folder.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        if not any(Path(name).is_relative_to(root.absolute()) for root in roots):
            places = ", ".join(map(str, roots))
            raise UsageError(
                f"{folder} holds {name}, which is not below {places}: --anywhere puts it there all the same"
            )
    url = make_url(ledger or manifest["ledger"]["url"])
    kind = "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"
    if kind != manifest["ledger"]["kind"]:
        raise UsageError(f"the backup is of {manifest['ledger']['kind']}: a ledger does not change its database")
    with _in_words(folder):
        with _as_owner(folder):
            _refuse_running(url)
        _check_objects(folder, progress)
        if not dry_run:
            _put_all(folder, manifest, url, progress)
    return manifest


def _put_all(folder: Path, manifest: Mapping[str, Any], url: URL, progress: Progress) -> None:
    for name, entry in manifest["files"].items():
        progress(name)
        _put_file(folder / _FILES / name.lstrip("/"), Path(name), entry)
    progress("ledger")
    source = folder / manifest["ledger"]["file"]
    if source.name == "ledger.sqlite":
        _put_file(source, _place(url), {"sha256": manifest["ledger"]["sha256"], "mode": 0o600})
    else:
        with _as_owner(folder):
            open_engine(url.render_as_string(hide_password=False)).dispose()
            _run(["pg_restore", "--clean", "--if-exists", "--no-owner", "--exit-on-error", "--single-transaction",
                  f"--dbname={_libpq(url)}", str(source)], url)  # fmt: skip
    if manifest["evidence"]:
        progress("evidence")
        store, kept = open_store(manifest["evidence"]), FolderStore(folder.parent / STORE)
        for name in _objects(folder):
            if not store.has(name):
                store.put(name, kept.get(name))
        _give_to_the_services(Path(manifest["evidence"]))


def _copy_evidence(where: str, target: Path, progress: Progress) -> tuple[dict[str, str], int]:
    """Copy what the backups' store has not; return all names with their digests, and how many were new."""
    source, store = open_store(where), FolderStore(target / STORE)
    before = max((path for path in target.iterdir() if _NAME.fullmatch(path.name)), default=None)
    known = _objects(before) if before is not None else {}
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


def _objects(folder: Path) -> dict[str, str]:
    """Return the names of a backup's evidence, with their digests (a file as sha256sum writes it)."""
    try:
        lines = (folder / EVIDENCE).read_text().splitlines()
    except OSError:
        return {}
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _check_objects(folder: Path, progress: Progress) -> None:
    """Fatal where the store beside a backup lacks what it names, or has it otherwise."""
    store = FolderStore(folder.parent / STORE)
    for number, (name, digest) in enumerate(_objects(folder).items()):
        progress(f"evidence, {number} objects")
        if not store.has(name) or hashlib.sha256(store.get(name)).hexdigest() != digest:
            raise Fatal(
                f"{folder.parent / STORE / name}: damaged or missing; {STORE}/ belongs to every backup beside it"
            )


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Fatal(f"{error.filename or folder}: {error.strerror or error}") from error


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
        "url": without_password(url).render_as_string(hide_password=False),
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
    """Put a file where it was; at no instant can anybody read it who may not read it afterwards."""
    if target.exists() or target.is_symlink():
        if not _beside(target) and target.is_file() and _digest(target) == entry["sha256"]:
            return
        _aside(target)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        with source.open("rb") as kept:
            shutil.copyfileobj(kept, file)
        if os.geteuid() == 0:
            parent = target.parent.stat()
            owner = _number(pwd.getpwnam, entry.get("owner"), parent.st_uid)
            os.fchown(file.fileno(), owner, _number(grp.getgrnam, entry.get("group"), parent.st_gid))
        os.fchmod(file.fileno(), entry["mode"])
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(target)


def _number(find: Callable[[str], Any], name: object, otherwise: int) -> int:
    """Return the number of a user or group; on a machine that does not have it, another."""
    try:
        return int(find(str(name))[2]) if name is not None else otherwise
    except KeyError:
        return otherwise


def _give_to_the_services(store: Path) -> None:
    """As root, let the evidence belong to whom the current folder belongs."""
    if os.geteuid() != 0 or not store.is_dir():
        return
    home = Path.cwd().stat()
    for path in (store, *store.rglob("*")):
        os.chown(path, home.st_uid, home.st_gid, follow_symlinks=False)


def _place(url: URL) -> Path:
    """Return where a SQLite ledger lies."""
    return Path.cwd() / (url.database or "")


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


def _refuse_running(url: URL) -> None:
    """Fatal where a service uses the ledger, or a PostgreSQL one holds something; nothing is changed."""
    if url.get_backend_name() == "sqlite":
        try:
            with closing(sqlite3.connect(f"file:{_place(url)}?mode=ro", uri=True)) as there:
                holders = [str(row[0]) for row in there.execute("SELECT DISTINCT holder FROM leases")]
        except sqlite3.Error:
            return  # there is none, or nobody could run on it
        count = 0
    else:
        engine = unmigrated(url.render_as_string(hide_password=False))
        with engine.begin() as connection:
            tables = set(inspect(connection).get_table_names())
            holders = list(connection.execute(select(leases.c.holder)).scalars()) if "leases" in tables else []
            held = "batches" in tables
            count = connection.execute(select(func.count()).select_from(batches)).scalar_one() if held else 0
        engine.dispose()
    if running := living(holders):
        raise Fatal(
            f"a service runs on this ledger ({', '.join(running)}); stop it first: systemctl stop maxgreen-ingest"
        )
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


def _beside(path: Path) -> list[Path]:
    """Return what SQLite keeps beside a file."""
    return [other for end in ("-wal", "-shm") if (other := path.with_name(path.name + end)).exists()]


def _aside(path: Path) -> None:
    """Move a file aside, with what SQLite keeps beside it."""
    number = 0
    while (kept := path.with_name(f"{path.name}.before-restore{f'-{number}' if number else ''}")).exists():
        number += 1
    for other in _beside(path):
        other.rename(other.with_name(kept.name + other.name.removeprefix(path.name)))
    path.rename(kept)


def _run(command: Iterable[str], url: URL) -> None:
    password = password_of(url)
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    try:
        done = subprocess.run([*command], capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError as error:
        raise Fatal(f"{error.filename}: not installed; apt-get install postgresql-client") from error
    if done.returncode:
        raise Fatal(f"{next(iter(command))}: {(done.stderr.strip().splitlines() or ['it failed'])[0]}")


def _libpq(url: URL) -> str:
    """Return a URL for PostgreSQL's programs, without a password: arguments are seen by everybody."""
    return without_password(url).set(drivername="postgresql").render_as_string(hide_password=False)


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
