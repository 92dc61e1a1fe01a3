"""Putting a backup back: everything is checked first, and what is there is kept beside."""

import grp
import hashlib
import os
import pwd
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, inspect, select
from sqlalchemy.engine import URL, make_url

from maxgreen.errors import Fatal, UsageError
from maxgreen.ledger.engine import open_engine, unmigrated
from maxgreen.ledger.lease import living
from maxgreen.ledger.schema import batches, leases
from maxgreen.store import FolderStore, open_store
from operating.layout import FILES, STORE, Progress, digest_of, in_words, libpq, objects_of, read_manifest, run


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
    with in_words(folder):
        with _as_owner(folder):
            _refuse_running(url)
        _check_objects(folder, progress)
        if not dry_run:
            _put_all(folder, manifest, url, progress)
    return manifest


def _put_all(folder: Path, manifest: Mapping[str, Any], url: URL, progress: Progress) -> None:
    for name, entry in manifest["files"].items():
        progress(name)
        _put_file(folder / FILES / name.lstrip("/"), Path(name), entry)
    progress("ledger")
    source = folder / manifest["ledger"]["file"]
    if source.name == "ledger.sqlite":
        _put_file(source, _place(url), {"sha256": manifest["ledger"]["sha256"], "mode": 0o600})
    else:
        with _as_owner(folder):
            open_engine(url.render_as_string(hide_password=False)).dispose()
            run(["pg_restore", "--clean", "--if-exists", "--no-owner", "--exit-on-error", "--single-transaction",
                  f"--dbname={libpq(url)}", str(source)], url)  # fmt: skip
    if manifest["evidence"]:
        progress("evidence")
        store, kept = open_store(manifest["evidence"]), FolderStore(folder.parent / STORE)
        for name in objects_of(folder):
            if not store.has(name):
                store.put(name, kept.get(name))
        _give_to_the_services(Path(manifest["evidence"]))


def _check_objects(folder: Path, progress: Progress) -> None:
    """Fatal where the store beside a backup lacks what it names, or has it otherwise."""
    store = FolderStore(folder.parent / STORE)
    for number, (name, digest) in enumerate(objects_of(folder).items()):
        progress(f"evidence, {number} objects")
        if not store.has(name) or hashlib.sha256(store.get(name)).hexdigest() != digest:
            raise Fatal(
                f"{folder.parent / STORE / name}: damaged or missing; {STORE}/ belongs to every backup beside it"
            )


def _put_file(source: Path, target: Path, entry: Mapping[str, Any]) -> None:
    """Put a file where it was; at no instant can anybody read it who may not read it afterwards."""
    if target.exists() or target.is_symlink():
        if not _beside(target) and target.is_file() and digest_of(target) == entry["sha256"]:
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
