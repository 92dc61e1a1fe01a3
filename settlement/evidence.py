"""The segments of a line's devices judged again: the same verifier as at ingest, bit for bit; a segment is a task.

Tasks depend on nothing but their own bytes and rules, so that they run on as many processors or machines as there are;
that the segments of a chain lead from one to the next is checked afterwards.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from maxgreen.protocol.backend import BackendKeys, Beacon
from maxgreen.protocol.batch import SignedBatch
from maxgreen.protocol.cose import check_group
from maxgreen.protocol.pack import PackError
from maxgreen.protocol.reasons import Malformed, Reason, Rejected
from maxgreen.verify.chain import ChainState
from maxgreen.verify.replay import Replay
from maxgreen.verify.rules import Action, Decision, DeviceRecord, Limits, Rules
from maxgreen.verify.segment import Segment, Taking, without_work
from maxgreen.verify.shares import check_together, shares_of
from maxgreen.verify.verdict import Judgement, Place, place, read_message, sender_of
from settlement.facts import Fact, fact_of
from settlement.inputs import Ahead, Inputs, Party
from settlement.windows import DAY_S

Fetch = Callable[[bytes], bytes]  # a segment's bytes by its SHA-256
RunTasks = Callable[["Callable[[Task], Judged]", "Iterable[Task]"], "Iterable[Judged]"]
_GROUP: Final = 480  # batches whose signatures and shares are checked together
_KEPT: Final = 128  # judged segments that a Judge remembers, some 2 MB each


@dataclass(frozen=True)
class Task:
    """A segment, and all that its verdicts depend on."""

    network: str
    record: DeviceRecord
    key_number: int
    limits: tuple[tuple[int, Limits], ...]
    decisions: tuple[Decision, ...]  # of this device
    backend_keys: tuple[bytes, ...]
    digest: bytes
    data: bytes = field(repr=False, compare=False)


@dataclass(frozen=True)
class Judged:
    """A segment, judged: its facts, and the states that it leads between. `trouble`: what does not hold in it."""

    digest: bytes
    facts: tuple[Fact, ...]
    previous: bytes | None
    start: ChainState
    end: ChainState
    predecessor: ChainState | None
    beacons: tuple[Beacon, ...]
    batches: int
    receipts: int
    trouble: str = ""


class Tip(NamedTuple):
    """Where a chain stands: the seq that comes next, its head in hex, and its wall time."""

    next_seq: int
    head: str
    wall_ms: int

    @classmethod
    def of(cls, state: ChainState) -> "Tip":
        """Return the tip of a chain in a state."""
        return cls(state.next_seq, state.head.hex(), state.wall_ms)


class Link(NamedTuple):
    """What a segment leads from and to: all that tells whether it follows the one before it. SHA-256s in hex."""

    digest: str
    previous: str | None
    start: str  # of the chain's state before it
    end: str  # and after it
    tip: Tip  # at its end
    predecessor: Tip | None  # the chain that it succeeds, with its first batch
    days: tuple[int, ...] = ()  # since the epoch: of its batches that have a date, whatever became of them
    trouble: str = ""

    @classmethod
    def of(cls, judged: Judged) -> "Link":
        """Return the link of a judged segment."""
        return cls(
            judged.digest.hex(),
            None if judged.previous is None else judged.previous.hex(),
            _state_digest(judged.start),
            _state_digest(judged.end),
            Tip.of(judged.end),
            None if judged.predecessor is None else Tip.of(judged.predecessor),
            tuple(sorted({fact.window_s // DAY_S for fact in judged.facts})),
            judged.trouble,
        )


@dataclass(frozen=True)
class Evidence:
    """What the batches of a line's devices are; and what does not hold together, by device."""

    facts: Mapping[bytes, tuple[Fact, ...]]
    troubles: Mapping[bytes, str]
    chains: Mapping[bytes, Sequence[Judged]]  # of the devices that have a segment here
    beacons: Mapping[int, Beacon]
    batches: int
    receipts: Mapping[bytes, int]

    def trouble(self, parties: Sequence[Party]) -> str:
        """Return in fixed words that the evidence of one of these devices does not hold; nothing when all is well."""
        for party in parties:
            if party.device in self.troubles:
                return f"the evidence of device {party.device.hex()} does not hold together"
        return ""


