"""A fleet for operators: days of many devices through the real parts, so that pages and dashboards show something.

Each pair of a panel and a storage node replays the same measured day, scaled by a weather of its own, as signed batches
of ten minutes with proof of work, over MQTT, into ledger, view, evidence store and chain. Some are in trouble.
The devices' keys are known to everybody: it is for looking, and never beside real devices.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import paho.mqtt.client as mqtt
from eth_account import Account
from eth_account.signers.local import LocalAccount
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.sensors.trace import Trace
from ingest.commands import give
from ingest.config import BrokerSettings, HttpSettings, InfluxSettings, IngestSettings
from ingest.config import ChainSettings as IngestChain
from ingest.service import IngestService
from ingest.view.days import days_position
from ingest.view.projector import running
from maxgreen.chain.client import connect
from maxgreen.chain.dao import Dao
from maxgreen.chain.deploying import deploy
from maxgreen.chain.deployment import Deployment, Governance
from maxgreen.chain.embedded import dev_secret
from maxgreen.chain.orders import Ends, LossTerms, SettlementContract
from maxgreen.chain.registry import admission, apply_for
from maxgreen.clock import FileClock
from maxgreen.errors import Fatal, UsageError
from maxgreen.keyfile import create_key_file
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.backend import Beacon, CommandKind
from maxgreen.protocol.batch import Event, EventKind, Role
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.keys import MemorySigner
from maxgreen.store import FolderStore
from maxgreen.verify.rules import Action, Decision, Limits
from settlement.orders import open_line
from settlement.service import SettlementService
from simulator.broker import EmbeddedBroker
from simulator.demo import MAX_LOSS_PPM, RESISTANCE_UOHM, token_of
from simulator.forger import send_forged_batch
from simulator.lab import EASY, Lab
from simulator.pages import run_beside, serve_pages
from simulator.site import RECEIVED_CHANNEL, SENT_CHANNEL, miner_system, node_system

DAY_MS: Final = 86_400_000
_MINUTE_MS: Final = 60_000
_BATCH_MS: Final = 600_000
_BEACON_S: Final = 3_600
_GOVERNANCE: Final = Governance(voting_delay_s=1, voting_period_s=5, timelock_s=1)
_LIMITS: Final = Limits(
    pow_nbits_min=EASY, shares_per_window=1, beacon_every_s=_BEACON_S, beacon_valid_s=2 * _BEACON_S, close_days=1,
    late_s=365 * 86_400,
)  # fmt: skip
_AT_ONCE: Final = 10  # applications, lines of a proposal
_WAIT_S: Final = 120.0
_FIRST_SECRET: Final = 5_000_000
Progress = Callable[[str, float], None]
T = TypeVar("T")


@dataclass(frozen=True)
class FleetOptions:
    """What the user asked for."""

    devices: int
    days: int
    folder: Path
    trace: Trace
    ledger: str = ""
    influx: InfluxSettings = field(default_factory=InfluxSettings)
    broker: tuple[str, int] | None = None  # plain MQTT; None: one of our own
    http_port: int = 0
    serve: bool = False


@dataclass(frozen=True)
class FleetResult:
    """What came of it; energies mW·s."""

    devices: int
    verdicts: dict[tuple[str, int], int]
    periods: dict[str, int]  # what each was to be paid
    page: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return {
            "devices": self.devices,
            "batches": {verdict: sum(n for (v, _), n in self.verdicts.items() if v == verdict)
                        for verdict in sorted({v for v, _ in self.verdicts})},
            "payable_mws": {period: str(total) for period, total in self.periods.items()},
        }  # fmt: skip


@dataclass
class Pair:
    """A panel and its storage node, and what is wrong with them."""

    number: int
    miner: Lab
    node: Lab
    scale: float
    trouble: str = ""

    @property
    def labs(self) -> tuple[Lab, Lab]:
        """Both."""
        return self.miner, self.node


def run_fleet(options: FleetOptions, progress: Progress, *, serving: Callable[[FleetResult], None]) -> FleetResult:
    """Fill everything; `serving` is called with the result while the services are still up."""
    if options.devices < 2 or options.days < 1:
        raise UsageError("--devices: at least 2, --days: at least 1")
    with ExitStack() as stack:
        return Fleet(options, stack).run(progress, serving)


class Fleet:
    """One run: everything it starts is ended by the exit stack."""

    def __init__(self, options: FleetOptions, stack: ExitStack) -> None:
        self._options, self._stack = options, stack
        self._folder = options.folder
        if self._folder.exists() and any(self._folder.iterdir()):
            raise UsageError(f"--dir {self._folder}: is not empty; name a new folder")
        self._folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        self._ends_ms = int(now.timestamp() * 1000) // _BATCH_MS * _BATCH_MS
        midnight = int(now.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)
        self._begins_ms = midnight - options.days * DAY_MS
        self._clock = FileClock(self._folder / "clock")
        self._clock.sleep_until(self._begins_ms - 3_600_000)
        self._accounts: list[LocalAccount] = [Account.from_key(dev_secret(k)) for k in range(10)]
        self._members, self._owners = tuple(self._accounts[2:5]), self._accounts[5:]
        self._profile = _profile(options.trace)
        self._chance = random.Random(2_026)
        self._sent = 0
        self._pairs: list[Pair] = []

    def run(self, progress: Progress, serving: Callable[[FleetResult], None]) -> FleetResult:
        """Run it."""
        progress("contracts", 0)
        deployment = self._deploy()
        backend = create_key_file(self._folder / "backend.pem")
        host, port = self._options.broker or ("127.0.0.1", self._start_broker())
        ingest = self._start_ingest(deployment, backend, host, port)
        page = self._start_pages(deployment, ingest, backend) if self._options.serve else None
        self._pairs = [self._pair(number, deployment.network) for number in range(self._options.devices // 2)]
        tokens = self._enrol(deployment, progress)
        ends = self._approve_lines(deployment, tokens, progress)
        _until(lambda: self._mirrored(ingest) >= set(tokens), "that the ledger knows the systems")
        client = self._client(host, port)
        self._measure(ingest, deployment, client, ends, progress)
        self._trouble(ingest, deployment, backend, host, port)
        periods = self._settle(ingest, deployment, backend, progress)
        with ingest.engine.begin() as connection:
            verdicts = Book(connection).verdict_counts()
        self._wait_for_view(ingest, progress)
        result = FleetResult(2 * len(self._pairs), verdicts, periods, page)
        if self._options.serve:
            self._go_on(ingest, client)
        serving(result)
        return result

    def _deploy(self) -> Deployment:
        chain = connect(str(self._folder / "chain.db"), self._clock)
        members = [member.address for member in self._members]
        deployment = deploy(chain, self._accounts[0], self._accounts[1].address, members, _GOVERNANCE)
        deployment.addresses.save(self._folder / "deployment.json")
        return deployment

    def _start_broker(self) -> int:
        broker = EmbeddedBroker()
        broker.start()
        self._stack.callback(broker.stop)
        return broker.port

    def _start_ingest(self, deployment: Deployment, backend: MemorySigner, host: str, port: int) -> IngestService:
        settings = IngestSettings(
            ledger=self._options.ledger or f"sqlite:///{self._folder / 'ledger.db'}",
            broker=BrokerSettings(host=host, port=port),
            http=HttpSettings(port=self._options.http_port),
            chain=IngestChain(rpc=str(self._folder / "chain.db"), refresh_s=1),
            influx=self._options.influx,
        )
        engine = open_engine(settings.ledger)
        with engine.begin() as connection:
            book = Book(connection)
            if book.verdict_counts():
                raise UsageError(f"--ledger {self._options.ledger}: holds something; a fleet is made in an empty one")
            book.set_limits(0, _LIMITS)
        service = IngestService(settings, engine, deployment, backend, self._clock)
        run_beside(self._stack, service, "ingest")
        return service

    def _start_pages(self, deployment: Deployment, ingest: IngestService, backend: MemorySigner) -> str:
        names = ("operator", "member 1", "member 2", "member 3", *(f"owner {k}" for k in range(1, 6)))
        accounts = dict(zip(names, self._accounts[1:], strict=True))
        world = serve_pages(self._stack, self._folder, ingest.engine, deployment, self._clock, backend, accounts)
        return f"{world.url}/"

    def _pair(self, number: int, network: str) -> Pair:
        def lab(kind: int, *roles: Role) -> Lab:
            secret, offset_ms = _FIRST_SECRET + 2 * number + kind, self._begins_ms - 60_000
            return Lab(secret, roles, _MINUTE_MS, network, head=network_digest(network), wall_offset_ms=offset_ms)

        return Pair(number, lab(0, Role.GENERATION, Role.SENT), lab(1, Role.RECEIVED), self._chance.uniform(0.3, 1.0))

    def _enrol(self, deployment: Deployment, progress: Progress) -> dict[bytes, int]:
        """Let owners apply, and the DAO admit; return the tokens by device."""
        peak = max(v * i for v, i in self._profile) * 12 // (10 * 10**9) + 1
        dao = Dao(deployment, self._clock)
        for begin in range(0, len(self._pairs), _AT_ONCE // 2):
            progress("enrolment", begin / len(self._pairs))
            applications = []
            for pair in self._pairs[begin : begin + _AT_ONCE // 2]:
                owner = self._owners[pair.number % len(self._owners)]
                place = (350 + pair.number % 40, -1_066 + pair.number * 7 % 90)
                specs = (miner_system(peak, place), node_system(peak))
                applications += [
                    apply_for(deployment, owner, lab.signer, spec) for lab, spec in zip(pair.labs, specs, strict=True)
                ]
            dao.carry_out(admission(deployment, applications), self._members, wait=True)
        return {lab.device: token_of(deployment, lab.signer) for pair in self._pairs for lab in pair.labs}

    def _approve_lines(self, deployment: Deployment, tokens: dict[bytes, int], progress: Progress) -> list[Ends]:
        ends = [
            Ends(tokens[pair.miner.device], SENT_CHANNEL, tokens[pair.node.device], RECEIVED_CHANNEL)
            for pair in self._pairs
        ]
        terms = LossTerms(RESISTANCE_UOHM, 0, MAX_LOSS_PPM)
        for begin in range(0, len(ends), _AT_ONCE):
            progress("lines", begin / len(ends))
            lines = [(one, terms) for one in ends[begin : begin + _AT_ONCE]]
            Dao(deployment, self._clock).carry_out(
                SettlementContract(deployment).line_approval(lines), self._members, wait=True
            )
        return ends

    def _mirrored(self, ingest: IngestService) -> set[bytes]:
        with ingest.engine.begin() as connection:
            return {known.record.device for known in Book(connection).all_devices()}

    def _client(self, host: str, port: int) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="fleet")
        client.username_pw_set("fleet")
        client.connect(host, port)
        client.loop_start()
        self._stack.callback(client.loop_stop)
        self._stack.callback(client.disconnect)
        return client

    def _measure(
        self, ingest: IngestService, deployment: Deployment, client: mqtt.Client, ends: list[Ends], progress: Progress
    ) -> None:
        """Send hour by hour what the devices measured; after the first hour the lines are opened."""
        operator = self._accounts[1]
        for pair, trouble in zip(reversed(self._pairs), ("silent", "hole", "fault", "ahead"), strict=False):
            pair.trouble = trouble if len(self._pairs) > 4 else ""
        hours = range(self._begins_ms, self._ends_ms, 3_600_000)
        for hour_ms in hours:
            progress("sunlight", (hour_ms - self._begins_ms) / (self._ends_ms - self._begins_ms))
            self._clock.sleep_until(hour_ms + 1_000)
            beacon = _until(lambda at=hour_ms: self._beacon(ingest, at), "a beacon")  # type: ignore[misc]
            until_ms = min(hour_ms + 3_600_000, self._ends_ms)
            made = [
                one for begin_ms in range(hour_ms, until_ms, _BATCH_MS) for pair in self._pairs
                for one in self._made(pair, begin_ms, 10, beacon)
            ]  # fmt: skip
            self._clock.sleep_until(until_ms + 1_000)  # nobody sends what is still to be measured
            self._publish(client, made)
            _until(lambda: self._judged(ingest) >= self._sent, "that ingest judged what was sent")
            if hour_ms == self._begins_ms:
                for one in ends:
                    open_line(ingest.engine, deployment, operator, one)

    def _made(self, pair: Pair, begin_ms: int, samples: int, beacon: Beacon | None) -> Iterator[tuple[str, bytes]]:
        """Yield the batches of both ends of a pair that begin then: topic and message."""
        late = begin_ms >= self._ends_ms - 6 * 3_600_000
        if pair.trouble == "silent" and late:
            return
        weather = random.Random(begin_ms // DAY_MS * 1_000 + pair.number).uniform(0.4, 1.0)
        minute = begin_ms // _MINUTE_MS
        sent = []
        for k in range(samples):
            voltage, current = self._profile[(minute + k) % len(self._profile)]
            sent.append((voltage, round(current * pair.scale * weather)))
        received = [(v - i * RESISTANCE_UOHM // 1_000_000, i) for v, i in sent]
        for lab, readings in zip(pair.labs, (sent, received), strict=True):
            lab.boot_ms = begin_ms - lab.wall_offset_ms
            events: tuple[Event, ...] = ()
            if pair.trouble == "fault" and begin_ms % DAY_MS == 18 * 3_600_000 and lab is pair.miner:
                events = (Event(int(EventKind.SENSOR_FAULT), 0),)
            made = lab.batch(readings, events=events)
            if beacon is not None:
                made = replace(made, work=lab.work(beacon))
            if made.seq == 0 or (begin_ms + samples * _MINUTE_MS) % DAY_MS == 0:
                made = lab.attested(made)
            if pair.trouble == "ahead" and late and lab is pair.node:
                made = replace(made, t0_ms=begin_ms + DAY_MS, attestations=())  # a clock that is a day ahead
            message = lab.sign(made)
            if pair.trouble == "hole" and late and lab is pair.miner and begin_ms < self._ends_ms - 5 * 3_600_000:
                continue  # it never comes: what follows is held
            yield device_topic(lab.device, "batch"), message

    def _publish(self, client: mqtt.Client, made: Iterable[tuple[str, bytes]]) -> None:
        for topic, message in made:
            client.publish(topic, message, qos=1)
            self._sent += 1

    def _beacon(self, ingest: IngestService, since_ms: int) -> Beacon | None:
        with ingest.engine.begin() as connection:
            newest = Book(connection).newest_beacon()
        return newest[0] if newest is not None and newest[0].issued_s * 1000 >= since_ms - 1_000 else None

    def _judged(self, ingest: IngestService) -> int:
        with ingest.engine.begin() as connection:
            return sum(Book(connection).verdict_counts().values())

    def _trouble(
        self, ingest: IngestService, deployment: Deployment, backend: MemorySigner, host: str, port: int
    ) -> None:
        """Leave what operators meet: a forged batch, a decision, a command."""
        first = self._pairs[0]
        if host == "127.0.0.1":
            send_forged_batch(port, first.miner.device, deployment.network)
        now_ms = self._clock.now_ms()
        with ingest.engine.begin() as connection:
            book = Book(connection)
            device = first.miner.device
            book.add_decision(Decision(device, 1, 1, Action.REJECT, "", "operator", now_ms, "the panel was covered"))
            known, state = book.device(device), book.state(device)
            if known is not None:
                give(book, backend, deployment.network, known, state, CommandKind.SEND_REGISTERS, {}, who="operator",
                     now_ms=now_ms, valid_ms=_MINUTE_MS)  # fmt: skip

    def _settle(
        self, ingest: IngestService, deployment: Deployment, backend: MemorySigner, progress: Progress
    ) -> dict[str, int]:
        """Close each day that may be closed, vote and mint; return what each came to."""
        service = SettlementService(
            ingest.engine, deployment, backend, self._clock, self._accounts[1], self._members, self._folder,
            FolderStore(self._folder / "evidence"),
        )  # fmt: skip
        periods = {}
        for day in range(self._options.days - _LIMITS.close_days):
            progress("settlement", day / self._options.days)
            period = datetime.fromtimestamp(self._begins_ms / 1000 + day * 86_400, UTC).strftime("%Y-%m-%d")
            periods[period] = service.run(period, wait=True).closed.total_mws
        return periods

    def _wait_for_view(self, ingest: IngestService, progress: Progress) -> None:
        if self._options.influx.url:
            progress("view", 0.5)
            _until(lambda: self._viewed(ingest), "that InfluxDB has all of it")

    def _viewed(self, ingest: IngestService) -> bool:
        with ingest.engine.begin() as connection:
            book = Book(connection)
            name = running(self._options.influx)
            return min(book.position(name), book.position(days_position(name))) >= book.revision()

    def _go_on(self, ingest: IngestService, client: mqtt.Client) -> None:
        """Let the devices go on by the machine's own clock, a batch a minute."""

        def run() -> None:
            at_ms = self._ends_ms
            while True:
                now_ms = int(time.time() * 1000)
                self._clock.sleep_until(now_ms)
                while at_ms + _MINUTE_MS <= now_ms:
                    beacon = self._beacon(ingest, now_ms - 2 * _BEACON_S * 1000)
                    self._publish(client, [one for p in self._pairs for one in self._made(p, at_ms, 1, beacon)])
                    at_ms += _MINUTE_MS
                time.sleep(1)

        threading.Thread(target=run, name="sunlight", daemon=True).start()


def _profile(trace: Trace) -> list[tuple[int, int]]:
    """Return a day of the trace's first channel by UTC minute: µV, µA; what it does not hold is night."""
    minutes = [(0, 0)] * 1_440
    for point in trace.channel(None):
        minutes[point.t_ms // _MINUTE_MS % 1_440] = (point.reading.voltage_uv, point.reading.current_ua)
    return minutes


def _until(done: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(0.05)
    raise Fatal(f"waited {_WAIT_S:.0f} s for {what}; is the broker or the database away?")
