"""Dataclasses that nobody changes, made by the hundred thousand a second.

`dataclasses` guards a frozen object at run time: each field is set by `object.__setattr__`, three times as slow as an
assignment. Here mypy alone is the guard: it reads `value` as `dataclasses.dataclass`, so that an assignment to a field
of what is `frozen=True` is an error of the check, while at run time fields are plainly assigned.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:
    from collections.abc import Callable
    from dataclasses import dataclass

    def value(*, frozen: bool, slots: bool) -> Callable[[type], type]:
        """Return a decorator: equal and hashed by the fields, as a frozen dataclass is."""
        return dataclass(slots=slots, unsafe_hash=frozen)


__all__ = ["value"]
