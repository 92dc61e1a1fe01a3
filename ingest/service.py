"""The ingest service: worker, housekeeping, projector and pages in one process."""

import logging
import queue
import threading
from collections.abc import Callable
from socket import socket
from typing import Final

import uvicorn
from sqlalchemy import Engine

from ingest.certificates import Certificates
from ingest.config import IngestSettings
from ingest.crew import Crew
from ingest.figures import Figures
from ingest.housekeeping import Housekeeping
from ingest.http import make_app
from ingest.loop import Loop
from ingest.metrics import Metrics
from ingest.news import News
from ingest.shards import Shards
from ingest.source import MqttSource, Source
from ingest.view.days import Days
from ingest.view.projector import Projector, running
from ingest.view.records import Records
from ingest.view.sink import REQUEST_S
from ingest.worker import Worker
from maxgreen import __version__
from maxgreen.chain.client import connect
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.clock import Clock, make_clock
from maxgreen.errors import Retryable
from maxgreen.keyfile import create_key_file, load_key_file
from maxgreen.ledger.engine import close, open_engine, without_password
from maxgreen.ledger.lease import Lease, short
from maxgreen.ledger.segments import verbatim_of
from maxgreen.protocol.keys import Signer
from maxgreen.service import listen, notify, patiently, scrypt_kernel
from maxgreen.units import counted

_LOG: Final = logging.getLogger(__name__)
_CLAIM_EVERY_S: Final = 1.0
_PROJECT_EVERY_S: Final = 1.0  # where another service writes the ledger
_GATHER_S: Final = 0.2
_BACKLOG: Final = 1_000  # changes
_BESIDE_EVERY_S: Final = 60.0  # a day of each device that sent something is read whole


class Claimed(Retryable):
    """Another service is this one already."""


class Claim:
    """One service at a time has a client id for a ledger: two would throw each other out for ever."""

    def __init__(self, engine: Engine, settings: IngestSettings) -> None:
        name = settings.broker.client_id  # whatever the broker is called: it has several names
        self._lease = Lease(engine, f"client {short(name)}")
        self._text = f"another ingest is client {name!r} for this ledger"

    def take(self) -> None:
        """Take it, and keep it; Claimed says who has it, Retryable while the ledger is away."""
        if not self._lease.held():
            raise Claimed(f"{self._text} ({self._lease.other}); stop that one, or give this one a client_id of its own")

    def release(self) -> None:
        """Let another have it."""
        self._lease.release()


