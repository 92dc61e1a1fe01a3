"""The agent's settings."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from edge_agent.board.gpio import BoardSettings
from edge_agent.governor import BudgetSettings
from edge_agent.identity import Identities
from edge_agent.keystore import KeySettings, key_faults
from edge_agent.sensors.trace import read_trace
from maxgreen.errors import UsageError
from maxgreen.mqtt import BrokerTable
from maxgreen.protocol.batch import MAX_INTERVAL_MS
from maxgreen.protocol.identity import check_network
from maxgreen.protocol.keys import Verifier
from maxgreen.protocol.reasons import Rejected
from maxgreen.protocol.work import target_of
from maxgreen.settings import NoPath, ServiceSettings, Table, missing_file


class RoleName(StrEnum):
    """What a channel measures, in the order of the protocol's numbers."""

    GENERATION = "generation"
    SENT = "sent"
    RECEIVED = "received"
    DELIVERED = "delivered"
    TAKEN_OUT = "taken_out"

    @property
    def number(self) -> int:
        """The protocol's number."""
        return list(RoleName).index(self)


class SensorName(StrEnum):
    """The sensors that the agent can read."""

    INA219 = "ina219"
    INA228 = "ina228"
    REPLAY = "replay"


class ChannelSettings(Table):
    """One metered channel."""

    number: int = Field(default=0, ge=0, description="channel number, fixed for a sensor for ever")
    role: RoleName = Field(default=RoleName.GENERATION, description="generation, sent, received, delivered, taken_out")
    sensor: SensorName = Field(default=SensorName.INA219, description="ina219, ina228, or replay of a trace")
    bus: int = Field(default=1, ge=0, description="I2C bus number")
    address: int = Field(default=0x40, ge=0x08, le=0x77, description="I2C address, 0x40 = 64")
    shunt_uohm: int = Field(default=100_000, gt=0, description="shunt resistance, µΩ")
    dead_band_ua: int = Field(default=5_000, ge=0, description="currents below this are zero, µA (P-BAT-4)")
    calibration: str = Field(default="none", max_length=64, description="id of the calibration, from 'agent calibrate'")
    gain_ppm: int = Field(default=0, ge=-100_000, le=100_000, description="add so much of the current, ppm (calibrate)")
    offset_ua: int = Field(default=0, description="add so much to the current, µA ('agent calibrate')")
    trace_channel: str = Field(default="", description="the trace's channel (replay); empty = its first")
    line_resistance_uohm: int = Field(
        default=0,
        ge=0,
        description="lower the replayed voltage by current x this resistance, µΩ: the far end of a line",
    )


class ProtocolName(StrEnum):
    """Which MQTT version to speak."""

    AUTO = "auto"
    MQTT5 = "5"
    MQTT311 = "3.1.1"


class BrokerSettings(BrokerTable):
    """The MQTT broker."""

    protocol: ProtocolName = Field(
        default=ProtocolName.AUTO, description="MQTT version: 5, 3.1.1, or auto = 5 first and 3.1.1 where that fails"
    )
    window: int = Field(default=20, gt=0, le=1000, description="batches in flight")
    resend_s: float = Field(default=30, gt=0, description="send again when a receipt has not moved for so long")


def _check_nbits(nbits: int) -> int:
    try:
        target_of(nbits)
    except Rejected as error:
        raise ValueError(str(error)) from error
    return nbits


NBits = Annotated[int, Field(ge=0, lt=2**32), AfterValidator(_check_nbits)]


class WorkSettings(Table):
    """Proof of work."""

    enabled: bool = Field(default=True, description="mine on beacons")
    duty: float = Field(default=0.5, gt=0, le=1, description="share of one core")
    nbits: NBits = Field(default=0x1F100000, description="difficulty until the first receipt says another (P-POW-4)")
    wait_shares: int = Field(default=0, ge=0, le=64, description="replay: shares to find before a batch is sealed")


class SpoolSettings(Table):
    """Where batches wait for their receipts; what has none is never dropped."""

    max_mib: int = Field(default=1024, gt=0, description="in use: at this size the agent samples once a minute, MiB")


class ReplaySettings(Table):
    """A trace instead of sensors."""

    trace: NoPath = Field(
        default=None, description="CSV or JSON lines with ts_utc, channel, v_bus_V, i_A; empty = live sensors"
    )
    speed: float = Field(default=0, ge=0, description="times real time; 0 = as fast as it can be metered")
    linger: bool = Field(default=False, description="stay connected after the trace's end")


def _check_seal(seal_s: int) -> int:
    if seal_s <= 0 or 600 % seal_s:
        raise ValueError(f"{seal_s} does not divide 600 (P-BAT-5)")
    return seal_s


