"""`maxgreen agent`: init, prove, run, status, sensors, calibrate, rotate, recover, open-relay, config."""

import json
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent import status as agent_status
from edge_agent.board.gpio import GpioBoard, open_noted_relay
from edge_agent.config import AgentSettings, SensorName
from edge_agent.identity import Identities
from edge_agent.keystore import KeySettings, store_of
from edge_agent.recovery import KEY_STAYS, recovered
from edge_agent.spool import read_spool_state
from maxgreen.errors import MaxgreenError, UsageError
from maxgreen.lock import FolderLock
from maxgreen.protocol.attestation import hand_over, prove_possession
from maxgreen.protocol.backend import Receipt
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import Signer, key_id
from maxgreen.protocol.reasons import Rejected
from maxgreen.protocol.system import read_system
from maxgreen.service import Heartbeat, log_to_stderr
from maxgreen.settings import config_commands, load

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure, sign and send on a Raspberry Pi.")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="settings file")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
DEFAULT_CONFIG = Path("/etc/maxgreen/agent.toml")
DEFAULT_STATE = Path("/var/lib/maxgreen-agent")
RECEIPT_WAIT_S = 20
_FOR_BROKER = "give {request} to the broker's operator"
_REPLACED = f"maxgreen agent prove OWNER --system FILE, then maxgreen owner request-key; {_FOR_BROKER}"
_LOG = logging.getLogger(__name__)
app.add_typer(config_commands(AgentSettings, DEFAULT_CONFIG), name="config")


@app.command()
def init(
    state_dir: Annotated[Path, typer.Option(help="where keys and spool live")] = DEFAULT_STATE,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="settings file, for [key] and state_dir")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the device's signing key and TLS key; prints the device id and its public key."""
    settings = load(AgentSettings, config) if config else None
    folder = settings.state_dir if settings else state_dir
    signer = Identities(folder, settings.key if settings else KeySettings()).make()
    _show_keys(folder, signer, f"maxgreen agent prove, then maxgreen owner apply; {_FOR_BROKER}", as_json=as_json)


@app.command()
def prove(
    owner: Annotated[str, typer.Argument(help="your address on the chain, 0x and 40 hex digits")],
    system: Annotated[Path, typer.Option(help="the system file that you apply with (TOML)")],
    nonce: Annotated[int, typer.Option(min=0, help="how often this device applied before")] = 0,
    config: ConfigOption = DEFAULT_CONFIG,
    next_key: Annotated[bool, typer.Option("--next", help="for the key that 'rotate' prepared")] = False,
    qr: Annotated[bool, typer.Option("--qr", help="as a QR code, for a telephone at the application's page")] = False,
) -> None:
    """Sign what an application for a token needs: owner and system are this device's (P-ID-5).

    With --next also the hand-over by the present key (P-ID-6).
    """
    settings = load(AgentSettings, config)
    identities = Identities(settings.state_dir, settings.key)
    signer = store_of(identities.next_folder if next_key else settings.state_dir, settings.key).load()
    try:
        address = bytes.fromhex(owner.removeprefix("0x"))
        content = read_system(system).digest
        proof = prove_possession(signer, settings.network, address, nonce, content)
    except ValueError as error:
        raise UsageError(f"address {owner!r}: expected 0x and 40 hex digits") from error
    value = {
        "network": settings.network,
        "device": key_id(signer.spki).hex(),
        "public_key": signer.spki.hex(),
        "owner": owner,
        "nonce": nonce,
        "system": content.hex(),
        "signature": proof.hex(),
    }
    if next_key:
        old = store_of(settings.state_dir, settings.key).load()
        value["hand_over"] = hand_over(old, settings.network, key_id(signer.spki)).hex()
    if qr:
        _show_qr(json.dumps(value, separators=(",", ":")))
        return
    print(json.dumps(value))


def _show_qr(text: str) -> None:
    try:
        import segno  # noqa: PLC0415 - only where a code is asked for
    except ImportError as error:
        raise UsageError("--qr needs segno: pip install segno; or go on without it, and copy the text") from error
    segno.make_qr(text, error="l").terminal(compact=True)


@app.command()
def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Measure, mine, sign and send until SIGTERM."""
    log_to_stderr()
    settings = load(AgentSettings, config)
    from edge_agent.compose import build_agent  # noqa: PLC0415 - sensors and miner only where they run

    heartbeat = Heartbeat()
    with FolderLock(settings.state_dir, "maxgreen agent run") as lock, agent_status.runtime_folder() as runtime:
        lock.tell(status=str(runtime / agent_status.STATUS))
        stopped = threading.Event()
        while True:
            agent = build_agent(settings, runtime)
            _stop_on_signals(agent, stopped)
            if stopped.is_set():  # while this agent was made
                agent.stop()
            shown = agent_status.Shown(agent, settings.metrics_port, runtime)
            try:
                agent.run(
                    linger=settings.replay.linger, progress=heartbeat, show=shown.refresh, alive=heartbeat.guarded
                )
            finally:
                shown.close()
            if stopped.is_set() or not agent.key_finished:
                return
            _LOG.warning("this key had its last batch; going on with the next one")


def _stop_on_signals(agent: Any, stopped: threading.Event) -> None:
    def stop(*_: object) -> None:
        stopped.set()
        agent.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show power, energy, spool, the last receipt, clock, temperature, mining and alarms."""
    settings = load(AgentSettings, config)
    running = agent_status.read_running(settings.state_dir)
    value = running if running and "starting" not in running else {**_resting_status(settings), **(running or {})}
    if as_json:
        print(json.dumps(value))
    else:
        agent_status.show(value)


