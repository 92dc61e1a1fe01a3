"""The wheels: one for every Python, no compiler at run time, and a processor without the best instructions is enough."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HASH_ONE = (
    "from native import kernels, scrypt; scrypt.hash_many(bytes(80)); print(*(k.name for k in kernels.kernels()))"
)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [ROOT / "scripts" / "wheels", folder],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index: setuptools and cffi can't be fetched to build with")
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheels, tmp_path_factory):
    """This machine's wheel, unpacked as pip would, away from the sources."""
    [wheel] = [path for path in wheels if path.stem.endswith(os.uname().machine)]
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(folder, *prefix, kernel="", cache, code=HASH_ONE):
    environment = {
        "PATH": "",  # no compiler can be found
        "PYTHONPATH": f"{folder}:{sysconfig.get_path('platlib')}",
        "XDG_CACHE_HOME": str(cache),
        "MAXGREEN_SCRYPT_KERNEL": kernel,
    }
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_wheels_hold_the_stable_abi(wheels):
    assert wheels
    assert all("-cp311-abi3-linux_" in path.name for path in wheels)
    for path in wheels:
        assert "native/_scrypt.abi3.so" in zipfile.ZipFile(path).namelist()


def test_an_installed_wheel_hashes_without_a_compiler(unpacked, tmp_path):
    assert python(unpacked, cache=tmp_path)[-1] == "portable"


def test_a_processor_without_avx_imports_and_hashes(unpacked, tmp_path):
    emulator = shutil.which("qemu-x86_64")
    if emulator is None or os.uname().machine != "x86_64":
        pytest.skip("qemu-x86_64 is not installed; 'make services' as root installs it")
    assert python(unpacked, emulator, "-cpu", "Nehalem", cache=tmp_path) == ["sse2_diagonal", "portable"]
    groups = "from native import p256; print(p256.is_there())"
    assert python(unpacked, emulator, "-cpu", "Nehalem", cache=tmp_path, code=groups) == ["False"]


def test_the_cross_built_wheel_is_for_the_pi(wheels):
    found = [path for path in wheels if path.stem.endswith("aarch64")]
    if not found:
        pytest.skip("aarch64-linux-gnu-gcc is not installed; 'make services' as root installs it")
    with zipfile.ZipFile(found[0]) as archive:
        header = archive.read("native/_scrypt.abi3.so")[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64 (elf.h)
