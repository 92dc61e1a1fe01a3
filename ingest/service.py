"""The ingest service: worker, housekeeping, projector and pages in one process."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

import uvicorn
from sqlalchemy import Engine

from ingest.config import IngestSettings
from ingest.crew import Crew
from ingest.housekeeping import Housekeeping
from ingest.http import make_app
from ingest.loop import Loop
from ingest.metrics import Metrics
from ingest.shards import Shards
from ingest.source import MqttSource, Source
from ingest.view.days import Days
from ingest.view.projector import Projector, running
from ingest.view.sink import REQUEST_S, InfluxSink
from ingest.worker import Worker
from maxgreen.chain.client import connect
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.clock import Clock, make_clock
from maxgreen.keyfile import create_key_file, load_key_file
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.lease import Lease
from maxgreen.ledger.segments import verbatim_of
from maxgreen.protocol.keys import Signer
from maxgreen.service import notify, patiently, scrypt_kernel

_LOG: Final = logging.getLogger(__name__)
_PROJECT_EVERY_S: Final = 1.0
_DAYS_EVERY_S: Final = 60.0  # a day of each device that sent something is read whole


class IngestService:
    """Runs until `stop`; everything it needs is handed over or made from settings."""

    def __init__(
        self, settings: IngestSettings, engine: Engine, deployment: Deployment, signer: Signer, clock: Clock
    ) -> None:
        self.metrics = Metrics()
        self.engine = engine
        self._stopping = threading.Event()
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()  # to end; a signal handler may put, and no more
        self._shards = Shards(engine) if settings.nats.servers else None
        self._source = _source(settings, self._shards, self._greet, self.metrics)
        self._judges: Worker | Crew = (
            Worker(engine, self._source, deployment.network, signer, clock, self.metrics)
            if settings.processes == 1
            else Crew(settings, deployment.network, self._source, self.metrics)
        )
        self._housekeeping = Housekeeping(
            engine, self._source, deployment, signer, clock, refresh_s=settings.chain.refresh_s
        )
        self._projector: Projector | None = None
        if settings.influx.url:
            name = running(settings.influx)
            self._view_lease = Lease(engine, name)
            sink = InfluxSink(settings.influx)
            self._projector = Projector(engine, sink, name, self._may_write_view, verbatim_of(settings.evidence))
            self._days = Days(engine, sink, name, self._may_write_view)
        alive = lambda: notify("WATCHDOG=1")  # noqa: E731
        self._judging = Loop("judging", self._judge, self._stopping, alive)
        self._beside = [Loop(name, step, self._stopping) for name, step in self._housekeeping.tasks().items()]
        if self._projector is not None:
            self._beside += [
                Loop("the view", self._project, self._stopping),
                Loop("the view's days", self._project_days, self._stopping),
            ]
        self._server: uvicorn.Server | None = None
        if settings.http.port:
            app = make_app(self.metrics, self.missing)
            config = uvicorn.Config(app, host=settings.http.host, port=settings.http.port, log_level="warning")
            self._server = uvicorn.Server(config)

    @classmethod
    def from_settings(cls, settings: IngestSettings) -> "IngestService":
        """Compose the service that settings describe; a database that is away is waited for."""
        scrypt_kernel()  # a wrong choice is said now, not at the first share
        clock = make_clock(settings.clock_file)
        key_file = settings.key_file
        signer = load_key_file(key_file) if key_file.exists() else create_key_file(key_file)
        chain = connect(settings.chain.rpc, clock)
        deployment = Deployment(chain, Addresses.load(settings.chain.deployment))
        return cls(settings, patiently(lambda: open_engine(settings.ledger)), deployment, signer, clock)

    def missing(self) -> str | None:
        """Return what keeps the service from being ready, or None."""
        troubles = [loop.trouble for loop in (self._judging, *self._beside)]
        alarms = [self._source.alarm, *troubles, self._judges.alarm, self._housekeeping.alarm]
        return next(filter(None, alarms), None)

    def run(self) -> None:
        """Judge messages until `stop`."""
        self._judges.start()
        self._source.start()
        server = threading.Thread(target=self._server.run, name="http", daemon=True) if self._server else None
        for thread in (*self._beside, server, self._judging):
            if thread is not None:
                thread.start()
        notify("READY=1")
        try:
            self._asked.get()
        finally:
            notify("STOPPING=1")
            self._stopping.set()
            self._judging.join()
            self._judges.stop()
            self._source.stop()
            if self._server is not None:
                self._server.should_exit = True
            for thread in (*self._beside, server):
                if thread is not None:
                    thread.join()
            self._housekeeping.stop()
            if self._shards is not None:
                self._shards.release()
            if self._projector is not None:
                self._view_lease.release()

    def stop(self) -> None:
        """Ask `run` to end; any thread or signal handler may call it."""
        self._asked.put(None)

    def _greet(self) -> None:
        self._housekeeping.greet()

    def _may_write_view(self) -> bool:
        return not self._stopping.is_set() and self._view_lease.held(REQUEST_S)

    def _judge(self) -> float:
        self._judges.step()
        return 0.0

    def _project(self) -> float:
        if self._projector is None or not self._view_lease.held():
            return _PROJECT_EVERY_S
        return 0.0 if self._projector.step() else _PROJECT_EVERY_S

    def _project_days(self) -> float:
        if not self._view_lease.held():
            return _PROJECT_EVERY_S
        return 0.0 if self._days.step() else _DAYS_EVERY_S


def _source(settings: IngestSettings, shards: Shards | None, greet: Callable[[], None], metrics: Metrics) -> Source:
    if shards is None:
        return MqttSource(settings.broker, greet, metrics.connected.set)
    from ingest.nats_source import NatsSource  # noqa: PLC0415 - nats-py only where it is used

    return NatsSource(settings.nats, settings.broker, shards.step, greet, metrics.connected.set)
