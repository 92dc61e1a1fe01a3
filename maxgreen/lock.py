"""One process at a time on a folder: the lock ends with its process, however that ends (flock(2))."""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from maxgreen.errors import Retryable

_PATIENCE_S: Final = 2.0
_NAME: Final = ".lock"


class FileLock:
    """Holds a file or folder; the lock's own file says who does."""

    def __init__(self, path: Path, holder: str, what: Path, **more: str) -> None:
        """Take `path`, which is the lock of `what`; Retryable names the process that has it.

        `more` is told to whoever looks.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = path.open("a+")
        deadline = time.monotonic() + _PATIENCE_S
        while not _taken(self._file):  # somebody who only looks holds it for an instant
            if time.monotonic() > deadline:
                other = _told(self._file.name)
                self._file.close()
                who = f"'{other.get('holder', 'another process')}', process {other.get('pid', '?')}"
                raise Retryable(f"{what} is in use by {who}; stop it first")
            time.sleep(0.05)
        self._told = {"pid": str(os.getpid()), "holder": holder}
        self.tell(**more)

    def tell(self, **more: str) -> None:
        """Tell more to whoever looks who holds the folder."""
        self._told |= more
        self._file.truncate(0)
        json.dump(self._told, self._file)
        self._file.flush()

    def release(self) -> None:
        """Let others have it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class FolderLock(FileLock):
    """Holds a folder."""

    def __init__(self, folder: Path, holder: str, **more: str) -> None:
        """Take it; Retryable names the process that has it."""
        super().__init__(folder / _NAME, holder, folder, **more)


def holder_of(folder: Path) -> Mapping[str, Any] | None:
    """Return what the process that holds a folder says of itself, None when none does; PermissionError to strangers."""
    try:
        with (folder / _NAME).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return _told(file.name)
    except FileNotFoundError:
        return None
    return None


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _told(path: str) -> Mapping[str, Any]:
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
