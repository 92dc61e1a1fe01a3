"""The sums by proof window in the ledger: added with every batch, read by the window and by the day (verify.sums)."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import Connection, delete, func, select

from maxgreen.ledger.bulk import ADD, MOST, NEW, OR, Bulk
from maxgreen.ledger.schema import SQUARE_UNIT, batches, sums, windows
from maxgreen.verify.sums import Break, ChannelSum, DeviceSum, Sums

_WINDOW_MERGES: Final = {
    **dict.fromkeys(("accepted", "rejected", "suspended", "shares", "hashes"), ADD),
    "interval_ms": MOST,
    "breaks": OR,
    "revision": NEW,
}
DAY_S: Final = 86_400  # a UTC day, named by its first second
HOUR_S: Final = 3_600
_DEVICE_SUMS: Final = ("accepted", "rejected", "suspended", "shares", "hashes")
_CHANNEL_SUMS: Final = ("energy_mws", "reverse_mws", "counted_ms", "unmetered_ms")
_CARRIES: Final = f"{{table}}.square_low + excluded.square_low >= {SQUARE_UNIT}"
_SUM_MERGES: Final = {
    **dict.fromkeys(("energy_mws", "reverse_mws"), ADD),
    "square_high": f"{ADD} + CASE WHEN {_CARRIES} THEN 1 ELSE 0 END",
    "square_low": f"{ADD} - CASE WHEN {_CARRIES} THEN {SQUARE_UNIT} ELSE 0 END",
    **dict.fromkeys(("counted_ms", "unmetered_ms"), ADD),
    "longest_ms": MOST,
}


def add_sums(bulk: Bulk, added: Sums, revision: int) -> None:
    """Add what batches add up to; the windows that they touch get a revision."""
    whole = [
        (
            device, window_s, one.accepted, one.rejected, one.suspended, one.shares, one.hashes, one.interval_ms,
            int(one.breaks), revision,
        )
        for (device, window_s), one in sorted(added.devices.items())
    ]  # fmt: skip
    bulk.upsert(windows, _WINDOW_MERGES, whole)
    channels = [
        (
            *place, one.energy_mws, one.reverse_mws, *divmod(one.square_current, SQUARE_UNIT), one.counted_ms,
            one.unmetered_ms, one.longest_ms,
        )
        for place, one in sorted(added.channels.items())
    ]  # fmt: skip
    bulk.upsert(sums, _SUM_MERGES, channels)


def read_sums(connection: Connection, device: bytes, from_s: int, until_s: int) -> Sums:
    """Return what a device's batches add up to in the windows that begin in from ≤ t < until."""
    found = Sums()
    of_device = (windows.c.device == device, windows.c.window_s >= from_s, windows.c.window_s < until_s)
    for row in connection.execute(select(windows).where(*of_device).order_by(windows.c.window_s)):
        found.devices[device, row.window_s] = DeviceSum(
            row.accepted, row.rejected, row.suspended, row.shares, row.hashes, row.interval_ms, Break(row.breaks)
        )
    of_channels = (sums.c.device == device, sums.c.window_s >= from_s, sums.c.window_s < until_s)
    for row in connection.execute(select(sums).where(*of_channels).order_by(sums.c.window_s, sums.c.channel)):
        found.channels[device, row.window_s, row.channel] = ChannelSum(
            row.energy_mws,
            row.reverse_mws,
            row.square_high * SQUARE_UNIT + row.square_low,
            row.counted_ms,
            row.unmetered_ms,
            row.longest_ms,
        )
    return found


def sums_revision(connection: Connection, device: bytes, from_s: int, until_s: int) -> int:
    """Return the newest revision that changed a window of from ≤ t < until; 0 where nothing is."""
    query = select(func.max(windows.c.revision)).where(
        windows.c.device == device, windows.c.window_s >= from_s, windows.c.window_s < until_s
    )
    return int(connection.execute(query).scalar() or 0)


def changed_hours(connection: Connection, revision: int, limit: int) -> tuple[dict[int, set[bytes]], int | None]:
    """Return the hours, and whose, that the next `limit` changes of a verdict touch, and the last change's revision."""
    query = select(batches.c.revision, batches.c.device, batches.c.t0_ms).where(batches.c.revision > revision)
    hours: dict[int, set[bytes]] = defaultdict(set)
    newest: int | None = None
    for row in connection.execute(query.order_by(batches.c.revision).limit(limit)):
        newest = int(row.revision)
        if row.t0_ms is not None:
            hours[row.t0_ms // 1000 // HOUR_S * HOUR_S].add(bytes(row.device))
    return dict(hours), newest


def days_of(connection: Connection, device: bytes, from_s: int, revision: int) -> list[int]:
    """Return a device's days of from ≤ t in which nothing changed after `revision`."""
    day = windows.c.window_s - windows.c.window_s % DAY_S
    query = select(day).where(windows.c.device == device, windows.c.window_s >= from_s).group_by(day).order_by(day)
    return [int(row[0]) for row in connection.execute(query.having(func.max(windows.c.revision) <= revision))]


def channel_totals(
    connection: Connection, from_s: int, until_s: int, span_s: int, devices: Collection[bytes]
) -> list[Any]:
    """Return what each `span_s` of from ≤ t < until adds up to, by channel of some devices: rows with its `begin_s`."""
    return _totals(connection, sums, ("device", "channel"), _CHANNEL_SUMS, (from_s, until_s, span_s), devices)


def device_totals(
    connection: Connection, from_s: int, until_s: int, span_s: int, devices: Collection[bytes]
) -> list[Any]:
    """Return the same of whole devices: their batches by verdict, and their work."""
    return _totals(connection, windows, ("device",), _DEVICE_SUMS, (from_s, until_s, span_s), devices)


def _totals(
    connection: Connection,
    table: Any,
    by: tuple[str, ...],
    names: tuple[str, ...],
    span: tuple[int, int, int],
    devices: Collection[bytes],
) -> list[Any]:
    from_s, until_s, span_s = span
    begin = (table.c.window_s - table.c.window_s % span_s).label("begin_s")
    keys = [*(table.c[name] for name in by), begin]
    query = select(*keys, *(func.sum(table.c[name]).label(name) for name in names))
    query = query.where(table.c.device.in_(devices), table.c.window_s >= from_s, table.c.window_s < until_s)
    return list(connection.execute(query.group_by(*keys).order_by(*keys)))


def replace_sums(connection: Connection, device: bytes, counted: Sums, revision: int) -> None:
    """Let a device's sums be these."""
    for table in (windows, sums):
        connection.execute(delete(table).where(table.c.device == device))
    with Bulk(connection) as bulk:
        add_sums(bulk, counted, revision)
