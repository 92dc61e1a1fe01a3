"""What the tests of installation share."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """The wheels of this machine and of a 64-bit Pi, made once."""
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [ROOT / "scripts/wheels", folder], check=True, capture_output=True, env={**os.environ, "PYTHON": sys.executable}
    )
    return sorted(folder.iterdir())