class IngestService:
    """Runs until `stop`; everything it needs is handed over or made from settings."""

    def __init__(
        self,
        settings: IngestSettings,
        engine: Engine,
        deployment: Deployment,
        signer: Signer,
        clock: Clock,
        claim: Claim | None = None,
        at: socket | None = None,
    ) -> None:
        """`claim` is held already, `at` is where health and metrics are: without them, both are had at once."""
        self._claim = claim or Claim(engine, settings)
        self._claim.take()
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
        self._lost: Retryable | None = None  # why it ended by itself
        name = running(settings.influx) if settings.influx.url else None
        if name is not None:
            from ingest.view.influx import InfluxSink  # noqa: PLC0415 - much to load, and only where there is a view

            self._view_lease = Lease(engine, name)
            sink = InfluxSink(settings.influx)
            self._projector = Projector(engine, sink, name, self._may_write_view, verbatim_of(settings.evidence))
            self._days = Days(engine, sink, name, self._may_write_view)
            self._records = Records(engine, sink, name, clock, self._may_write_view)
        alive = lambda: notify("WATCHDOG=1")  # noqa: E731
        self._judging = Loop("judging", self._judge, self._stopping, alive)
        self._beside = [Loop(name, step, self._stopping) for name, step in self._housekeeping.tasks().items()]
        files = (settings.broker.ca, settings.broker.certificate)
        figures = Figures(engine, self.metrics, clock, name, tuple(path for path in files if path is not None))
        self._beside += [
            Loop("the claim", self._keep_claim, self._stopping),
            Loop("figures", figures.step, self._stopping),
            Loop("news", News(self.metrics.judged).step, self._stopping),
        ]
        if self._projector is not None:
            self._beside += [
                Loop("the view", self._project, self._stopping, woken=self.metrics.written),
                Loop("the view's days", lambda: self._beside_view(self._days.step), self._stopping),
                Loop("the view's records", lambda: self._beside_view(self._records.step), self._stopping),
            ]
        if settings.certificates is not None:
            self._beside.append(
                Loop("certificates", Certificates(settings.certificates, self._source).step, self._stopping)
            )
        self._server: uvicorn.Server | None = None
        self._at = at or _listen(settings)
        if self._at is not None:
            app = make_app(self.metrics, self.missing)
            self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        where = self._at.getsockname() if self._at is not None else None
        self._greeting = (
            f"ingest {__version__}: network {deployment.network}, chain at {settings.chain.shown()}, "
            f"ledger {without_password(engine.url).render_as_string()}, "
            f"broker {settings.broker.host}:{settings.broker.port} as {settings.broker.client_id!r}, "
            f"view {settings.influx.url or 'none'}, "
            f"health and metrics {f'http://{where[0]}:{where[1]}' if where else 'nowhere (http.port = 0)'}, "
            f"{counted(settings.processes, 'process', 'processes')}, scrypt kernel {scrypt_kernel()}"
        )

    @classmethod
    def from_settings(cls, settings: IngestSettings) -> "IngestService":
        """Compose the service that settings describe.

        A database that is away, another service with the same client id, and a port that is taken, are waited for.
        """
        scrypt_kernel()  # a wrong choice is said now, not at the first share
        clock = make_clock(settings.clock_file)
        key_file = settings.key_file
        signer = load_key_file(key_file) if key_file.exists() else create_key_file(key_file)
        chain = connect(settings.chain.rpc, clock)
        deployment = Deployment(chain, Addresses.load(settings.chain.deployment))
        engine = patiently(lambda: open_engine(settings.ledger))
        claim = Claim(engine, settings)
        patiently(claim.take)
        at = patiently(lambda: _listen(settings))
        return cls(settings, engine, deployment, signer, clock, claim, at)

    def missing(self) -> str | None:
        """Return what keeps the service from being ready, or None."""
        troubles = {loop.name: loop.trouble for loop in (self._judging, *self._beside)}
        for name, trouble in troubles.items():
            self.metrics.waiting.labels(name).set(trouble is not None)
        alarms = [self._source.alarm, *troubles.values(), self._judges.alarm, self._housekeeping.alarm]
        found = next(filter(None, alarms), None)
        self.metrics.ready.set(found is None)
        return found

    def run(self) -> None:
        """Judge messages until `stop`; Retryable when another service took this one's place."""
        _LOG.info("%s", self._greeting)
        self._judges.start()
        self._source.start()
        server = None
        if self._server is not None:
            server = threading.Thread(target=self._server.run, args=([self._at],), name="http", daemon=True)
        for thread in (*self._beside, server, self._judging):
            if thread is not None:
                thread.start()
        notify("READY=1")
        try:
            self._asked.get()
        finally:
            notify("STOPPING=1")
            self._stopping.set()
            self.metrics.written.set()
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
            self._claim.release()
            close(self.engine)
            _LOG.info("ended")
        if self._lost is not None:
            raise self._lost

    def stop(self) -> None:
        """Ask `run` to end; any thread or signal handler may call it."""
        self._asked.put(None)

    def _keep_claim(self) -> float:
        try:
            self._claim.take()
        except Claimed as error:
            self._lost = error
            self.stop()
        return _CLAIM_EVERY_S

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
        written = self._projector.step()
        if written >= _BACKLOG:
            return 0.0
        if written:  # what comes meanwhile goes with fewer requests
            self._stopping.wait(_GATHER_S)
            return 0.0
        return _PROJECT_EVERY_S

    def _beside_view(self, step: Callable[[], bool]) -> float:
        if not self._view_lease.held():
            return _PROJECT_EVERY_S
        return 0.0 if step() else _BESIDE_EVERY_S


def _source(settings: IngestSettings, shards: Shards | None, greet: Callable[[], None], metrics: Metrics) -> Source:
    if shards is None:
        return MqttSource(settings.broker, greet, metrics.connected.set, metrics.add_refusal)
    from ingest.nats_source import NatsSource  # noqa: PLC0415 - nats-py only where it is used

    return NatsSource(settings.nats, settings.broker, shards.step, greet, metrics.connected.set)


def _listen(settings: IngestSettings) -> socket | None:
    return listen(settings.http.host, settings.http.port, "http.port") if settings.http.port else None
