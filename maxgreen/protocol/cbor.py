"""Deterministic CBOR (RFC 8949 §4.2.1), and maps with small integer keys read strictly."""

from collections.abc import Callable, Collection
from typing import Any, Final, TypeVar

import cbor2

from maxgreen.protocol.reasons import Malformed

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
MAX_DEPTH: Final = 16
MAX_TEXT: Final = 256

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Return the one deterministic encoding of `value`."""
    return cbor2.dumps(value, canonical=True)


def byte_string(data: bytes) -> bytes:
    """Return the encoding of a byte string, as `encode` gives it."""
    size = len(data)
    if size < 24:
        return bytes((0x40 | size,)) + data
    if size < 1 << 8:
        return bytes((0x58, size)) + data
    if size < 1 << 16:
        return b"\x59" + size.to_bytes(2, "big") + data
    return encode(data)


def read(data: bytes) -> Any:
    """Return the value of `data`, whose encoding the caller checks; Malformed when there is none."""
    try:
        return cbor2.loads(data, max_depth=MAX_DEPTH, allow_indefinite=False, allow_duplicate_keys=False)
    except Exception as error:  # the decoder raises many kinds, all of them the sender's fault
        raise Malformed(f"not CBOR: {type(error).__name__}") from error


def decode(data: bytes) -> Any:
    """Return the value of `data`; anything but its deterministic encoding is Malformed."""
    value = read(data)
    try:
        again = encode(value)
    except Exception as error:  # what was read may still have no encoding
        raise Malformed(f"not CBOR: {type(error).__name__}") from error
    if again != data:
        raise Malformed("not deterministic CBOR (RFC 8949 §4.2.1)")
    return value


class Fields:
    """A CBOR map with small unsigned keys; every read checks type and bounds, unknown keys are Malformed."""

    def __init__(self, value: Any, name: str, *, required: Collection[int], optional: Collection[int] = ()) -> None:
        """Take a map that must hold the keys `required`, may hold `optional`, and no others."""
        if type(value) is not dict:
            raise Malformed(f"{name}: not a map")
        known = {*required, *optional}
        for key in value:
            if type(key) is not int or key not in known:
                raise Malformed(f"{name}: unknown key {_shown(key)}")
        for key in required:
            if key not in value:
                raise Malformed(f"{name}: key {key} is missing")
        self._value = value
        self._name = name

    def __contains__(self, key: int) -> bool:
        return key in self._value

    def raw(self, key: int) -> Any:
        """Return the undecoded value, or None when absent."""
        return self._value.get(key)

    def integer(self, key: int, low: int = -(2**63), high: int = 2**63 - 1) -> int:
        """Return an integer in [low, high]."""
        return check_integer(self._value[key], f"{self._name}.{key}", low, high)

    def uint(self, key: int, high: int = U64_MAX) -> int:
        """Return an unsigned integer up to `high`."""
        return self.integer(key, 0, high)

    def boolean(self, key: int) -> bool:
        """Return true or false."""
        value = self._value[key]
        if type(value) is not bool:
            raise Malformed(f"{self._name}.{key}: not a boolean")
        return value

    def bstr(self, key: int, size: int | None = None) -> bytes:
        """Return a byte string, of exactly `size` bytes when given."""
        return check_bytes(self._value[key], f"{self._name}.{key}", size)

    def tstr(self, key: int, most: int = MAX_TEXT) -> str:
        """Return a text string of at most `most` characters."""
        value = self._value[key]
        if type(value) is not str or len(value) > most:
            raise Malformed(f"{self._name}.{key}: not text of at most {most} characters")
        return value

    def items(self, key: int, read: Callable[[Any], T], least: int = 0, most: int | None = None) -> tuple[T, ...]:
        """Return an array read element by element, with `least` to `most` elements."""
        value = self._value[key]
        if type(value) is not list:
            raise Malformed(f"{self._name}.{key}: not an array")
        if len(value) < least or (most is not None and len(value) > most):
            raise Malformed(f"{self._name}.{key}: {len(value)} elements")
        return tuple(read(element) for element in value)


def _shown(key: Any) -> str:
    """Return a foreign key as an error may show it: never more of it than a person reads."""
    if type(key) is int and abs(key) <= U64_MAX:
        return str(key)
    return type(key).__name__


def check_integer(value: Any, name: str, low: int, high: int) -> int:
    """Return `value` when it is an integer in [low, high], else Malformed."""
    if type(value) is not int or not low <= value <= high:
        raise Malformed(f"{name}: not an integer in {low}..{high}")
    return value


def check_bytes(value: Any, name: str, size: int | None = None) -> bytes:
    """Return `value` when it is a byte string (of `size` bytes), else Malformed."""
    if type(value) is not bytes or (size is not None and len(value) != size):
        raise Malformed(f"{name}: not a byte string" + (f" of {size} bytes" if size is not None else ""))
    return value


def tagged(value: Any, tag: int, name: str) -> Any:
    """Return what stands behind CBOR tag `tag`, else Malformed."""
    if type(value) is not cbor2.CBORTag or value.tag != tag:
        raise Malformed(f"{name}: not tag {tag}")
    return value.value


def tag(number: int, value: Any) -> Any:
    """Return `value` behind CBOR tag `number`."""
    return cbor2.CBORTag(number, value)
