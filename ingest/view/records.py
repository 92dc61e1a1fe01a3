"""What happens seldom, in the view: systems, decisions, commands, closed periods. Written again, nothing changes."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Column, Engine, Table, func, select, tuple_

from ingest.commands import command_json
from ingest.view.lines import NS_PER_MS
from ingest.view.sink import MAX_LINES, Sink, patiently, write_lines
from maxgreen.clock import Clock
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.schema import commands, decisions, devices, periods
from maxgreen.units import MWS_PER_KWH

_SYSTEMS_EVERY_S: Final = 3_600.0
_DAY_MS: Final = 86_400_000
_WEI: Final = 1e18
_SOME: Final = 1_000


class Records:
    """Writes what is new of each kind; `name` is that of the projector's position."""

    def __init__(
        self, engine: Engine, sink: Sink, name: str, clock: Clock, may_write: Callable[[], bool] = lambda: True
    ) -> None:
        """`may_write` is asked before each request."""
        self._engine, self._readers, self._sink, self._clock = engine, reader(engine), sink, clock
        self._position = f"{name}-"
        self._may_write = may_write
        self._systems_due_s = 0.0
        self._registered = -1
        # by table: keys that were written, of the last ones
        self._known: defaultdict[str, set[tuple[Any, ...]]] = defaultdict(set)

    def step(self) -> bool:
        """Write what is new; tell whether there is more. Positions move only after the write."""
        self._write_systems()
        more = [self._write_new(kind) for kind in _KINDS]  # every kind has its turn
        return any(more)

    def rebuild(self, *, afresh: bool = False) -> None:
        """Write all of it, also beside the running service."""
        if afresh:
            self._forget()
        while patiently(self.step):
            pass
        self._forget()  # the next one begins again

    def _forget(self) -> None:
        with self._engine.begin() as connection:
            for kind in _KINDS:
                Book(connection).set_position(self._position + kind.table.name, 0)
        self._known.clear()

    def _write_systems(self) -> None:
        now_ms = self._clock.now_ms()
        with self._readers.begin() as connection:
            registered = int(connection.execute(select(func.count()).select_from(devices)).scalar_one())
            if registered == self._registered and time.monotonic() < self._systems_due_s:
                return
            lines = [system_line(row, now_ms) for row in connection.execute(select(devices))]
        for begin in range(0, len(lines), MAX_LINES):
            if not self._may_write():
                return
            write_lines(self._sink, lines[begin : begin + MAX_LINES])
        self._registered, self._systems_due_s = registered, time.monotonic() + _SYSTEMS_EVERY_S

    def _write_new(self, kind: "_Kind") -> bool:
        known = self._known[kind.table.name]
        with self._readers.begin() as connection:
            position = Book(connection).position(self._position + kind.table.name)
            # what was committed late has a lower number: the last ones are looked at again
            since = kind.order > position - kind.overlap
            query = select(*kind.key).where(since).order_by(kind.order).limit(kind.at_once + len(known))
            new = [key for row in connection.execute(query) if (key := tuple(row)) not in known][: kind.at_once]
            if not new:
                return False
            rows = connection.execute(select(kind.table).where(tuple_(*kind.key).in_(new)).order_by(kind.order)).all()
        if not self._may_write():
            return False
        write_lines(self._sink, [line for row in rows for line in kind.lines(row)])
        newest = max(position, *(key[-1] for key in new))
        with self._engine.begin() as connection:
            Book(connection).set_position(self._position + kind.table.name, newest)
        self._known[kind.table.name] = {key for key in known | set(new) if key[-1] > newest - kind.overlap}
        return True


def system_line(row: Any, now_ms: int) -> str:
    """Return the line of a row of `devices`, once a UTC day; `label` is how people choose it, with its id behind."""
    system, device = json.loads(row.system), bytes(row.device).hex()
    name = f"{str(system['kind']).replace('_', ' ')} {row.token}"
    status = system["statuses"][-1][1] if system["statuses"] else "unknown"
    return (
        f"system,device={device},label={_tag(f'{name}|{device}')},owner={_tag(row.owner)} "
        f"token={row.token}i,status={_text(status)} {now_ms // _DAY_MS * _DAY_MS * NS_PER_MS}"
    )


