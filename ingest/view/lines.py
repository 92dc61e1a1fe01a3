"""Line protocol of what the ledger holds; the same row always gives the same lines, so writing twice changes nothing.

Every number is written exactly, from integers: µV as volts with up to six decimals, pW as watts with up to twelve.
Times are ns since the epoch. A batch's own point is keyed by its device and its arrival, whose last digits are its seq:
so it is one point whatever becomes of the batch. A minute that two batches share is a point of each, told apart in the
same way. The lines of samples and minutes are made in C; `sample_line` and `minute_lines_of` say what they are.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final

from maxgreen.protocol.batch import EventKind, contents_of, role_name
from maxgreen.protocol.reasons import Reason, Verdict
from native.lines import minute_lines, sample_lines

NS_PER_MS: Final = 1_000_000
_MINUTE_MS: Final = 60_000


def batch_lines(row: Any) -> list[str]:
    """Return the lines of a row of `batches`: its verdict, and when it is accepted its samples and registers."""
    return batch_text(row)[0].decode().split("\n")


def batch_text(row: Any) -> tuple[bytes, int]:
    """Return the same as one text, and how many lines it has."""
    text = b"".join(_batch_parts(row))[:-1]
    return text, text.count(b"\n") + 1


def _batch_parts(row: Any) -> Iterator[bytes]:
    """Yield lines, or some at once; each ends in a new line."""
    device = bytes(row.device).hex()
    reason = Reason(row.reason)
    yield (
        f'batch,device={device} verdict="{row.verdict}",reason="{reason.label}",seq={row.seq}i,shares={row.shares}i,'
        f"hashes={float(row.hashes)} {row.received_ms * NS_PER_MS + row.seq % NS_PER_MS}\n"
    ).encode()
    if row.verdict != Verdict.ACCEPTED.value or row.t0_ms is None:
        return
    if row.shares:
        work = f"work,device={device} shares={row.shares}i,hashes={float(row.hashes)} {row.t0_ms * NS_PER_MS}\n"
        yield work.encode()
    channels, events = contents_of(bytes(row.message))
    for place, event in enumerate(events):
        t_ns = (row.t0_ms + event.offset_ms) * NS_PER_MS + row.seq % 1_000 * 1_000 + place % 1_000
        yield f'event,device={device} text="{_event_name(event.kind)}",kind={event.kind}i {t_ns}\n'.encode()
    for channel in channels:
        tags = f"device={device},channel={channel.number},role={role_name(channel.role)}"
        arrays = (channel.voltage, channel.current, channel.offsets)
        yield sample_lines(tags, *arrays, row.t0_ms)
        yield minute_lines(tags, *arrays, row.t0_ms, row.seq % NS_PER_MS)
        last_ns = (row.t0_ms + channel.last_offset_ms) * NS_PER_MS
        yield (
            f"register,{tags} forward_kwh={channel.register_mws / 3.6e9},reverse_kwh={channel.reverse_mws / 3.6e9},"
            f"gap_s={decimal(channel.gap_ms, 3)} {last_ns}\n"
        ).encode()


def _event_name(kind: int) -> str:
    try:
        return EventKind(kind).name.lower().replace("_", " ")
    except ValueError:
        return f"event {kind}"


def sample_line(tags: str, voltage_uv: int, current_ua: int, t_ms: int) -> str:
    """Return the line of a sample."""
    values = _values(voltage_uv, current_ua, voltage_uv * current_ua)
    return f"sample,{tags} {values} {t_ms * NS_PER_MS}"


def minute_lines_of(tags: str, samples: Iterable[tuple[int, int, int]], mark_ns: int) -> list[str]:
    """Return the lines of the UTC minutes of samples (µV, µA, ms): their number and their means, towards zero."""
    lines = []
    for minute, group in groupby(samples, lambda sample: sample[2] // _MINUTE_MS):
        taken = list(group)
        sums = (sum(v for v, _, _ in taken), sum(i for _, i, _ in taken), sum(v * i for v, i, _ in taken))
        means = [abs(total) // len(taken) * (-1 if total < 0 else 1) for total in sums]
        t_ns = minute * _MINUTE_MS * NS_PER_MS + mark_ns
        lines.append(f"minute,{tags} n={len(taken)}i,{_values(*means)} {t_ns}")
    return lines


def _values(voltage_uv: int, current_ua: int, power_pw: int) -> str:
    return f"v={decimal(voltage_uv, 6)},i={decimal(current_ua, 6)},p={decimal(power_pw, 12)}"


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
