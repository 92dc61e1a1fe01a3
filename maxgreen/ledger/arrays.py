"""Columns of values as PostgreSQL's binary arrays: what its `array_recv` reads (src/backend/utils/adt/arrayfuncs.c).

Its driver makes the same bytes of lists of any kind, and looks at every value for that; that took a sixth of the time
which a small group of batches takes in all.
"""

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary, String, Text
from sqlalchemy.types import TypeEngine

_HEAD: Final = struct.Struct(">iiIii")  # dimensions, whether any is null, the element's type, how many, the first index
_NULL: Final = struct.pack(">i", -1)
_BOOLEANS: Final = (b"\0", b"\1")
# the element's type by its number in pg_type, and how a value of it is written; the first that fits
_KINDS: Final[tuple[tuple[type[TypeEngine[Any]], int, Callable[[Any], bytes]], ...]] = (
    (LargeBinary, 17, bytes),
    (BigInteger, 20, struct.Struct(">q").pack),
    (Integer, 23, struct.Struct(">i").pack),
    (Boolean, 16, _BOOLEANS.__getitem__),
    (Text, 25, str.encode),
    (String, 1043, str.encode),
)


class Array(bytes):
    """An array as PostgreSQL takes it in binary."""

    __slots__ = ()


@cache
def dumper() -> Any:
    """Return what hands an Array to PostgreSQL's driver; what it is an array of is said by the statement's cast."""
    from psycopg import adapt, pq  # noqa: PLC0415 - only where PostgreSQL is used

    class ArrayDumper(adapt.Dumper):
        format = pq.Format.BINARY

        def dump(self, obj: Array) -> bytes:
            return obj

    return ArrayDumper


def array_of(kind: TypeEngine[Any], values: Sequence[Any]) -> Array:
    """Return a column of values, or of None, as an array."""
    number, write = next((number, write) for known, number, write in _KINDS if isinstance(kind, known))
    parts: list[bytes] = [b""]
    nulls = 0
    for value in values:
        if value is None:
            nulls = 1
            parts.append(_NULL)
        else:
            data = write(value)
            parts += (len(data).to_bytes(4, "big"), data)
    parts[0] = _HEAD.pack(1, nulls, number, len(values), 1)
    return Array(b"".join(parts))
