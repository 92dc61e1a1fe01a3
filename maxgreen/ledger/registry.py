"""The registry's devices as the ledger mirrors them, so that a verdict never waits for the chain."""

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update

from maxgreen.ledger.bulk import portions
from maxgreen.ledger.schema import devices
from maxgreen.verify.rules import DeviceRecord

_KNOWN: Final = 100_000  # devices that are remembered, about 1 kB each
_AT_ONCE: Final = 10_000  # a database takes so many parameters


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A registered device."""

    record: DeviceRecord
    token: int
    owner: str
    system: Mapping[str, Any]


class Records:
    """Decodes the records of devices, and remembers those that were asked for last."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[int, DeviceRecord]] = (
            OrderedDict()
        )  # with the hash of what they come from

    def record(self, device: bytes, system_json: str) -> DeviceRecord:
        """Return the record of a row of `devices`."""
        source = hash(system_json)
        remembered = self._known.get(device)
        if remembered is not None and remembered[0] == source:
            self._known.move_to_end(device)
            return remembered[1]
        record = _record(json.loads(system_json))
        self._known[device] = (source, record)
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return record


def known_device(token: int, owner: str, system_json: str) -> KnownDevice:
    """Return the device of a row of `devices`."""
    system = json.loads(system_json)
    return KnownDevice(_record(system), token, owner, system)


def _record(system: Mapping[str, Any]) -> DeviceRecord:
    statuses: Sequence[Sequence[Any]] = system["statuses"]
    return DeviceRecord(
        bytes.fromhex(system["spki"]),
        tuple((int(at), str(status)) for at, status in statuses),
        tuple((int(channel["number"]), int(channel["role"])) for channel in system["channels"]),
        bytes.fromhex(system["predecessor"]) if system.get("predecessor") else None,
        system.get("until_ms"),
        bool(system.get("lost")),
    )


def put_devices(connection: Connection, known: Iterable[KnownDevice]) -> int:
    """Mirror registry entries; return how many were new or had changed."""
    wanted = list({device.record.device: _values(device) for device in known}.items())
    return sum(_put(connection, dict(part)) for part in portions(wanted, _AT_ONCE))


def _put(connection: Connection, wanted: dict[bytes, dict[str, Any]]) -> int:
    there = {
        bytes(row.device): {"token": row.token, "owner": row.owner, "system": row.system}
        for row in connection.execute(select(devices).where(devices.c.device.in_(list(wanted))))
    }
    fresh = [{"device": device, **values} for device, values in sorted(wanted.items()) if device not in there]
    changed = [(device, values) for device, values in wanted.items() if there.get(device, values) != values]
    if fresh:
        connection.execute(insert(devices), fresh)
    for device, values in changed:
        connection.execute(update(devices).where(devices.c.device == device).values(values))
    return len(fresh) + len(changed)


def _values(known: KnownDevice) -> dict[str, Any]:
    record = known.record
    text = json.dumps(
        {
            **known.system,
            "spki": record.spki.hex(),
            "statuses": [list(s) for s in record.statuses],
            "predecessor": record.predecessor.hex() if record.predecessor else None,
            "until_ms": record.until_ms,
            "lost": record.lost,
        }
    )
    return {"token": known.token, "owner": known.owner, "system": text}
