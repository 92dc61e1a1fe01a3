"""What a system measured: a day as curves, months and years as bars, windows as a calendar; from the ledger's sums."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import func, select

from dapp.world import World
from maxgreen.backend import SILENT_MS
from maxgreen.ledger.registry import KnownDevice
from maxgreen.ledger.schema import chains, sums, windows
from maxgreen.ledger.sums import DAY_S, read_sums
from maxgreen.protocol.batch import Role
from maxgreen.verify.chain import ChainState

WINDOW_S: Final = 600
MOST_DAYS: Final = 400
ROLES: Final = ("generation", "sent", "received", "delivered", "taken_out")
_MWS_TO_W: Final = 1000 * WINDOW_S


def devices_of(world: World, system: int) -> list[KnownDevice]:
    """Return the devices that a system ever had, oldest first."""
    return [known for known in world.devices if known.token == system]


def roles_of(known: KnownDevice) -> Mapping[int, str]:
    """Return the registered channels and what they are."""
    return {int(c["number"]): ROLES[int(c["role"])] for c in known.system["channels"]}


def channels_of(known: KnownDevice, role: Role) -> list[int]:
    """Return the registered channels of a role."""
    return [int(c["number"]) for c in known.system["channels"] if int(c["role"]) == role]


def curve(world: World, system: int, from_s: int, until_s: int) -> dict[str, Any]:
    """Return mean power by window, W; None where nothing was metered. Times are unix s, windows begin there."""
    times = list(range(from_s // WINDOW_S * WINDOW_S, until_s, WINDOW_S))
    place = {window_s: k for k, window_s in enumerate(times)}
    lines: dict[str, list[float | None]] = {}
    for known in devices_of(world, system):
        roles = roles_of(known)
        with world.book() as book:
            found = read_sums(book.connection, known.record.device, times[0], until_s)
        for (_, window_s, channel), one in found.channels.items():
            if channel in roles and one.counted_ms and window_s in place:
                line = lines.setdefault(f"{roles[channel]} {channel}", [None] * len(times))
                before = line[place[window_s]] or 0.0
                line[place[window_s]] = before + round(one.energy_mws / _MWS_TO_W, 3)
    return {"system": system, "times": times, "watts": dict(sorted(lines.items()))}


def days(world: World, system: int, from_s: int, until_s: int) -> list[dict[str, Any]]:
    """Return a system's UTC days: energy by role, mW·s, windows, those online, batches that do not count."""
    from_s, until_s = from_s // DAY_S * DAY_S, min(until_s, from_s + MOST_DAYS * DAY_S)
    found: dict[int, dict[str, Any]] = {
        day: {"day": _day(day), "energy_mws": dict.fromkeys(ROLES, 0), "windows": 0, "online": 0, "rejected": 0}
        for day in range(from_s, until_s, DAY_S)
    }
    for known in devices_of(world, system):
        roles = roles_of(known)
        with world.book() as book:
            for day, channel, energy in book.connection.execute(_sums_by_day(known, from_s, until_s)):
                if channel in roles:
                    found[int(day)]["energy_mws"][roles[channel]] += int(energy)
            for day, count, online, rejected in book.connection.execute(_windows_by_day(known, from_s, until_s)):
                found[int(day)]["windows"] += int(count)
                found[int(day)]["online"] += int(online or 0)
                found[int(day)]["rejected"] += int(rejected or 0)
    return list(found.values())


def months(world: World, system: int, year: int) -> list[dict[str, Any]]:
    """Return a system's UTC months of a year: energy by role, mW·s."""
    begin, end = _first(year, 1), _first(year + 1, 1)
    by_month: dict[str, dict[str, int]] = {f"{year}-{m:02}": dict.fromkeys(ROLES, 0) for m in range(1, 13)}
    for day in days(world, system, begin, end):
        for role, energy_mws in day["energy_mws"].items():
            by_month[day["day"][:7]][role] += energy_mws
    return [{"month": month, "energy_mws": energies} for month, energies in by_month.items()]


def calendar(world: World, system: int, from_s: int, until_s: int) -> list[dict[str, Any]]:
    """Return the windows of some time that have batches: how many count, do not, and whether work was shown."""
    found: dict[int, dict[str, Any]] = {}
    for known in devices_of(world, system):
        with world.book() as book:
            sums_ = read_sums(book.connection, known.record.device, from_s, until_s)
        for (_, window_s), one in sums_.devices.items():
            row = found.setdefault(window_s, {"window": window_s, "accepted": 0, "rejected": 0, "held": 0, "shares": 0})
            row["accepted"] += one.accepted
            row["rejected"] += one.rejected
            row["held"] += one.suspended
            row["shares"] += one.shares
    return [found[window_s] for window_s in sorted(found)]


def now(world: World, system: int) -> dict[str, Any]:
    """Return how a system is: power of each channel in its newest batch, W, and when that was measured, ms."""
    known = world.systems[system]
    with world.book() as book:
        row = book.connection.execute(select(chains.c.state).where(chains.c.device == known.record.device)).first()
    state = None if row is None else ChainState.from_bytes(bytes(row.state))
    status = known.record.statuses[-1][1]
    measured_ms = state.wall_ms if state is not None and state.wall_ms >= 0 else None
    channels = []
    for number, role in roles_of(known).items():
        channel = state.channels.get(number) if state is not None else None
        last = channel.last if channel is not None else None
        channels.append(
            {
                "channel": number,
                "role": role,
                "watts": None if last is None else round(last.power_pw(0) / 1e12, 2),
                "register_mws": channel.register_mws if channel is not None else 0,
            }
        )
    silent = measured_ms is not None and world.now_ms - measured_ms > SILENT_MS
    return {
        "system": system,
        "status": str(status),
        "measured_ms": measured_ms,
        "silent": silent,
        "halted": bool(state is not None and state.halted),
        "channels": channels,
    }


def month_bounds(month: str) -> tuple[int, int]:
    """Return when a UTC month begins and ends, unix s; ValueError when it is none."""
    begin = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    year, number = divmod(begin.year * 12 + begin.month, 12)
    return int(begin.timestamp()), _first(year, number + 1)


def total_by_role(found: list[dict[str, Any]]) -> dict[str, int]:
    """Return what days or months add up to by role, mW·s."""
    total: dict[str, int] = defaultdict(int)
    for one in found:
        for role, energy_mws in one["energy_mws"].items():
            total[role] += energy_mws
    return dict(total)


def _first(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp())


def _day(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")


def _sums_by_day(known: KnownDevice, from_s: int, until_s: int) -> Any:
    day = sums.c.window_s - sums.c.window_s % DAY_S
    place = (sums.c.device == known.record.device, sums.c.window_s >= from_s, sums.c.window_s < until_s)
    return select(day, sums.c.channel, func.sum(sums.c.energy_mws)).where(*place).group_by(day, sums.c.channel)


def _windows_by_day(known: KnownDevice, from_s: int, until_s: int) -> Any:
    day = windows.c.window_s - windows.c.window_s % DAY_S
    place = (windows.c.device == known.record.device, windows.c.window_s >= from_s, windows.c.window_s < until_s)
    counts = (func.count(), func.count().filter(windows.c.shares > 0), func.sum(windows.c.rejected))
    return select(day, *counts).where(*place).group_by(day)
