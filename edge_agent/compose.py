"""Makes an agent from its settings: the only place that knows which parts are real."""

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from edge_agent.agent import Agent, AgentParts
from edge_agent.config import AgentSettings, ChannelSettings, SensorName
from edge_agent.sensors.base import Electrical, Sensor
from edge_agent.sensors.trace import read_trace
from edge_agent.source import LiveSource, ReplaySource, Source
from edge_agent.spool import Spool
from edge_agent.uplink import MqttLink, Uplink
from edge_agent.work import Worker
from maxgreen import __version__
from maxgreen.clock import Clock, make_clock
from maxgreen.errors import Fatal
from maxgreen.keyfile import load_key_file
from maxgreen.protocol.backend import BackendKeys
from maxgreen.protocol.batch import Birth
from maxgreen.protocol.batch import Sensor as BirthSensor
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import key_id
from maxgreen.service import scrypt_kernel

_MODEL: Final = Path("/proc/device-tree/model")
REPLAY_FULL_SCALE: Final = Electrical(26_000_000, 3_200_000)


def build_agent(settings: AgentSettings) -> Agent:
    """Return the agent that the settings describe; Fatal when they cannot be met."""
    if settings.seal_s <= 0 or 600 % settings.seal_s:
        raise Fatal(f"seal_s = {settings.seal_s}: it must divide 600 (P-BAT-5)")
    numbers = [channel.number for channel in settings.channels]
    if len(set(numbers)) != len(numbers):
        raise Fatal(f"channels: numbers {numbers} are not distinct")
    signer = load_key_file(settings.key_file)
    device = key_id(signer.spki)
    clock = make_clock(settings.clock_file)
    try:
        keys = BackendKeys(tuple(bytes.fromhex(key) for key in settings.backend_keys), settings.network)
    except ValueError as error:
        raise Fatal(f"backend_keys: {error}; the operator gives them") from error
    sensors, source = _source(settings, clock)
    spool = Spool(settings.spool_file, network_digest(settings.network))
    offline = b'{"status": "offline", "boot": "%s"}' % source.boot_id.hex().encode()
    uplink = Uplink(
        MqttLink(settings.broker, device, offline),
        spool,
        device,
        keys,
        settings.network,
        clock,
        window=settings.broker.window,
        resend_s=settings.broker.resend_s,
    )
    work = settings.work
    worker = Worker(device, nbits=work.nbits, duty=work.duty, wait_shares=work.wait_shares) if work.enabled else None
    parts = AgentParts(
        source=source,
        signer=signer,
        spool=spool,
        uplink=uplink,
        worker=worker,
        birth=make_birth(signer.spki, settings.channels, sensors),
        network=settings.network,
        interval_ms=settings.interval_ms,
        seal_ms=settings.seal_s * 1000,
        home_assistant=settings.home_assistant,
    )
    return Agent(parts)


def make_birth(spki: bytes, channels: tuple[ChannelSettings, ...], sensors: Mapping[int, Sensor]) -> Birth:
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
                "none",
            )
        )
    model = _MODEL.read_text().rstrip("\0") if _MODEL.exists() else platform.machine()
    return Birth(
        spki=spki,
        sensors=tuple(described),
        software=f"maxgreen/{__version__}",
        software_sha256=_software_digest(),
        hardware=model,
        key_store=0,
        kernel=scrypt_kernel(),
        hash_rate=0,
    )


def _source(settings: AgentSettings, clock: Clock) -> tuple[dict[int, Sensor], Source]:
    replayed = {c.number: c for c in settings.channels if c.sensor is SensorName.REPLAY}
    if replayed:
        if len(replayed) != len(settings.channels) or settings.replay.trace is None:
            raise Fatal("channels: replayed and live channels do not mix, and a replay needs [replay] trace")
        trace = read_trace(settings.replay.trace)
        channels = {n: (c.trace_channel, c.line_resistance_uohm) for n, c in replayed.items()}
        return {}, ReplaySource(trace, channels, clock=clock, speed=settings.replay.speed)
    from edge_agent.sensors.ina219 import Ina219Sensor, open_bus  # noqa: PLC0415 - needs the extra 'agent'

    sensors: dict[int, Sensor] = {
        c.number: Ina219Sensor(open_bus(c.bus), address=c.address, shunt_uohm=c.shunt_uohm) for c in settings.channels
    }
    return sensors, LiveSource(sensors, interval_ms=settings.interval_ms)


def _software_digest() -> bytes:
    """SHA-256 over the installed files as their package manager recorded them."""
    record = distribution("maxgreen").read_text("RECORD") or ""
    return hashlib.sha256(record.encode()).digest()
