"""Where evidence is kept: a folder, or a bucket of any S3-compatible service (maxgreen.bucket)."""

import os
import re
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, Self

from maxgreen.errors import Fatal, MaxgreenError, Retryable
from maxgreen.keyfile import sync_folder

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_AT_ONCE: Final = 8
_EXPECTED: Final = "; expected a folder, or s3://BUCKET/PREFIX?endpoint=URL"


class AbsentError(MaxgreenError):
    """The store has nothing of this name."""


class StoreAwayError(Retryable):
    """The store does not answer, or has no room."""


class Store(Protocol):
    """Keeps bytes by name."""

    def put(self, name: str, data: bytes) -> None:
        """Keep `data`, whole or not at all, also across a power cut; what had the name goes. StoreAwayError."""

    def get(self, name: str) -> bytes:
        """Return what has a name. AbsentError, StoreAwayError."""

    def has(self, name: str) -> bool:
        """Tell whether there is something of a name. StoreAwayError."""

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin so, ascending. StoreAwayError."""


def open_store(where: str) -> Store:
    """Open a folder (made when it is not there), or `s3://BUCKET/PREFIX?endpoint=URL`; Fatal when it can be neither.

    The keys of a bucket come from where AWS's tools look for them: environment, ~/.aws, the machine's role.
    """
    if where.startswith("s3://"):
        try:
            from maxgreen.bucket import open_bucket  # noqa: PLC0415 - boto3 is an extra
        except ModuleNotFoundError as error:
            raise Fatal(f"evidence store {where}: install maxgreen[s3]") from error
        return open_bucket(where)
    if "://" in where or not where:
        raise Fatal(f"evidence store {where!r}{_EXPECTED}")
    return FolderStore(Path(where))


class FolderStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is made with the first thing that is put into it."""
        self._folder = folder

    def put(self, name: str, data: bytes) -> None:
        """Keep `data`."""
        path = self._path(name)
        fresh = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            raise StoreAwayError(f"evidence store {self._folder}: {error.strerror}") from error

    def get(self, name: str) -> bytes:
        """Return what has a name."""
        try:
            return self._path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise AbsentError(f"evidence store {self._folder}: it has no {name}") from error
        except OSError as error:
            raise StoreAwayError(f"evidence store {self._folder}: {error.strerror}") from error

    def has(self, name: str) -> bool:
        """Tell whether there is something of a name."""
        return self._path(name).is_file()

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin so."""
        found = (path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file())
        ours = (name for name in found if name.startswith(prefix) and _NAME.fullmatch(name))
        yield from sorted(name for name in ours if not name.endswith(".new"))

    def _path(self, name: str) -> Path:
        return self._folder / checked(name)


class Putting:
    """Puts into a store some things at once, since each waits for a disk or a network; at its end all are kept."""

    def __init__(self, store: Store) -> None:
        """`store` may be used by several threads."""
        self._store = store
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all; raise what the first one that failed raised, unless something did already."""
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)
        while kind is None and self._under_way:
            self._under_way.popleft().result()

    def put(self, name: str, data: bytes) -> None:
        """Put something soon; raises what an earlier one raised."""
        if len(self._under_way) >= 2 * _AT_ONCE:
            self._under_way.popleft().result()
        self._under_way.append(self._threads.submit(self._store.put, name, data))


def checked(name: str) -> str:
    """Return a name; ValueError unless it is one that every store takes."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of a store")
    return name
