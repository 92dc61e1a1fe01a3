"""The pages in the process of a demo, with a wallet of its accounts."""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from eth_account.signers.local import LocalAccount
from sqlalchemy import Engine

from dapp.config import DappSettings, HttpSettings
from dapp.keep import Keep
from dapp.service import DappService
from dapp.world import World
from ingest.service import IngestService
from maxgreen.chain.deployment import Deployment
from maxgreen.clock import Clock
from maxgreen.protocol.keys import Signer
from maxgreen.store import FolderStore
from simulator.broker import free_port
from simulator.trial_wallet import trial_wallet


def serve_pages(
    stack: ExitStack,
    folder: Path,
    engine: Engine,
    deployment: Deployment,
    clock: Clock,
    backend: Signer,
    accounts: Mapping[str, LocalAccount],
) -> World:
    """Serve them until the stack ends; the world knows where (`url`)."""
    port = free_port()
    settings = DappSettings(
        rpc=str(folder / "chain.db"),
        deployment=folder / "deployment.json",
        http=HttpSettings(port=port, url=f"http://127.0.0.1:{port}"),
    )
    chain = deployment.chain
    world = World(
        engine,
        FolderStore(folder / "evidence"),
        Deployment(chain.trying(), deployment.addresses),
        clock,
        Keep(folder / "dapp.db"),
        settings.http.url,
        backend,
        trial=True,
    )
    service = DappService(world, settings, trial_wallet(chain, dict(accounts)))
    run_beside(stack, service, "dapp")
    return world


def run_beside(stack: ExitStack, service: IngestService | DappService, name: str) -> None:
    """Run a service in a thread of its own until the stack ends."""
    thread = threading.Thread(target=service.run, name=name, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(service.stop)
