"""The signing key in a PKCS#11 token: generated there, sensitive, not extractable (PKCS #11 v2.40)."""

import json
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters
from pydantic import Field

from edge_agent.keystore.reopening import ReopeningSigner
from maxgreen.errors import Fatal, MaxgreenError, Retryable
from maxgreen.keyfile import read_secret, write_secret
from maxgreen.protocol.keys import SPKI_PREFIX, Signer
from maxgreen.settings import Table

_POINT_BYTES: Final = 65


class Pkcs11Settings(Table):
    """A PKCS#11 token."""

    module: Path = Field(default=Path("/usr/lib/softhsm/libsofthsm2.so"), description="the token's library")
    token: str = Field(default="maxgreen", description="the token's label")
    pin_file: Path = Field(default=Path("/etc/maxgreen/pin"), description="a file of mode 0600 that holds the PIN")


class Pkcs11Store:
    """A key that the file `path` names by its CKA_ID."""

    kind = 1

    def __init__(self, path: Path, settings: Pkcs11Settings) -> None:
        self._path = path
        self._settings = settings

    def create(self) -> Signer:
        """Generate the key in the token, then write its reference."""
        identity = secrets.token_bytes(16)
        if self._path.exists():
            raise Fatal(f"{self._path}: there is a key already; it is this device's identity and is never replaced")
        try:
            curve = self._open().create_domain_parameters(
                KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
            )
            curve.generate_keypair(
                store=True,
                id=identity,
                label="maxgreen signing key",
                private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
            )
        except pkcs11.PKCS11Error as error:
            raise self._failure(error) from error
        write_secret(self._path, json.dumps({"id": identity.hex()}).encode())
        return self.load()

    def load(self) -> Signer:
        """Find the key in the token."""
        try:
            identity = bytes.fromhex(json.loads(read_secret(self._path))["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise Fatal(f"key reference {self._path}: not one that 'maxgreen agent init' wrote") from error
        return ReopeningSigner(lambda: self._open_key(identity))

    def _open_key(self, identity: bytes) -> "_TokenKey":
        try:
            session = self._open()
            key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=identity)
            point = session.get_key(object_class=ObjectClass.PUBLIC_KEY, id=identity)[Attribute.EC_POINT]
        except pkcs11.PKCS11Error as error:
            raise self._failure(error) from error
        return _TokenKey(session, key, bytes(point)[-_POINT_BYTES:])

    def _open(self) -> Any:
        settings = self._settings
        pin = read_secret(settings.pin_file).decode().strip()
        try:
            library = pkcs11.lib(str(settings.module))
            try:
                token = library.get_token(token_label=settings.token)
            except pkcs11.PKCS11Error:
                library.reinitialize()  # some libraries look for tokens once
                token = library.get_token(token_label=settings.token)
            try:
                return token.open(user_pin=pin, rw=True)
            except pkcs11.UserAlreadyLoggedIn:  # a login is the process's, not the session's
                return token.open(rw=True)
        except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> MaxgreenError:
        """Return what to raise: a token may not be up yet; a wrong PIN or module must not be tried again."""
        said = str(error) or type(error).__name__
        text = f"PKCS#11 token {self._settings.token!r} ({self._settings.module}): {said}; check [key.pkcs11]"
        wrong = not isinstance(error, pkcs11.PKCS11Error) or isinstance(error, pkcs11.PinIncorrect | pkcs11.PinLocked)
        return Fatal(text) if wrong else Retryable(text)


class _TokenKey:
    """An open key of a token."""

    def __init__(self, session: Any, key: Any, point: bytes) -> None:
        self._session = session
        self._key = key
        self.spki = SPKI_PREFIX[:-1] + point

    def sign_digest(self, digest: bytes) -> tuple[int, int]:
        try:
            found = self._key.sign(digest, mechanism=Mechanism.ECDSA)
        except pkcs11.PKCS11Error as error:
            raise Retryable(f"PKCS#11 token: {str(error) or type(error).__name__}; is it still there?") from error
        return int.from_bytes(found[:32], "big"), int.from_bytes(found[32:], "big")

    def close(self) -> None:
        with suppress(pkcs11.PKCS11Error):
            self._session.close()