def _check_key(key: str) -> str:
    try:
        Verifier(bytes.fromhex(key))
    except (ValueError, Rejected) as error:
        raise ValueError(f"not a P-256 public key of 182 hex digits ({error}); the operator gives it") from error
    return key


NetworkName = Annotated[str, AfterValidator(check_network)]
SealTime = Annotated[int, AfterValidator(_check_seal)]
BackendKey = Annotated[str, AfterValidator(_check_key)]


class AgentSettings(ServiceSettings):
    """All of `agent.toml`."""

    model_config = SettingsConfigDict(env_prefix="MAXGREEN_AGENT__")
    command: ClassVar[str] = "agent"

    network: NetworkName = Field(description="the deployment's name, from its operator (P-ID-3)")
    backend_keys: tuple[BackendKey, ...] = Field(description="the backend's public keys, 182 hex digits each: pinned")
    state_dir: Path = Field(default=Path("/var/lib/maxgreen-agent"), description="keys, spool, receipts")
    interval_ms: int = Field(default=1_000, ge=10, le=MAX_INTERVAL_MS, description="sampling interval, ms")
    seal_s: SealTime = Field(
        default=60, description="a batch closes at every multiple of this, s; it divides 600 (P-BAT-5)"
    )
    metrics_port: int = Field(default=9464, ge=0, le=65535, description="Prometheus on 127.0.0.1; 0 = none")
    clock_file: NoPath = Field(default=None, description="trials only: a file that holds the time, ms")
    broker: BrokerSettings = Field(default=BrokerSettings(), description="the MQTT broker")
    work: WorkSettings = Field(default=WorkSettings(), description="proof of work")
    budget: BudgetSettings = Field(default=BudgetSettings(), description="when mining pauses (P-POW-5)")
    key: KeySettings = Field(default=KeySettings(), description="where new signing keys are made")
    spool: SpoolSettings = Field(default=SpoolSettings(), description="what waits for receipts")
    board: BoardSettings = Field(default=BoardSettings(), description="relay, tamper switch and light on GPIO pins")
    home_assistant: bool = Field(default=True, description="describe this device to Home Assistant (MQTT discovery)")
    replay: ReplaySettings = Field(default=ReplaySettings(), description="a trace instead of sensors")
    channels: tuple[ChannelSettings, ...] = Field(
        default=(ChannelSettings(),), min_length=1, description="one table per channel"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse tables that contradict each other."""
        numbers = [channel.number for channel in self.channels]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"channels: numbers {numbers} are not distinct")
        replayed = [channel for channel in self.channels if channel.sensor is SensorName.REPLAY]
        if replayed and (len(replayed) != len(self.channels) or self.replay.trace is None):
            raise ValueError("channels: replayed and live channels do not mix, and a replay needs [replay] trace")
        if replayed and self.board.relay_pin >= 0:
            raise ValueError("board.relay_pin: a replayed trace switches no relay")
        if not replayed and self.work.wait_shares:
            raise ValueError("work.wait_shares: for replays; live readings wait for no share")
        places = [
            (channel.bus, channel.address) for channel in self.channels if channel.sensor is not SensorName.REPLAY
        ]
        if len(set(places)) != len(places):
            raise ValueError("channels: two of them read the same chip: the same bus and address")
        if self.board.relay_pin >= 0 and self.board.relay_channel not in numbers:
            raise ValueError(f"board.relay_channel: {self.board.relay_channel} is not one of the channels {numbers}")
        return self

    def missing(self) -> Iterator[str]:
        """Yield the files and the key that are needed and not there, or not usable."""
        for name in ("ca", "certificate", "key"):
            yield from missing_file(f"broker.{name}", getattr(self.broker, name))
        yield from missing_file("replay.trace", self.replay.trace)
        yield from missing_file("clock_file", self.clock_file)
        key = list(key_faults(self.state_dir, self.key))
        if key and not Identities(self.state_dir, self.key).is_changing:
            yield from key

    def faults(self) -> Iterator[str]:
        """Yield what `run` would refuse: also a trace that can't be read whole."""
        missing = list(self.missing())
        yield from missing
        replayed = [channel for channel in self.channels if channel.sensor is SensorName.REPLAY]
        if self.replay.trace is None or not replayed or any(fault.startswith("replay.trace") for fault in missing):
            return
        try:
            trace = read_trace(self.replay.trace)
            for channel in replayed:
                trace.channel(channel.trace_channel or None)
        except UsageError as error:
            yield f"replay.trace: {error}"

    @property
    def spool_file(self) -> Path:
        """The spool."""
        return self.state_dir / "spool.db"
