"""The state of a device's chain: what the next batch is checked against (P-ING-1)."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from maxgreen.protocol import cbor
from maxgreen.protocol.batch import Batch, Birth, decode_birth, encode_birth, known_birth
from maxgreen.protocol.cose import network_digest
from maxgreen.values import value
from maxgreen.verify.meter import Sample


@value(frozen=True, slots=True)
class ChannelState:
    """A channel's registers as last stated, and the sample that the next segment starts from."""

    channel: int
    role: int
    register_mws: int = 0
    reverse_mws: int = 0
    gap_ms: int = 0
    last: Sample | None = None


@value(frozen=True, slots=True)
class ChainState:
    """Where a device's chain stands; wall times in ms since the epoch, boot times in ms since boot."""

    head: bytes
    next_seq: int = 0
    boot: bytes = b""
    boot_ms: int | None = None  # last boot time covered in this boot
    wall_ms: int = -1  # last wall time covered by accepted batches, and by those of a suspended device
    earlier_wall_ms: int = -1  # the same, by those of earlier boots
    boot_date_ms: int | None = None  # wall minus boot time, by the boot's first such batch that is synchronised
    birth: Birth | None = None
    channels: Mapping[int, ChannelState] = field(default_factory=dict)
    undated_from: int | None = None  # the first seq of this boot that is held without a date (P-BAT-7)
    halted: bool = False  # after equivocation, chain_break or register_regression (P-ING-3 b)

    @classmethod
    def start(cls, network: str) -> "ChainState":
        """Return the state before a key's first batch."""
        return cls(head=network_digest(network))

    def enter(self, boot: bytes) -> "ChainState":
        """Return the state as a batch of `boot` sees it: nothing is counted across a boot (P-BAT-4)."""
        if boot == self.boot:
            return self
        return replace(
            self,
            boot=boot,
            boot_ms=None,
            earlier_wall_ms=self.wall_ms,
            boot_date_ms=None,
            birth=None,
            channels={n: replace(c, last=None) for n, c in self.channels.items()},
            undated_from=None,
        )

    @property
    def dating(self) -> bool:
        """Whether batches of this boot still get the date that it has: no other takes its place before."""
        return self.undated_from is not None and self.boot_date_ms is not None

    def regresses(self, batch: Batch) -> bool:
        """Tell whether a register of the batch is lower than the chain's (register_regression)."""
        for channel in batch.channels:
            known = self.channels.get(channel.number)
            if known is not None and (
                channel.register_mws < known.register_mws
                or channel.reverse_mws < known.reverse_mws
                or channel.gap_ms < known.gap_ms
            ):
                return True
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the state as start/<device>.json holds it."""
        return {
            "seq": self.next_seq,
            "head": self.head.hex(),
            "boot": self.boot.hex(),
            "boot_ms": self.boot_ms,
            "wall_ms": self.wall_ms,
            "earlier_wall_ms": self.earlier_wall_ms,
            "boot_date_ms": self.boot_date_ms,
            "birth": encode_birth(self.birth).hex() if self.birth else None,
            "undated_from": self.undated_from,
            "halted": self.halted,
            "channels": [_channel_json(self.channels[n]) for n in sorted(self.channels)],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ChainState":
        """Read such a state."""
        channels = (_channel_from_json(channel) for channel in value["channels"])
        return cls(
            head=bytes.fromhex(value["head"]),
            next_seq=value["seq"],
            boot=bytes.fromhex(value["boot"]),
            boot_ms=value["boot_ms"],
            wall_ms=value["wall_ms"],
            earlier_wall_ms=value["earlier_wall_ms"],
            boot_date_ms=value["boot_date_ms"],
            birth=decode_birth(bytes.fromhex(value["birth"])) if value["birth"] else None,
            channels={channel.channel: channel for channel in channels},
            undated_from=value["undated_from"],
            halted=value["halted"],
        )

    def to_bytes(self) -> bytes:
        """Return the state as the ledger holds it."""
        channels = [
            [c.channel, c.role, c.register_mws, c.reverse_mws, c.gap_ms]
            + ([c.last.voltage_uv, c.last.current_ua, c.last.boot_ms] if c.last else [])
            for c in self.channels.values()
        ]
        birth = encode_birth(self.birth) if self.birth else None
        return cbor.encode(
            [
                self.head,
                self.next_seq,
                self.boot,
                self.boot_ms,
                self.wall_ms,
                self.earlier_wall_ms,
                self.boot_date_ms,
                birth,
                channels,
                self.undated_from,
                self.halted,
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "ChainState":
        """Read such a state, of a ledger: nobody else made it."""
        head, next_seq, boot, boot_ms, wall_ms, earlier_wall_ms, boot_date_ms, birth, channels, undated_from, halted = (
            cbor.read(data)
        )
        return cls(
            head,
            next_seq,
            boot,
            boot_ms,
            wall_ms,
            earlier_wall_ms,
            boot_date_ms,
            known_birth(birth) if birth is not None else None,
            {
                number: ChannelState(number, role, register, reverse, gap, Sample(*last) if last else None)
                for number, role, register, reverse, gap, *last in channels
            },
            undated_from,
            halted,
        )


def _channel_json(state: ChannelState) -> dict[str, Any]:
    last = state.last
    return {
        "channel": state.channel,
        "role": state.role,
        "v_uv": last.voltage_uv if last else None,
        "i_ua": last.current_ua if last else None,
        "boot_ms": last.boot_ms if last else None,
        "register": str(state.register_mws),
        "reverse": str(state.reverse_mws),
        "gap": str(state.gap_ms),
    }


def _channel_from_json(value: Mapping[str, Any]) -> ChannelState:
    last = None if value["boot_ms"] is None else Sample(value["v_uv"], value["i_ua"], value["boot_ms"])
    return ChannelState(
        value["channel"], value["role"], int(value["register"]), int(value["reverse"]), int(value["gap"]), last
    )
