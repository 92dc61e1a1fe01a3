"""Which key store an identity's folder uses."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from edge_agent.keystore.base import KeyStore
from edge_agent.keystore.file import FileStore
from maxgreen.errors import Fatal
from maxgreen.settings import Table


class StoreName(StrEnum):
    """The key stores that there are."""

    FILE = "file"
    PKCS11 = "pkcs11"
    TPM = "tpm"


REFERENCES: Final = {
    StoreName.FILE: "signing.pem",
    StoreName.PKCS11: "signing.pkcs11",
    StoreName.TPM: "signing.tpm",
}


class KeySettings(Table):
    """Where new signing keys are made; an existing key stays where it is."""

    store: StoreName = Field(default=StoreName.FILE, description="file, pkcs11 or tpm")
    pkcs11: dict[str, str] = Field(default={}, description="module, token and pin_file of a PKCS#11 token")
    tpm: dict[str, str] = Field(default={}, description='tcti of a TPM; { tcti = "device:/dev/tpmrm0" } by default')


def make_store(folder: Path, settings: KeySettings, name: StoreName) -> KeyStore:
    """Return a store for the identity in a folder; Fatal when its package is not installed."""
    path = folder / REFERENCES[name]
    if name is StoreName.FILE:
        return FileStore(path)
    try:
        store: KeyStore
        if name is StoreName.PKCS11:
            from edge_agent.keystore.pkcs11 import Pkcs11Settings, Pkcs11Store  # noqa: PLC0415 - an extra

            store = Pkcs11Store(path, _checked(Pkcs11Settings, settings.pkcs11, "key.pkcs11"))
        else:
            from edge_agent.keystore.tpm import TpmSettings, TpmStore  # noqa: PLC0415 - an extra

            store = TpmStore(path, _checked(TpmSettings, settings.tpm, "key.tpm"))
    except ImportError as error:
        raise Fatal(f"key store {name}: {error}; run deploy/install-agent.sh again with --extras pi,{name}") from error
    return store


def store_of(folder: Path, settings: KeySettings) -> KeyStore:
    """Return the store of the key that an identity's folder names; the file's when it names none."""
    for name, reference in REFERENCES.items():
        if (folder / reference).exists():
            return make_store(folder, settings, name)
    return make_store(folder, settings, StoreName.FILE)


def key_faults(folder: Path, settings: KeySettings) -> Iterator[str]:
    """Yield why the key of an identity's folder could not be used, as far as files tell."""
    for name, reference in REFERENCES.items():
        try:
            if (folder / reference).exists():
                store = make_store(folder, settings, name)
                if name is StoreName.FILE:  # a token may be elsewhere now
                    store.load()
                return
        except PermissionError:
            return  # another user's folder: nobody can tell
        except Fatal as error:
            yield str(error)
            return
    yield f"state_dir = {folder}: no signing key; 'maxgreen agent init' makes it"


def _checked(kind: Any, values: dict[str, str], where: str) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise Fatal(f"[{where}] {key}: {first['msg']}; see 'maxgreen agent config sample'") from error
