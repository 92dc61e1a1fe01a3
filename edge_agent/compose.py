"""Makes an agent from its settings: the only place that knows which parts are real."""

import hashlib
import logging
import platform
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Final, cast

from edge_agent.agent import Agent
from edge_agent.board.base import Board, NoBoard
from edge_agent.board.gpio import BoardSettings, GpioBoard, note_relay
from edge_agent.config import AgentSettings, BrokerSettings, ChannelSettings, SensorName
from edge_agent.identity import Identities
from edge_agent.keystore import store_of
from edge_agent.mqtt_link import MqttLink
from edge_agent.parts import AgentParts, Retired
from edge_agent.sensors.base import Electrical, Sensor
from edge_agent.sensors.calibrated import CalibratedSensor
from edge_agent.sensors.trace import read_trace
from edge_agent.source import LiveSource, ReplaySource, Source
from edge_agent.spool import DamagedError, MediumError, Spool
from edge_agent.uplink import Uplink
from edge_agent.work import Worker
from maxgreen import __version__
from maxgreen.clock import Clock, make_clock
from maxgreen.errors import Fatal
from maxgreen.protocol.backend import BackendKeys
from maxgreen.protocol.batch import Birth
from maxgreen.protocol.batch import Sensor as BirthSensor
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import key_id
from maxgreen.service import scrypt_kernel

_LOG: Final = logging.getLogger(__name__)
_MODEL: Final = Path("/proc/device-tree/model")
REPLAY_FULL_SCALE: Final = Electrical(26_000_000, 3_200_000)


def build_agent(settings: AgentSettings, runtime: Path | None = None) -> Agent:
    """Return the agent that the settings describe; Fatal when they cannot be met. `runtime`: its folder in /run."""
    genesis_head = network_digest(settings.network)
    identities = Identities(settings.state_dir, settings.key)
    identities.resume()
    for fault in settings.missing():
        raise Fatal(f"settings: {fault}")
    identities.switch(genesis_head)
    store = store_of(settings.state_dir, settings.key)
    signer = store.load()
    device = key_id(signer.spki)
    clock = make_clock(settings.clock_file)
    sensors, source = _source(settings, clock)
    spool = Spool(settings.spool_file, genesis_head)
    work = settings.work
    worker = Worker(device, nbits=work.nbits, duty=work.duty, wait_shares=work.wait_shares) if work.enabled else None
    retired, undeliverable = _retired(settings, identities, source.boot_id)
    parts = AgentParts(
        source=source,
        signer=signer,
        spool=spool,
        uplink=_uplink(settings, settings.broker, device, spool, source.boot_id),
        worker=worker,
        birth=make_birth(signer.spki, settings.channels, sensors, store.kind),
        network=settings.network,
        interval_ms=settings.interval_ms,
        seal_ms=settings.seal_s * 1000,
        home_assistant=settings.home_assistant,
        clock=clock,
        board=_board(settings.board, runtime),
        line_channel=settings.board.relay_channel,
        budget=settings.budget,
        most_spool_bytes=settings.spool.max_mib * 2**20,
        retired=retired,
        undeliverable=undeliverable,
        finish_key=identities.is_confirmed,
    )
    return Agent(parts)


def _board(settings: BoardSettings, runtime: Path | None) -> Board:
    """Take the pins; which of them opens the relay is noted first, so that it can be opened without the settings."""
    if not settings.is_wired:
        return NoBoard()
    if runtime is not None:
        note_relay(settings, runtime)
    return GpioBoard(settings)


def backend_keys(settings: AgentSettings) -> BackendKeys:
    """Return the backend's keys that the settings pin."""
    return BackendKeys(tuple(bytes.fromhex(key) for key in settings.backend_keys), settings.network)


def make_link(broker: BrokerSettings, device: bytes, boot_id: bytes) -> MqttLink:
    """Return the way to the broker; its certificates are read at each connection."""
    offline = b'{"status": "offline", "boot": "%s"}' % boot_id.hex().encode()
    return MqttLink(broker, device, offline)


