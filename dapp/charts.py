"""Pictures that the server draws: bars by day and month, windows as a calendar."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from dapp import words
from dapp.views.metered import ROLES, WINDOW_S
from dapp.visit import Visit

HEIGHT: Final = 120  # px
WIDTH: Final = 14  # of a bar with its gap
_HOUR_S: Final = 3_600


def bars(
    rows: Sequence[tuple[str, Mapping[str, int]]],
    visit: Visit,
    kinds: Sequence[str] = ROLES,
) -> dict[str, Any]:
    """Return bars, from the bottom up by kind, mW·s; kinds that nothing has are left out.

    A system's channels measure the same energy at several places, so these stand beside each other; what became of
    energy is parted, and is piled up.
    """
    shown = [kind for kind in kinds if any(values.get(kind) for _, values in rows)]
    piled = set(kinds).isdisjoint(ROLES)
    most = max((_top([values.get(kind, 0) for kind in shown], piled=piled) for _, values in rows), default=0) or 1
    found = []
    for number, (label, values) in enumerate(rows):
        top, parts = float(HEIGHT), []
        wide = WIDTH - 3 if piled else (WIDTH - 3) / max(1, len(shown))
        for k, kind in enumerate(shown):
            height = HEIGHT * values.get(kind, 0) / most
            top = top - height if piled else HEIGHT - height
            x = number * WIDTH + (0 if piled else k * wide)
            place = {"x": x, "y": top, "width": wide, "height": height}
            parts.append({"kind": kind, **{name: round(value, 2) for name, value in place.items()}})
        said = ", ".join(f"{visit.say(kind)} {visit.energy(values.get(kind, 0))}" for kind in shown)
        found.append(
            {
                "label": label,
                "parts": parts,
                "title": f"{label}: {said or visit.say('no data')}",
                "values": dict(values),
            }
        )
    return {
        "bars": found, "kinds": shown, "most": visit.energy(most if shown else 0), "width": max(1, len(rows)) * WIDTH,
        "height": HEIGHT,
    }  # fmt: skip


def _top(values: Sequence[int], *, piled: bool) -> int:
    return sum(values) if piled else max(values, default=0)


def calendar_rows(found: Sequence[Mapping[str, int]], from_s: int, until_s: int, visit: Visit) -> list[dict[str, Any]]:
    """Return the windows of a day in rows of an hour: none, counts, counts without work, does not count."""
    by_window, zone = {one["window"]: one for one in found}, visit.zone
    rows: list[dict[str, Any]] = []
    for window_s in range(from_s // WINDOW_S * WINDOW_S, until_s, WINDOW_S):
        hour_s = from_s + max(0, window_s - from_s) // _HOUR_S * _HOUR_S
        hour = datetime.fromisoformat(words.iso(hour_s, zone)).strftime("%H:%M")
        if not rows or rows[-1]["from"] != hour_s:
            rows.append({"hour": hour, "from": hour_s, "cells": []})
        one = by_window.get(window_s)
        title = f"{words.moment(window_s * 1000, zone)}: {_said(one, visit)}"
        rows[-1]["cells"].append({"state": _state(one), "title": title})
    return rows


def map_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return where devices are, as dots on a grid of degrees around them; None when none says where it is.

    Places are known to a tenth of a degree, so a dot is a few kilometres wide. Those in one place are one dot.
    """
    dots: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["place"]:
            dots.setdefault((row["place"][0], row["place"][1]), []).append(row)
    if not dots:
        return None
    south, north = min(p[0] for p in dots) - 1, max(p[0] for p in dots) + 1
    west, east = min(p[1] for p in dots) - 1, max(p[1] for p in dots) + 1
    scale = min(600 / (east - west), 300 / (north - south))
    step = next(step for step in (1, 5, 10, 30, 90) if (east - west) / step <= 12)
    return {
        "width": round((east - west) * scale, 1),
        "height": round((north - south) * scale, 1),
        "meridians": [
            {"x": round((d - west) * scale, 1), "label": f"{d}°"}
            for d in range(-180, 181, step)
            if west <= d <= east
        ],
        "parallels": [
            {"y": round((north - d) * scale, 1), "label": f"{d}°"} for d in range(-90, 91, step) if south <= d <= north
        ],
        "dots": [
            {
                "x": round((longitude - west) * scale, 1), "y": round((north - latitude) * scale, 1),
                "size": min(14, 4 + len(there)), "well": all(row["how"] == "well" for row in there),
                "title": f"{latitude}°, {longitude}°: {', '.join(str(row['token']) for row in there[:20])}",
            }
            for (latitude, longitude), there in dots.items()
        ],
    }  # fmt: skip


def _state(one: Mapping[str, int] | None) -> str:
    if one is None:
        return "none"
    if one["rejected"] or one["held"]:
        return "bad"
    return "good" if one["shares"] else "idle"


def _said(one: Mapping[str, int] | None, visit: Visit) -> str:
    if one is None:
        return visit.say("no data")
    every = one["accepted"] + one["rejected"] + one["held"]
    parts = [visit.say("{count} of {all} batches count", count=one["accepted"], all=every)]
    if not one["shares"]:
        parts.append(visit.say("no proof of work"))
    return ", ".join(parts)
