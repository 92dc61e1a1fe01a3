#!/usr/bin/python3
"""What of systemctl the operator's guide uses, for a root without systemd: units are started as they are written.

ExecStart, Type=forking with its PIDFile, and ExecStartPost with their User, Environment, LoadCredential, WorkingDirectory, StateDirectory, drop-ins, and
sd_notify for Type=notify. Timers are noted as enabled; `start` of their service runs it.
"""

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
STATE = Path("/run/units")


def read(unit):
    """Return a unit's [Service] settings with its drop-ins: lists by name."""
    found = {}
    base = next((folder / unit for folder in UNITS if (folder / unit).exists()), None)
    if base is None:
        sys.exit(f"Unit {unit} not found.")
    for path in [base, *sorted((UNITS[0] / f"{unit}.d").glob("*.conf"))]:
        section = ""
        for line in map(str.strip, path.read_text().replace("\\\n", " ").splitlines()):
            if line.startswith("["):
                section = line
            elif section == "[Service]" and "=" in line and not line.startswith("#"):
                name, value = line.split("=", 1)
                found[name] = [] if not value else [*found.get(name, []), value]
    return found


def start(unit):  # noqa: PLR0912
    if unit.endswith(".timer"):
        return
    if unit.startswith("postgresql"):
        subprocess.run(["service", "postgresql", "start"], check=True)
        return
    settings = read(unit)
    last = lambda name, default="": settings.get(name, [default])[-1]  # noqa: E731
    user, environment = last("User", "root"), {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    if user != "root":
        environment["HOME"] = last("WorkingDirectory", "/")
    credentials = Path("/run/credentials") / unit
    for one in settings.get("LoadCredential", []):
        name, source = one.split(":")
        credentials.mkdir(parents=True, exist_ok=True)
        (credentials / name).write_bytes(Path(source).read_bytes())  # a missing one ends the start, as there
        subprocess.run(["chown", "-R", f"{user}:", credentials], check=True)
    for one in settings.get("Environment", []):
        name, value = one.strip('"').split("=", 1)
        environment[name] = value.replace("%d", str(credentials))
    for one in settings.get("StateDirectory", []):
        subprocess.run(["install", "-d", "-o", user, "-g", user, f"/var/lib/{one}"], check=True)

    def command(text):
        words = [word.replace("$$", "$") for word in shlex.split(text.lstrip("+-!:@"))]
        if user == "root" or text.startswith("+"):
            return words
        return ["setpriv", "--reuid", user, "--regid", user, "--init-groups", *words]

    where = last("WorkingDirectory", "/")
    for one in settings.get("ExecStartPre", []):
        subprocess.run(command(one), cwd=where, env=environment, check=not one.startswith("-"))
    STATE.mkdir(exist_ok=True)
    log = (STATE / f"{unit}.log").open("a")
    if last("Type") == "oneshot":
        fine = {0, *map(int, settings.get("SuccessExitStatus", []))}
        for one in settings["ExecStart"]:
            status = subprocess.run(command(one), cwd=where, env=environment, stdout=log, stderr=log).returncode
            if status not in fine:
                sys.exit(f"{unit} failed ({status}): {(STATE / f'{unit}.log').read_text()[-2000:]}")
    else:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = STATE / f"{unit}.sock"
        address.unlink(missing_ok=True)
        listener.bind(str(address))
        address.chmod(0o777)
        if last("Type") == "notify":
            environment["NOTIFY_SOCKET"] = str(address)
        process = subprocess.Popen(
            command(settings["ExecStart"][-1]),
            cwd=where,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        pid = forked(process, Path(last("PIDFile")), unit) if last("Type") == "forking" else str(process.pid)
        (STATE / f"{unit}.pid").write_text(pid)
        if last("Type") == "notify" and unit != "mosquitto.service":
            listener.settimeout(1)
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    if b"READY=1" in listener.recv(4_096):
                        break
                except TimeoutError:
                    continue
            else:
                sys.exit(f"{unit} did not begin: {(STATE / f'{unit}.log').read_text()[-2000:]}")
    for one in settings.get("ExecStartPost", []):
        subprocess.run(command(one), cwd=where, env=environment, check=True)


def forked(process, file, unit):
    """Return the process that one leaves behind, by its PID file."""
    process.wait()
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text().strip()):
        if time.monotonic() > deadline:
            sys.exit(f"{unit} did not begin: {(STATE / f'{unit}.log').read_text()[-2000:]}")
        time.sleep(0.1)
    return file.read_text().strip()


def pid_of(unit):
    try:
        pid = int((STATE / f"{unit}.pid").read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def stop(unit):
    if unit.startswith("postgresql"):
        subprocess.run(["service", "postgresql", "stop"], check=True)
    pid = pid_of(unit)
    if pid is not None:
        os.kill(pid, 15)
        while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.1)


def main(arguments):
    options = [one for one in arguments if one.startswith("-")]
    verb, *units = [one for one in arguments if not one.startswith("-")]
    units = [one if "." in one else f"{one}.service" for one in units]
    for unit in units:
        if verb == "enable":
            read(unit) if unit.endswith(".service") else None
            STATE.mkdir(exist_ok=True)
            (STATE / f"{unit}.enabled").touch()
        if verb in {"start", "restart"} or (verb == "enable" and "--now" in options):
            if verb == "restart":
                stop(unit)
            start(unit)
        elif verb == "stop":
            stop(unit)
        elif verb == "reload":
            os.kill(pid_of(unit), 1)
        elif verb == "is-active":
            sys.exit(0 if pid_of(unit) else 3)
        elif verb == "is-enabled":
            sys.exit(0 if (STATE / f"{unit}.enabled").exists() else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
