"""Every kernel of this processor against OpenSSL, and how one is chosen."""

import hashlib
import json
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import kernels, scrypt

GENESIS = bytes.fromhex(
    "01000000" + "00" * 32 + "d9ced4ed1130f7b7faad9be25323ffafa33232a17c3edf6cfd97bee6bafbdd97b9aa8e4ef0ff0f1ecd513f7c"
)
GENESIS_HASH = "0000050c34a64b415b6b15b37f2216634b5b1669cb9a2e38d76f7213b0671e00"
NAMES = [kernel.name for kernel in kernels.kernels()]
every_kernel = pytest.mark.parametrize("kernel", NAMES)


def reference(header):
    return hashlib.scrypt(header, salt=header, n=1024, r=1, p=1, dklen=32)


@pytest.fixture(scope="module")
def known():
    """10,100 headers with OpenSSL's digests: edge cases first."""
    headers = [bytes(80), b"\xff" * 80, *(bytes(k) + b"\x80" + bytes(79 - k) for k in range(80))]
    headers += [random.randbytes(80) for _ in range(10_100 - len(headers))]
    return b"".join(headers), b"".join(map(reference, headers))


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache folder and a process that have chosen nothing yet."""
    monkeypatch.delenv(kernels.KERNEL_VARIABLE, raising=False)
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._quickest.cache_clear()
    kernels.passes.cache_clear()
    yield tmp_path / "maxgreen" / "scrypt.json"
    kernels._quickest.cache_clear()
    kernels.passes.cache_clear()


@every_kernel
def test_litecoins_genesis_header_has_its_hash(kernel):
    assert scrypt.hash_many(GENESIS, kernel=kernel)[::-1].hex() == GENESIS_HASH


@every_kernel
def test_ten_thousand_headers_hash_as_openssl_has_it(kernel, known):
    headers, digests = known
    assert scrypt.hash_many(headers, kernel=kernel) == digests


@every_kernel
def test_every_batch_size_up_to_a_hundred_is_right(kernel, known):
    headers, digests = known
    for count in range(1, 101):
        at = count * 7
        assert (
            scrypt.hash_many(headers[80 * at : 80 * (at + count)], kernel=kernel)
            == digests[32 * at : 32 * (at + count)]
        )


@every_kernel
def test_a_range_that_would_wrap_ends_at_the_last_nonce(kernel):
    miner = scrypt.Miner(bytes(76), 0, kernel=kernel)
    assert miner.find(2**32 - 50) is None
    assert (miner.hashes, miner.next_nonce) == (50, 2**32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(0, 70), st.integers(0, 70), st.sampled_from(NAMES))
def test_any_size_and_offset_hashes_or_says_what_is_wrong(size, offset, count, kernel):
    buffer = memoryview(random.randbytes(offset + 80 * count + size))[offset:]
    if len(buffer) % 80:
        with pytest.raises(ValueError, match="multiple of 80"):
            scrypt.hash_many(buffer, kernel=kernel)
        return
    digests = scrypt.hash_many(buffer, kernel=kernel)
    assert len(digests) == len(buffer) // 80 * 32
    if digests:
        assert digests[-32:] == reference(bytes(buffer[-80:]))


def test_the_portable_kernel_is_always_there_and_last():
    assert NAMES[-1] == "portable"


def test_a_kernel_can_be_forced_by_the_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(kernels.KERNEL_VARIABLE, name)
        assert kernels.chosen() == name
        assert scrypt.hash_many(GENESIS)[::-1].hex() == GENESIS_HASH
    monkeypatch.setenv(kernels.KERNEL_VARIABLE, "none")
    with pytest.raises(ValueError, match="no scrypt kernel 'none' on this processor; it has: .*portable"):
        scrypt.hash_many(GENESIS)


def test_the_quickest_is_measured_once_and_remembered_for_the_processor(fresh, monkeypatch):
    first = kernels.chosen()
    assert first in NAMES
    assert list(json.loads(fresh.read_text()).values()) == [first]
    monkeypatch.setattr(kernels, "measure", lambda _names: pytest.fail("measured again"))
    kernels._quickest.cache_clear()
    assert kernels.chosen() == first


def test_what_is_remembered_of_another_processor_or_is_damaged_does_not_count(fresh):
    fresh.parent.mkdir()
    fresh.write_text(json.dumps({"another": "none"}))
    assert kernels.chosen() in NAMES
    assert json.loads(fresh.read_text())["another"] == "none"
    for damage in ("{", "[]", '"x"'):
        fresh.write_text(damage)
        kernels._quickest.cache_clear()
        assert kernels.chosen() in NAMES


def test_a_cache_folder_that_cannot_be_written_changes_nothing(fresh):
    fresh.parent.write_text("a file where the folder should be")
    assert kernels.chosen() in NAMES


class WrongFirst:
    """The library, with a first kernel that computes wrong digests."""

    def __getattr__(self, name):
        return getattr(scrypt.lib, name)

    def mg_self_test(self, name):
        return 0 if name.decode() == NAMES[0] else scrypt.lib.mg_self_test(name)


@pytest.mark.skipif(len(NAMES) < 2, reason="this processor has only the portable kernel")
def test_a_kernel_that_fails_its_self_test_is_never_used_and_the_next_one_is(fresh, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "lib", WrongFirst())
    with caplog.at_level(logging.WARNING):
        assert kernels.chosen() in NAMES[1:]
    assert f"{NAMES[0]} fails its self-test" in caplog.text
    fresh.write_text(json.dumps({kernels._key(): NAMES[0]}))
    kernels._quickest.cache_clear()
    assert kernels.chosen() in NAMES[1:]
    with pytest.raises(ValueError, match="fails its self-test"):
        scrypt.hash_many(GENESIS, kernel=NAMES[0])
    monkeypatch.setenv(kernels.KERNEL_VARIABLE, NAMES[0])
    with pytest.raises(ValueError, match="fails its self-test"):
        scrypt.Miner(bytes(76), 1)


def test_the_selftest_command_shows_every_kernel(fresh):
    from typer.testing import CliRunner

    from maxgreen.selftest_cli import app

    shown = CliRunner().invoke(app, ["scrypt"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in NAMES)
    value = json.loads(CliRunner().invoke(app, ["scrypt", "--json"]).output)
    assert value["used"] == kernels.chosen()
    assert all(kernel["passes"] and kernel["hashes_per_s"] > 100 for kernel in value["kernels"])


def test_systemd_names_the_cache_folder(monkeypatch):
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/maxgreen:/other")
    assert str(kernels.cache_file()) == "/var/cache/maxgreen/scrypt.json"
