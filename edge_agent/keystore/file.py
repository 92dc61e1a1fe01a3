"""The signing key in a file of mode 0600."""

from pathlib import Path

from maxgreen.keyfile import create_key_file, load_key_file
from maxgreen.protocol.keys import Signer


class FileStore:
    """PEM beside the spool (the default)."""

    kind = 0

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> Signer:
        """Make the key, 0600, whole or not at all; Fatal when there is one."""
        return create_key_file(self._path)

    def load(self) -> Signer:
        """Read the key; Fatal when it is missing, readable by others, or no P-256 key."""
        return load_key_file(self._path)
