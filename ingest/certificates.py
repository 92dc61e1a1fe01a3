"""Renewed certificates on their way to devices: from the folder of `maxgreen ca renew` to the broker (P-ID-7)."""

import re
import time
from pathlib import Path
from typing import Final

from ingest.source import Source
from maxgreen.errors import Retryable
from maxgreen.protocol.identity import device_topic

_NAME: Final = re.compile(r"([0-9a-f]{32})\.crt")
_EVERY_S: Final = 30.0
_YOUNG_S: Final = 90 * 86_400  # older ones are long with their devices
_LONGEST: Final = 8_192


class Certificates:
    """Publishes what is new in a folder; one thread calls `step`."""

    def __init__(self, folder: Path, source: Source) -> None:
        self._folder, self._source = folder, source
        self._sent: dict[str, float] = {}  # name: the file's time

    def step(self) -> float:
        """Publish what is new; return how long to pause, s. Retryable while the folder cannot be read."""
        try:
            files = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file()]
            for path in files:
                changed_s = path.stat().st_mtime
                if changed_s < time.time() - _YOUNG_S or self._sent.get(path.name) == changed_s:
                    continue
                data = path.read_bytes()[:_LONGEST]
                if not self._source.publish(device_topic(bytes.fromhex(path.stem), "certificate"), data, retain=True):
                    break  # when there is a connection again
                self._sent[path.name] = changed_s
        except FileNotFoundError:
            pass  # nothing was renewed yet
        except OSError as error:
            raise Retryable(f"certificates {self._folder}: {error.strerror}") from error
        return _EVERY_S
