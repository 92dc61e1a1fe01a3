"""The published vectors hold for this implementation."""

import hashlib
import json
from pathlib import Path

import pytest

from maxgreen.protocol import cose
from maxgreen.protocol.backend import BackendKeys
from maxgreen.protocol.keys import MemorySigner, Verifier
from maxgreen.protocol.reasons import Reason, Rejected
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import DeviceRecord, Rules
from maxgreen.verify.verdict import Place, open_message, place, take

FOLDER = Path(__file__).parents[2] / "docs" / "vectors"
MESSAGES = json.loads((FOLDER / "messages.json").read_text())
REASONS = json.loads((FOLDER / "reasons.json").read_text())


@pytest.mark.parametrize("kind", ["batch", "beacon", "receipt", "command"])
def test_signed_messages_verify(kind):
    vector = MESSAGES[kind]
    signer = MemorySigner.from_secret(int(vector["secret"], 16))
    envelope = cose.parse(bytes.fromhex(vector["message"]))
    envelope.check(Verifier(signer.spki), vector["network"], kind)
    assert envelope.payload.hex() == vector["payload"]
    assert signer.sign(bytes.fromhex(vector["to_be_signed"])).hex() == vector["signature"]
    assert hashlib.sha256(bytes.fromhex(vector["message"])).hexdigest() == vector["sha256"]


@pytest.mark.rule("P-ING-1", "P-ING-3")
@pytest.mark.parametrize("name", REASONS["cases"])
def test_every_reason_is_reached(name):
    case = REASONS["cases"][name]
    network = REASONS["network"]
    record = DeviceRecord(
        bytes.fromhex(REASONS["spki"]),
        tuple((at, status) for at, status in case.get("status", [[0, "active"]])),
        tuple((channel, role) for channel, role in case.get("roles", [])),
    )
    keys = BackendKeys((MemorySigner.from_secret(2).spki,), network)
    beacon = keys.open_beacon(bytes.fromhex(REASONS["beacon"]))
    rules = Rules(network, beacons={beacon.number: beacon})
    state, kept, reason = ChainState.start(network), {}, None
    for message in map(bytes.fromhex, case["messages"]):
        try:
            signed = open_message(
                message, None, case["received_ms"], lambda d: record if d == record.device else None, network
            )
        except Rejected as error:
            reason = error.reason
            continue
        where = place(state, signed, kept.get(signed.batch.seq))
        reason = where.reason
        if where is Place.NEXT:
            kept[signed.batch.seq] = hashlib.sha256(message).digest()
            state, judgement = take(state, signed, case["received_ms"], record, rules)
            reason = judgement.reason
    assert reason == Reason(case["reason"])
