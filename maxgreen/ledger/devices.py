"""The registry and the chains in the ledger: read."""

import json
from collections.abc import Collection, Sequence

from sqlalchemy import select

from maxgreen.ledger.bulk import portions
from maxgreen.ledger.registry import KnownDevice, known_device
from maxgreen.ledger.schema import chains, devices
from maxgreen.ledger.subject import Subject
from maxgreen.verify.chain import ChainState


class Devices(Subject):
    """Devices as they are registered, and where their chains stand."""

    def device(self, device: bytes) -> KnownDevice | None:
        """Return a device, or None when the registry does not have it."""
        row = self._db.execute(select(devices).where(devices.c.device == device)).first()
        return None if row is None else known_device(row.token, row.owner, row.system)

    def all_devices(self) -> list[KnownDevice]:
        """Return every device, by token."""
        rows = self._db.execute(select(devices).order_by(devices.c.token))
        return [known_device(row.token, row.owner, row.system) for row in rows]

    def devices_of(self, tokens: Collection[int]) -> list[KnownDevice]:
        """Return the devices of systems, one for each key that a system had, by token."""
        found = []
        for some in portions(sorted(tokens)):
            query = select(devices).where(devices.c.token.in_(some))
            rows = self._db.execute(query.order_by(devices.c.token, devices.c.device))
            found += [known_device(row.token, row.owner, row.system) for row in rows]
        return found

    def roles(self, ids: Sequence[bytes]) -> dict[tuple[bytes, int], int]:
        """Return what the channels of some devices measure, as the registry says it: protocol.batch.Role."""
        query = select(devices.c.device, devices.c.system).where(devices.c.device.in_(ids))
        return {
            (bytes(row.device), int(channel["number"])): int(channel["role"])
            for row in self._db.execute(query)
            for channel in json.loads(row.system)["channels"]
        }

    def device_of(self, token: int) -> KnownDevice | None:
        """Return the device whose key counts for a system now."""
        return max(
            self.devices_of([token]),
            key=lambda device: int(device.system.get("key_number", 0)),
            default=None,
        )

    def state(self, device: bytes) -> ChainState | None:
        """Return a device's chain state, or None before its first batch."""
        data = self._db.execute(select(chains.c.state).where(chains.c.device == device)).scalar()
        return None if data is None else ChainState.from_bytes(bytes(data))

    def states(self) -> dict[bytes, ChainState]:
        """Return the chain state of every device that sent something."""
        rows = self._db.execute(select(chains.c.device, chains.c.state))
        return {bytes(device): ChainState.from_bytes(bytes(data)) for device, data in rows}
