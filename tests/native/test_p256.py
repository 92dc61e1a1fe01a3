"""Signatures in groups: the same answers as one by one, for every vector of Wycheproof and for random damage."""

import json
import os
import random
from pathlib import Path

import pytest

from maxgreen.protocol.keys import HALF_ORDER, P256_ORDER, MemorySigner, Verifier, verify_group
from native import p256

VECTORS = json.loads((Path(__file__).parents[1] / "data/wycheproof_es256.json").read_text())


@pytest.fixture(params=["group", "one by one"])
def way(request, monkeypatch):
    if request.param == "group":
        if not p256.is_there():
            pytest.skip("this processor, or this build, checks no signatures in groups")
    else:
        monkeypatch.setattr(p256, "_library", lambda: None)


def test_wycheproof(way):
    signed, expected = [], []
    for group in VECTORS:
        verifier = Verifier(bytes.fromhex(group["spki"]))
        for _, message, signature, result in group["tests"]:
            data = bytes.fromhex(signature)
            signed.append((verifier, bytes.fromhex(message), data))
            low = len(data) == 64 and int.from_bytes(data[32:], "big") <= HALF_ORDER
            expected.append(result == "valid" and low)
    assert len(expected) == 262
    assert verify_group(signed) == expected
    assert verify_group(signed) == [verifier.verifies(*rest) for verifier, *rest in signed]
    assert 50 < sum(expected) < 262


def test_a_group_check_alone_answers_as_openssl(monkeypatch):
    if not p256.is_there():
        pytest.skip("this processor, or this build, checks no signatures in groups")
    for group in VECTORS:
        verifier = Verifier(bytes.fromhex(group["spki"]))
        for _, message, signature, _ in group["tests"]:
            job = verifier.job(bytes.fromhex(message), bytes.fromhex(signature))
            if job is not None:
                answer = p256.verify_many([job] * 3)
                assert answer == bytes([verifier.verifies(bytes.fromhex(message), bytes.fromhex(signature))] * 3)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 17])
def test_any_number_of_signatures(way, count):
    signer = MemorySigner.from_secret(7)
    verifier = Verifier(signer.spki)
    signed = [(verifier, b"%d" % k, signer.sign(b"%d" % (k if k % 3 else -1))) for k in range(count)]
    assert verify_group(signed) == [k % 3 != 0 for k in range(count)]


def test_random_damage_gets_the_same_answer(way):
    chance = random.Random(2)
    signers = [MemorySigner.from_secret(k) for k in range(1, 9)]
    signed = []
    for _ in range(int(os.environ.get("MAXGREEN_SIGNATURES", "600"))):
        signer = chance.choice(signers)
        message = chance.randbytes(chance.randrange(100))
        data = bytearray(signer.sign(message))
        kind = chance.randrange(6)
        if kind == 1:
            data[chance.randrange(64)] ^= 1 << chance.randrange(8)
        elif kind == 2:  # the other s of the same signature
            data[32:] = (P256_ORDER - int.from_bytes(data[32:], "big")).to_bytes(32, "big")
        elif kind == 3:
            data[:32] = chance.choice([0, 1, P256_ORDER, P256_ORDER - 1, 2**256 - 1]).to_bytes(32, "big")
        elif kind == 4:
            data[32:] = chance.choice([0, 1, P256_ORDER, HALF_ORDER, HALF_ORDER + 1]).to_bytes(32, "big")
        elif kind == 5:
            del data[chance.randrange(64) :]
        signed.append((Verifier(chance.choice([signer, chance.choice(signers)]).spki), message, bytes(data)))
    answers = verify_group(signed)
    assert answers == [verifier.verifies(*rest) for verifier, *rest in signed]
    assert any(answers)
    assert not all(answers)
