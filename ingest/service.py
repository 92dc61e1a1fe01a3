"""The ingest service: consumer, projector and pages in one process."""

import logging
import threading
from typing import Final

import uvicorn
from sqlalchemy import Engine

from ingest.config import IngestSettings
from ingest.consumer import Consumer, Metrics, MqttBroker
from ingest.http import make_app
from ingest.influx import InfluxSink, Projector
from maxgreen.chain.client import connect
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.clock import Clock, make_clock
from maxgreen.errors import Fatal, Retryable
from maxgreen.keyfile import create_key_file, load_key_file
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.keys import Signer
from maxgreen.service import notify, scrypt_kernel

_LOG: Final = logging.getLogger(__name__)
_PROJECT_EVERY_S: Final = 1.0
_RETRY_S: Final = 5.0
_HOUSE_EVERY_S: Final = 0.05


class IngestService:
    """Runs until `stop`; everything it needs is handed over or made from settings."""

    def __init__(
        self, settings: IngestSettings, engine: Engine, deployment: Deployment, signer: Signer, clock: Clock
    ) -> None:
        self.metrics = Metrics()
        self.engine = engine
        self._broker = MqttBroker(
            settings.broker,
            lambda: self.consumer.greet(),  # noqa: PLW0108 - made below
            self.metrics.connected.set,
        )
        self.consumer = Consumer(
            engine,
            self._broker,
            deployment,
            signer,
            clock,
            self.metrics,
            refresh_s=settings.chain.refresh_s,
        )
        self._stopping = threading.Event()
        self._projector = Projector(engine, InfluxSink(settings.influx)) if settings.influx.url else None
        self._threads: list[threading.Thread] = []
        self._server: uvicorn.Server | None = None
        if settings.http.port:
            app = make_app(engine, self.metrics, self.missing)
            config = uvicorn.Config(app, host=settings.http.host, port=settings.http.port, log_level="warning")
            self._server = uvicorn.Server(config)

    @classmethod
    def from_settings(cls, settings: IngestSettings) -> "IngestService":
        """Compose the service that settings describe."""
        scrypt_kernel()  # a wrong choice is said now, not at the first share
        clock = make_clock(settings.clock_file)
        key_file = settings.key_file
        signer = load_key_file(key_file) if key_file.exists() else create_key_file(key_file)
        chain = connect(settings.chain.rpc, clock)
        deployment = Deployment(chain, Addresses.load(settings.chain.deployment))
        return cls(settings, open_engine(settings.ledger), deployment, signer, clock)

    def missing(self) -> str | None:
        """Return what keeps the service from being ready, or None."""
        if not self._broker.connected.is_set():
            return "no connection to the broker"
        if self._broker.denied:
            return f"the broker does not let us listen to {self._broker.denied}"
        return self.consumer.alarm

    def run(self) -> None:
        """Judge messages until `stop`."""
        self._broker.start()
        self._spawn(self._keep_house, "house")
        if self._projector is not None:
            self._spawn(self._project, "projector")
        if self._server is not None:
            self._spawn(self._server.run, "http")
        notify("READY=1")
        try:
            while not self._stopping.is_set():
                try:
                    self.consumer.judge_some()
                except Retryable as error:
                    _LOG.warning("%s", error)
                    self._stopping.wait(_RETRY_S)
                notify("WATCHDOG=1")
        finally:
            notify("STOPPING=1")
            self._broker.stop()
            if self._server is not None:
                self._server.should_exit = True
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def stop(self) -> None:
        """Ask `run` to end; any thread or signal handler may call it."""
        self._stopping.set()

    def _spawn(self, target: object, name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _keep_house(self) -> None:
        while not self._stopping.wait(_HOUSE_EVERY_S):
            try:
                self.consumer.keep_house()
            except Retryable as error:
                _LOG.warning("%s", error)
                self._stopping.wait(_RETRY_S)

    def _project(self) -> None:
        projector = self._projector
        lost = False
        while projector is not None and not self._stopping.is_set():
            try:
                busy = projector.step()
            except (Retryable, Fatal) as error:
                if not lost:
                    _LOG.warning("the view waits: %s", error)
                lost = True
                self._stopping.wait(_RETRY_S)
                continue
            if lost:
                _LOG.warning("the view goes on")
                lost = False
            if not busy:
                self._stopping.wait(_PROJECT_EVERY_S)
