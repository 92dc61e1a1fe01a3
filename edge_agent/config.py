"""The agent's settings."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from maxgreen.mqtt import BrokerTable
from maxgreen.protocol.batch import MAX_INTERVAL_MS
from maxgreen.protocol.identity import check_network
from maxgreen.settings import ServiceSettings, Table


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
    REPLAY = "replay"


class ChannelSettings(Table):
    """One metered channel."""

    number: int = Field(default=0, ge=0, description="channel number, fixed for a sensor for ever")
    role: RoleName = Field(default=RoleName.GENERATION, description="generation, sent, received, delivered, taken_out")
    sensor: SensorName = Field(default=SensorName.INA219, description="ina219, or replay of a trace's channel")
    bus: int = Field(default=1, description="I2C bus number (INA219)")
    address: int = Field(default=0x40, ge=0x08, le=0x77, description="I2C address (INA219), 0x40 = 64")
    shunt_uohm: int = Field(default=100_000, gt=0, description="shunt resistance, µΩ")
    dead_band_ua: int = Field(default=5_000, ge=0, description="currents below this are zero, µA (P-BAT-4)")
    trace_channel: str = Field(default="", description="the trace's channel (replay)")
    line_resistance_uohm: int = Field(
        default=0,
        ge=0,
        description="lower the replayed voltage by current x this resistance, µΩ: the far end of a line",
    )


class BrokerSettings(BrokerTable):
    """The MQTT broker."""

    window: int = Field(default=20, gt=0, le=1000, description="batches in flight")
    resend_s: float = Field(default=30, gt=0, description="send again when a receipt has not moved for so long")


class WorkSettings(Table):
    """Proof of work."""

    enabled: bool = Field(default=True, description="mine on beacons")
    duty: float = Field(default=0.5, gt=0, le=1, description="share of one core")
    nbits: int = Field(default=0x1F100000, description="difficulty until the first receipt says another (P-POW-4)")
    wait_shares: int = Field(default=0, ge=0, le=64, description="replay: shares to find before a batch is sealed")


class ReplaySettings(Table):
    """A trace instead of sensors."""

    trace: Path | None = Field(default=None, description="CSV with ts_utc, channel, v_bus_V, i_A; empty = live sensors")
    speed: float = Field(default=0, ge=0, description="times real time; 0 = as fast as it can be metered")
    linger: bool = Field(default=False, description="stay connected after the trace's end")


NetworkName = Annotated[str, AfterValidator(check_network)]


class AgentSettings(ServiceSettings):
    """All of `agent.toml`."""

    model_config = SettingsConfigDict(env_prefix="MAXGREEN_AGENT__")

    network: NetworkName = Field(description="the deployment's name, from its operator (P-ID-3)")
    backend_keys: tuple[str, ...] = Field(description="the backend's public keys, 182 hex digits each: pinned")
    state_dir: Path = Field(default=Path("/var/lib/maxgreen-agent"), description="keys, spool, receipts")
    interval_ms: int = Field(default=1_000, ge=10, le=MAX_INTERVAL_MS, description="sampling interval, ms")
    seal_s: int = Field(default=60, description="a batch closes at every multiple of this, s; it divides 600 (P-BAT-5)")
    clock_file: Path | None = Field(default=None, description="trials only: a file that holds the time, ms")
    broker: BrokerSettings = Field(default=BrokerSettings(), description="the MQTT broker")
    work: WorkSettings = Field(default=WorkSettings(), description="proof of work")
    home_assistant: bool = Field(default=True, description="describe this device to Home Assistant (MQTT discovery)")
    replay: ReplaySettings = Field(default=ReplaySettings(), description="a trace instead of sensors")
    channels: tuple[ChannelSettings, ...] = Field(
        default=(ChannelSettings(),), min_length=1, description="one table per channel"
    )

    @property
    def key_file(self) -> Path:
        """The signing key."""
        return self.state_dir / "signing.pem"

    @property
    def spool_file(self) -> Path:
        """The spool."""
        return self.state_dir / "spool.db"
