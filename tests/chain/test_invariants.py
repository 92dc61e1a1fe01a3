"""The contracts under random acts of everybody (forge): contracts/test/Invariants.t.sol."""

import os
import re
import subprocess

import pytest

from tests.conftest import ROOT, need

LEAST_CALLS = 10_000


@pytest.mark.services
@pytest.mark.timeout(1_200)  # as long as it takes on a busy machine
def test_random_acts_break_no_invariant():
    need(ROOT / "contracts/node_modules/.bin/forge", "forge is not installed (make services)")
    done = subprocess.run(
        [ROOT / "scripts/contracts", "invariants"],
        env={**os.environ, "FOUNDRY_PROFILE": "default", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=1_200,
    )
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-2_000:]
    passed = re.findall(r"\[PASS\] (invariant_\w+)\(\) \(runs: \d+, calls: (\d+)", done.stdout)
    assert len(passed) == 5, done.stdout[-3_000:] + done.stderr[-3_000:]
    assert sum(int(calls) for _, calls in passed) >= LEAST_CALLS
