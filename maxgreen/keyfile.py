"""The signing key in a file that only its owner can read (P-ID-1)."""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from maxgreen.errors import Fatal
from maxgreen.protocol.keys import MemorySigner


def create_key_file(path: Path) -> MemorySigner:
    """Make a key and write it, 0600, whole or not at all; Fatal when there is one already."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(path, pem)
    return MemorySigner(key)


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file, 0600, durable, whole or not at all; Fatal when it exists."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)  # unlike a rename, it never replaces a key
        except FileExistsError as error:
            raise Fatal(
                f"{path}: there is a key already; it is this device's identity and is never replaced"
            ) from error
    finally:
        fresh.unlink()
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file by one that is on the medium, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> bytes:
    """Read a file that only its owner may read; Fatal when it is missing or others can."""
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Fatal(f"secret {path}: not there") from error
    except OSError as error:
        raise Fatal(f"secret {path}: {error.strerror}") from error
    if mode & 0o077:
        raise Fatal(f"secret {path}: others can read it (mode {mode & 0o777:o}); run: chmod 600 {path}")
    return data


def load_key_file(path: Path) -> MemorySigner:
    """Read a key; Fatal when it is missing, readable by others, or no P-256 key."""
    if not path.exists():
        raise Fatal(f"secret {path}: not there; 'maxgreen agent init' makes a device's keys")
    pem = read_secret(path)
    try:
        key = load_pem_private_key(pem, password=None)
    except ValueError as error:
        raise Fatal(f"signing key {path}: not a PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Fatal(f"signing key {path}: not a P-256 key")
    return MemorySigner(key)