def _decision_lines(row: Any) -> Iterator[str]:
    yield (
        f"decision,device={bytes(row.device).hex()},action={_tag(row.action)} who={_text(row.who)},"
        f"text={_text(row.text)},from_seq={row.from_seq}i,to_seq={row.to_seq}i "
        f"{row.at_ms * NS_PER_MS + row.id % NS_PER_MS}"
    )


def _command_lines(row: Any) -> Iterator[str]:
    one = command_json(row, 0)
    yield (
        f"command,device={one['device']},kind={_tag(one['kind'])} who={_text(one['who'])},"
        f"text={_text(one['kind'].replace('_', ' '))} {one['issued_ms'] * NS_PER_MS + row.id % NS_PER_MS}"
    )


def _period_lines(row: Any) -> Iterator[str]:
    """Yield the lines of a closed period, at its begin; a revision takes the place of what it revises."""
    run = json.loads(row.document)
    begin = datetime.fromisoformat(f"{run['period']}-01"[:10]).replace(tzinfo=UTC)
    t_ns = int(begin.timestamp()) * 1_000_000_000
    sums = {"sent": 0, "received": 0, "payable": 0, "held": 0, "disputed": 0}
    for line in run["lines"]:
        own = {
            "sent": int(line["sent_mws"]), "received": int(line["received_mws"]), "payable": int(line["payable_mws"]),
            "held": sum(map(int, line["held"].values())), "disputed": sum(map(int, line["disputed"].values())),
        }  # fmt: skip
        sums = {name: value + own[name] for name, value in sums.items()}
        named = {"period": run["period"], "line": line["line"][:16], "miner": line["miner"], "node": line["node"]}
        tags = ",".join(f"{name}={_tag(str(value))}" for name, value in named.items())
        yield (
            f"line,{tags} {_energies(own)},expected_loss_kwh={int(line['expected_loss_mws']) / MWS_PER_KWH},"
            f"minted={int(line['mint_wei']) / _WEI},online_windows={line['online_windows']}i,"
            f"counted_windows={line['counted_windows']}i,trouble={_text(line['trouble'])} {t_ns}"
        )
    counts = f"lines={len(run['lines'])}i,revision={run['revision']}i"
    yield f"period,period={run['period']} {_energies(sums)},{counts} {t_ns}"


def _energies(mws: dict[str, int]) -> str:
    loss = mws["sent"] - mws["received"]
    share = f",loss_share={loss / mws['sent']}" if mws["sent"] else ""
    return (
        ",".join(f"{name}_kwh={value / MWS_PER_KWH}" for name, value in mws.items())
        + f",loss_kwh={loss / MWS_PER_KWH}{share}"
    )


def _tag(text: str) -> str:
    """Return a tag's value, escaped (InfluxDB documentation, "Line protocol")."""
    clean = "".join(c for c in text if c.isprintable()) or "-"
    return clean.replace("\\", "/").replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")


def _text(text: str) -> str:
    """Return a string field's value, in one line."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True, slots=True)
class _Kind:
    """Rows of a table: their key, whose last part is their order, and how far back a late one may be."""

    table: Table
    key: tuple[Column[Any], ...]
    overlap: int
    at_once: int
    lines: Callable[[Any], Iterator[str]]

    @property
    def order(self) -> Column[Any]:
        return self.key[-1]


_KINDS: Final = (
    _Kind(decisions, (decisions.c.id,), 100, _SOME, _decision_lines),
    _Kind(commands, (commands.c.id,), 100, _SOME, _command_lines),
    # all of them: there are few, and a clock may have been ahead at a close
    _Kind(periods, (periods.c.until_s, periods.c.closed_ms), 2**62, 1, _period_lines),
)
