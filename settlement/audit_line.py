"""A line's evidence as an audit reads it: its bytes those of the manifest, in the format's one form."""

import hashlib
from collections.abc import Mapping

from maxgreen.errors import UsageError
from maxgreen.protocol.pack import MANIFEST, PackError
from settlement.findings import Difference
from settlement.inputs import Inputs, entry, read_manifest
from settlement.periods import period_bounds
from settlement.windows import DAY_S


def read_line(entries: Mapping[str, bytes]) -> Inputs:
    """Read a line's inputs, whose bytes are those of the manifest, in the format's one form."""
    manifest = read_manifest(entries)
    check_period(MANIFEST, manifest["period"], manifest["until"])
    if manifest["start"] % DAY_S:
        raise Difference(f"{MANIFEST}: start: {manifest['start']} is no midnight")
    files = manifest["files"]
    for name in sorted((set(entries) | set(files)) - {MANIFEST}):
        data = entry(entries, name)
        if name not in files:
            raise Difference(f"{name}: not in the manifest")
        if hashlib.sha256(data).hexdigest() != files[name]:
            raise Difference(f"{name}: its SHA-256 is not the manifest's")
    inputs = Inputs.from_entries(entries)
    for name, data in sorted(inputs.entries().items()):
        compare(name, data, entry(entries, name))
    for name, value in inputs.head.items():
        if manifest[name] != value:
            raise Difference(f"{MANIFEST}: {name} is not in its one form")
    return inputs


def check_period(name: str, period: str, until_s: int) -> None:
    """Difference unless a period ends then; PackError when it is none."""
    try:
        end_s = period_bounds(period)[1]
    except UsageError as error:
        raise PackError(f"{name}: {error}") from error
    if until_s != end_s:
        raise Difference(f"{name}: {period} does not end at {str(until_s)[:40]}")


def compare(name: str, expected: bytes, found: bytes) -> None:
    """Difference names the first line in which an entry is not what the evidence gives."""
    if expected == found:
        return
    rows = zip(expected.splitlines(), found.splitlines(), strict=False)
    number, (want, have) = next(
        ((k, pair) for k, pair in enumerate(rows, 1) if pair[0] != pair[1]), (0, (b"another length", b""))
    )
    raise Difference(f"{name}: line {number}: the evidence gives {want[:120]!r}, the pack says {have[:120]!r}")
