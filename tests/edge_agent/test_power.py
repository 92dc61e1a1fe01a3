"""Kills and power cuts: what the spool acknowledged is there afterwards, byte for byte."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, need

ROUNDS = int(os.environ.get("MAXGREEN_POWER_CUTS", "200"))


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """The library that drops what was not synchronised."""
    compiler = need(shutil.which("cc"), "no C compiler (apt-get install gcc)")
    library = tmp_path_factory.mktemp("medium") / "medium.so"
    source = Path(__file__).with_name("medium.c")
    subprocess.run([compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.rule("P-BAT-2", "P-BAT-3")
@pytest.mark.parametrize("how", ["kill", "power"])
def test_no_signed_batch_is_lost_or_changed_and_no_register_goes_back(tmp_path, medium, how):
    live, durable = tmp_path / "live", tmp_path / "durable"
    live.mkdir()
    durable.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.edge_agent.power_cuts", how, str(ROUNDS), "1"],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(medium), "MEDIUM_LIVE": str(live), "MEDIUM_DURABLE": str(durable)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["faults"] == []
    assert result["rounds"] == ROUNDS
    assert result["batches"] > ROUNDS / 4
