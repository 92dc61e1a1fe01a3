"""The kernels by other compilers, under sanitizers and valgrind, and for aarch64 under qemu."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from maxgreen.protocol.batch import encode_batch
from tests.native.test_kernels import reference
from tests.protocol.test_common_batch import full, message_of

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for path in (ROOT / "native").glob("*.c") if not path.name.startswith("_") and path.name != "p256.c"
)
BATCHES = [ROOT / "native" / name for name in ("batch.c", "lines.c", "meter.c")]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-I", str(ROOT / "native")]
NO_VECTORIZER = ["-fno-tree-vectorize", "-fno-tree-slp-vectorize"]
SANITIZE = ["-g", "-O2", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
BROKEN = ["-DMG_EXTRA_KERNEL=mg_broken", "-include", str(ROOT / "tests/native/broken.h")]
CROSS = "aarch64-linux-gnu-gcc"


def program(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed; 'make services' as root installs it")
    return name


def build(tmp_path, compiler, *flags, main="harness.c", sources=SOURCES):
    target = tmp_path / "harness"
    sources = [*sources, ROOT / "tests/native" / main]
    if set(BROKEN) <= set(flags):
        sources.append(ROOT / "tests/native/broken.c")
    subprocess.run([program(compiler), *FLAGS, *flags, *map(str, sources), "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """(header, digest) pairs by OpenSSL: edge cases first, then random ones."""
    headers = [bytes(80), b"\xff" * 80, bytes(range(80)), *(os.urandom(80) for _ in range(297))]
    path = tmp_path_factory.mktemp("pairs") / "pairs"
    path.write_bytes(b"".join(header + reference(header) for header in headers))
    return path


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_and_levels_agree_on_every_digest(tmp_path, pairs, compiler, level):
    names = run(build(tmp_path, compiler, level, *NO_VECTORIZER), pairs, 40)
    assert names[-1] == "portable"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sanitizers_find_nothing_for_any_size_and_alignment(tmp_path, pairs, compiler):
    harness = build(tmp_path, compiler, *SANITIZE)
    run(harness, pairs, 33)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sanitizers_find_nothing_in_changed_batches(tmp_path, compiler):
    mutants = build(tmp_path, compiler, *SANITIZE, main="mutants.c", sources=BATCHES)
    (tmp_path / "batch").write_bytes(message_of(encode_batch(full())))
    [read] = run(mutants, tmp_path / "batch", 200_000)
    assert 60_000 < int(read) < 180_000


def test_valgrind_finds_nothing(tmp_path, pairs):
    harness = build(tmp_path, "gcc", "-O2", "-g", *NO_VECTORIZER)
    assert run(program("valgrind"), "--quiet", "--error-exitcode=9", "--leak-check=full", harness, pairs, 18)


@pytest.mark.parametrize("flags", [["-O0"], ["-O3"], ["-O3", "-fno-omit-frame-pointer"]], ids=" ".join)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_profiler_can_walk_the_stack_at_any_instant_of_a_kernel(tmp_path, compiler, flags):
    assert run(build(tmp_path, compiler, *flags, *NO_VECTORIZER, main="unwind.c"))[-1] == "portable"


def test_a_kernel_that_is_wrong_in_one_lane_fails_its_self_test(tmp_path, pairs):
    assert "broken" not in run(build(tmp_path, "gcc", "-O2", *BROKEN), pairs, 5)


@pytest.mark.parametrize("processor", ["cortex-a53", "cortex-a72", "cortex-a76"])
def test_aarch64_kernels_are_right_on_emulated_processors(tmp_path, pairs, processor):
    qemu = program("qemu-aarch64")
    harness = build(tmp_path, CROSS, "-O3", "-static", *NO_VECTORIZER)
    names = run(qemu, "-cpu", processor, harness, pairs, 14)
    assert names == ["neon_mixed", "neon_vertical", "neon_diagonal", "neon_gap2", "neon_gap4", "portable"]
