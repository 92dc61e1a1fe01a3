"""The whole story of a deployment, told on the embedded chain and on anvil (`python -m tests.e2e.story` times it)."""

import subprocess

import pytest

from maxgreen.chain.client import connect
from tests.chain.world import embedded, on_anvil
from tests.conftest import ROOT, free_port, need, stop, wait_for
from tests.e2e.story import Story, tell


@pytest.mark.rule("P-ID-6", "P-ING-6")
def test_the_whole_story_on_the_embedded_chain(tmp_path):
    assert len(tell(Story(embedded(tmp_path), tmp_path))) == 7


@pytest.mark.services
def test_the_whole_story_on_anvil(tmp_path):
    program = need(ROOT / "contracts/node_modules/.bin/anvil", "anvil is not installed (make services)")
    port = free_port()
    process = subprocess.Popen([program, "--port", str(port), "--silent"])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: connect(url, None).chain_id, what="anvil")
        assert len(tell(Story(on_anvil(url), tmp_path))) == 7
    finally:
        stop(process)
