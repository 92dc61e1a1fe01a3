"""The end of a device's own chain: what the next batch is built on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from maxgreen.verify.meter import MeterState, Sample


@dataclass(frozen=True, slots=True)
class ChainTip:
    """What the next batch is built on; committed in one transaction with the batch before it (P-BAT-3)."""

    next_seq: int
    head: bytes
    boot: bytes = b""
    birth: bytes = b""
    opened: bool = False  # the opening attestation of every channel was sealed
    closed: bool = False  # the key's last batch was sealed (event 6)
    meters: Mapping[int, MeterState] = field(default_factory=dict)

    @property
    def last_boot_ms(self) -> int:
        """Boot time of the last sealed sample of this boot; -1 when there is none."""
        return max((m.last.boot_ms for m in self.meters.values() if m.last), default=-1)

    def entered(self, boot: bytes) -> "ChainTip":
        """Return the tip as seen in `boot`: nothing is counted across a boot (P-BAT-4)."""
        if boot == self.boot:
            return self
        meters = {n: replace(m, last=None, last_power_pw=0) for n, m in self.meters.items()}
        return replace(self, boot=boot, birth=b"", meters=meters)


def encode_tip(tip: ChainTip) -> bytes:
    """Return the tip as the spool keeps it."""
    value = {
        "next_seq": tip.next_seq,
        "head": tip.head.hex(),
        "boot": tip.boot.hex(),
        "birth": tip.birth.hex(),
        "opened": tip.opened,
        "closed": tip.closed,
        "meters": {str(number): asdict(meter) for number, meter in tip.meters.items()},
    }
    return json.dumps(value).encode()


def decode_tip(data: bytes) -> ChainTip:
    """Return the tip of `encode_tip`'s bytes."""
    value: Mapping[str, Any] = json.loads(data)
    return ChainTip(
        next_seq=value["next_seq"],
        head=bytes.fromhex(value["head"]),
        boot=bytes.fromhex(value["boot"]),
        birth=bytes.fromhex(value["birth"]),
        opened=value["opened"],
        closed=value["closed"],
        meters={
            int(number): MeterState(**{**meter, "last": Sample(**meter["last"]) if meter["last"] else None})
            for number, meter in value["meters"].items()
        },
    )