class Judge:
    """Judges the segments of lines; those that it saw last stay in memory, since lines share their ends."""

    def __init__(self, fetch: Fetch, run_tasks: RunTasks = map) -> None:
        """`run_tasks` is `map`, or one that uses other processors; tasks get their bytes when it asks for them."""
        self._fetch, self._run = fetch, run_tasks
        self._known: OrderedDict[Task, Judged] = OrderedDict()

    def evidence(self, inputs: Inputs) -> Evidence:
        """Return what the devices of a line sent, judged again. One device's trouble is its own."""
        found: dict[bytes, list[Judged]] = {party.device: [] for party in inputs.parties}
        for task, judged in self._judged(list(_tasks(inputs))):
            found[task.record.device].append(judged)
        troubles = troubles_of(inputs, {device: [*map(Link.of, chain)] for device, chain in found.items()})
        return Evidence(
            {
                party.device: tuple(_facts(inputs, party, found[party.device]))
                for party in inputs.parties
                if party.device not in troubles
            },
            troubles,
            {device: chain for device, chain in found.items() if chain},
            _beacons(judged for chain in found.values() for judged in chain),
            sum(judged.batches for chain in found.values() for judged in chain),
            {device: sum(judged.receipts for judged in chain) for device, chain in found.items() if chain},
        )

    def _judged(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Judged]]:
        """Yield each task, which has no bytes yet, with what came of it."""
        fresh = [task for task in tasks if task not in self._known]
        found = dict(zip(fresh, self._run(judge, (self._loaded(task) for task in fresh)), strict=True))
        for task in tasks:
            judged = found[task] if task in found else self._known[task]
            self._known[task] = judged
            self._known.move_to_end(task)
            yield task, judged
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)

    def _loaded(self, task: Task) -> Task:
        return replace(task, data=self._fetch(task.digest))


def judge(task: Task) -> Judged:
    """Judge a segment; PackError when its bytes are none, or another one's."""
    name = f"segment {task.digest.hex()}"
    try:
        segment = Segment.parse(task.data)
    except Malformed as error:
        raise PackError(f"{name}: {error}") from error
    if segment.digest != task.digest:
        raise PackError(f"{name}: it has another SHA-256")
    if (segment.network, segment.device) != (task.network, task.record.device):
        raise PackError(f"{name}: of device {segment.device.hex()} of network {segment.network[:80]}")
    keys = BackendKeys(task.backend_keys, task.network)
    try:
        beacons = keys.open_beacons(segment.beacons)
    except Rejected as error:
        raise PackError(f"{name}: beacons: {error}") from error
    if len({beacon.number for beacon in beacons}) != len(beacons):
        raise PackError(f"{name}: two beacons of one number")
    rules = Rules(
        task.network,
        limits=task.limits,
        beacons={beacon.number: beacon for beacon in beacons},
        decisions=task.decisions,
    )
    chain = Replay(segment.start, task.record, rules)
    facts: list[Fact] = []
    heads: dict[int, bytes] = {}  # by the seq that follows
    trouble = ""
    try:
        for fact, digest, seq in _replayed(segment, task, chain, rules):
            heads[seq + 1] = digest
            facts += [] if fact is None else [fact]
        _check_receipts(segment, keys, heads)
    except PackError as error:
        trouble = f"{name}: {error}"
    return Judged(
        task.digest,
        () if trouble else tuple(facts),
        segment.previous,
        segment.start,
        chain.state,
        segment.predecessor,
        beacons,
        len(segment.batches),
        len(segment.receipts),
        trouble,
    )


def _tasks(inputs: Inputs) -> Iterator[Task]:
    for party in inputs.parties:
        decisions = tuple(d for d in inputs.rules.decisions if d.device == party.device)
        for digest in inputs.segments.get(party.device, ()):
            yield Task(
                inputs.network,
                party.record,
                party.key_number,
                inputs.rules.limits,
                decisions,
                inputs.backend_keys,
                digest,
                b"",
            )


def _beacons(judged: Iterable[Judged]) -> dict[int, Beacon]:
    """Return beacons by number; PackError when two of one number differ."""
    found: dict[int, Beacon] = {}
    for one in judged:
        for beacon in one.beacons:
            if found.setdefault(beacon.number, beacon) != beacon:
                raise PackError(f"segment {one.digest.hex()}: another beacon {beacon.number} than elsewhere")
    return found


def troubles_of(inputs: Inputs, links: Mapping[bytes, Sequence[Link]]) -> dict[bytes, str]:
    """Return what does not hold together in the segments of a line's devices, by device."""
    troubles = {device: said for device, chain in links.items() if (said := _broken(inputs.network, chain))}
    for party in inputs.parties:
        if party.device not in troubles and (said := _unlinked(party, links)):
            troubles[party.device] = said
    return troubles


def _state_digest(state: ChainState) -> str:
    return hashlib.sha256(json.dumps(state.to_json(), sort_keys=True).encode()).hexdigest()


def _broken(network: str, chain: Sequence[Link]) -> str:
    """Return what is wrong with a device's segments, or that one does not lead to the next."""
    for number, link in enumerate(chain):
        if link.trouble:
            return link.trouble
        if number and (link.previous, link.start) != (chain[number - 1].digest, chain[number - 1].end):
            return f"segment {link.digest}: the one before it does not lead to it"
    if chain and chain[0].previous is None and chain[0].start != _state_digest(ChainState.start(network)):
        return f"segment {chain[0].digest}: it is the first of its chain, and does not begin where chains do"
    return ""


def _unlinked(party: Party, links: Mapping[bytes, Sequence[Link]]) -> str:
    """Return what is wrong with where a key takes over from the one before it."""
    chain, before = links.get(party.device, ()), links.get(party.record.predecessor or b"", ())
    if not chain or chain[0].predecessor is None or not before:
        return ""
    said, last = chain[0].predecessor, before[-1].tip
    if said.next_seq == last.next_seq and (said.head, said.wall_ms) != (last.head, last.wall_ms):
        return f"device {party.device.hex()}: the chain that it succeeds ended otherwise"
    return ""


