"""A few mutants of the contracts are noticed by the tests; `make mutants` tries them all."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, need


@pytest.mark.services
def test_a_guard_that_is_gone_is_noticed(tmp_path):
    need(shutil.which("node"), "node is not installed (apt-get install npm)")
    need(ROOT / "contracts/node_modules/solc", "the compiler is not installed (make contracts)")
    fates = tmp_path / "fates.json"
    command = [sys.executable, "-m", "tests.chain.mutants", "--kinds", "guard", "--part", "7/64", "--jobs", "1"]
    done = subprocess.run([*command, "--json", fates], cwd=ROOT, capture_output=True, text=True, timeout=1_500)
    assert done.returncode == 0, done.stderr
    found = json.loads(fates.read_text())
    assert len(found) == 3
    assert all(found.values()), done.stdout


def test_every_guard_has_its_mutant():
    need(shutil.which("node"), "node is not installed (apt-get install npm)")
    need(ROOT / "contracts/node_modules/solc", "the compiler is not installed (make contracts)")
    made = subprocess.run(["node", ROOT / "contracts/mutants.mjs", "list"], capture_output=True, text=True, check=True)
    mutants = [json.loads(line) for line in made.stdout.splitlines()]
    guards = [mutant for mutant in mutants if mutant["kind"] == "guard"]
    reverts = sum(path.read_text().count("revert ") for path in (ROOT / "contracts/src").glob("*.sol"))
    assert len([guard for guard in guards if guard["after"] == "false"]) >= reverts * 0.9
    for mutant in mutants:
        text = (ROOT / "contracts/src" / mutant["file"]).read_bytes()
        at = mutant["from"]
        assert " ".join(text[at : at + mutant["length"]].decode().split()) == " ".join(mutant["before"].split())
