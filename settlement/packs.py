"""Packs: a file, or a store, with the evidence of a period's lines; a line's entries stand in a folder of its name."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from maxgreen.chain.claims import claim_json, parse_claims
from maxgreen.chain.orders import Claim
from maxgreen.errors import UsageError
from maxgreen.protocol import cose
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.pack import (
    MANIFEST,
    ORDER,
    RUN,
    PackError,
    canonical_json,
    manifest_bytes,
    parse_pack,
    read_canonical,
    read_pack,
    save_pack,
)
from maxgreen.store import AbsentError, FolderStore, Store
from maxgreen.verify.segment import segment_name
from settlement.inputs import entry, read_manifest
from settlement.run import Run, read_run
from settlement.statement import SIGNATURE, STATEMENT, LineOutcome

_LINE: Final = re.compile(r"([0-9a-f]{64})/(.+)")
_RUN_NAME: Final = re.compile(r"runs/(\d{4}-\d{2}(?:-\d{2})?)/(\d{5})-([0-9a-f]{64})\.json")


class Pack:
    """The evidence of some or all lines of a run."""

    def __init__(
        self,
        run: bytes,
        order: bytes | None,
        lines: Mapping[str, Mapping[str, bytes]],
        segment: Callable[[bytes], bytes],
        segments: Iterable[str] = (),
    ) -> None:
        """`lines`: entries by the line's id in hex; `segment` returns a segment's bytes by its SHA-256.

        `segments`: the names of all segments of a file, where the pack is one.
        """
        self.run_data, self.order_data, self.lines, self.segment = run, order, lines, segment
        self.segments = frozenset(segments)

    @cached_property
    def run(self) -> Run:
        """The run; PackError unless run.json has its shape."""
        return read_run({RUN: self.run_data})

    def entries(self, line: str) -> Mapping[str, bytes]:
        """Return a line's entries; PackError when the pack does not have the line."""
        if line not in self.lines:
            raise PackError(f"{line}: no evidence of this line")
        return self.lines[line]

    def statement(self, line: str) -> Mapping[str, Any]:
        """Return a line's statement, as the run has it; PackError when it does not have the line."""
        if line not in self.run.by_line:
            raise PackError(f"{RUN}: it has no line {line}")
        return self.run.by_line[line]

    def line(self, digits: str) -> str:
        """Return the id of the line that is meant by its first digits; UsageError unless there is one."""
        found = [line for line in sorted(self.lines) if line.startswith(digits)]
        if len(found) != 1:
            listed = ", ".join(line[:16] for line in sorted(self.lines)[:8])
            raise UsageError(f"line {digits or '(none named)'}: {len(found)} lines are meant; the pack has {listed}")
        return found[0]


def pack_of(entries: Mapping[str, bytes]) -> Pack:
    """Return the pack of a file's entries; PackError names what has no place in one."""
    lines: dict[str, dict[str, bytes]] = {}
    for name in entries:
        if found := _LINE.fullmatch(name):
            lines.setdefault(found[1], {})[found[2]] = entries[name]
        elif name not in {RUN, ORDER} and not name.startswith("segments/"):
            raise PackError(f"{name}: no entry of a pack")
    if not lines:
        raise PackError("the pack has the evidence of no line")

    def segment(digest: bytes) -> bytes:
        return entry(entries, segment_name(digest))

    segments = (name for name in entries if name.startswith("segments/"))
    return Pack(entry(entries, RUN), entries.get(ORDER), lines, segment, segments)


def open_pack(where: Path, period: str = "") -> Pack:
    """Return the pack of a file, or of a period in a folder that is a store; PackError, UsageError."""
    if where.is_dir():
        return stored_pack(FolderStore(where), period)
    pack = pack_of(read_pack(where))
    if period and pack.run.period != period:
        raise UsageError(f"{where} is of {pack.run.period}, not of {period}")
    return pack


def stored_pack(store: Store, period: str = "") -> Pack:
    """Return the newest run of a period in a store, with all its lines; UsageError when there is none."""
    names = [name for name in store.names("runs/") if _RUN_NAME.fullmatch(name)]
    periods = sorted({found[1] for name in names if (found := _RUN_NAME.fullmatch(name))})
    if not period and len(periods) == 1:
        period = periods[0]
    if period not in periods:
        if not periods:
            raise UsageError("the store has no period yet; is it the one that settlement.toml names (evidence)?")
        asked = f"the store has no period {period}; " if period else ""
        raise UsageError(f"{asked}name one of the store's periods with --period: {', '.join(periods)}")
    own = [name for name in names if name.startswith(f"runs/{period}/")]
    newest = max(own)  # of the last revision
    run = store.get(newest)
    return Pack(run, _order(store, newest), _StoredLines(store, read_run({RUN: run})), _segments(store))


