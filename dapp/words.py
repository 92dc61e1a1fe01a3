"""Numbers, times and sentences as people read them; every text in English, with a catalogue for other languages."""

from collections.abc import Callable, Mapping, Sequence
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
KINDS: Final = {"miner": "Solar system", "storage_node": "Storage node"}
LANGUAGES: Final = {"en": "English", "es": "Español"}
_COINS: Final = {"deca": "DECA", "maxcoin": "MaxCoin", "carbon": "CarbonToken"}
_COMMAS: Final = {"es"}
_WEI: Final = 10**18
_MOST_S: Final = 40 * 86_400  # of what is asked for at once
_THOUSAND: Final = 1_000
_WH: Final = (("Wh", 1.0, 1), ("kWh", 1e3, 2), ("MWh", 1e6, 2))
_W: Final = (("W", 1.0, 1), ("kW", 1e3, 2), ("MW", 1e6, 2))


def energy(energy_mws: int | str) -> str:
    """Return an energy in Wh, kWh or MWh."""
    return _scaled(int(energy_mws) / MWS_PER_KWH * 1000, _WH)


def power(watts: float) -> str:
    """Return a power in W, kW or MW."""
    return _scaled(watts, _W)


def worth(amount_wei: int | str) -> str:
    """Return an amount of energy tokens as the energy that it stands for: 1 token is 1 kWh."""
    return energy(int(amount_wei) * MWS_PER_KWH // _WEI)


def tokens(amount_wei: int | str) -> str:
    """Return an amount of tokens, at most six decimals."""
    return _number(int(amount_wei) / _WEI, 6)


def coin(name: str, language: str = "en") -> str:
    """Return what people call a token: `energy N` is that of node N."""
    kind, _, node = name.partition(" ")
    return translated("energy of node {node}", language).format(node=node) if node else _COINS.get(kind, kind)


def percent(ppm: int) -> str:
    """Return parts of a million in percent."""
    return f"{_number(ppm / 10_000, 2)} %"


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


def span(seconds: int) -> str:
    """Return a span of time: 2 d, 3 h, 5 min, 40 s."""
    parts = [(seconds // 86_400, "d"), (seconds // 3_600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


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


def language_of(cookies: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """Return the language that a visitor chose, else the first one that the browser names, else English."""
    wanted = cookies.get("lang") or headers.get("accept-language", "")[:2]
    return wanted if wanted in LANGUAGES else "en"


def with_commas(say: Callable[..., str], language: str) -> Callable[..., str]:
    """Return a way to write numbers as a language writes them."""
    return say if language not in _COMMAS else lambda *values: say(*values).replace(".", ",")


def translated(text: str, language: str) -> str:
    """Return a text in a language; as it is where the catalogue does not have it."""
    return said(language).get(text, text)


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


def _scaled(value: float, units: Sequence[tuple[str, float, int]]) -> str:
    """Return a number in the first unit in which it is written with less than four digits before the point."""
    unit, size, decimals = next((one for one in units if abs(round(value / one[1], one[2])) < _THOUSAND), units[-1])
    return f"{_number(value / size, decimals)} {unit}"


def _number(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text
