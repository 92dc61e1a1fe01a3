"""An attacker: a batch on somebody else's topic, with somebody else's key id, signed by a key of its own."""

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion

from maxgreen.protocol import cbor, cose
from maxgreen.protocol.batch import Batch, encode_batch
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.keys import MemorySigner

_WAIT_S = 10


def forged_batch(victim: bytes, network: str) -> bytes:
    """Return a batch that claims to be the victim's next, signed by another key."""
    batch = Batch(
        seq=10_000, prev=bytes(32), boot=bytes(16), t0_ms=0, t0_boot_ms=0, synchronised=True, interval_ms=1_000
    )
    payload = encode_batch(batch)
    attacker = MemorySigner(ec.generate_private_key(ec.SECP256R1()))
    signature = attacker.sign(cose.to_be_signed(victim, payload, network, "batch"))
    return cbor.encode(cbor.tag(cose.COSE_SIGN1, [cose.protected_header(victim), {}, payload, signature]))


def send_forged_batch(port: int, victim: bytes, network: str) -> None:
    """Publish such a batch to the broker on a port of the loopback interface."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="forger")
    client.username_pw_set("forger")
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        client.publish(device_topic(victim, "batch"), forged_batch(victim, network), qos=1).wait_for_publish(_WAIT_S)
    finally:
        client.disconnect()
        client.loop_stop()
