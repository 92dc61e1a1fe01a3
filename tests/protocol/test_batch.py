"""The signed batch, byte for byte."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxgreen.protocol import cbor, cose
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.batch import (
    Batch,
    Birth,
    Channel,
    Event,
    Health,
    Role,
    Sensor,
    Work,
    decode_batch,
    decode_birth,
    encode_batch,
    encode_birth,
    known_birth,
    parse_batch,
    sign_batch,
)
from maxgreen.protocol.keys import Verifier, key_id
from maxgreen.protocol.reasons import BadSignature, Malformed, Rejected
from simulator.lab import NETWORK, Lab

U64 = st.integers(0, 2**64 - 1)
I32 = st.integers(-(2**31), 2**31 - 1)
U32 = st.integers(0, 2**32 - 1)
# the bounds of P-BAT-8
SEQ = st.integers(0, 2**53 - 1)
INT64 = st.integers(0, 2**63 - 1)
SMALL = st.integers(0, 65_535)
REGISTER = st.integers(0, 2**62 - 1)
WALL_MS = st.integers(0, 4_102_444_800_000)
BOOT_MS = st.integers(0, 315_576_000_000)


@st.composite
def channels(draw, interval_ms):
    numbers = sorted(draw(st.sets(SMALL, max_size=3)))
    found = []
    for number in numbers:
        count = draw(st.integers(1, 5))
        values = st.lists(I32, min_size=count, max_size=count).map(tuple)
        offsets = draw(
            st.one_of(
                st.just(tuple(k * interval_ms for k in range(count))),
                st.lists(U32, min_size=count, max_size=count).map(lambda rest: (0, *rest[1:])),
            )
        )
        found.append(
            Channel.of(
                number,
                draw(st.integers(0, 4)),
                draw(values),
                draw(values),
                offsets,
                (draw(REGISTER), draw(REGISTER), draw(REGISTER)),
            )
        )
    return tuple(found)


optional = lambda strategy: st.one_of(st.none(), strategy)  # noqa: E731
births = st.builds(
    Birth,
    st.just(Lab().signer.spki),
    st.lists(
        st.builds(Sensor, SMALL, st.integers(0, 4), st.text(max_size=5), *[INT64] * 4, st.text(max_size=5)),
        min_size=1,
        max_size=3,
        unique_by=lambda sensor: sensor.channel,
    ).map(tuple),
    st.text(max_size=10),
    st.binary(min_size=32, max_size=32),
    st.text(max_size=10),
    st.integers(0, 2),
    st.just("portable"),
    INT64,
)


@st.composite
def batches(draw):
    interval_ms = draw(st.integers(0, 900_000))
    seq = draw(SEQ)
    return Batch(
        seq=seq,
        prev=draw(st.binary(min_size=32, max_size=32)),
        boot=draw(st.binary(min_size=16, max_size=16)),
        t0_ms=draw(WALL_MS),
        t0_boot_ms=draw(BOOT_MS),
        synchronised=draw(st.booleans()),
        interval_ms=interval_ms,
        channels=draw(channels(interval_ms)),
        clock_error_ms=draw(optional(U32)),
        work=draw(
            optional(
                st.builds(
                    Work,
                    SEQ,
                    st.just(0x1F100000),
                    st.sets(U32, min_size=1, max_size=64).map(lambda n: tuple(sorted(n))),
                )
            )
        ),
        health=draw(optional(st.builds(Health, optional(st.integers(-(2**63), 2**63 - 1)), optional(INT64)))),
        events=tuple(
            draw(st.lists(st.builds(Event, SMALL, st.integers(-5, 5), optional(INT64), optional(SMALL)), max_size=2))
        ),
        attestations=tuple(
            draw(
                st.lists(
                    st.builds(
                        Attestation,
                        SMALL,
                        st.integers(0, 4_102_444_800),
                        REGISTER,
                        SEQ,
                        st.binary(min_size=64, max_size=64),
                    ),
                    max_size=2,
                )
            )
        ),
        birth=draw(optional(births)),
        succeeds=(bytes(16), bytes(32)) if seq == 0 and draw(st.booleans()) else None,
    )


@given(batches())
def test_decoding_an_encoded_batch_gives_it_back(batch):
    assert decode_batch(encode_batch(batch)) == batch


@pytest.mark.rule("P-SIG-1")
def test_every_flipped_byte_is_rejected():
    message, verifier = Lab().next(), Verifier(Lab().signer.spki)
    for position in range(len(message)):
        for bit in (0x01, 0x80):
            broken = bytearray(message)
            broken[position] ^= bit
            with pytest.raises(Rejected):
                parse_batch(bytes(broken)).envelope.check(verifier, NETWORK, "batch")


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: Lab().next()[:-60] + tail)))
@settings(max_examples=300)
def test_random_bytes_raise_nothing_but_the_typed_error(data):
    try:
        parse_batch(data)
    except Rejected:
        pass


@given(st.recursive(st.one_of(st.none(), st.booleans(), U64, st.text(max_size=3), st.binary(max_size=40)),
                    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.integers(0, 14), inner)),
                    max_leaves=20))  # fmt: skip
def test_any_cbor_value_is_decoded_or_malformed(value):
    try:
        decode_batch(cbor.encode(value))
    except Malformed:
        pass


@given(births, st.booleans())
def test_a_known_birth_is_read_as_a_checked_one(birth, has_kernel):
    birth = birth if has_kernel else replace(birth, kernel=None, hash_rate=None)
    known = known_birth(encode_birth(birth))
    assert known == decode_birth(encode_birth(birth)) == birth
    assert known.encoded == encode_birth(birth)
    assert [known.sensor(sensor.channel) for sensor in birth.sensors] == list(birth.sensors)


@pytest.mark.rule("P-SIG-1")
def test_a_high_s_is_a_bad_signature():
    from maxgreen.protocol.keys import P256_ORDER

    lab = Lab()
    envelope = parse_batch(lab.next()).envelope
    s = P256_ORDER - int.from_bytes(envelope.signature[32:], "big")
    high = replace(envelope, signature=envelope.signature[:32] + s.to_bytes(32, "big"))
    with pytest.raises(BadSignature):
        high.check(Verifier(lab.signer.spki), NETWORK, "batch")


@pytest.mark.rule("P-ID-3")
def test_a_message_for_another_network_or_purpose_does_not_verify():
    lab = Lab()
    envelope, verifier = parse_batch(lab.next()).envelope, Verifier(lab.signer.spki)
    envelope.check(verifier, NETWORK, "batch")
    for network, kind in ((NETWORK.replace("31337", "1"), "batch"), (NETWORK, "receipt")):
        with pytest.raises(BadSignature):
            envelope.check(verifier, network, kind)


@pytest.mark.rule("P-ID-2")
def test_a_device_id_is_the_head_of_the_public_keys_digest():
    import hashlib

    spki = Lab().signer.spki
    assert len(spki) == 91
    assert key_id(spki) == hashlib.sha256(spki).digest()[:16]


@pytest.mark.rule("P-BAT-1")
def test_a_batch_has_at_most_3600_samples_a_channel_and_65536_bytes():
    lab = Lab(roles=(0,))
    full = lab.batch([(18_000_000, 1_000_000)] * 3_600)
    assert decode_batch(encode_batch(full)) == full
    with pytest.raises(Malformed, match="3601 samples"):
        decode_batch(encode_batch(Lab().batch([(1, 1)] * 3_601)))
    with pytest.raises(ValueError, match="over 65536"):
        sign_batch(replace(full, birth=replace(full.birth, hardware="x" * 50_000)), lab.signer, NETWORK)


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 2**64},
        {"interval_ms": 900_001},
        {"boot": bytes(15)},
        {"succeeds": (bytes(16), bytes(32)), "seq": 1},
        {"work": Work(0, 0x1F800000, (1,))},
        {"work": Work(0, 0x1F100000, (2, 1))},
        {"work": Work(0, 0x1F100000, (1, 1))},
        {"work": Work(0, 0x1F100000, ())},
        {"work": Work(0, 0x02FFFFFF, (1,))},
    ],
)
@pytest.mark.rule("P-POW-2")
def test_values_out_of_bounds_are_malformed(change):
    with pytest.raises(Malformed):
        decode_batch(encode_batch(replace(Lab().batch(), **change)))


def test_anything_but_deterministic_cbor_is_malformed():
    payload = encode_batch(Lab().batch())
    assert payload[1:3] == b"\x00\x01"
    longer = payload[:2] + b"\x18\x01" + payload[3:]
    with pytest.raises(Malformed, match="deterministic"):
        decode_batch(longer)


def test_t0_must_be_the_earliest_sample():
    batch = Lab().batch()
    late = tuple(
        replace(c, offsets=struct.pack(f"<{c.count}I", *(o + 1 for o in c.offsets_ms))) for c in batch.channels
    )
    with pytest.raises(Malformed, match="earliest"):
        decode_batch(encode_batch(replace(batch, channels=late)))


def test_a_birth_of_another_key_is_malformed():
    lab = Lab()
    batch = replace(lab.batch(), birth=Lab(secret=2).birth)
    with pytest.raises(Malformed, match="signing key"):
        parse_batch(lab.sign(batch))


@pytest.mark.rule("P-BAT-8")
def test_a_birth_that_names_a_channel_twice_is_malformed():
    lab = Lab()
    [sensor, *_] = lab.birth.sensors
    other = replace(sensor, role=Role.SENT, dead_band_ua=1)
    batch = replace(lab.batch(), birth=replace(lab.birth, sensors=(sensor, other)))
    with pytest.raises(Malformed, match="twice"):
        parse_batch(lab.sign(batch))


def test_the_protected_header_is_exactly_algorithm_and_key():
    lab = Lab()
    payload = encode_batch(lab.batch())
    other = cbor.encode({1: -7, 4: lab.device, 5: b""})
    message = cbor.encode(cbor.tag(18, [other, {}, payload, bytes(64)]))
    with pytest.raises(Malformed, match="protected"):
        cose.parse(message)


@pytest.mark.rule("P-BAT-8")
def test_every_number_is_bounded():
    batch = Lab().batch()
    channel, sensor = batch.channels[0], batch.birth.sensors[0]
    attestation = Attestation(0, 0, 0, 0, bytes(64))
    bounds = {
        "seq": (2**53 - 1, lambda n: {"seq": n}),
        "t0": (4_102_444_800_000, lambda n: {"t0_ms": n}),
        "boot": (315_576_000_000, lambda n: {"t0_boot_ms": n}),
        "clock error": (2**32 - 1, lambda n: {"clock_error_ms": n}),
        "channel": (65_535, lambda n: {"channels": (replace(channel, number=n),)}),
        "register": (2**62 - 1, lambda n: {"channels": (replace(channel, register_mws=n),)}),
        "reverse": (2**62 - 1, lambda n: {"channels": (replace(channel, reverse_mws=n),)}),
        "gap": (2**62 - 1, lambda n: {"channels": (replace(channel, gap_ms=n),)}),
        "event": (65_535, lambda n: {"events": (Event(n, 0),)}),
        "refusal": (65_535, lambda n: {"events": (Event(9, 0, 1, n),)}),
        "event time": (315_576_000_000, lambda n: {"events": (Event(0, n),)}),
        "event time before": (315_576_000_000, lambda n: {"events": (Event(0, -n),)}),
        "command": (2**63 - 1, lambda n: {"events": (Event(0, 0, n),)}),
        "free": (2**63 - 1, lambda n: {"health": Health(free_mib=n)}),
        "beacon": (2**53 - 1, lambda n: {"work": Work(n, 0x1F100000, (1,))}),
        "attested time": (4_102_444_800, lambda n: {"attestations": (replace(attestation, unix_s=n),)}),
        "shunt": (2**63 - 1, lambda n: {"birth": replace(batch.birth, sensors=(replace(sensor, shunt_uohm=n),))}),
        "sensors": (
            256,
            lambda n: {"birth": replace(batch.birth, sensors=tuple(replace(sensor, channel=k) for k in range(n)))},
        ),
        "text": (256, lambda n: {"birth": replace(batch.birth, hardware="x" * n)}),
    }
    for what, (bound, change) in bounds.items():
        kept = replace(batch, **change(bound))
        assert decode_batch(encode_batch(kept)) == kept, what
        with pytest.raises(Malformed) as refused:
            decode_batch(encode_batch(replace(batch, **change(bound + 1))))
        assert len(str(refused.value)) < 300, what
