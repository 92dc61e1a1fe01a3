"""Where signing keys live: a file, a PKCS#11 token, a TPM 2.0. Each signs; none gives its key away."""

from edge_agent.keystore.base import KeyStore
from edge_agent.keystore.stores import KeySettings, StoreName, key_faults, make_store, store_of

__all__ = ["KeySettings", "KeyStore", "StoreName", "key_faults", "make_store", "store_of"]
