"""The agent as a process: one on a folder, seen from outside, killed and stopped in the middle of transfers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maxgreen.errors import Retryable
from maxgreen.lock import FolderLock, holder_of
from maxgreen.service import Heartbeat
from tests.conftest import stop, wait_for
from tests.edge_agent.test_commands import MAXGREEN, config  # noqa: F401


def started(config, folder, **environment):  # noqa: F811
    log = (folder / "log").open("a")
    clean = {name: value for name, value in os.environ.items() if name not in {"NOTIFY_SOCKET", "RUNTIME_DIRECTORY"}}
    return subprocess.Popen(
        [MAXGREEN, "agent", "run", "--config", config], stderr=log, stdout=log, env={**clean, **environment}
    )


def status(config):  # noqa: F811
    done = subprocess.run([MAXGREEN, "agent", "status", "--json", "--config", config], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


@pytest.fixture
def agent(config, tmp_path):  # noqa: F811
    process = started(config, tmp_path, NOTIFY_SOCKET=str(tmp_path / "not-there"))
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        stop(process)


def test_one_agent_runs_on_a_folder_and_the_second_says_which(config, agent, tmp_path):  # noqa: F811
    wait_for(lambda: "silent_s" in status(config), what="a status")
    for command in (["run"], ["recover"]):
        second = subprocess.run(
            [MAXGREEN, "agent", *command, "--config", config], capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 1  # systemd may try again: the first may be on its way out
        assert f"in use by 'maxgreen agent run', process {agent.pid}; stop it first" in second.stderr
        assert "Traceback" not in second.stderr
    assert agent.poll() is None


def test_an_agent_that_systemd_did_not_start_is_seen_and_a_stopped_one_too(config, agent):  # noqa: F811
    found = wait_for(lambda: (s := status(config)).get("silent_s") is not None and s, what="a status")
    assert found.get("running") is not False
    assert found["time"].endswith("Z")
    agent.send_signal(signal.SIGSTOP)
    wait_for(lambda: status(config)["silent_s"] > 3, what="silence")
    agent.send_signal(signal.SIGCONT)
    wait_for(lambda: status(config)["silent_s"] < 3, what="an answer")
    stop(agent)
    assert status(config).get("running") is False


def test_a_hanging_agent_is_told_to_its_owner():
    from rich.console import Console

    from edge_agent.status import page

    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(
        page(
            {
                "device": "ab", "channels": {}, "seq": 1, "waiting": 0, "receipt": None, "silent_s": 300.0,
                "alarms": [],
            }
        )
    )  # fmt: skip
    assert "has told nothing for 300 s: it hangs" in console.export_text()


def test_a_notify_socket_that_is_away_is_said_once_and_ends_nothing(agent, tmp_path, config):  # noqa: F811
    wait_for(lambda: "systemd does not hear us" in (tmp_path / "log").read_text(), seconds=60, what="the word")
    assert agent.poll() is None
    assert (tmp_path / "log").read_text().count("systemd does not hear us") == 1


def test_a_killed_agents_lock_is_free(config, agent, tmp_path):  # noqa: F811
    state = tmp_path / "state"
    wait_for(lambda: holder_of(state), what="the lock")
    agent.kill()
    agent.wait()
    assert holder_of(state) is None
    with FolderLock(state, "test"):
        assert holder_of(state)["holder"] == "test"
        with pytest.raises(Retryable, match="'test', process"):
            FolderLock(state, "another")


def test_the_watchdogs_time_is_short_while_a_transfer_runs(monkeypatch):
    from maxgreen import service

    told, now = [], [100.0]
    monkeypatch.setattr(service, "notify", told.append)
    monkeypatch.setattr(service.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("WATCHDOG_USEC", "180000000")
    beat = Heartbeat()
    beat()
    beat.guarded(False)
    assert told == ["READY=1", "WATCHDOG=1"]
    for k in range(100):  # five seconds of a transfer; the main loop makes progress once
        now[0] += 0.05
        beat.guarded(True)
        if k == 50:
            beat()
    assert told[2] == "WATCHDOG_USEC=10000000"
    assert told[3:] == ["WATCHDOG=1"] * 3
    now[0] += 0.05
    beat.guarded(False)
    assert told[-2:] == ["WATCHDOG_USEC=180000000", "WATCHDOG=1"]
    now[0] += 200
    count = len(told)
    beat.guarded(True)  # no progress for so long: systemd may kill it
    assert told[count:] == ["WATCHDOG_USEC=10000000"]


TRANSFERS = int(os.environ.get("MAXGREEN_TRANSFERS", "12"))


@pytest.mark.rule("P-CMD-1")
def test_whatever_happens_to_the_process_its_relay_opens(tmp_path):
    """Real processes with a relay that is a file: killed, stopped, hanging in a write; opened in time or at its end."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.edge_agent.transfers", tmp_path, str(TRANSFERS), "1"],
        capture_output=True, text=True, timeout=3_000, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["transfers"] == TRANSFERS
    assert found["latest_s"] < 8, found  # a busy machine may be late; a relay that stays closed is never open
