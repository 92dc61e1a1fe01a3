"""The registry's devices as the ledger mirrors them, so that a verdict never waits for the chain."""

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update

from maxgreen.ledger.schema import devices
from maxgreen.verify.rules import DeviceRecord

_KNOWN: Final = 20_000  # devices with their keys, about 3 kB each


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A registered device."""

    record: DeviceRecord
    token: int
    owner: str
    system: Mapping[str, Any]


class Registry:
    """Decodes rows of devices, and remembers those that were asked for last."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[tuple[Any, ...], KnownDevice]] = OrderedDict()

    def known(self, device: bytes, token: int, owner: str, system: str) -> KnownDevice:
        """Return the device of a row of `devices`."""
        values = (token, owner, system)
        remembered = self._known.get(device)
        if remembered is not None and remembered[0] == values:
            self._known.move_to_end(device)
            return remembered[1]
        known = known_device(token, owner, system)
        self._known[device] = (values, known)
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return known


def known_device(token: int, owner: str, system_json: str) -> KnownDevice:
    """Return the device of a row of `devices`."""
    system = json.loads(system_json)
    statuses: Sequence[Sequence[Any]] = system["statuses"]
    record = DeviceRecord(bytes.fromhex(system["spki"]), tuple((int(at), str(status)) for at, status in statuses))
    return KnownDevice(record, token, owner, system)


def put_devices(connection: Connection, known: Iterable[KnownDevice]) -> int:
    """Mirror registry entries; return how many were new or had changed."""
    wanted = {device.record.device: _values(device) for device in known}
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
    text = json.dumps({**known.system, "spki": record.spki.hex(), "statuses": [list(s) for s in record.statuses]})
    return {"token": known.token, "owner": known.owner, "system": text}
