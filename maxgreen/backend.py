"""What ingest, settlement and pages have in common: the ledger, the contracts, when a device is silent."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from maxgreen.settings import tried

SILENT_MS: Final = 20 * 60_000  # without a batch a device is silent: one comes each ten minutes at least


def ledger_faults(url: str) -> Iterator[str]:
    """Yield why a URL can be no ledger."""
    kind = urlsplit(url).scheme.partition("+")[0] if "://" in url else ""
    if kind not in {"sqlite", "postgresql"}:
        yield "ledger: expected sqlite:///FILE or postgresql://USER@HOST/NAME"
    elif kind == "postgresql" and find_spec("psycopg") is None:
        yield "ledger: install maxgreen[postgres]"


def deployment_faults(name: str, path: Path) -> Iterator[str]:
    """Yield why a file says nothing of contracts."""
    from maxgreen.chain.deployment import Addresses  # noqa: PLC0415 - web3 only where it is needed

    yield from tried(name, lambda: Addresses.load(path))
