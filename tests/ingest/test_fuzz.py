"""Random and kept inputs: nothing but a typed reason comes of any, and all that is kept adds up."""

import os
from pathlib import Path

import pytest

from simulator.lab import Lab, beacon
from tests.ingest.fuzz import decode_one, judge_one, random_inputs

CORPUS = Path(__file__).parent / "corpus"
MUTANTS = int(os.environ.get("MAXGREEN_MUTANTS", "100000"))


@pytest.mark.parametrize("what", ["decode", "judge"])
def test_the_corpus(what):
    found = sorted((CORPUS / what).iterdir())
    assert found
    for path in found:
        (decode_one if what == "decode" else judge_one)(path.read_bytes())


def test_mutants_of_messages_decode_or_are_rejected():
    lab = Lab()
    seeds = [lab.next(), lab.next(work=lab.work(beacon())), lab.sign(lab.attested(lab.batch()))]
    inputs = random_inputs(1, 24)
    for number in range(MUTANTS):
        data = bytearray(seeds[number % len(seeds)])
        choices = next(inputs)
        for at, value in zip(choices[::2], choices[1::2], strict=False):
            where = at * 7 % len(data)
            if value % 8 == 0:
                del data[where : where + value % 5]
            elif value % 8 == 1:
                data[where:where] = bytes([value] * (value % 4))
            else:
                data[where] = value
        decode_one(bytes(data))


def test_signed_mutants_never_break_judging_and_all_adds_up():
    judged, inputs = 0, random_inputs(2, 300)
    while judged < MUTANTS:
        judged += judge_one(next(inputs))
