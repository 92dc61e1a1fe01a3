"""What the broker's log says of refusals, in the words of each Mosquitto."""

import pytest

from ingest.refusals import refusal

SAID = {
    "certificate": [
        "OpenSSL Error[0]: error:0A000086:SSL routines::certificate verify failed",
        "Client connection from 127.0.0.1 failed: error:0A000086:SSL routines::certificate verify failed.",
    ],
    "handshake": [
        "OpenSSL Error[0]: error:0A0000C7:SSL routines::peer did not return a certificate",
        "Client connection from 127.0.0.1 failed: error:0A000126:SSL routines::unexpected eof while reading.",
        "Client connection from 127.0.0.1 failed: error:0A00009C:SSL routines::http request.",
        "OpenSSL Error[0]: error:0A000102:SSL routines::unsupported protocol",
        "Client connection from 127.0.0.1 denied: max_connections exceeded.",
    ],
    "twice": [
        f"Client {'a' * 32} already connected, closing old connection.",
        f"Client {'a' * 32} [127.0.0.1:4711] disconnected: session taken over.",  # 2.1
    ],
    "client": [
        f"Bad socket read/write on client {'a' * 32}: Unknown error.",  # 2.0.11
        f"Client {'a' * 32} disconnected due to oversize packet.",  # 2.0
        f"Client {'a' * 32} disconnected, not authorised.",
        f"Client {'a' * 32} [127.0.0.1:4711] disconnected: not authorised.",  # 2.1
        f"Client {'a' * 32} [127.0.0.1:4711] disconnected: malformed packet.",
        "Protocol error from a: password without username, closing connection.",
    ],
    None: [
        "New connection from 127.0.0.1:41887 on port 8883.",
        f"New client connected from 127.0.0.1:1 as {'a' * 32} (p5, c1, k30, u'{'a' * 32}').",
        f"Client {'a' * 32} closed its connection.",
        f"Client {'a' * 32} disconnected.",
        f"Client {'a' * 32} has exceeded timeout, disconnecting.",
        f"Client {'a' * 32} [127.0.0.1:4711] disconnected: connection closed by client.",
        "Bad socket read/write on client x: The connection was lost.",
        "Saving in-memory database to /var/lib/mosquitto//mosquitto.db.",
    ],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in SAID.items() for text in texts])
def test_each_line_is_of_its_kind(kind, text):
    assert refusal(f"1795768065: {text}".encode()) == kind


def test_any_bytes_are_taken():
    assert refusal(b"\xff\x00" * 100_000) is None
