"""The README's first command on a fresh Debian 12 and 13."""

import re

import pytest

from tests.deploy.roots import unpacked

pytestmark = pytest.mark.services


@pytest.mark.parametrize("name", ["debian12", "debian13"])
def test_make_demo_works_on_a_fresh_machine(name, tmp_path):
    root = unpacked(name, tmp_path)
    try:
        root.copy_project()
        said = root.run("make", "-C", "/root/project", "demo")
        assert re.search(r"audit +ok\b", said), said
        assert re.search(
            r"\.venv/bin/maxgreen audit demo/\S+/pack\.zip --rpc demo/chain\.db --deployment demo/", said
        ), said
    finally:
        root.remove()
