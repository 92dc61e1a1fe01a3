"""Looks at everything that the services of a machine need, and says what to do. Nothing is changed."""

import json
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from ingest.view.projector import running
from ingest.view.sink import token_of
from maxgreen.chain.client import connect_to_read
from maxgreen.chain.code import code_findings
from maxgreen.chain.deployment import Addresses
from maxgreen.clock import make_clock
from maxgreen.errors import MaxgreenError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine, reader
from maxgreen.ledger.schema import batches, chains, devices
from maxgreen.mqtt import BrokerTable
from maxgreen.store import open_store
from operating.layout import MANIFEST
from operating.site import Site

BROKER_CONFIG: Final = Path("/etc/mosquitto/maxgreen/mosquitto.conf")
_RUNBOOK: Final = "alarms.md (in /opt/maxgreen/share, or docs)"
_TIMEOUT_S: Final = 10.0
_DAY_S: Final = 86_400
_FEW_BYTES: Final = 2_000_000_000
_BEACON_S: Final = 900
_BLOCK_S: Final = 60
_BEHIND: Final = 10_000
_UNITS: Final = {
    "ingest": "maxgreen-ingest.service", "settlement": "maxgreen-settle.timer", "dapp": "maxgreen-dapp.service"
}  # fmt: skip


class State(StrEnum):
    """How something is."""

    FINE = "fine"
    ODD = "odd"  # it works, and somebody should look
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, a sentence, and what to do where it is not fine."""

    part: str
    state: State
    text: str
    cure: str = ""


Findings = Iterator[Finding]


def examine(site: Site, backups: Path | None) -> Findings:
    """Yield what is found, part by part; a part that breaks is itself a finding."""
    parts: dict[str, Callable[[], Findings]] = {
        "settings": lambda: _settings(site),
        "permissions": lambda: _permissions(site),
        "clock": _clock,
        "broker": lambda: _broker(site),
        "ledger": lambda: _ledger(site),
        "chain": lambda: _chain(site),
        "view": lambda: _view(site),
        "evidence": lambda: _evidence(site),
        "certificates": lambda: _certificates(site),
        "disk": lambda: _disk(site),
        "services": lambda: _services(site),
        "backup": lambda: _backups(backups),
    }
    for part, look in parts.items():
        try:
            for found in look():
                yield Finding(part, found.state, found.text, found.cure)
        except MaxgreenError as error:
            yield Finding(part, State.WRONG, str(error))
        except Exception as error:  # noqa: BLE001 - the other parts are looked at all the same
            yield Finding(part, State.WRONG, f"{type(error).__name__}: {error}")


def _fine(text: str) -> Finding:
    return Finding("", State.FINE, text)


def _odd(text: str, cure: str) -> Finding:
    return Finding("", State.ODD, text, cure)


def _wrong(text: str, cure: str) -> Finding:
    return Finding("", State.WRONG, text, cure)


def _settings(site: Site) -> Findings:
    for name, settings in site.services.items():
        faults = list(settings.faults())
        path = site.folder / f"{name}.toml"
        for fault in faults:
            yield _wrong(f"{path}: {fault}", f"edit it, then: maxgreen {_command(name)} config check -c {path}")
        if not faults:
            yield _fine(f"{path}: every setting can be used")
    _ = site.ledger, site.evidence  # the services have the same


def _command(name: str) -> str:
    return "settle" if name == "settlement" else name


def _permissions(site: Site) -> Findings:
    open_to_others, secrets = [], {path for path in site.secrets() if path.exists()}
    for path in sorted(secrets):
        if path.stat().st_mode & 0o077:
            open_to_others.append(path)
            yield _wrong(f"{path}: others can read it", f"chmod 600 {path}")
    unreadable = [path for path in sorted(secrets) if not os.access(path, os.R_OK)]
    if unreadable:
        owner = pwd.getpwuid(unreadable[0].stat().st_uid).pw_name
        yield _wrong(f"{unreadable[0]}: this user cannot read it", f"run doctor as the services do: sudo -u {owner} …")
    if not open_to_others and not unreadable:
        yield _fine(f"{len(secrets)} keys and tokens are read by their owner alone")


def _clock() -> Findings:
    try:
        done = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        answer = done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    if answer == "no":
        yield _wrong("the clock is not synchronised", "apt-get install systemd-timesyncd; timedatectl set-ntp true")
    elif answer == "yes":
        yield _fine("the clock is synchronised")
    else:
        yield _odd(
            "nobody says whether the clock is synchronised (no systemd here)", "see that NTP runs: chronyc tracking"
        )


def _broker(site: Site) -> Findings:
    with suppress(OSError):
        if "\nlog_dest topic" not in BROKER_CONFIG.read_text():
            yield _odd(
                f"{BROKER_CONFIG} has no 'log_dest topic': what the broker refuses is not counted",
                "compare it, and acl, with broker_config of this version",
            )
    tables: dict[str, BrokerTable] = {"ingest": site.ingest.broker} if site.ingest is not None else {}
    if site.dapp is not None and site.dapp.live.enabled:
        tables |= {"dapp": site.dapp.live}
    for name, table in tables.items():
        for host, port in table.addresses():
            where = f"{name}: broker {host}:{port}"
            try:
                with socket.create_connection((host, port), _TIMEOUT_S) as plain:
                    if table.ca is None:
                        yield _odd(f"{where} answers, without TLS", "set ca, certificate and key: maxgreen ca client")
                        continue
                    context = ssl.create_default_context(cafile=str(table.ca))
                    if table.certificate is not None:
                        context.load_cert_chain(table.certificate, table.key)
                    with context.wrap_socket(plain, server_hostname=host) as secured:
                        secured.settimeout(1.0)
                        with suppress(TimeoutError):
                            secured.recv(1)  # TLS 1.3: a certificate that is not taken is said after the handshake
                        yield _fine(f"{where} takes our certificate ({secured.version()})")
            except ssl.SSLError as error:
                why = getattr(error, "verify_message", "") or error.reason
                yield _wrong(f"{where}: {why}", "compare the certificates of both sides: maxgreen ca list")
            except OSError as error:
                yield _wrong(f"{where}: {error.strerror or error}", "systemctl status mosquitto; is the port right?")


def _ledger(site: Site) -> Findings:
    url = make_url(site.ledger)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        yield _odd(f"ledger {url.database}: not there yet", "ingest makes it at its first start")
        return
    started = time.monotonic()
    engine = open_engine(site.ledger)
    with reader(engine).begin() as connection:
        count, newest_ms = connection.execute(select(func.count(), func.max(batches.c.received_ms))).one()
        registered = connection.execute(select(func.count()).select_from(devices)).scalar_one()
        heard = connection.execute(select(func.count()).select_from(chains)).scalar_one()
        beacon = Book(connection).newest_beacon()
    text = (
        f"{count} batches, {registered} registered keys, {heard} heard, answered in {time.monotonic() - started:.1f} s"
    )
    yield _fine(text)
    now_s = time.time()
    if newest_ms is not None and now_s - newest_ms / 1000 > _DAY_S / 24:
        yield _odd(f"the newest batch came {_ago(now_s - newest_ms / 1000)} ago", f"{_RUNBOOK}, NothingArrives")
    if site.ingest is not None and (beacon is None or now_s - beacon[0].issued_s > _BEACON_S):
        text = "no beacon was issued yet"
        if beacon is not None:
            text = f"the newest beacon was issued {_ago(now_s - beacon[0].issued_s)} ago"
        yield _odd(text, f"{_RUNBOOK}, BeaconOld; does ingest run?")


def _chain(site: Site) -> Findings:
    addresses = Addresses.load(site.deployment)
    clock_file = next((one.clock_file for one in site.services.values() if one.clock_file is not None), None)
    clock = make_clock(clock_file)
    chain = connect_to_read(site.rpc, clock)
    findings = code_findings(chain, addresses)
    for text in findings:
        yield _wrong(text, "is it the right deployment file and RPC, and this version? maxgreen chain doctor")
    if not findings:
        yield _fine(f"chain {addresses.chain_id} answers, and our contracts are on it")
    block = chain.newest_block()
    age_s = clock.now_ms() / 1000 - block.time_s
    if age_s > _BLOCK_S:
        yield _odd(f"its newest block is {_ago(age_s)} old", "an RPC that is behind? without new blocks: no beacons")


def _view(site: Site) -> Findings:
    if site.ingest is None or not site.ingest.influx.url:
        return
    settings = site.ingest.influx
    request = urllib.request.Request(  # noqa: S310 - a URL of the settings
        f"{settings.url.rstrip('/')}/query?db={settings.bucket.partition('/')[0]}&q=SHOW%20MEASUREMENTS%20LIMIT%201",
        headers={"Authorization": f"Token {token_of(settings)}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            answer.read()
        yield _fine(f"InfluxDB {settings.url} takes our token")
    except urllib.error.HTTPError as error:
        yield _wrong(f"InfluxDB {settings.url} answers {error.code}", "check influx.token_file and influx.bucket")
    except OSError as error:
        cure = "systemctl status influxdb; intake does not wait for it"
        yield _wrong(f"InfluxDB {settings.url}: {_why(error)}", cure)
    with reader(open_engine(site.ledger)).begin() as connection:
        book = Book(connection)
        behind = book.revision() - book.position(running(settings))
        refused = len(book.all_aside())
    if behind > _BEHIND:
        yield _odd(f"the view lacks {behind} changes", f"{_RUNBOOK}, ViewBehind")
    if refused:
        yield _odd(f"InfluxDB refused {refused} messages for what they are", "maxgreen ingest aside")


def _evidence(site: Site) -> Findings:
    if not site.evidence:
        return
    store = open_store(site.evidence)
    count = sum(1 for _, _ in zip(range(1_000), store.names(""), strict=False))
    yield _fine(f"evidence store {site.evidence}: {count if count < 1_000 else 'a thousand or more'} objects")


def _certificates(site: Site) -> Findings:
    files = set()
    if site.ingest is not None:
        files |= set(site.ingest.broker.files()) - {site.ingest.broker.key}
    if site.dapp is not None and site.dapp.live.enabled:
        files |= set(site.dapp.live.files()) - {site.dapp.live.key}
    if site.authority is not None:
        files.add(site.authority / "ca.crt")
    for path in sorted(files):
        try:
            ends_s = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp() - time.time()
        except (OSError, ValueError) as error:
            yield _wrong(f"{path}: {error}", "maxgreen ca client, or a copy of ca.crt")
            continue
        if ends_s < 0:
            yield _wrong(f"{path}: ended {_ago(-ends_s)} ago", f"{_RUNBOOK}, CertificateEnds")
        elif ends_s < 30 * _DAY_S:
            yield _odd(f"{path}: ends in {_ago(ends_s)}", f"{_RUNBOOK}, CertificateEnds")
        else:
            yield _fine(f"{path}: valid for {_ago(ends_s)}")


def _disk(site: Site) -> Findings:
    url = make_url(site.ledger)
    places = {Path.cwd()}
    if url.get_backend_name() == "sqlite":
        places.add(Path(url.database or "").absolute().parent)
    if site.evidence and not site.evidence.startswith("s3://"):
        places.add(Path(site.evidence).absolute())
    for place in sorted(path for path in places if path.exists()):
        free = shutil.disk_usage(place).free
        if free < _FEW_BYTES:
            yield _wrong(f"{place}: {free / 1e9:.1f} GB are left", f"{_RUNBOOK}, LedgerDiskFull")
        else:
            yield _fine(f"{place}: {free / 1e9:.0f} GB are left")


def _services(site: Site) -> Findings:
    if site.ingest is not None and site.ingest.http.port:
        yield _health("ingest", site.ingest.http.host, site.ingest.http.port)
    if site.dapp is not None and site.dapp.http.port:
        yield _health("dapp", site.dapp.http.host, site.dapp.http.port)
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").exists():
        return
    for name in site.services:
        done = subprocess.run(["systemctl", "is-enabled", _UNITS[name]], capture_output=True, text=True, check=False)
        if done.returncode:
            yield _odd(f"{_UNITS[name]} is not enabled", f"systemctl enable --now {_UNITS[name]}")


def _health(name: str, host: str, port: int) -> Finding:
    where = f"http://{'127.0.0.1' if host in {'0.0.0.0', '::'} else host}:{port}/health/ready"  # noqa: S104
    try:
        with urllib.request.urlopen(where, timeout=_TIMEOUT_S):
            return _fine(f"{name} is ready ({where})")
    except urllib.error.HTTPError as error:
        try:
            said = str(json.loads(error.read()).get("status"))
        except ValueError:
            said = str(error.code)
        return _wrong(f"{name} is not ready: {said}", f"{_RUNBOOK}, IngestNotReady")
    except OSError as error:
        return _wrong(
            f"{name} does not answer at {where}: {_why(error)}",
            f"systemctl status maxgreen-{name}; journalctl -u maxgreen-{name}",
        )


def _why(error: OSError) -> str:
    """Return what an error of the network says, without its number."""
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason)


def _backups(folder: Path | None) -> Findings:
    if folder is None:
        yield _odd("no --backups were named", "maxgreen backup TARGET, every night; docs/operator.md")
        return
    made = [path.stat().st_mtime for path in folder.glob(f"*Z/{MANIFEST}")]
    if not made:
        yield _wrong(f"{folder}: no backup", f"maxgreen backup {folder}")
    elif time.time() - max(made) > 2 * _DAY_S:
        yield _odd(f"{folder}: the newest backup is {_ago(time.time() - max(made))} old", f"{_RUNBOOK}, BackupOld")
    else:
        yield _fine(f"{folder}: the newest backup is {_ago(time.time() - max(made))} old")


def _ago(seconds: float) -> str:
    for unit, length in (("days", _DAY_S), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
