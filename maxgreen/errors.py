"""The three kinds of error: try again, keep as evidence, stop."""

from typing import Final

EXIT_USAGE: Final = 2
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h; units do not restart on it


class MaxgreenError(Exception):
    """Base of every error that this project raises on purpose."""


class Retryable(MaxgreenError):  # noqa: N818 - the kind is the name
    """A dependency is away for now; back off and try again."""


class Fatal(MaxgreenError):  # noqa: N818
    """Nothing but a person can cure it; the process ends with status 78."""


class UsageError(MaxgreenError):
    """The call's words are off; the process ends with status 2."""
