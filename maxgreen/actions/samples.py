"""Commented system files to begin with."""

from typing import Final

from maxgreen.errors import UsageError
from maxgreen.protocol.system import Kind

_SAMPLE: Final = """\
# A clean energy system, as its owner applies with it. The device signs exactly these fields.
kind = "{kind}"
# place = [35.1, -106.6]      # latitude, longitude in degrees; rounded to a tenth, and public
# uri = "https://example.org" # at most 512 bytes, public
{more}"""
_CHANNEL: Final = """
[[channels]]                  # 1 to 16; numbers as in the agent's settings
number = {number}
role = "{role}"
peak_w = 250                  # the most that it can ever measure
error_percent = 0.5           # of the meter after its calibration
offset_mw = 0
"""
_NODE: Final = """\
battery_wh = 10000            # tokens are never more than this
efficiency_percent = 90       # what comes out of what goes in
# online_required = false     # windows without its proof of work are held
"""
_SAMPLES: Final = {
    Kind.MINER: ("", ((0, "generation"), (1, "sent"), (2, "received"))),
    Kind.STORAGE_NODE: (_NODE, ((0, "received"), (3, "delivered"))),
}


def sample_text(kind: str) -> str:
    """Return a commented system file; UsageError when there is no such kind."""
    for which, (more, channels) in _SAMPLES.items():
        if which.label == kind:
            text = "".join(_CHANNEL.format(number=number, role=role) for number, role in channels)
            return _SAMPLE.format(kind=kind, more=more) + text
    raise UsageError(f"kind {kind!r}: expected {' or '.join(which.label for which in _SAMPLES)}")
