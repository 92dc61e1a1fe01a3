"""What every key store offers."""

from typing import Protocol

from maxgreen.protocol.keys import Signer


class KeyStore(Protocol):
    """A place for one P-256 signing key, named by a reference file in an identity's folder."""

    kind: int  # the birth's field 5: 0 file, 1 PKCS#11, 2 TPM

    def create(self) -> Signer:
        """Make the key; Fatal when there is one, or the store is not usable."""
        ...

    def load(self) -> Signer:
        """Return the key's signer; Fatal when it is not there or not usable."""
        ...
