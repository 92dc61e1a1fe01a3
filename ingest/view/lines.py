"""Line protocol of what the ledger holds; the same row always gives the same lines, so writing twice changes nothing.

Every number is written exactly, from integers: µV as volts with up to six decimals, pW as watts with up to twelve.
Times are ns since the epoch. A batch's own point is keyed by its device and its arrival, whose last digits are its seq:
so it is one point whatever becomes of the batch. The lines of samples are made in C; `sample_line` says what they are.
"""

from collections.abc import Iterator
from typing import Any, Final

from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.reasons import Reason, Verdict
from native.lines import sample_lines

NS_PER_MS: Final = 1_000_000


def batch_lines(row: Any) -> list[str]:
    """Return the lines of a row of `batches`: its verdict, and when it is accepted its samples and registers."""
    return batch_text(row)[0].split("\n")


def batch_text(row: Any) -> tuple[str, int]:
    """Return the same as one text, and how many lines it has."""
    text = "\n".join(_batch_parts(row))
    return text, text.count("\n") + 1


def _batch_parts(row: Any) -> Iterator[str]:
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
        samples = sample_lines(tags, channel.voltage, channel.current, channel.offsets, row.t0_ms)
        yield samples.decode()[:-1]
        last_ns = (row.t0_ms + channel.last_offset_ms) * NS_PER_MS
        yield (
            f"register,{tags} forward_kwh={channel.register_mws / 3.6e9},reverse_kwh={channel.reverse_mws / 3.6e9},"
            f"gap_s={decimal(channel.gap_ms, 3)} {last_ns}"
        )


def sample_line(tags: str, voltage_uv: int, current_ua: int, t_ms: int) -> str:
    """Return the line of a sample."""
    v, i, p = decimal(voltage_uv, 6), decimal(current_ua, 6), decimal(voltage_uv * current_ua, 12)
    return f"sample,{tags} v={v},i={i},p={p} {t_ms * NS_PER_MS}"


def rejected_line(row: Any) -> str:
    """Return the line of a row of `evidence`."""
    device = f',device="{bytes(row.device).hex()}"' if row.device else ""
    t_ns = row.received_ms * NS_PER_MS + row.id % NS_PER_MS
    return f"rejected,reason={Reason(row.reason).label} id={row.id}i,bytes={len(row.message)}i{device} {t_ns}"


def decimal(value: int, digits: int) -> str:
    """Return value / 10^digits, exactly and with no more digits than that takes."""
    sign = "-" if value < 0 else ""
    whole, rest = divmod(abs(value), 10**digits)
    return f"{sign}{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".")
