"""Line protocol of what the ledger holds; the same row always gives the same lines, so writing twice changes nothing.

Every number is written exactly, from integers: µV as volts with six decimals, pW as watts with twelve. Times are ns since
the epoch. A batch's own point is keyed by its device and its arrival, whose last digits are its seq: so it is one point
whatever becomes of the batch.
"""

from collections.abc import Iterator
from typing import Any, Final

from maxgreen.protocol.batch import Channel, parse_batch
from maxgreen.protocol.reasons import Reason, Verdict

NS_PER_MS: Final = 1_000_000


def batch_lines(row: Any) -> Iterator[str]:
    """Return the lines of a row of `batches`: its verdict, and when it is accepted its samples and registers."""
    device = bytes(row.device).hex()
    reason = Reason(row.reason)
    yield (
        f'batch,device={device} verdict="{row.verdict}",reason="{reason.label}",seq={row.seq}i,shares={row.shares}i,'
        f"hashes={float(row.hashes)} {row.received_ms * NS_PER_MS + row.seq % NS_PER_MS}"
    )
    if row.verdict != Verdict.ACCEPTED.value or row.t0_ms is None:
        return
    if row.shares:
        yield f"work,device={device} shares={row.shares}i,hashes={float(row.hashes)} {row.t0_ms * NS_PER_MS}"
    for channel in parse_batch(bytes(row.message)).batch.channels:
        tags = f"device={device},channel={channel.number},role={channel.role}"
        yield from sample_lines(tags, channel, row.t0_ms)
        last_ns = (row.t0_ms + channel.offsets_ms[-1]) * NS_PER_MS
        yield (
            f"register,{tags} forward_kwh={channel.register_mws / 3.6e9},reverse_kwh={channel.reverse_mws / 3.6e9},"
            f"gap_s={decimal(channel.gap_ms, 3)} {last_ns}"
        )


def sample_lines(tags: str, channel: Channel, t0_ms: int) -> Iterator[str]:
    """Return the lines of a channel's samples."""
    for voltage_uv, current_ua, offset_ms in zip(
        channel.voltage_uv, channel.current_ua, channel.offsets_ms, strict=True
    ):
        v, i, p = decimal(voltage_uv, 6), decimal(current_ua, 6), decimal(voltage_uv * current_ua, 12)
        yield f"sample,{tags} v={v},i={i},p={p} {(t0_ms + offset_ms) * NS_PER_MS}"


def rejected_line(row: Any) -> str:
    """Return the line of a row of `evidence`."""
    device = f',device="{bytes(row.device).hex()}"' if row.device else ""
    t_ns = row.received_ms * NS_PER_MS + row.id % NS_PER_MS
    return f"rejected,reason={Reason(row.reason).label} id={row.id}i,bytes={len(row.message)}i{device} {t_ns}"


def decimal(value: int, digits: int) -> str:
    """Return value · 10^−digits, exactly."""
    sign = "-" if value < 0 else ""
    whole, rest = divmod(abs(value), 10**digits)
    return f"{sign}{whole}.{rest:0{digits}d}"
