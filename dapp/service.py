"""The pages as a service."""

import logging
import queue
import threading
from socket import socket
from typing import Final

import uvicorn
from fastapi import APIRouter

from dapp.app import make_app
from dapp.audits import Audits
from dapp.config import DappSettings
from dapp.live import Live
from dapp.world import World
from maxgreen.chain.code import verify
from maxgreen.lock import FileLock
from maxgreen.service import listen, notify, patiently

_LOG: Final = logging.getLogger(__name__)
_OPEN_PAGES_S: Final = 3  # open pages are told to come back


class DappService:
    """Serves pages until `stop`."""

    def __init__(
        self, world: World, settings: DappSettings, more: APIRouter | None = None, at: socket | None = None
    ) -> None:
        """`more` are routes beside the pages, `at` is where it listens: without it, at once where settings say."""
        self.world = world
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()  # to end; a signal handler may put, and no more
        self._live = Live(world, settings.live)
        audits = Audits(settings.rpc, settings.deployment)
        app = make_app(world, self._live, audits)
        if more is not None:
            app.include_router(more)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_OPEN_PAGES_S, server_header=False)
        self._at = at or _listen(settings)
        self._lock: FileLock | None = None  # held as long as this is
        self._server = uvicorn.Server(config)

    @classmethod
    def from_settings(cls, settings: DappSettings) -> "DappService":
        """Compose the service; Fatal when the chain is another one, or its contracts are others.

        A ledger or chain that is away, a port that is taken, and other pages on the same state, are waited for.
        """
        path = settings.state_file
        lock = patiently(lambda: FileLock(path.with_name(f"{path.name}.lock"), "maxgreen dapp", path))
        world = patiently(lambda: World.from_settings(settings))
        patiently(lambda: verify(world.deployment.chain, world.deployment.addresses))
        made = cls(world, settings, at=patiently(lambda: _listen(settings)))
        made._lock = lock
        return made

    def run(self) -> None:
        """Serve until `stop`."""
        self._live.start()
        server = threading.Thread(target=self._server.run, args=([self._at],), name="http", daemon=True)
        server.start()
        notify("READY=1")
        _LOG.info("pages at %s", self.world.url)
        self._asked.get()
        notify("STOPPING=1")
        self._live.stop()
        self._server.should_exit = True
        server.join()
        self.world.keep.close()

    def stop(self) -> None:
        """Ask `run` to end; any thread or signal handler may call it."""
        self._asked.put(None)


def _listen(settings: DappSettings) -> socket:
    return listen(settings.http.host, settings.http.port, "http.port")
