"""Runs of settlement as a timer starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from maxgreen.chain.deployment import FIELDS, Addresses
from maxgreen.keyfile import create_key_file
from maxgreen.lock import FolderLock

MAXGREEN = Path(sys.executable).parent / "maxgreen"


def test_a_second_run_says_which_one_is_under_way(tmp_path):
    settings = tmp_path / "settlement.toml"
    Addresses(chain_id=1, **dict.fromkeys(FIELDS.values(), "0x" + 40 * "0")).save(tmp_path / "deployment.json")
    create_key_file(tmp_path / "backend.pem")
    (tmp_path / "operator.key").write_text("11" * 32)
    files = {
        "output_dir": "out",
        "key_file": "backend.pem",
        "deployment": "deployment.json",
        "operator_file": "operator.key",
    }
    settings.write_text("".join(f'{name} = "{tmp_path}/{file}"\n' for name, file in files.items()))
    command = [MAXGREEN, "settle", "run", "--period", "2026-01", "--config", settings]
    with FolderLock(tmp_path / "out", "maxgreen settle"):
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
        as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert (said.returncode, as_json.returncode) == (75, 75)
    assert "another run is under way" in said.stdout
    assert f"process {os.getpid()}" in said.stdout
    assert json.loads(as_json.stdout)["state"] == "not ready"