def _facts(inputs: Inputs, party: Party, chain: Sequence[Judged]) -> Iterator[Fact]:
    for judged in chain:
        yield from judged.facts
    for ahead in inputs.waiting.get(party.device, ()):
        if ahead.t0_ms is not None and party.record.counts(ahead.t0_ms, ahead.received_ms):
            yield _ahead(party, ahead, ahead.t0_ms)


def _ahead(party: Party, ahead: Ahead, t0_ms: int) -> Fact:
    return Fact(party.device, party.key_number, ahead.seq, Reason.GAP_BEFORE, Reason.NONE, t0_ms)


def _replayed(segment: Segment, task: Task, chain: Replay, rules: Rules) -> Iterator[tuple[Fact | None, bytes, int]]:
    """Yield the facts of a segment in the order of their seq, with digest and seq of each batch.

    Those from before the key counted, or after it, count for no line; those without a date belong to no window.
    """
    pending: list[tuple[SignedBatch, int]] = []
    judged: dict[int, Judgement] = {}
    for signed, taking, shares in _opened(segment, task, rules):
        batch = signed.batch
        if taking.skipped_to and batch.seq not in rules.skip_targets(segment.device, chain.state.next_seq):
            raise PackError(f"seq {batch.seq}: no decision skips to it from {chain.state.next_seq}")
        predecessor = segment.predecessor if batch.succeeds is not None else None
        where = Place.NEXT if taking.skipped_to else place(chain.state, signed, None, predecessor)
        if where is not Place.NEXT:
            raise PackError(f"seq {batch.seq}: {where.reason.label}")
        for judgement in chain.take(
            signed, taking.received_ms, skipped_to=taking.skipped_to, predecessor=predecessor, shares=shares
        ):
            judged[judgement.seq] = judgement
        pending.append((signed, taking.received_ms))
        if chain.state.undated_from is None:
            for waited, received_ms in pending:
                yield _fact(task, rules, waited, received_ms, judged), waited.digest, waited.batch.seq
            pending.clear()
            judged.clear()
    if pending:
        raise PackError(f"seq {pending[0][0].batch.seq}: it waits for a date that comes in another segment")


def _fact(
    task: Task, rules: Rules, signed: SignedBatch, received_ms: int, judged: Mapping[int, Judgement]
) -> Fact | None:
    judgement = judged[signed.batch.seq]
    if judgement.t0_ms is None or not task.record.counts(judgement.t0_ms, received_ms):
        return None
    fact = fact_of(task.record.device, task.key_number, signed.batch, judgement, judgement.t0_ms)
    if fact.dated and rules.decided(fact.device, fact.seq, Action.REJECT):  # out for ever
        return fact._replace(reason=Reason.TAKEN_OUT, channels=(), attestations=(), birth=None, shares=0, hashes=0)
    return fact


def _opened(segment: Segment, task: Task, rules: Rules) -> Iterator[tuple[SignedBatch, Taking, Callable[..., bool]]]:
    """Yield authentic batches; signatures and shares are checked some at a time, to fill the lanes of kernels."""
    for start in range(0, len(segment.batches), _GROUP):
        takings = segment.batches[start : start + _GROUP]
        group = [_read(taking, task.record) for taking in takings]
        envelopes = [(signed.envelope, task.record.verifier) for signed in group]
        for signed, wrong in zip(group, check_group(envelopes, task.network, "batch"), strict=True):
            if wrong is not None:
                raise PackError(f"seq {signed.batch.seq}: {wrong.reason.label}: {wrong}") from wrong
        shares = check_together(shares_of(group, rules.beacons))
        for signed, taking in zip(group, takings, strict=True):
            yield signed, taking, shares


def _read(taking: Taking, record: DeviceRecord) -> SignedBatch:
    try:
        signed = read_message(taking.message)
        sender_of(signed, None, taking.received_ms, lambda _id: record)
    except Rejected as error:
        raise PackError(f"a batch: {error.reason.label}: {error}") from error
    if signed.envelope.key_id != record.device:
        raise PackError(f"seq {signed.batch.seq}: of another device")
    # what the backend did not look at then is no work now, whatever beacons came later
    return without_work(signed) if taking.idle else signed


def _check_receipts(segment: Segment, keys: BackendKeys, heads: Mapping[int, bytes]) -> None:
    """Check that the batches that the backend receipted are these (P-RCT-4)."""
    for message in segment.receipts:
        try:
            receipt = keys.open_receipt(message)
        except Rejected as error:
            raise PackError(f"receipts: {error}") from error
        if receipt.device != segment.device:
            raise PackError(f"receipts: one of device {receipt.device.hex()}")
        if receipt.next_seq not in heads:
            raise PackError(f"receipts: batch {receipt.next_seq - 1} was receipted and is missing")
        if heads[receipt.next_seq] != receipt.head:
            raise PackError(f"receipts: batch {receipt.next_seq - 1} is another one than the receipt's")
