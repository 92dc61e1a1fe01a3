"""Beacons, receipts, commands, attestations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxgreen.protocol.attestation import (
    attest,
    attestation_message,
    hand_over,
    hand_over_message,
    possession_message,
    prove_possession,
)
from maxgreen.protocol.backend import (
    BackendKeys,
    Beacon,
    Command,
    CommandKind,
    Receipt,
    Rejection,
    decode_beacon,
    decode_command,
    decode_receipt,
    sign_beacon,
    sign_command,
    sign_receipt,
)
from maxgreen.protocol.keys import MemorySigner, Verifier
from maxgreen.protocol.reasons import BadSignature, Rejected
from maxgreen.protocol.work import credit_of, nbits_of_credit, target_of, window_of
from simulator.lab import NETWORK

BACKEND = MemorySigner.from_secret(2)
KEYS = BackendKeys((BACKEND.spki,), NETWORK)
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
beacons = st.builds(Beacon, U64, st.integers(0, 2**32 - 1), U64, U64, st.binary(min_size=32, max_size=32))
receipts = st.builds(
    Receipt,
    st.binary(min_size=16, max_size=16),
    U64,
    st.binary(min_size=32, max_size=32),
    U64,
    st.integers(0, 2**32 - 1),
    st.lists(U64, max_size=3).map(tuple),
    st.lists(st.tuples(U64, U64), max_size=3).map(tuple),
    st.dictionaries(U64, st.tuples(U64, U64, U64), max_size=3),
    st.one_of(st.none(), st.builds(Rejection, U32, U32, st.text(st.characters(codec="utf-8"), max_size=256))),
)


@given(beacons, receipts)
def test_signed_messages_open_to_what_was_signed(beacon, receipt):
    assert KEYS.open_beacon(sign_beacon(beacon, BACKEND, NETWORK)) == beacon
    assert KEYS.open_receipt(sign_receipt(receipt, BACKEND, NETWORK)) == receipt


@pytest.mark.rule("P-CMD-1")
@given(st.sampled_from(CommandKind), U64)
def test_commands_open_to_what_was_signed(kind, number):
    keys = {CommandKind.START_TRANSFER: (0, 1, 2), CommandKind.STOP_TRANSFER: (0,), CommandKind.SAMPLING_INTERVAL: (0,)}
    command = Command(bytes(16), number, 1, 2, kind, dict.fromkeys(keys.get(kind, ()), 5))
    assert KEYS.open_command(sign_command(command, BACKEND, NETWORK)) == command


def test_a_message_of_an_unknown_backend_key_is_refused():
    stranger = MemorySigner.from_secret(3)
    with pytest.raises(BadSignature, match="not one of the backend's"):
        KEYS.open_beacon(sign_beacon(Beacon(1, 2, 3, 4, bytes(32)), stranger, NETWORK))


@given(st.binary(max_size=100))
def test_random_bytes_raise_nothing_but_the_typed_error(data):
    for decode in (decode_beacon, decode_receipt, decode_command, KEYS.open_receipt):
        with pytest.raises(Rejected):
            decode(data)


@pytest.mark.rule("P-ATT-1")
def test_an_attestation_signs_88_bytes():
    signer = MemorySigner.from_secret(1)
    reading = attest(signer, NETWORK, 1, 2, 3, 4)
    assert len(attestation_message(NETWORK, bytes(16), 1, 2, 3, 4)) == 88
    assert reading.verified_by(Verifier(signer.spki), NETWORK)
    assert not reading.verified_by(Verifier(signer.spki), NETWORK.replace("31337", "1"))


@pytest.mark.rule("P-ID-5")
def test_a_possession_proof_names_network_device_owner_and_content():
    signer, owner = MemorySigner.from_secret(1), bytes(range(20))
    verifier, content = Verifier(signer.spki), bytes(range(32))
    message = possession_message(NETWORK, verifier.key_id, owner, 3, content)
    assert message[:8] == b"MGPOP2\0\0"
    assert message.endswith(verifier.key_id + owner + bytes(7) + b"\3" + content)
    assert verifier.verifies(message, prove_possession(signer, NETWORK, owner, 3, content))


@pytest.mark.rule("P-ID-6")
def test_a_hand_over_names_both_devices():
    signer, new = MemorySigner.from_secret(1), bytes(16)
    verifier = Verifier(signer.spki)
    message = hand_over_message(NETWORK, verifier.key_id, new)
    assert message[:8] == b"MGROT1\0\0"
    assert message.endswith(verifier.key_id + new)
    assert verifier.verifies(message, hand_over(signer, NETWORK, new))


@given(st.integers(2, 2**40))
def test_compact_bits_of_a_credit_cost_about_as_much(hashes):
    credit = credit_of(nbits_of_credit(hashes))
    assert hashes <= credit <= hashes * (1 + 2**-14) + 1


@pytest.mark.rule("P-POW-4")
def test_the_default_difficulties_credit_what_the_protocol_says():
    assert credit_of(0x1F100000) == 4095
    assert credit_of(0x1F400000) == 1023
    assert target_of(0x207FFFFF) == 0x7FFFFF << 232
    assert window_of(1_767_225_600_000 + 599_999) == 1_767_225_600
