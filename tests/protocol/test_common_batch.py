"""The batch read in C, against the reference: every message that it reads, it reads as the reference does."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native._scrypt import lib

from maxgreen.protocol import batch as reference
from maxgreen.protocol import cbor
from maxgreen.protocol.batch import Batch, Channel, Health, Work, encode_batch, parse_any_batch, parse_batch
from maxgreen.protocol.reasons import Malformed
from native import batch as common
from simulator.lab import Lab
from tests.protocol.test_batch import batches

BOUNDS = sorted(
    {
        near
        for bound in (
            0, 4, 23, 24, 255, 256, 3_600, 65_535, 900_000, 2**32 - 1, reference.MAX_BOOT_MS, reference.MAX_WALL_MS,
            2**53 - 1, 2**62 - 1, 2**63 - 1, 2**64 - 1, 0x03000001, 0x20FFFFFF, 0x207FFFFF, 0x1F800000,
        )
        for near in (bound - 1, bound, bound + 1)
        if near < 2**64
    }
)  # fmt: skip
HEAD = Lab().next()[:25]  # an envelope up to the payload


def message_of(payload: bytes) -> bytes:
    """Return a payload in an envelope with a made-up signature."""
    return HEAD + cbor.byte_string(payload) + cbor.byte_string(bytes(64))


def agree(message: bytes) -> bool:
    """Compare the two readings of a message; tell whether it was read in C."""
    if common.read(message) is None:
        return False
    assert parse_batch(message) == parse_any_batch(message)
    return True


@given(batches())
def test_every_batch_is_read_as_by_the_reference(batch):
    is_common = not batch.events and not batch.attestations and batch.birth is None and batch.succeeds is None
    assert agree(message_of(encode_batch(batch))) == is_common


def full(**changes) -> Batch:
    """Return a batch with everything that a common one may have."""
    lab = Lab()
    lab.next()
    [first, *_] = lab.batch().channels
    late = Channel.of(7, 3, [5, -6, 7], [8, -9, 10], [0, 2, 4_000_000_000], (1, 2, 3))
    made = lab.batch(
        channels=(first, late),
        clock_error_ms=12,
        work=Work(77, 0x1F100000, (3, 700, 2**32 - 1)),
        health=Health(-40_000, 5, 6, 7, True, 1_000),
    )
    return replace(made, **changes)


def test_a_batch_with_all_of_it_is_common():
    assert agree(message_of(encode_batch(full())))
    assert agree(message_of(encode_batch(full(health=Health()))))
    assert agree(message_of(encode_batch(full(channels=(), work=None))))


def places(value, path=()):
    """Yield the path of every value in a CBOR value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for k, item in enumerate(value):
            yield from places(item, (*path, k))


def test_a_changed_batch_is_read_as_by_the_reference_or_not_at_all():
    """Every value is replaced by others, also at the bounds; every byte is changed, lost or doubled."""
    payload = encode_batch(full())
    strangers = [*BOUNDS, -1, -(2**63), -(2**63) - 1, None, True, False, 1.5, "x", b"", bytes(32), [], {}, [0], {0: 0}]
    read = refused = 0
    for path in list(places(cbor.decode(payload))):
        for stranger in strangers:
            value = cbor.decode(payload)
            if not path:
                continue
            at = value
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = stranger
            message = message_of(cbor.encode(value))
            if agree(message):
                read += 1
            else:
                with pytest.raises(Malformed):
                    parse_any_batch(message)
                refused += 1
    assert read > 100
    assert refused > 500
    for position in range(len(payload)):
        for changed in (
            *(payload[:position] + bytes([payload[position] ^ 1 << bit]) + payload[position + 1 :] for bit in range(8)),
            payload[:position] + payload[position + 1 :],
            payload[: position + 1] + payload[position:],
            payload[:position],
        ):
            agree(message_of(changed))


def test_a_changed_envelope_is_read_as_by_the_reference_or_not_at_all():
    message, source = message_of(encode_batch(full())), random.Random(1)
    for position in (*range(40), *range(len(message) - 70, len(message))):
        for bit in range(8):
            agree(message[:position] + bytes([message[position] ^ 1 << bit]) + message[position + 1 :])
        assert not agree(message[:position])
    for _ in range(2_000):
        start, end = sorted(source.choices(range(len(message)), k=2))
        agree(message[:start] + source.randbytes(source.randrange(4)) + message[end:])


@given(st.binary(max_size=300))
def test_random_bytes_are_not_common(data):
    assert common.read(data) is None
    assert common.read(message_of(data)) is None


def test_the_bounds_are_those_of_the_reference():
    for name in ("SEQ", "WALL_MS", "BOOT_MS", "INTERVAL_MS", "REGISTER", "CHANNEL", "SAMPLES", "NONCES"):
        assert getattr(lib, f"MG_MAX_{name}") == getattr(reference, f"MAX_{name}"), name
