"""A site: a miner (generation and sent) and its storage node (received), as real agents on a trace."""

from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import (
    AgentSettings,
    BrokerSettings,
    ChannelSettings,
    ProtocolName,
    ReplaySettings,
    RoleName,
    SensorName,
    WorkSettings,
)
from edge_agent.sensors.trace import TracePoint
from maxgreen.keyfile import create_key_file
from maxgreen.protocol.batch import Role
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec

GENERATION_CHANNEL = 0
SENT_CHANNEL = 1
RECEIVED_CHANNEL = 0
METER_ERROR_PPM = 5_000  # an INA219 after two-point calibration
BATTERY_WH = 1_000_000


@dataclass(frozen=True)
class Site:
    """What the two agents of a site share."""

    network: str
    backend_spki: bytes
    port: int
    trace: Path
    channel: str
    interval_ms: int
    seal_s: int
    clock_file: Path
    resistance_uohm: int
    nbits: int
    wait_shares: int
    linger: bool = False

    def miner(self, state_dir: Path) -> AgentSettings:
        """Return the settings of the miner's agent."""
        channels = (
            self._channel(GENERATION_CHANNEL, RoleName.GENERATION, 0),
            self._channel(SENT_CHANNEL, RoleName.SENT, 0),
        )
        return self._settings(state_dir, channels)

    def node(self, state_dir: Path) -> AgentSettings:
        """Return the settings of the storage node's agent: it gets what the line lets through."""
        return self._settings(state_dir, (self._channel(RECEIVED_CHANNEL, RoleName.RECEIVED, self.resistance_uohm),))

    def _channel(self, number: int, role: RoleName, resistance_uohm: int) -> ChannelSettings:
        return ChannelSettings(
            number=number,
            role=role,
            sensor=SensorName.REPLAY,
            trace_channel=self.channel,
            line_resistance_uohm=resistance_uohm,
        )

    def _settings(self, state_dir: Path, channels: tuple[ChannelSettings, ...]) -> AgentSettings:
        return AgentSettings(
            network=self.network,
            backend_keys=(self.backend_spki.hex(),),
            state_dir=state_dir,
            interval_ms=self.interval_ms,
            seal_s=self.seal_s,
            clock_file=self.clock_file,
            broker=BrokerSettings(port=self.port, protocol=ProtocolName.MQTT311),  # amqtt knows no other
            work=WorkSettings(duty=1.0, nbits=self.nbits, wait_shares=self.wait_shares),
            replay=ReplaySettings(trace=self.trace, linger=self.linger),
            channels=channels,
        )


def make_key(state_dir: Path) -> MemorySigner:
    """Make a device's signing key in its state folder."""
    return create_key_file(state_dir / "signing.pem")


def peak_mw(points: tuple[TracePoint, ...], peak_w: float | None) -> int:
    """Return the peak to register: what was asked for, or 1.1 x the trace's highest power; mW, at least 1."""
    if peak_w is not None:
        return max(1, round(peak_w * 1000))
    highest_pw = max(point.reading.voltage_uv * point.reading.current_ua for point in points)
    return max(1, -(-highest_pw * 11 // (10 * 10**9)))


def miner_system(peak: int, place_deci: tuple[int, int] | None) -> SystemSpec:
    """Return what the miner applies with."""
    channels = tuple(
        ChannelSpec(number, int(role), peak, METER_ERROR_PPM, 0)
        for number, role in ((GENERATION_CHANNEL, Role.GENERATION), (SENT_CHANNEL, Role.SENT))
    )
    return SystemSpec(Kind.MINER, channels, place_deci=place_deci)


def node_system(peak: int) -> SystemSpec:
    """Return what the storage node applies with."""
    channels = (ChannelSpec(RECEIVED_CHANNEL, int(Role.RECEIVED), peak, METER_ERROR_PPM, 0),)
    return SystemSpec(Kind.STORAGE_NODE, channels, battery_wh=BATTERY_WH)