def keep_run(store: Store, run: Run, order: bytes | None) -> None:
    """Keep a run in the store, and its order when there is one."""
    name = run_name(run)
    if not store.has(name):
        store.put(name, run.data)
    if order is not None:
        store.put(_order_name(name), order)


def kept_order(store: Store, run: Run) -> bytes | None:
    """Return the order.json that is kept with a run, if there is one."""
    return _order(store, run_name(run))


def run_name(run: Run) -> str:
    """Return what a run is called in a store."""
    return f"runs/{run.period}/{run.document['revision']:05}-{run.digest.hex()}.json"


class Sealed(NamedTuple):
    """A line's evidence but for its segments, the SHA-256 of its manifest, and what its run has of it."""

    entries: dict[str, bytes]
    manifest: bytes
    statement: dict[str, Any]
    claim: Claim | None  # without a proof


def seal(result: LineOutcome, signer: Signer) -> Sealed:
    """Return the evidence of a line: inputs, what follows from them, signature, manifest."""
    entries = {**result.inputs.entries(), **result.entries}
    network = result.inputs.network
    entries[SIGNATURE] = cose.sign(entries[STATEMENT], signer, network, "statement", detached=True)
    entries[MANIFEST] = manifest_bytes(result.inputs.head, entries)
    manifest = hashlib.sha256(entries[MANIFEST]).digest()
    return Sealed(entries, manifest, {**result.statement, "manifest": manifest.hex()}, result.claim(manifest))


def line_name(manifest: bytes) -> str:
    """Return what a line's evidence is called in the store, but for its segments."""
    return f"lines/{manifest.hex()}.zip"


def line_entries(store: Store, manifest: bytes) -> Mapping[str, bytes]:
    """Return a line's evidence from the store, but for its segments."""
    return parse_pack(store.get(line_name(manifest)), line_name(manifest))


def write_pack_of(store: Store, run: Run, order: bytes | None, path: Path, line: str | None = None) -> None:
    """Write the pack of a run, or of one of its lines; its order names then that line alone."""
    lines = {one["line"]: bytes.fromhex(one["manifest"]) for one in run.lines if line in {None, one["line"]}}
    parts: dict[str, Callable[[], bytes]] = {RUN: lambda: run.data}
    if order is not None:
        parts[ORDER] = lambda: order if line is None else order_of_line(order, line)
    for name, manifest in lines.items():
        entries = line_entries(store, manifest)
        for entry_name, data in entries.items():
            parts[f"{name}/{entry_name}"] = lambda data=data: data  # type: ignore[misc]
        for digests in read_manifest(entries)["segments"].values():
            for digest in map(bytes.fromhex, digests):
                parts[segment_name(digest)] = lambda digest=digest: store.get(segment_name(digest))  # type: ignore[misc]
    save_pack(path, parts)


def order_of_line(order: bytes, line: str) -> bytes:
    """Return an order.json with the claim of one line alone."""
    claims = [claim_json(claim) for claim in parse_claims(order) if claim.line.hex() == line]
    return canonical_json({**read_canonical(ORDER, order), "claims": claims})


class _StoredLines(Mapping[str, Mapping[str, bytes]]):
    """The lines of a run in a store, read when they are asked for."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store = store
        self._manifests = {one["line"]: bytes.fromhex(one["manifest"]) for one in run.lines}

    def __getitem__(self, line: str) -> Mapping[str, bytes]:
        try:
            return line_entries(self._store, self._manifests[line])
        except AbsentError as error:
            raise PackError(str(error)) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifests)

    def __len__(self) -> int:
        return len(self._manifests)


def _segments(store: Store) -> Callable[[bytes], bytes]:
    def segment(digest: bytes) -> bytes:
        try:
            return store.get(segment_name(digest))
        except AbsentError as error:
            raise PackError(str(error)) from error

    return segment


def _order_name(run: str) -> str:
    return f"{run.removesuffix('.json')}.order"


def _order(store: Store, run: str) -> bytes | None:
    name = _order_name(run)
    return store.get(name) if store.has(name) else None
