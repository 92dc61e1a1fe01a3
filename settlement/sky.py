"""What the sky allowed: generation against a clear sky, and its daily shape, by pvlib (Holmgren et al. 2018)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from pvlib.location import Location

_WINDOW_S = 600
_DIM = 0.05  # of the peak: below it twilight and haze decide
_W_PER_M2 = 1_000  # standard test conditions, by which a peak is rated


class Sky(NamedTuple):
    """Generation against a clear sky: `beyond` of so many `windows` had more than a panel that faces the sun gets then.

    `shape`: the correlation of power with that of a clear sky, 0 where there is too little to tell.
    """

    windows: int
    beyond: int
    shape: float


def compare(energies_mws: Mapping[int, int], peak_mw: int, place: tuple[float, float], margin: float) -> Sky:
    """Compare the generation of windows, mW·s by their first second, with a clear sky over a place (degrees).

    The bound is direct and diffuse light on a panel that always faces the sun (pvlib, simplified Solis), with a margin
    for the edges of clouds, which concentrate light.
    """
    if not energies_mws:
        return Sky(0, 0, 0.0)
    seconds = np.array(sorted(energies_mws))
    times = pd.to_datetime(seconds + _WINDOW_S // 2, unit="s", utc=True)
    sky = Location(*place).get_clearsky(pd.DatetimeIndex(times), model="simplified_solis")
    most_mw = (sky["dni"] + sky["dhi"]).to_numpy() / _W_PER_M2 * peak_mw
    power_mw = np.array([energies_mws[int(second)] for second in seconds]) / _WINDOW_S
    beyond = power_mw > np.maximum(most_mw * margin, _DIM * peak_mw)
    varies = len(seconds) > 1 and power_mw.std() > 0 and most_mw.std() > 0
    shape = float(np.corrcoef(power_mw, most_mw)[0, 1]) if varies else 0.0
    return Sky(len(seconds), int(beyond.sum()), shape)
