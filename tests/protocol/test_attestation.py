"""Attestations: what a device signed of its registers, and what two of them prove."""

from dataclasses import replace

import pytest

from maxgreen.protocol.attestation import attest, prove_fraud
from maxgreen.protocol.keys import MemorySigner, Verifier
from simulator.lab import NETWORK

SIGNER = MemorySigner.from_secret(7)
DEVICE = Verifier(SIGNER.spki)


def reading(**changes):
    values = {"channel": 1, "unix_s": 1_800_000_000, "register_mws": 3_600_000, "seq": 5, **changes}
    return attest(SIGNER, NETWORK, **values)


@pytest.mark.rule("P-ATT-2")
@pytest.mark.parametrize("change", [{"register_mws": 3_600_001}, {"unix_s": 1_800_000_001}])
def test_another_register_or_time_under_one_channel_and_seq_is_fraud(change):
    assert prove_fraud(reading(), reading(**change), DEVICE, NETWORK)
    assert prove_fraud(reading(**change), reading(), DEVICE, NETWORK)


@pytest.mark.rule("P-ATT-2")
@pytest.mark.parametrize("change", [{}, {"seq": 6, "register_mws": 9}, {"channel": 0, "register_mws": 9}])
def test_the_same_reading_another_seq_or_channel_is_no_fraud(change):
    assert not prove_fraud(reading(), reading(**change), DEVICE, NETWORK)


@pytest.mark.rule("P-ATT-2")
def test_nobody_can_frame_a_device():
    forged = replace(reading(), register_mws=1)
    other = attest(MemorySigner.from_secret(8), NETWORK, 1, 1_800_000_000, 1, 5)
    elsewhere = attest(SIGNER, "eip155:1:0x" + "00" * 20, 1, 1_800_000_000, 1, 5)
    for lie in (forged, other, elsewhere):
        assert not prove_fraud(reading(), lie, DEVICE, NETWORK)
