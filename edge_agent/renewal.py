"""A renewed certificate that the backend sends: taken where it is this device's own, used at the next connection.

Nothing has to be believed: it is for the key that this device has, and the authority that it trusts already signed it.
"""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import InvalidVersion
from cryptography.x509.oid import NameOID

from edge_agent.config import BrokerSettings
from maxgreen.keyfile import sync_folder

_LOG: Final = logging.getLogger(__name__)
_LONGEST: Final = 8_192


def take_certificate(settings: BrokerSettings, device: bytes, data: bytes) -> bool:
    """Keep a certificate (PEM) that is newer than the one in use; tell whether it was. Whatever else comes is said."""
    if settings.ca is None or settings.certificate is None or settings.key is None:
        return False  # a trial without TLS
    try:
        if len(data) > _LONGEST:
            raise ValueError("too long")  # noqa: TRY301 - one sentence for every fault
        fresh = x509.load_pem_x509_certificate(data)
        if fresh.not_valid_after_utc <= _end_of(settings.certificate):
            return False  # what the broker retains comes with each connection
        _check(fresh, settings, device)
        path = settings.certificate
        new = path.with_name(f".{path.name}.new")
        with new.open("wb") as file:
            file.write(fresh.public_bytes(Encoding.PEM))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_folder(path.parent)
    except (ValueError, TypeError, InvalidSignature, InvalidVersion, UnsupportedAlgorithm, OSError) as error:
        _LOG.warning("a renewed certificate is not used: %s", str(error) or type(error).__name__)
        return False
    _LOG.info("the certificate was renewed: valid until %s", fresh.not_valid_after_utc.strftime("%Y-%m-%d"))
    return True


def _end_of(path: Path) -> datetime:
    """Return when the certificate in use ends; a damaged one has ended."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (ValueError, InvalidVersion):
        return datetime.min.replace(tzinfo=UTC)


def _check(fresh: x509.Certificate, settings: BrokerSettings, device: bytes) -> None:
    """ValueError or InvalidSignature unless it is this device's, of its key and of the authority it trusts."""
    assert settings.ca is not None  # noqa: S101 - for the type
    assert settings.key is not None  # noqa: S101
    authority = x509.load_pem_x509_certificate(settings.ca.read_bytes())
    fresh.verify_directly_issued_by(authority)
    names = [str(part.value) for part in fresh.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device.hex()]:
        raise ValueError(f"it is of {names}")
    ours = load_pem_private_key(settings.key.read_bytes(), None).public_key()
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if ours.public_bytes(*spki) != fresh.public_key().public_bytes(*spki):
        raise ValueError("it is for another key")
    if fresh.not_valid_before_utc > datetime.now(UTC):
        raise ValueError("it is not valid yet; is the clock right?")
