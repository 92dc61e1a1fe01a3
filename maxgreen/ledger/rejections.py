"""What the DAO said no to: receipts tell it to the devices whose energy is in the order (receipts, field 8)."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Engine, case, select, update

from maxgreen.ledger.bulk import portions
from maxgreen.ledger.desk import Due
from maxgreen.ledger.engine import reader
from maxgreen.ledger.schema import chains
from maxgreen.protocol.backend import Rejection, decode_rejection, encode_rejection

_AT_ONCE: Final = 100  # chains of one transaction: ingest, which writes them too, waits for no more
_DUE: Final = case((chains.c.due > Due.MORE, chains.c.due), else_=int(Due.MORE))  # so that a receipt goes out


def tell(engine: Engine, devices: Collection[bytes], rejection: Rejection) -> int:
    """Let receipts tell devices of a rejected order; return how many hear something new. A newer one stays."""
    told = _told(engine)
    wanted = encode_rejection(rejection)
    hear = [
        device
        for device in devices
        if device not in told or (told[device] != rejection and told[device].until_s <= rejection.until_s)
    ]
    return _set(engine, hear, wanted)


def over(engine: Engine, until_s: int) -> int:
    """Let receipts tell no more of orders of periods up to one: it was approved, or is closed again."""
    hear = [device for device, rejection in _told(engine).items() if rejection.until_s <= until_s]
    return _set(engine, hear, None)


def _told(engine: Engine) -> dict[bytes, Rejection]:
    query = select(chains.c.device, chains.c.rejection).where(chains.c.rejection.is_not(None))
    with reader(engine).begin() as connection:
        return {bytes(device): decode_rejection(known) for device, known in connection.execute(query)}


def _set(engine: Engine, devices: Collection[bytes], wanted: bytes | None) -> int:
    values = {"rejection": wanted, "due": _DUE, "version": chains.c.version + 1}
    changed = 0
    for some in portions(sorted(devices), _AT_ONCE):
        with engine.begin() as connection:
            changed += connection.execute(update(chains).where(chains.c.device.in_(some)).values(values)).rowcount
    return changed
