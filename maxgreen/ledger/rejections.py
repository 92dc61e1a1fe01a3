"""What the DAO said no to: receipts tell it to the devices whose energy is in the order (receipts, field 8)."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, case, select, update

from maxgreen.ledger.bulk import portions
from maxgreen.ledger.desk import Due
from maxgreen.ledger.schema import chains
from maxgreen.protocol.backend import Rejection, decode_rejection, encode_rejection

_DUE: Final = case((chains.c.due > Due.MORE, chains.c.due), else_=int(Due.MORE))  # so that a receipt goes out


def tell(connection: Connection, devices: Collection[bytes], until_s: int, rejection: Rejection | None) -> int:
    """Let receipts tell devices of the order of a period that ends at `until_s`; return how many hear something new.

    None: it is not, or no more, rejected. One of another period stays until there is a newer one.
    """
    wanted = None if rejection is None else encode_rejection(rejection)
    changed = 0
    for some in portions(sorted(devices)):
        rows = connection.execute(select(chains.c.device, chains.c.rejection).where(chains.c.device.in_(some)))
        hear = [device for device, known in rows if _is_news(known, wanted, until_s)]
        if hear:
            values = {"rejection": wanted, "due": _DUE, "version": chains.c.version + 1}
            connection.execute(update(chains).where(chains.c.device.in_(hear)).values(values))
        changed += len(hear)
    return changed


def _is_news(known: bytes | None, wanted: bytes | None, until_s: int) -> bool:
    if known is None or wanted is None:
        return known != wanted and (known is None or decode_rejection(known).until_s == until_s)
    return known != wanted and decode_rejection(known).until_s <= until_s
