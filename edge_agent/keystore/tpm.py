"""The signing key in a TPM 2.0: made there, wrapped by its storage key, and loaded again at each start."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import Field

os.environ.setdefault("TSS2_LOG", "all+NONE")  # else the library writes lines of its own at each attempt

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_RH, TPM2_ST, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMT_SIG_SCHEME,
    TPMT_TK_HASHCHECK,
)

from edge_agent.keystore.reopening import ReopeningSigner
from maxgreen.errors import Fatal, Retryable
from maxgreen.keyfile import read_secret, write_secret
from maxgreen.protocol.keys import SPKI_PREFIX, Signer
from maxgreen.settings import Table

_OWNED: Final = (
    TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN | TPMA_OBJECT.USERWITHAUTH
)
_PARENT: Final = TPM2B_PUBLIC.parse(
    "ecc256:aes128cfb", objectAttributes=_OWNED | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
)
_SIGNING: Final = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256", objectAttributes=_OWNED | TPMA_OBJECT.SIGN_ENCRYPT)


class TpmSettings(Table):
    """A TPM 2.0."""

    tcti: str = Field(
        default="device:/dev/tpmrm0", description="how to reach it (tpm2-tss TCTI); /dev/tpmrm0 is the kernel's manager"
    )


class TpmStore:
    """A key whose wrapped parts lie in the file `path`; only this TPM can unwrap them."""

    kind = 2

    def __init__(self, path: Path, settings: TpmSettings) -> None:
        self._path = path
        self._settings = settings

    def create(self) -> Signer:
        """Make the key in the TPM, then write its wrapped parts."""
        if self._path.exists():
            raise Fatal(f"{self._path}: there is a key already; it is this device's identity and is never replaced")
        try:
            with self._open() as tpm:
                parent = _primary(tpm)
                private, public, *_ = tpm.create(parent, TPM2B_SENSITIVE_CREATE(), _SIGNING)
                tpm.flush_context(parent)
        except TSS2_Exception as error:
            raise self._failure(error) from error
        wrapped = {"public": public.marshal().hex(), "private": private.marshal().hex()}
        write_secret(self._path, json.dumps(wrapped).encode())
        return self.load()

    def load(self) -> Signer:
        """Load the key into the TPM."""
        try:
            wrapped = json.loads(read_secret(self._path))
            public, _ = TPM2B_PUBLIC.unmarshal(bytes.fromhex(wrapped["public"]))
            private, _ = TPM2B_PRIVATE.unmarshal(bytes.fromhex(wrapped["private"]))
        except (ValueError, KeyError, TypeError, TSS2_Exception) as error:
            raise Fatal(f"wrapped key {self._path}: not one that 'maxgreen agent init' wrote") from error
        return ReopeningSigner(lambda: self._open_key(public, private))

    def _open_key(self, public: Any, private: Any) -> "_TpmKey":
        tpm = self._open()
        try:
            parent = _primary(tpm)
            key = tpm.load(parent, private, public)
            tpm.flush_context(parent)  # a TPM has three places for keys, and no manager may be there
        except TSS2_Exception as error:
            tpm.close()
            raise self._failure(error) from error
        point = public.publicArea.unique.ecc
        return _TpmKey(tpm, key, _coordinate(point.x) + _coordinate(point.y))

    def _open(self) -> ESAPI:
        try:
            return ESAPI(self._settings.tcti)
        except TSS2_Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Retryable:
        return Retryable(f"TPM {self._settings.tcti}: {error}; check [key.tpm], and that this user is in the group tss")


class _TpmKey:
    """A key that is loaded into a TPM."""

    def __init__(self, tpm: ESAPI, key: Any, point: bytes) -> None:
        self._tpm = tpm
        self._key = key
        self.spki = SPKI_PREFIX + point

    def sign_digest(self, digest: bytes) -> tuple[int, int]:
        unrestricted = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.OWNER)
        try:
            # held in a name: the parts of a temporary are freed with it
            signature = self._tpm.sign(self._key, digest, TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL), unrestricted)
        except TSS2_Exception as error:
            raise Retryable(f"TPM: {error}; is it still there?") from error
        ecdsa = signature.signature.ecdsa
        return int.from_bytes(bytes(ecdsa.signatureR), "big"), int.from_bytes(bytes(ecdsa.signatureS), "big")

    def close(self) -> None:
        with suppress(TSS2_Exception):
            self._tpm.close()


def _primary(tpm: ESAPI) -> Any:
    """Make the storage key again: the owner's seed and the template give the same one each time."""
    return tpm.create_primary(TPM2B_SENSITIVE_CREATE(), _PARENT, ESYS_TR.OWNER)[0]


def _coordinate(value: Any) -> bytes:
    return bytes(value).rjust(32, b"\0")
