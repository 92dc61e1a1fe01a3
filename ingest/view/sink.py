"""Where lines of the view go, and what may become of them."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from ingest.config import InfluxSettings
from maxgreen.errors import Fatal, MaxgreenError, Retryable
from maxgreen.ledger.lease import short

_LOG: Final = logging.getLogger(__name__)
MAX_LINES: Final = 10_000  # InfluxDB 2 documentation, "Optimize writes"
REQUEST_S: Final = 8.0  # a request takes no longer
_RETRY_S: Final = 2.0
_T = TypeVar("_T")


class BadLinesError(MaxgreenError):
    """The database refused lines for what they are, and none or only some of the others were written."""


class TooLargeError(MaxgreenError):
    """The request was too large; nothing was written."""


class TooOldError(MaxgreenError):
    """Some lines are older than what the database keeps; the others were written."""


def target_of(settings: InfluxSettings) -> str:
    """Return a short name of the database that settings mean: what was written there is no use to another."""
    return short(f"{settings.url.rstrip('/')}|{settings.org}|{settings.bucket}")


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: bytes) -> None:
        """Write lines; BadLinesError, TooLargeError, TooOldError, Retryable or Fatal say what was not taken."""
        ...


def token_of(settings: InfluxSettings) -> str:
    """Return the token of settings; Fatal when its file cannot be read."""
    try:
        token = settings.token_file.read_text().strip() if settings.token_file else ""
    except OSError as error:
        raise Fatal(f"influx.token_file {settings.token_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Fatal(f"influx.token_file {settings.token_file}: expected one line of text, the token") from error
    if not token.isprintable():
        raise Fatal(f"influx.token_file {settings.token_file}: expected one line, the token")
    return token


def write_lines(sink: Sink, lines: Sequence[str]) -> None:
    """Write lines of which each may be refused alone: those are said and left out, and none keeps others from the view.

    Retryable and Fatal when the database is away or does not let us in.
    """
    try:
        sink.write("\n".join(lines).encode())
    except TooOldError as error:
        _LOG.info("not in the view, the database keeps nothing that old: %s", error)
    except (BadLinesError, TooLargeError) as error:
        if len(lines) > 1:
            write_lines(sink, lines[: len(lines) // 2])
            write_lines(sink, lines[len(lines) // 2 :])
        else:
            _LOG.error("not in the view: %s (%s); once mended: maxgreen ingest rebuild-view", lines[0], error)


def patiently(step: Callable[[], _T]) -> _T:
    """Return what a step returns; a database that is away is waited for."""
    while True:
        try:
            return step()
        except Retryable as error:
            _LOG.warning("waiting: %s", error)
            time.sleep(_RETRY_S)