def _uplink(settings: AgentSettings, broker: BrokerSettings, device: bytes, spool: Spool, boot_id: bytes) -> Uplink:
    return Uplink(
        make_link(broker, device, boot_id),
        spool,
        device,
        backend_keys(settings),
        settings.network,
        make_clock(settings.clock_file),
        window=broker.window,
        resend_s=broker.resend_s,
    )


def _retired(settings: AgentSettings, identities: Identities, boot_id: bytes) -> tuple[list[Retired], list[str]]:
    """Return the earlier keys of which the ledger has not everything yet, and why others' spools can't be read.

    Each logs in with its own certificate.
    """
    retired, undeliverable = [], []
    for device, folder, path in identities.retired():
        try:
            spool = Spool(path, network_digest(settings.network))
        except (DamagedError, MediumError) as error:  # the key in use goes on
            _LOG.error("an earlier key's batches can't be delivered: %s", error)
            undeliverable.append(str(error))
            continue
        if not spool.waiting():
            spool.close()
            continue
        own = {
            name: folder / path.name
            for name in ("certificate", "key")
            if (path := getattr(settings.broker, name)) and path.is_relative_to(settings.state_dir)
        }
        broker = settings.broker.model_copy(update=own)
        retired.append(Retired(spool, _uplink(settings, broker, device, spool, boot_id)))
    return retired, undeliverable


def make_birth(
    spki: bytes, channels: tuple[ChannelSettings, ...], sensors: Mapping[int, Sensor], key_store: int = 0
) -> Birth:
    """Return what this device states of itself."""
    described = []
    for channel in sorted(channels, key=lambda c: c.number):
        sensor = sensors.get(channel.number)
        scale = sensor.full_scale if sensor else REPLAY_FULL_SCALE
        described.append(
            BirthSensor(
                channel.number,
                channel.role.number,
                sensor.part if sensor else "replay",
                channel.shunt_uohm,
                channel.dead_band_ua,
                scale.voltage_uv,
                scale.current_ua,
                channel.calibration,
            )
        )
    model = _MODEL.read_text().rstrip("\0") if _MODEL.exists() else platform.machine()
    return Birth(
        spki=spki,
        sensors=tuple(described),
        software=f"maxgreen/{__version__}",
        software_sha256=_software_digest(),
        hardware=model,
        key_store=key_store,
        kernel=scrypt_kernel(),
        hash_rate=0,
    )


def _source(settings: AgentSettings, clock: Clock) -> tuple[dict[int, Sensor], Source]:
    replayed = {c.number: c for c in settings.channels if c.sensor is SensorName.REPLAY}
    if replayed:
        trace = read_trace(cast("Path", settings.replay.trace))  # the settings see to it
        channels = {n: (c.trace_channel or None, c.line_resistance_uohm) for n, c in replayed.items()}
        return {}, ReplaySource(trace, channels, clock=clock, speed=settings.replay.speed)
    sensors = {channel.number: make_sensor(channel) for channel in settings.channels}
    return sensors, LiveSource(sensors, interval_ms=settings.interval_ms)


def make_sensor(channel: ChannelSettings) -> Sensor:
    """Return a channel's sensor, corrected as its calibration says; nothing is touched yet."""
    from edge_agent.sensors.bus import i2c_bus  # noqa: PLC0415 - the drivers need the extra 'agent'
    from edge_agent.sensors.ina219 import Ina219Sensor  # noqa: PLC0415
    from edge_agent.sensors.ina228 import Ina228Sensor  # noqa: PLC0415

    kind = Ina228Sensor if channel.sensor is SensorName.INA228 else Ina219Sensor
    sensor: Sensor = kind(i2c_bus(channel.bus), address=channel.address, shunt_uohm=channel.shunt_uohm)
    if channel.gain_ppm or channel.offset_ua:
        return CalibratedSensor(sensor, gain_ppm=channel.gain_ppm, offset_ua=channel.offset_ua)
    return sensor


def _software_digest() -> bytes:
    """SHA-256 over the installed files as their package manager recorded them."""
    record = distribution("maxgreen").read_text("RECORD") or ""
    return hashlib.sha256(record.encode()).digest()
