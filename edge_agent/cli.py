"""`maxgreen agent`: init, run, status, config."""

import json
import signal
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edge_agent.config import AgentSettings
from edge_agent.spool import read_spool_state
from maxgreen.errors import UsageError
from maxgreen.keyfile import create_key_file, load_key_file, write_secret
from maxgreen.protocol.attestation import prove_possession
from maxgreen.protocol.backend import BackendKeys
from maxgreen.protocol.keys import key_id
from maxgreen.service import Heartbeat, log_to_stderr
from maxgreen.settings import config_commands, load

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure, sign and send on a Raspberry Pi.")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="settings file")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
DEFAULT_CONFIG = Path("/etc/maxgreen/agent.toml")
app.add_typer(config_commands(AgentSettings, DEFAULT_CONFIG), name="config")


@app.command()
def init(
    state_dir: Annotated[Path, typer.Option(help="where keys and spool live")] = Path("/var/lib/maxgreen-agent"),
    as_json: JsonOption = False,
) -> None:
    """Make the device's signing key and TLS key; prints the device id and its public key."""
    signer = create_key_file(state_dir / "signing.pem")
    device = key_id(signer.spki).hex()
    tls_key = ec.generate_private_key(ec.SECP256R1())
    write_secret(state_dir / "tls.key", tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls_key, hashes.SHA256())
    (state_dir / "tls.csr").write_bytes(request.public_bytes(Encoding.PEM))
    if as_json:
        print(json.dumps({"device": device, "spki": signer.spki.hex(), "csr": str(state_dir / "tls.csr")}))
        return
    print(f"device id    {device}\npublic key   {signer.spki.hex()}")
    print(f"next: give {state_dir / 'tls.csr'} to the broker's operator, and apply for a token with the public key")


@app.command()
def prove(
    applicant: Annotated[str, typer.Argument(help="your address on the chain, 0x and 40 hex digits")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Sign the proof of possession that an application for a token needs (P-ID-5)."""
    settings = load(AgentSettings, config)
    try:
        address = bytes.fromhex(applicant.removeprefix("0x"))
        proof = prove_possession(load_key_file(settings.key_file), settings.network, address)
    except ValueError as error:
        raise UsageError(f"address {applicant!r}: expected 0x and 40 hex digits") from error
    print(json.dumps({"r": "0x" + proof[:32].hex(), "s": "0x" + proof[32:].hex()}))


@app.command()
def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Measure, mine, sign and send until SIGTERM."""
    log_to_stderr()
    settings = load(AgentSettings, config)
    from edge_agent.compose import build_agent  # noqa: PLC0415 - sensors and miner only where they run

    agent = build_agent(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run(linger=settings.replay.linger, progress=Heartbeat())


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show energy, spool and the last receipt."""
    settings = load(AgentSettings, config)
    state = read_spool_state(settings.spool_file)
    tip = state["tip"]
    keys = BackendKeys(tuple(bytes.fromhex(key) for key in settings.backend_keys), settings.network)
    receipt = keys.open_receipt(state["receipt"]) if state["receipt"] else None
    value = {
        "device": key_id(load_key_file(settings.key_file).spki).hex(),
        "batches": tip.next_seq if tip else 0,
        "waiting": state["waiting"],
        "registers_mws": {str(n): m.register_mws for n, m in tip.meters.items()} if tip else {},
        "receipt": {"next_seq": receipt.next_seq, "server_ms": receipt.server_ms} if receipt else None,
    }
    if as_json:
        print(json.dumps(value))
        return
    print(
        f"device        {value['device']}\n"
        f"batches       {value['batches']} sealed, {value['waiting']} without a receipt"
    )
    for number, register in value["registers_mws"].items():
        print(f"channel {number:<5} {register / 3.6e9:.6f} kWh")
    print(f"last receipt  {'none yet' if receipt is None else f'up to batch {receipt.next_seq}'}")
