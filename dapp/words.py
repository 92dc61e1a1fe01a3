"""Numbers, times and sentences as people read them; every text in English, with a catalogue for other languages."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Final
from zoneinfo import ZoneInfo

from babel.messages.pofile import read_po

from maxgreen.errors import UsageError
from maxgreen.units import MWS_PER_KWH

# What the protocol's words are to people.
_ENGLISH: Final = {"miner": "solar panel", "storage_node": "storage node", "taken_out": "taken out"}
LANGUAGES: Final = {"en": "English", "es": "Español"}
_WEI: Final = 10**18
_MOST_S: Final = 40 * 86_400  # of what is asked for at once
_SMALL_WH: Final = 1_000


def energy(energy_mws: int | str) -> str:
    """Return an energy in Wh or kWh."""
    wh = int(energy_mws) / MWS_PER_KWH * 1000
    if abs(wh) < _SMALL_WH:
        return f"{_number(wh, 1)} Wh"
    return f"{_number(wh / 1000, 2)} kWh"


def power(watts: float) -> str:
    """Return a power in W or kW."""
    return f"{_number(watts, 1)} W" if abs(watts) < _SMALL_WH else f"{_number(watts / 1000, 2)} kW"


def tokens(amount_wei: int | str) -> str:
    """Return an amount of tokens, at most six decimals."""
    return _number(int(amount_wei) / _WEI, 6)


def moment(t_ms: int, zone: str) -> str:
    """Return a time in a zone, which is named."""
    there = datetime.fromtimestamp(t_ms / 1000, _zone(zone))
    return f"{there:%Y-%m-%d %H:%M} {there.tzname()}"


def iso(unix_s: int, zone: str) -> str:
    """Return a time in a zone in ISO 8601."""
    return datetime.fromtimestamp(unix_s, _zone(zone)).isoformat()


def ago(then_ms: int, now_ms: int) -> tuple[int, str]:
    """Return how long ago something was: a number, and its unit."""
    seconds = max(0, now_ms - then_ms) // 1000
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return seconds // size, unit
    return seconds, "seconds"


def day_bounds(day: str, zone: str) -> tuple[int, int]:
    """Return when a day begins and ends in a zone, unix s; ValueError when it is no day."""
    there = _zone(zone)
    begin = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=there)
    end = datetime.fromtimestamp(begin.timestamp() + 36 * 3600, there).replace(hour=0, minute=0, second=0)
    return int(begin.timestamp()), int(end.timestamp())


def bounds(of: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Return when a day or month begins and ends; UsageError when it is none."""
    try:
        begin, end = of()
    except (ValueError, OverflowError) as error:
        raise UsageError("no such day or month") from error
    if not 0 < begin < end < 2**33 or end - begin > _MOST_S:
        raise UsageError("no such day or month")
    return begin, end


def today(now_ms: int, zone: str) -> str:
    """Return the day that it is in a zone."""
    return datetime.fromtimestamp(now_ms / 1000, _zone(zone)).strftime("%Y-%m-%d")


def known_zone(name: str) -> str:
    """Return a time zone's name when it is one, else UTC."""
    return name if _zone(name) is not UTC else "UTC"


def said(language: str) -> Mapping[str, str]:
    """Return what the texts of templates are in a language."""
    return _catalogue(language) if language in LANGUAGES and language != "en" else _ENGLISH


@lru_cache(maxsize=len(LANGUAGES))
def _catalogue(language: str) -> Mapping[str, str]:
    data = files("dapp").joinpath("locale", f"{language}.po").read_bytes()
    return {str(m.id): str(m.string) for m in read_po(BytesIO(data), locale=language) if m.id and m.string}


@lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return UTC


def _number(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text
