"""Hand-made evidence of a line, from signed batches to a pack: for tests and benchmarks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maxgreen.protocol.backend import Beacon, sign_beacon
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.pack import RUN
from maxgreen.verify.chain import ChainState
from maxgreen.verify.replay import Replay
from maxgreen.verify.rules import Rules
from maxgreen.verify.segment import Segment, Taking, segment_name
from settlement.evidence import Evidence, Judge
from settlement.inputs import Ahead, Inputs, LineTerms, Party
from settlement.packs import Pack, pack_of, seal
from settlement.run import Run, make_run
from settlement.statement import LineResult, derive


@dataclass
class LineEvidence:
    """A line's batches as they came, and what is made of them. Times in ms."""

    network: str
    period: str
    until_s: int
    start_s: int
    parties: tuple[Party, ...]
    line: LineTerms
    rules: Rules  # with its beacons
    signer: Signer
    messages: Mapping[bytes, Sequence[bytes]]
    received_ms: int
    ahead: Iterable[tuple[bytes, int]] = ()  # what waits behind a hole: device, seq
    cuts: Iterable[int] = ()  # seqs at which a chain is cut into another segment
    receipts: Mapping[bytes, Sequence[bytes]] = field(default_factory=dict)
    windows_before: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.segments: dict[bytes, bytes] = {}
        self._chains = {device: tuple(self._cut(device)) for device in self.messages}

    def _cut(self, device: bytes) -> Iterable[bytes]:
        """Yield the SHA-256s of a device's segments."""
        record = next(party.record for party in self.parties if party.device == device)
        chain = Replay(ChainState.start(self.network), record, self.rules)
        start, previous, held = chain.state, None, []
        taken = [(m, parse_batch(m)) for m in self.messages[device]]
        taken = [(m, signed) for m, signed in taken if (device, signed.batch.seq) not in set(self.ahead)]
        for number, (message, signed) in enumerate(taken):
            skipped_to = signed.batch.seq in self.rules.skip_targets(device, chain.state.next_seq)
            held.append(Taking(message, self.received_ms, skipped_to))
            chain.take(signed, self.received_ms, skipped_to=skipped_to)
            last = number + 1 == len(taken)
            if last or (signed.batch.seq + 1 in self.cuts and chain.state.undated_from is None):
                works = {batch.work.beacon for t in held if (batch := parse_batch(t.message).batch).work is not None}
                beacons = [self._signed(self.rules.beacons[n]) for n in sorted(works) if n in self.rules.beacons]
                receipts = tuple(self.receipts.get(device, ())) if last else ()
                segment = Segment(self.network, device, previous, start, None, tuple(held), tuple(beacons), receipts)
                self.segments[segment.digest] = segment.data
                yield segment.digest
                start, previous, held = chain.state, segment.digest, []

    def _signed(self, beacon: Beacon) -> bytes:
        return sign_beacon(beacon, self.signer, self.network)

    @property
    def inputs(self) -> Inputs:
        """What the line's statement follows from."""
        waiting: dict[bytes, list[Ahead]] = {}
        for device, seq in sorted(self.ahead):
            for message in self.messages[device]:
                signed = parse_batch(message)
                if signed.batch.seq == seq:
                    t0_ms = signed.batch.t0_ms if signed.batch.synchronised else None
                    waiting.setdefault(device, []).append(Ahead(seq, self.received_ms, t0_ms, signed.digest))
        return Inputs(
            network=self.network,
            period=self.period,
            until_s=self.until_s,
            start_s=self.start_s,
            previous=None,
            parties=self.parties,
            line=self.line,
            rules=Rules(self.network, limits=self.rules.limits, decisions=self.rules.decisions),
            backend_keys=(self.signer.spki,),
            segments=self._chains,
            waiting={device: tuple(rows) for device, rows in waiting.items()},
            windows_before=self.windows_before,
        )

    def evidence(self, **changes: Any) -> Evidence:
        """Return the batches judged again."""
        return Judge(self.segments.__getitem__).evidence(replace(self.inputs, **changes))

    def result(self, **changes: Any) -> LineResult:
        """Return the line's statement and what it follows from."""
        return derive(replace(self.inputs, **changes), self.evidence(**changes))

    def entries(self) -> dict[str, bytes]:
        """Return the entries of a pack with this line alone."""
        entries, _ = line_pack(self.result(), self.signer)
        return {**entries, **{segment_name(digest): data for digest, data in self.segments.items()}}

    def pack(self) -> Pack:
        """Return a pack with this line alone."""
        return pack_of(self.entries())


def line_pack(result: LineResult, signer: Signer) -> tuple[dict[str, bytes], Run]:
    """Return the entries of a pack with one line but for its segments, and its run."""
    inputs, sealed = result.inputs, seal(result, signer)
    claims = [sealed.claim] if sealed.claim else []
    run = make_run(inputs.network, inputs.period, inputs.until_s, None, [sealed.statement], claims)
    named = {f"{result.line.hex()}/{name}": data for name, data in sealed.entries.items()}
    return {**named, RUN: run.data}, run
