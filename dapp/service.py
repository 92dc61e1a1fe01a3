"""The pages as a service."""

import logging
import queue
import threading
from typing import Final
from urllib.parse import urlsplit

import uvicorn
from fastapi import APIRouter

from dapp.app import make_app
from dapp.audits import Audits
from dapp.config import DappSettings
from dapp.live import Live
from dapp.world import World
from maxgreen.chain.code import verify
from maxgreen.errors import Fatal
from maxgreen.service import notify, patiently

_LOG: Final = logging.getLogger(__name__)
_OPEN_PAGES_S: Final = 3  # open pages are told to come back


class DappService:
    """Serves pages until `stop`."""

    def __init__(self, world: World, settings: DappSettings, more: APIRouter | None = None) -> None:
        """`more` are routes beside the pages."""
        self.world = world
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()  # to end; a signal handler may put, and no more
        self._live = Live(world, settings.live)
        audits = Audits(settings.rpc, settings.deployment)
        app = make_app(world, self._live, audits)
        if more is not None:
            app.include_router(more)
        config = uvicorn.Config(
            app, host=settings.http.host, port=settings.http.port,
            log_level="warning", timeout_graceful_shutdown=_OPEN_PAGES_S, server_header=False,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    @classmethod
    def from_settings(cls, settings: DappSettings) -> "DappService":
        """Compose the service; Fatal when the chain is another one, or its contracts are others.

        A ledger or chain that is away is waited for.
        """
        world = patiently(lambda: World.from_settings(settings))
        patiently(lambda: verify(world.deployment.chain, world.deployment.addresses))
        return cls(world, settings)

    def run(self) -> None:
        """Serve until `stop`; Fatal when the port is taken."""
        self._live.start()
        server = threading.Thread(target=self._serve, name="http", daemon=True)
        server.start()
        notify("READY=1")
        _LOG.info("pages at %s", self.world.url)
        self._asked.get()
        notify("STOPPING=1")
        self._live.stop()
        self._server.should_exit = True
        server.join()
        self.world.keep.close()
        if not self._server.started:
            raise Fatal(f"cannot listen at port {urlsplit(self.world.url).port}; is it taken?")

    def stop(self) -> None:
        """Ask `run` to end; any thread or signal handler may call it."""
        self._asked.put(None)

    def _serve(self) -> None:
        try:
            self._server.run()
        except SystemExit:  # uvicorn says so when it cannot listen
            pass
        finally:
            self._asked.put(None)
