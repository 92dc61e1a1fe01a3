"""A device's identity on disk, and how it is replaced by another (protocol, field 14).

The state folder holds the key in use, its TLS key and its spool; `next/` a key that is prepared; `old/<device id>/`
keys that had their last batch. A change from one to the next is a journal and renames: killed at any instant and begun
again, it ends the same.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edge_agent.keystore import KeySettings, make_store, store_of
from edge_agent.keystore.stores import REFERENCES
from edge_agent.spool import Spool
from maxgreen.errors import Fatal
from maxgreen.keyfile import sync_folder, write_secret
from maxgreen.protocol.keys import Signer, key_id

SPOOL: Final = "spool.db"
_JOURNAL: Final = "rotation.json"
_CONFIRMED: Final = "confirmed"
_DAMAGED: Final = "damaged"
SALVAGED: Final = "salvaged"  # what of a damaged spool the ledger may still have
_BELONGINGS: Final = (
    *REFERENCES.values(),
    *("tls.key", "tls.csr", "tls.crt"),
    *(SPOOL, f"{SPOOL}-wal", f"{SPOOL}-shm", f"{SPOOL}.begun"),
)


@dataclass(frozen=True, slots=True)
class Identities:
    """The identities in a state folder."""

    folder: Path
    keys: KeySettings

    @property
    def next_folder(self) -> Path:
        """Where a key is prepared."""
        return self.folder / "next"

    @property
    def is_confirmed(self) -> bool:
        """Whether the key in use is to have its last batch."""
        return (self.next_folder / _CONFIRMED).exists()

    def signer(self) -> Signer:
        """Return the signer of the key in use."""
        return store_of(self.folder, self.keys).load()

    @property
    def is_changing(self) -> bool:
        """Whether a change of keys was cut off; `resume` ends it."""
        return (self.folder / _JOURNAL).exists()

    def resume(self) -> None:
        """End a change of keys that was cut off; until then a key may be in neither place."""
        if self.is_changing:
            self._finish()

    def make(self) -> Signer:
        """Make the first keys; Fatal when there are some (what a cut left out is made)."""
        self.resume()
        if (self.folder / "tls.csr").exists():
            return make_keys(self.folder, self.keys)
        return self._keys_in(self.folder)

    def prepare(self) -> Signer:
        """Make the next keys, or return those that are prepared."""
        self.resume()
        return self._keys_in(self.next_folder)

    def confirm(self, *, needs_certificate: bool = False) -> None:
        """Let the key in use have its last batch as soon as the agent runs; Fatal when no other is ready to follow."""
        self.resume()
        if not _has_key(self.next_folder):
            raise Fatal("no key is prepared; run 'maxgreen agent rotate' first, and register what it prints")
        if needs_certificate and not (self.next_folder / "tls.crt").exists():
            raise Fatal(f"{self.next_folder / 'tls.crt'}: not there; have {self.next_folder / 'tls.csr'} signed first")
        self._keys_in(self.next_folder)
        (self.next_folder / _CONFIRMED).touch(mode=0o600)
        sync_folder(self.next_folder)

    def switch(self, genesis_head: bytes) -> bool:
        """Go over to the next key when the one in use had its last batch; also ends a change that was cut off."""
        if not self.is_changing:
            if not self.is_confirmed or not (self.folder / SPOOL).exists():
                return False
            spool = Spool(self.folder / SPOOL, genesis_head)
            tip = spool.tip
            spool.close()
            if not tip.closed:
                return False
            self._begin(key_id(self.signer().spki), tip.head, genesis_head, damaged=False)
        self._finish()
        return True

    def replace_damaged(self, head: bytes, genesis_head: bytes) -> Signer:
        """Set key and damaged spool aside, and go on with a new key after `head`, the last that the ledger has."""
        device = key_id(self.signer().spki)
        signer = self.prepare()
        self._begin(device, head, genesis_head, damaged=True)
        self._finish()
        return signer

    def succeed(self, device: bytes, head: bytes, genesis_head: bytes) -> Signer:
        """Make the keys of a device that goes on after another one; Fatal when this one measured already."""
        if (self.folder / SPOOL).exists():
            spool = Spool(self.folder / SPOOL, genesis_head)
            begun, before = spool.tip.next_seq, spool.predecessor
            spool.close()
            if begun or before not in {None, (device, head)}:
                raise Fatal(f"{self.folder}: this device measured already; it can't take another's place")
        signer = self._keys_in(self.folder)
        Spool(self.folder / SPOOL, genesis_head, predecessor=(device, head)).close()
        return signer

    def retired(self) -> list[tuple[bytes, Path, Path]]:
        """Return the earlier keys of which something can still be delivered: device id, folder, spool."""
        found = [path for path in self.folder.glob(f"old/*/{SPOOL}") if not (path.parent / _DAMAGED).exists()]
        salvaged = list(self.folder.glob(f"old/*/{SALVAGED}/{SPOOL}"))
        return sorted(
            (bytes.fromhex(folder.name), folder, path)
            for path in (*found, *salvaged)
            for folder in [path.parent if path.parent.name != SALVAGED else path.parent.parent]
        )

    def old_folder(self, device: bytes) -> Path:
        """Return where an earlier key's belongings are."""
        return self.folder / "old" / device.hex()

    def _keys_in(self, folder: Path) -> Signer:
        """Return the signer of a folder's keys; what is missing of them is made."""
        if not _has_key(folder):
            return make_keys(folder, self.keys)
        signer = store_of(folder, self.keys).load()
        make_tls_key(folder, signer)
        return signer

    def _begin(self, device: bytes, head: bytes, genesis_head: bytes, *, damaged: bool) -> None:
        Spool(self.next_folder / SPOOL, genesis_head, predecessor=(device, head)).close()
        old = self.old_folder(device)
        old.mkdir(parents=True, exist_ok=True, mode=0o700)
        if damaged:
            (old / _DAMAGED).touch(mode=0o600)
        retire = [name for name in _BELONGINGS if (self.folder / name).exists()]
        fresh = self.folder / f".{_JOURNAL}"
        with fresh.open("w") as file:
            json.dump({"device": device.hex(), "retire": retire}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.folder / _JOURNAL)
        sync_folder(self.folder)

    def _finish(self) -> None:
        journal = json.loads((self.folder / _JOURNAL).read_text())
        old = self.folder / "old" / journal["device"]
        for name in journal["retire"]:
            if not (old / name).exists():
                (self.folder / name).rename(old / name)
        sync_folder(old)
        for name in _BELONGINGS:
            if (self.next_folder / name).exists():
                (self.next_folder / name).rename(self.folder / name)
        sync_folder(self.folder)
        shutil.rmtree(self.next_folder, ignore_errors=True)
        (self.folder / _JOURNAL).unlink()
        sync_folder(self.folder)


def _has_key(folder: Path) -> bool:
    return any((folder / name).exists() for name in REFERENCES.values())


def make_keys(folder: Path, settings: KeySettings) -> Signer:
    """Make a signing key and a TLS key with its certificate request (P-ID-1, P-ID-4); Fatal when there are some."""
    signer = make_store(folder, settings, settings.store).create()
    make_tls_key(folder, signer)
    return signer


def make_tls_key(folder: Path, signer: Signer) -> None:
    """Make a TLS key and its certificate request where there is none yet."""
    if (folder / "tls.csr").exists():
        return
    (folder / "tls.key").unlink(missing_ok=True)  # without a request nobody has seen it
    tls_key = ec.generate_private_key(ec.SECP256R1())
    write_secret(folder / "tls.key", tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key_id(signer.spki).hex())])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls_key, hashes.SHA256())
    fresh = folder / ".tls.csr"
    fresh.write_bytes(request.public_bytes(Encoding.PEM))
    fresh.replace(folder / "tls.csr")
