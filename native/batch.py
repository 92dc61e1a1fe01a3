"""The common batch as numbers, in C; `maxgreen.protocol.batch` is the reference."""

from typing import Final

from native._scrypt import ffi, lib

HEAD_VALUES: Final = lib.MG_HEAD_VALUES
CHANNEL_VALUES: Final = lib.MG_CHANNEL_VALUES


def read(message: bytes) -> list[int] | None:
    """Return the numbers of a signed batch as native/batch.h orders them; None when it is not common, or not right."""
    values = ffi.new("int64_t[]", lib.MG_BATCH_VALUES)
    count = lib.mg_read_batch(message, len(message), values)
    return ffi.unpack(values, count) if count else None
