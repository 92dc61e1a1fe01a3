"""Where the sun's centre stands: NOAA's solar calculator, IEEE double (docs/settlement.md).

Source: NOAA Global Monitoring Laboratory, Solar Calculation Details, after Meeus, Astronomical Algorithms.
"""

from math import acos, asin, cos, degrees, radians, sin, tan
from typing import Final

_UNIX_EPOCH_JULIAN_DAY: Final = 2440587.5
_J2000: Final = 2451545.0


def elevation_mdeg(unix_s: int, latitude: float, longitude: float) -> int:
    """Return the geometric elevation of the sun's centre in millidegrees; place in degrees, east positive."""
    century = (unix_s / 86400 + _UNIX_EPOCH_JULIAN_DAY - _J2000) / 36525
    mean_longitude = (280.46646 + century * (36000.76983 + century * 0.0003032)) % 360
    mean_anomaly = 357.52911 + century * (35999.05029 - 0.0001537 * century)
    eccentricity = 0.016708634 - century * (0.000042037 + 0.0000001267 * century)
    anomaly = radians(mean_anomaly)
    centre = (
        sin(anomaly) * (1.914602 - century * (0.004817 + 0.000014 * century))
        + sin(2 * anomaly) * (0.019993 - 0.000101 * century)
        + sin(3 * anomaly) * 0.000289
    )
    node = radians(125.04 - 1934.136 * century)
    apparent = radians(mean_longitude + centre - 0.00569 - 0.00478 * sin(node))
    tilt = 23 + (26 + (21.448 - century * (46.815 + century * (0.00059 - century * 0.001813))) / 60) / 60
    tilt = radians(tilt + 0.00256 * cos(node))
    declination = asin(sin(tilt) * sin(apparent))
    half_tilt = tan(tilt / 2) ** 2
    longitude_sun = radians(mean_longitude)
    equation_of_time_min = 4 * degrees(
        half_tilt * sin(2 * longitude_sun)
        - 2 * eccentricity * sin(anomaly)
        + 4 * eccentricity * half_tilt * sin(anomaly) * cos(2 * longitude_sun)
        - 0.5 * half_tilt**2 * sin(4 * longitude_sun)
        - 1.25 * eccentricity**2 * sin(2 * anomaly)
    )
    true_solar_min = (unix_s % 86400 / 60 + equation_of_time_min + 4 * longitude) % 1440
    hour_angle = radians(true_solar_min / 4 - 180)
    place = radians(latitude)
    cosine = sin(place) * sin(declination) + cos(place) * cos(declination) * cos(hour_angle)
    return round(1000 * (90 - degrees(acos(max(-1.0, min(1.0, cosine))))))