@app.command()
def sensors(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show what is on the I2C buses of the settings, and a reading of every channel."""
    settings = load(AgentSettings, config)
    from edge_agent.compose import make_sensor  # noqa: PLC0415
    from edge_agent.sensors.base import SensorError  # noqa: PLC0415
    from edge_agent.sensors.bus import addresses  # noqa: PLC0415

    found: dict[str, Any] = {"buses": {}, "channels": {}}
    for number in sorted({c.bus for c in settings.channels if c.sensor is not SensorName.REPLAY}):
        try:
            found["buses"][str(number)] = [f"{address:#04x}" for address in addresses(number)]
        except SensorError as error:
            found["buses"][str(number)] = str(error)
    for channel in settings.channels:
        if channel.sensor is SensorName.REPLAY:
            found["channels"][str(channel.number)] = {"sensor": "replay"}
            continue
        entry: dict[str, Any] = {"sensor": channel.sensor.value, "role": channel.role.value}
        try:
            reading = make_sensor(channel).read()
            entry |= {"voltage_v": reading.voltage_uv / 1e6, "current_a": reading.current_ua / 1e6}
        except SensorError as error:
            entry["error"] = str(error)
        found["channels"][str(channel.number)] = entry
    if as_json:
        print(json.dumps(found))
        return
    for number, on_bus in found["buses"].items():
        print(f"bus {number}: {on_bus if isinstance(on_bus, str) else ', '.join(on_bus) or 'nothing answers'}")
    from rich.console import Console  # noqa: PLC0415 - the agent that runs has no use for it
    from rich.table import Table  # noqa: PLC0415

    table = Table("channel", "sensor", "role", "voltage", "current", "", box=None)
    for number, entry in found["channels"].items():
        values = [
            f"{entry[key]:.3f} {unit}" if key in entry else "-"
            for key, unit in (("voltage_v", "V"), ("current_a", "A"))
        ]
        table.add_row(number, entry["sensor"], entry.get("role", ""), *values, entry.get("error", ""))
    Console().print(table)


@app.command()
def calibrate(
    channel: Annotated[int, typer.Option(help="channel number")],
    reference: Annotated[list[float], typer.Option(help="what a reference meter shows, A; once per point, two points")],
    readings: Annotated[int, typer.Option(min=1, help="readings that are averaged at each point")] = 100,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Compare a channel with a reference meter at two currents; prints the lines for its table."""
    settings = load(AgentSettings, config)
    chosen = next((c for c in settings.channels if c.number == channel), None)
    if chosen is None or chosen.sensor is SensorName.REPLAY:
        raise UsageError(f"channel {channel}: not one of the settings' channels with a sensor")
    if len(reference) != 2:
        raise UsageError("two points are needed: --reference at a small current, and --reference at a large one")
    from edge_agent.compose import make_sensor  # noqa: PLC0415
    from edge_agent.sensors.calibrated import calibration_id, correction  # noqa: PLC0415

    sensor = make_sensor(chosen.model_copy(update={"gain_ppm": 0, "offset_ua": 0}))
    points = []
    for amperes in reference:
        typer.prompt(f"set the current to {amperes:g} A, then press Enter", default="", show_default=False, err=True)
        total = sum(sensor.read().current_ua for _ in range(readings))
        points.append((round(total / readings), round(amperes * 1e6)))
    try:
        gain_ppm, offset_ua = correction(points[0], points[1])
    except ValueError as error:
        raise UsageError(f"calibration: {error}") from error
    name = calibration_id(points, time.time())
    if as_json:
        print(json.dumps({"calibration": name, "gain_ppm": gain_ppm, "offset_ua": offset_ua, "points_ua": points}))
        return
    print(f'# [[channels]] number = {channel}\ncalibration = "{name}"\ngain_ppm = {gain_ppm}\noffset_ua = {offset_ua}')


@app.command()
def rotate(
    config: ConfigOption = DEFAULT_CONFIG,
    confirm: Annotated[
        bool, typer.Option(help="the new key is registered: let the old one have its last batch")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replace the signing key: first prepare and register the next one, then --confirm and restart the agent."""
    settings = load(AgentSettings, config)
    _refuse_strangers(settings.state_dir)
    identities = Identities(settings.state_dir, settings.key)
    if confirm:
        certificate = settings.broker.certificate
        identities.confirm(needs_certificate=bool(certificate and certificate.is_relative_to(settings.state_dir)))
        said = "confirmed; restart the agent: it seals this key's last batch and goes on with the next key"
        print(json.dumps({"confirmed": True}) if as_json else said)
        return
    then = (
        "maxgreen agent prove OWNER --system FILE --next, then maxgreen owner rotate-key; and when the chain has it, "
        f"maxgreen agent rotate --confirm; {_FOR_BROKER}"
    )
    _show_keys(identities.next_folder, identities.prepare(), then, as_json=as_json)


@app.command()
def recover(
    config: ConfigOption = DEFAULT_CONFIG,
    receipt_file: Annotated[
        Path | None, typer.Option("--receipt", help="the last receipt, as the backend signed it")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Go on after the spool was damaged or lost: with what is whole, or else with a new key; all stays as evidence."""
    log_to_stderr()
    settings = load(AgentSettings, config)
    _refuse_strangers(settings.state_dir)
    with FolderLock(settings.state_dir, "maxgreen agent recover"):
        signer, said = recovered(settings, lambda device: _last_receipt(settings, receipt_file, device))
    _LOG.warning("%s", said)
    then = "start the agent" if said.startswith(KEY_STAYS) else _REPLACED
    _show_keys(settings.state_dir, signer, then, as_json=as_json)


@app.command()
def replace(
    receipt_file: Annotated[Path, typer.Option("--receipt", help="the old device's last receipt, from the operator")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make the keys of a new device that takes the place of one that broke or was lost."""
    settings = load(AgentSettings, config)
    receipt = _receipt_of(settings, receipt_file)
    identities = Identities(settings.state_dir, settings.key)
    signer = identities.succeed(receipt.device, receipt.head, network_digest(settings.network))
    _show_keys(settings.state_dir, signer, _REPLACED, as_json=as_json)


@app.command("open-relay")
def open_relay(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Open the relay, whatever the agent does; systemd runs it after every stop."""
    runtime = agent_status.systemd_folder() or agent_status.SYSTEMD_FOLDER
    try:
        if open_noted_relay(runtime):
            return  # as the agent noted it, whatever the settings say now
        settings = load(AgentSettings, config)
        if settings.board.relay_pin >= 0:
            GpioBoard(settings.board).release()
    finally:
        with suppress(OSError):  # what a killed agent left there would mislead
            (runtime / agent_status.STATUS).unlink(missing_ok=True)


def _refuse_strangers(state_dir: Path) -> None:
    """UsageError for a user who does not own the state: files that root makes there stop the agent."""
    if not state_dir.exists():
        raise UsageError(f"state_dir {state_dir}: not there; 'maxgreen agent init' makes it")
    owner = state_dir.stat().st_uid
    if os.geteuid() != owner:
        raise UsageError(f"{state_dir} belongs to user id {owner}; run: sudo -u '#{owner}' maxgreen agent …")


def _show_keys(folder: Path, signer: Signer, then: str, *, as_json: bool) -> None:
    device, request = key_id(signer.spki).hex(), folder / "tls.csr"
    if as_json:
        print(json.dumps({"device": device, "spki": signer.spki.hex(), "csr": str(request)}))
        return
    print(f"device id    {device}\npublic key   {signer.spki.hex()}")
    print(f"next: {then.format(request=request)}")


def _last_receipt(settings: AgentSettings, file: Path | None, device: bytes) -> Receipt | None:
    """Return the newest receipt: the file's, else the one that the broker retains, if it does."""
    from edge_agent.compose import backend_keys, make_link  # noqa: PLC0415
    from edge_agent.uplink import retained_receipt  # noqa: PLC0415

    keys = backend_keys(settings)
    if file is not None:
        receipt = _receipt_of(settings, file)
        if receipt.device != device:
            raise UsageError(f"receipt {file}: it is for device {receipt.device.hex()}, not {device.hex()}")
        return receipt
    return retained_receipt(make_link(settings.broker, device, bytes(16)), device, keys, RECEIPT_WAIT_S)


def _receipt_of(settings: AgentSettings, file: Path) -> Receipt:
    from edge_agent.compose import backend_keys  # noqa: PLC0415

    try:
        return backend_keys(settings).open_receipt(file.read_bytes())
    except (OSError, MaxgreenError) as error:
        raise UsageError(f"receipt {file}: {error}") from error


def _resting_status(settings: AgentSettings) -> dict[str, Any]:
    """Return what the files say while no agent runs."""
    from edge_agent.compose import backend_keys  # noqa: PLC0415

    state = read_spool_state(settings.spool_file)
    tip = state["tip"]
    try:
        receipt = backend_keys(settings).open_receipt(state["receipt"]) if state["receipt"] else None
    except Rejected:  # of a key that is not pinned any more
        receipt = None
    roles = {channel.number: channel.role.value for channel in settings.channels}
    return {
        "device": key_id(Identities(settings.state_dir, settings.key).signer().spki).hex(),
        "running": False,
        "seq": tip.next_seq if tip else 0,
        "waiting": tip.next_seq - (receipt.next_seq if receipt else 0) if tip else 0,
        "channels": {
            str(n): {"role": roles.get(n, "unknown"), "power_w": None, "energy_j": m.register_mws / 1000}
            for n, m in (tip.meters.items() if tip else ())
        },
        "receipt": {"next_seq": receipt.next_seq, "server_ms": receipt.server_ms} if receipt else None,
    }
