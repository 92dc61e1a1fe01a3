"""What the parts of MaxCoin Green Energy share: protocol, verifier, ledger, chain, settings, command line."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("maxgreen")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
