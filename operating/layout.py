"""What a backup is, on the disk.

TARGET/store/…                    the evidence store's objects: they never change, so each is copied once
TARGET/2026-11-27T021500Z/        one backup: manifest.json, ledger.sqlite or ledger.dump,
files/<absolute path>, evidence.sha256: the objects that belong to it
"""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import URL

from maxgreen.errors import Fatal
from maxgreen.ledger.engine import password_of, without_password

MANIFEST: Final = "manifest.json"
EVIDENCE: Final = "evidence.sha256"
STORE: Final = "store"
FORMAT: Final = 1
FILES: Final = "files"
NAME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")
LEDGERS: Final = ("ledger.sqlite", "ledger.dump")
_CHUNK: Final = 1 << 20
Progress = Callable[[str], object]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a backup holds, after every file of it was compared with its digest; Fatal where one is damaged."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise Fatal(f"{folder}: made by a version whose backups this one does not know")
        _check_names(manifest)
        entries = {manifest["ledger"]["file"]: manifest["ledger"]["sha256"], EVIDENCE: manifest["objects"]}
        entries |= {f"{FILES}/{name.lstrip('/')}": entry["sha256"] for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Fatal(f"{folder}: no backup ({why}); name a folder like 2026-11-27T021500Z") from error
    for name, digest in entries.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or digest_of(path) != digest:
            raise Fatal(f"{path}: damaged or missing; take an older backup")
    return manifest


def objects_of(folder: Path) -> dict[str, str]:
    """Return the names of a backup's evidence, with their digests (a file as sha256sum writes it)."""
    try:
        lines = (folder / EVIDENCE).read_text().splitlines()
    except OSError:
        return {}
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


@contextmanager
def in_words(folder: Path) -> Iterator[None]:
    """Make Fatal of what the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise Fatal(f"{error.filename or folder}: {error.strerror or error}") from error


def _check_names(manifest: Mapping[str, Any]) -> None:
    """ValueError where a manifest names what no backup of ours does: it says where files go, and may be edited."""
    if manifest["ledger"]["file"] not in LEDGERS:
        raise ValueError(f"its ledger is called {manifest['ledger']['file']!r}")
    for name, entry in manifest["files"].items():
        if not Path(name).is_absolute() or ".." in Path(name).parts or entry["mode"] & ~0o777:
            raise ValueError(f"it names {name!r}")


def run(command: Iterable[str], url: URL) -> None:
    """Run a program of PostgreSQL's; Fatal with the first line that it says when it fails."""
    password = password_of(url)
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    try:
        done = subprocess.run([*command], capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError as error:
        raise Fatal(f"{error.filename}: not installed; apt-get install postgresql-client") from error
    if done.returncode:
        raise Fatal(f"{next(iter(command))}: {(done.stderr.strip().splitlines() or ['it failed'])[0]}")


def libpq(url: URL) -> str:
    """Return a URL for PostgreSQL's programs, without a password: arguments are seen by everybody."""
    return without_password(url).set(drivername="postgresql").render_as_string(hide_password=False)


def digest_of(path: Path) -> str:
    """Return a file's SHA-256, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()
