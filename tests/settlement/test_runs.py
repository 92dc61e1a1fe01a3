"""Runs of settlement as a timer starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from maxgreen.lock import FolderLock

MAXGREEN = Path(sys.executable).parent / "maxgreen"


def test_a_second_run_says_which_one_is_under_way(tmp_path):
    settings = tmp_path / "settlement.toml"
    settings.write_text(f'output_dir = "{tmp_path}/out"\n')
    command = [MAXGREEN, "settle", "run", "--period", "2026-01", "--config", settings]
    with FolderLock(tmp_path / "out", "maxgreen settle"):
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
        as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert (said.returncode, as_json.returncode) == (75, 75)
    assert "another run is under way" in said.stdout
    assert f"process {os.getpid()}" in said.stdout
    assert json.loads(as_json.stdout)["state"] == "not ready"
