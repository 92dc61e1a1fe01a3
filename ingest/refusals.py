"""What the broker refuses, by its own log: Mosquitto publishes it beneath `$SYS/broker/log` (`log_dest topic`).

A publish that its acl drops is in Mosquitto's log at the level "debug" alone, and so is not seen here.
"""

import re
from typing import Final

LOG: Final = "$SYS/broker/log"
TOPICS: Final = (f"{LOG}/E", f"{LOG}/N")  # errors, notices
KINDS: Final = {
    # of a stranger, revoked, ended; none at all is what anybody can send
    "certificate": r"(OpenSSL Error|Client connection from \S+ failed)(?!.*did not return a certificate).*certificate",
    "handshake": r"OpenSSL Error|Client connection from \S+ failed|Client connection from \S+ denied",
    "twice": r"Client \S+ already connected, closing old|Client \S+ \[\S*\] disconnected: session taken over",
    "client": (
        r"Bad client|Protocol error from|Client \S+( \[\S*\])? disconnected(:|,| due to) "
        r"(protocol error|malformed|oversize|not authorised|us(ing|ed) (not allowed|disallowed)|receive maximum|"
        r"topic alias|client identifier|bad (username|authentication))|"
        # a publish that was refused, where the broker then ends the connection (2.0.11)
        r"Bad socket read/write on client \S+: Unknown error"
    ),
}
_LONGEST: Final = 1_000
_COMPILED: Final = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}


def refusal(line: bytes) -> str | None:
    """Return what kind of refusal a line of the broker's log tells of, or None."""
    text = line[:_LONGEST].decode(errors="replace")
    return next((kind for kind, pattern in _COMPILED.items() if pattern.search(text)), None)
