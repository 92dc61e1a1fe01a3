"""The agent: ticks in, signed batches out.

One thread owns meter, spool and uplink. Sampling has its own, so that neither the medium nor the network delays a
reading, and mining has its own.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from edge_agent import host
from edge_agent.homeassistant import discovery, discovery_topic
from edge_agent.sealer import Sealer
from edge_agent.source import Source, Tick
from edge_agent.spool import Spool
from edge_agent.uplink import Uplink
from edge_agent.work import Worker
from maxgreen.protocol.batch import Birth, Health
from maxgreen.protocol.keys import Signer, key_id

_IDLE_S: Final = 0.05
_STATE_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class AgentParts:
    """What an agent is made of; the composition roots put real or virtual parts here."""

    source: Source
    signer: Signer
    spool: Spool
    uplink: Uplink
    worker: Worker | None
    birth: Birth
    network: str
    interval_ms: int
    seal_ms: int
    home_assistant: bool = False


class Agent:
    """Runs one device."""

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        self._stopping = threading.Event()
        self._state_due = 0.0
        self._introduced = 0
        self._power_mw: dict[int, int] = {}
        worker = parts.worker
        self.sealer = Sealer(
            parts.spool,
            parts.signer,
            parts.network,
            parts.birth,
            parts.source.boot_id,
            interval_ms=parts.interval_ms,
            seal_ms=parts.seal_ms,
            harvest=worker.harvest if worker else lambda _prev: None,
            health=self._health,
        )

    @property
    def device(self) -> bytes:
        """The device id."""
        return key_id(self._parts.signer.spki)

    @property
    def waiting(self) -> int:
        """How many sealed batches have no receipt."""
        return self._parts.spool.waiting()

    @property
    def can_mine(self) -> bool:
        """Whether a beacon came, where shares are waited for."""
        return self._parts.worker is None or not self._parts.worker.lacks_beacon

    def ticks(self) -> Iterator[Tick]:
        """Yield the source's ticks that are not sealed yet."""
        return self._parts.source.ticks(self.sealer.tip.last_boot_ms)

    def take(self, tick: Tick) -> None:
        """Meter a round of readings."""
        self.sealer.take(tick)
        for channel, sample in tick.samples.items():
            self._power_mw[channel] = sample.power_pw(0) // 10**9
        self.exchange()

    def exchange(self, timeout_s: float = 0) -> None:
        """Send and receive what there is; waits up to `timeout_s` for a message."""
        parts = self._parts
        uplink, worker = parts.uplink, parts.worker
        uplink.process(timeout_s)
        if worker is not None:
            for beacon in uplink.beacons:
                worker.take_beacon(beacon)
            if uplink.receipt is not None:
                worker.take_nbits(uplink.receipt.nbits)
            worker.follow(self.sealer.tip.head)
        uplink.beacons.clear()
        if uplink.connected and time.monotonic() >= self._state_due:
            self._state_due = time.monotonic() + _STATE_EVERY_S
            if parts.home_assistant and self._introduced != uplink.sessions:
                uplink.publish_retained(discovery_topic(self.device), discovery(self.device, parts.birth))
                self._introduced = uplink.sessions  # a broker may have lost what it retained
            uplink.publish_json("status", {"status": "online", "boot": parts.source.boot_id.hex()})
            uplink.publish_json("state", self.state())

    def state(self) -> dict[str, object]:
        """Return power W, energy kWh, temperature °C and spool depth, for people."""
        tip = self.sealer.tip
        return {
            "power_w": {str(n): power / 1000 for n, power in self._power_mw.items()},
            "energy_kwh": {str(n): meter.register_mws / 3.6e9 for n, meter in tip.meters.items()},
            "cpu_c": None if (mdeg := host.cpu_mdeg()) is None else mdeg / 1000,
            "spool": self._parts.spool.waiting(),
            "seq": tip.next_seq,
        }

    def _health(self) -> Health:
        """Return the device's state for a batch."""
        return Health(
            cpu_mdeg=host.cpu_mdeg(),
            throttled=host.throttled(),
            spool_records=self._parts.spool.waiting(),
            free_mib=host.free_mib(self._parts.spool.path.parent),
        )

    def start(self) -> None:
        """Begin to connect and to mine."""
        self._parts.uplink.start()
        if self._parts.worker is not None:
            self._parts.worker.start()

    def run(self, *, linger: bool = False, progress: Callable[[], None] = lambda: None) -> None:
        """Run until the source ends or `stop` is called, then seal and say goodbye.

        `progress` is called after each round of readings; `linger` stays connected after the source's end.
        """
        worker = self._parts.worker
        self.start()
        try:
            while worker is not None and worker.lacks_beacon and not self._stopping.is_set():
                self.exchange(_IDLE_S)
            for tick in self._sampled() if self._parts.source.is_live else self.ticks():
                self.take(tick)
                progress()
                if self._stopping.is_set() and not self._parts.source.is_live:
                    break
            self.sealer.stop()
            while not self._stopping.is_set() and (linger or not self._parts.uplink.delivered):
                self.exchange(_IDLE_S)
        finally:
            self.close()

    def _sampled(self) -> Iterator[Tick]:
        """Yield the ticks that a thread of their own reads; sends and receives while there is none."""
        arrived: queue.SimpleQueue[Tick | Exception] = queue.SimpleQueue()

        def sample() -> None:
            try:
                for tick in self.ticks():
                    arrived.put(tick)
                    if self._stopping.is_set():
                        return
            except Exception as error:  # noqa: BLE001 - raised again where it can end the agent
                arrived.put(error)

        threading.Thread(target=sample, name="sampling", daemon=True).start()
        while not (self._stopping.is_set() and arrived.empty()):
            try:
                found = arrived.get_nowait()
            except queue.Empty:
                self.exchange(_IDLE_S)
                continue
            if isinstance(found, Exception):
                raise found
            yield found

    def stop(self) -> None:
        """Ask `run` to end; any thread or signal handler may call it."""
        self._stopping.set()

    def close(self) -> None:
        """Seal what is open, end mining and close the connection."""
        self.sealer.stop()
        self.exchange()
        if self._parts.worker is not None:
            self._parts.worker.stop()
        self._parts.uplink.stop(self._parts.source.boot_id)
        self._parts.spool.close()
