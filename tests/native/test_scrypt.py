"""scrypt(1024, 1, 1) against its references."""

import hashlib
import os
import threading
import time

import pytest

from native import scrypt

GENESIS = bytes.fromhex(
    "01000000" + "00" * 32 + "d9ced4ed1130f7b7faad9be25323ffafa33232a17c3edf6cfd97bee6bafbdd97b9aa8e4ef0ff0f1ecd513f7c"
)


def test_openssl_itself_passes_the_vector_of_rfc_7914():
    expected = "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b3731622eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640"
    assert hashlib.scrypt(b"password", salt=b"NaCl", n=1024, r=8, p=16, dklen=64).hex() == expected


def test_verify_compares_little_endian_integers():
    digest = scrypt.hash_many(GENESIS)
    value = int.from_bytes(digest, "little")
    targets = b"".join((value + d).to_bytes(32, "little") for d in (-1, 0, 1))
    assert scrypt.verify_many(GENESIS * 3, targets) == b"\0\1\1"


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 30])
def test_any_number_of_headers_is_verified(count):
    assert scrypt.verify_many(os.urandom(80 * count), b"\xff" * 32 * count) == b"\1" * count


def test_a_miner_finds_what_verifies_and_goes_on_from_there():
    target = 2**256 // 16
    miner = scrypt.Miner(os.urandom(76), target)
    nonces = [miner.find() for _ in range(3)]
    assert nonces == sorted(set(nonces))
    headers = b"".join(miner._prefix + nonce.to_bytes(4, "little") for nonce in nonces)
    assert scrypt.verify_many(headers, target.to_bytes(32, "little") * 3) == b"\1\1\1"
    assert miner.hashes >= nonces[-1]


def test_a_range_ends_at_the_last_nonce():
    miner = scrypt.Miner(bytes(76), 0)
    assert miner.find(2**32 - 20) is None
    assert (miner.hashes, miner.next_nonce) == (20, 2**32)
    assert miner.find() is None


def test_stop_ends_mining_from_another_thread_while_python_goes_on():
    miner = scrypt.Miner(bytes(76), 0)
    thread = threading.Thread(target=miner.find)
    thread.start()
    while miner.hashes < 16:
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="another thread"):
        miner.find()
    miner.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_wrong_sizes_and_unknown_kernels_are_named():
    with pytest.raises(ValueError, match="multiple of 80"):
        scrypt.hash_many(bytes(79))
    with pytest.raises(ValueError, match="1 targets for 2 headers"):
        scrypt.verify_many(bytes(160), bytes(32))
    with pytest.raises(ValueError, match="no scrypt kernel 'none'"):
        scrypt.hash_many(bytes(80), kernel="none")
    with pytest.raises(ValueError, match="duty"):
        scrypt.Miner(bytes(76), 1, duty=0)
