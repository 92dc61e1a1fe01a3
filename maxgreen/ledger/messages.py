"""What the backend signed: beacons, receipts, commands."""

from typing import Any, Final

from sqlalchemy import and_, func, insert, or_, select, update

from maxgreen.ledger.schema import beacons, commands, receipts
from maxgreen.ledger.subject import Subject
from maxgreen.protocol.backend import Beacon, Command, decode_beacon
from maxgreen.protocol.cose import parse

_LATE: Final = 1_000  # rows of commands


class Messages(Subject):
    """Beacons, receipts and commands as they were signed."""

    def add_beacon(self, beacon: Beacon, message: bytes) -> None:
        """Keep a beacon before it is published."""
        self._db.execute(insert(beacons).values(number=beacon.number, issued_s=beacon.issued_s, message=message))

    def newest_beacon(self) -> tuple[Beacon, bytes] | None:
        """Return the newest beacon with its signed message."""
        row = self._db.execute(select(beacons.c.message).order_by(beacons.c.number.desc()).limit(1)).first()
        return (beacon_of(row[0]), bytes(row[0])) if row else None

    def all_beacons(self, *, after: int = -1) -> dict[int, bytes]:
        """Return the signed beacons later than a number."""
        query = select(beacons.c.number, beacons.c.message).where(beacons.c.number > after)
        rows = self._db.execute(query.order_by(beacons.c.number))
        return {int(number): bytes(message) for number, message in rows}

    def receipts_of(self, device: bytes) -> list[bytes]:
        """Return the last receipt of each UTC day."""
        query = select(receipts.c.message).where(receipts.c.device == device).order_by(receipts.c.server_ms)
        return [bytes(message) for message in self._db.execute(query).scalars()]

    def add_command(self, command: Command, who: str, message: bytes) -> None:
        """Keep a command that is to be sent."""
        values = {"device": command.device, "number": command.number, "expires_ms": command.expires_ms}
        self._db.execute(insert(commands).values(**values, who=who, message=message))

    def newest_command(self, device: bytes) -> int | None:
        """Return the highest number that a device was sent."""
        number: int | None = self._db.scalar(select(func.max(commands.c.number)).where(commands.c.device == device))
        return number

    def commands_to_send(self, now_ms: int, *, after: int) -> list[Any]:
        """Return the commands that have not expired, of the rows after `after` and those that were never sent."""
        late = and_(commands.c.id > after - _LATE, commands.c.sent_ms.is_(None))  # committed after a higher number
        waiting = or_(commands.c.id > after, late)
        query = select(commands).where(waiting, commands.c.expires_ms > now_ms)
        return list(self._db.execute(query.order_by(commands.c.id)))

    def set_sent(self, ids: list[int], now_ms: int) -> None:
        """Note that commands were handed to the broker."""
        self._db.execute(update(commands).where(commands.c.id.in_(ids)).values(sent_ms=now_ms))

    def all_commands(self, limit: int = 100, *, device: bytes | None = None) -> list[Any]:
        """Return the newest commands, of all devices or of one, newest first."""
        query = select(commands).order_by(commands.c.id.desc()).limit(limit)
        return list(self._db.execute(query if device is None else query.where(commands.c.device == device)))


def beacon_of(message: bytes) -> Beacon:
    """Return the beacon of a signed message of our own."""
    return decode_beacon(parse(bytes(message)).payload)
