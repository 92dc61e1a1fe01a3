"""A certificate authority for devices, brokers and services: P-256, in one folder, with a list of what it revoked."""

import ipaddress
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from maxgreen.errors import Fatal, UsageError
from maxgreen.keyfile import read_secret, write_secret
from maxgreen.lock import FolderLock

DEVICE: Final = re.compile(r"[0-9a-f]{32}")
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}|[0-9a-fA-F:]{2,39}")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BEFORE: Final = timedelta(days=1)  # the clock of a device may be behind
_LONGEST: Final = 16_384  # bytes of a request
_CRL_DAYS: Final = 3_650  # a list that is over would keep everybody out
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY, name TEXT NOT NULL, until_s INTEGER NOT NULL, revoked_s INTEGER, pem TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS certificates_by_name ON certificates (name);
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks a certificate for: a name, and the key that signed the request (PKCS #10)."""

    name: str
    key: ec.EllipticCurvePublicKey

    @property
    def spki(self) -> bytes:
        """Its public key, DER."""
        return self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued: its serial number (hex), whose it is, when it ends and was revoked, unix s."""

    serial: str
    name: str
    until_s: int
    revoked_s: int | None
    pem: str

    def hosts(self) -> list[str]:
        """Return the names and addresses that a server's certificate is for; none of a client's."""
        certificate = x509.load_pem_x509_certificate(self.pem.encode())
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.SERVER_AUTH not in usages:
            return []
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = map(str, names.get_values_for_type(x509.IPAddress))
        return [*names.get_values_for_type(x509.DNSName), *addresses]

    def again(self) -> Request:
        """Return a request for the same name and key."""
        key = x509.load_pem_x509_certificate(self.pem.encode()).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Fatal(f"certificate {self.serial}: no P-256 key")
        return Request(self.name, key)


def read_request(data: bytes) -> Request:
    """Read a request (PEM) of a name and a P-256 key; UsageError says what is wrong with it."""
    if len(data) > _LONGEST:
        raise UsageError(f"a request has at most {_LONGEST} bytes")
    try:
        found = x509.load_pem_x509_csr(data)
        key, signed = found.public_key(), found.is_signature_valid
        names = [str(part.value) for part in found.subject]
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise UsageError("no certificate request (PEM); give tls.csr, as 'maxgreen agent init' made it") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError("a request is of a P-256 key")
    if not signed:
        raise UsageError("the request is not signed by its own key")
    if len(names) != 1 or not _NAME.fullmatch(names[0]):
        raise UsageError("a request names nothing but a device (CN)")
    return Request(names[0], key)


class Authority:
    """An authority in its folder: `ca.key`, `ca.crt`, `ca.db`, and `crl.pem` for brokers."""

    def __init__(self, folder: Path) -> None:
        """Open it; Fatal when there is none."""
        self.folder = folder
        try:
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
            self.certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except FileNotFoundError as error:
            raise Fatal(
                f"authority {folder}: there is no {Path(error.filename).name}; 'maxgreen ca init' makes one"
            ) from error
        except OSError as error:
            raise Fatal(
                f"authority {folder}: {error.strerror}; run it as its owner: sudo -u maxgreen maxgreen ca …"
            ) from error
        except ValueError as error:
            raise Fatal(f"authority {folder}: ca.key or ca.crt is damaged; restore it from a backup") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Fatal(f"authority {folder}: ca.key is no P-256 key")
        self._key = key
        with self._db() as db:
            db.executescript(_SCHEMA)

    @classmethod
    def create(cls, folder: Path, name: str, years: int) -> "Authority":
        """Make a key and a certificate of its own; Fatal when there is one."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (folder / "ca.key").exists():
            raise Fatal(f"{folder / 'ca.key'}: is there already; an authority is made once")
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        certificate = (
            _builder(name, name, key.public_key(), now, now + timedelta(days=366 * years))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        (folder / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        write_secret(folder / "ca.key", _pem(key))
        made = cls(folder)
        made.write_crl()
        return made

    def issue(
        self, request: Request, days: int, *, hosts: Sequence[str] = (), replace: bool = False, server: bool = False
    ) -> Issued:
        """Issue a certificate; `hosts` are a server's names and addresses, `replace` revokes what the name has.

        UsageError where the name has one of another key: somebody else's request must not take its place.
        """
        with FolderLock(self.folder, "maxgreen ca"):
            return self._issue(request, days, hosts=hosts, replace=replace, server=server)

    def _issue(self, request: Request, days: int, *, hosts: Sequence[str], replace: bool, server: bool) -> Issued:
        for other in self.valid(request.name):
            if other.again().spki != request.spki:
                if not replace:
                    until = datetime.fromtimestamp(other.until_s, UTC)
                    raise UsageError(
                        f"{request.name} has a certificate of another key until {until:%Y-%m-%d}; if its key was lost "
                        "or replaced: --replace, which revokes that one"
                    )
                self._revoke(other)
        now = datetime.now(UTC)
        until = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        ca_name = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])]
        certificate = (
            _builder(request.name, str(ca_name), request.key, now, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(_names(hosts or [request.name])), critical=False)
            # RFC 5280, 4.2.1.1 and 4.2.1.2: clients that are strict want both
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        found = Issued(
            f"{certificate.serial_number:x}", request.name, int(until.timestamp()), None,
            certificate.public_bytes(Encoding.PEM).decode(),
        )  # fmt: skip
        with self._db() as db:
            db.execute(
                "INSERT INTO certificates VALUES (?, ?, ?, NULL, ?)",
                (found.serial, found.name, found.until_s, found.pem),
            )
        if replace:
            self._write_crl()
        return found

    def all(self) -> list[Issued]:
        """Return every certificate, the oldest first."""
        with self._db() as db:
            return [Issued(*row) for row in db.execute("SELECT * FROM certificates ORDER BY rowid")]

    def valid(self, name: str | None = None) -> list[Issued]:
        """Return the certificates that are neither over nor revoked, of a name or all."""
        query = "SELECT * FROM certificates WHERE revoked_s IS NULL AND until_s > ?"
        with self._db() as db:
            rows = db.execute(
                query + (" AND name = ?" if name is not None else "") + " ORDER BY rowid",
                (int(datetime.now(UTC).timestamp()), *([name] if name is not None else [])),
            )
            return [Issued(*row) for row in rows]

    def revoke(self, name: str) -> list[Issued]:
        """Revoke what a name has, and write the list; return what that was."""
        with FolderLock(self.folder, "maxgreen ca"):
            found = self.valid(name)
            for one in found:
                self._revoke(one)
            self._write_crl()
        return found

    def write_crl(self) -> Path:
        """Write the list of what is revoked, for brokers; return where."""
        with FolderLock(self.folder, "maxgreen ca"):
            return self._write_crl()

    def _write_crl(self) -> Path:
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject).last_update(now)
        builder = builder.next_update(now + timedelta(days=_CRL_DAYS))
        for one in self.all():
            if one.revoked_s is not None:
                entry = x509.RevokedCertificateBuilder().serial_number(int(one.serial, 16))
                builder = builder.add_revoked_certificate(
                    entry.revocation_date(datetime.fromtimestamp(one.revoked_s, UTC)).build()
                )
        fresh, path = self.folder / "crl.new", self.folder / "crl.pem"
        fresh.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        fresh.replace(path)
        return path

    def _revoke(self, one: Issued) -> None:
        with self._db() as db:
            now_s = int(datetime.now(UTC).timestamp())
            db.execute("UPDATE certificates SET revoked_s = ? WHERE serial = ?", (now_s, one.serial))

    @contextmanager
    def _db(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.folder / "ca.db", timeout=30)
        try:
            with db:
                yield db
        finally:
            db.close()


def make_key(path: Path, name: str) -> Request:
    """Make a key of a server or service in a file that only its owner reads; Fatal when the file is there."""
    if path.exists():
        raise Fatal(f"{path}: is there already")
    if not _NAME.fullmatch(name):
        raise UsageError(f"name {name!r}: letters, digits, '.', '_' and '-', at most 64")
    key = ec.generate_private_key(ec.SECP256R1())
    write_secret(path, _pem(key))
    return Request(name, key.public_key())


def key_request(path: Path, name: str) -> Request:
    """Return the request of a key that was made before; Fatal when the file holds none."""
    try:
        key = load_pem_private_key(read_secret(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Fatal(f"{path}: no key (PEM); restore it from a backup, or move it away and a new one is made") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Fatal(f"{path}: no P-256 key")
    return Request(name, key.public_key())


def checked(hosts: Sequence[str]) -> None:
    """Pass when all of them are names or addresses; UsageError names the one that is not."""
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise UsageError(f"{host!r}: a DNS name (letters, digits, '.' and '-') or an address")


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _builder(
    name: str, issuer: str, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(until)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in hosts:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found
