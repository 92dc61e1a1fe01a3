"""Line-days as a ledger keeps them: derived once from a day's own evidence, added up when a period is closed.

A line-day that is kept says what it follows from; where that is something else by now, it is derived again. Where what
a line comes to does not follow from its days alone (decisions, batches behind a hole, a dispute that an earlier close
left), no account is made of them, and the line is derived from all of its evidence at once.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import maxgreen.protocol
import maxgreen.verify
import native
import settlement
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.batch import Role
from maxgreen.protocol.pack import canonical_json
from maxgreen.protocol.reasons import DISPUTES
from settlement.checks import reaches_back
from settlement.days import Account, LineDay, account_of
from settlement.ends import Attested, End, Registers
from settlement.evidence import Evidence, Link, Tip, troubles_of
from settlement.inputs import Base, Inputs, KnownRegister, LineBase, LineTerms, line_json
from settlement.sums import Sums
from settlement.windows import DAY_S, LineWindows, line_end, line_windows

Segments = Mapping[bytes, tuple[bytes, ...]]  # SHA-256s by device, in the order of its chain
_DISPUTES: Final = {str(int(reason)) for reason in DISPUTES}


class EndDay(NamedTuple):
    """What one end of a line did in a day."""

    attested: tuple[Attested, ...]  # the last of each key: before the day, within it, until its last instant
    newest: Mapping[int, int]  # the seq of the newest batch of the day, by its key's number
    cut: Mapping[int, int]  # the seq of the last attestation before the day's end, by key


class KeptDay(NamedTuple):
    """A line-day, and what is needed to add it up with others."""

    whole: LineDay | None  # with everything attested; None of a day without anything
    last: LineDay | None  # with what is attested before its end; None where that is all
    sent: EndDay
    received: EndDay
    links: tuple[tuple[str, Link], ...]  # of its segments, each with its device in hex
    alone: bool  # False where its evidence does not hold together, or what was before that may matter


def day_inputs(inputs: Inputs, day_s: int, segments: Segments) -> Inputs:
    """Return a line's inputs for one UTC day: without all that other days, orders or payments have to do with."""
    return replace(
        inputs,
        period="",
        until_s=day_s + DAY_S,
        start_s=day_s,
        previous=None,
        line=_of_days(inputs.line),
        segments=segments,
        windows_before={},
    )


def _of_days(line: LineTerms) -> LineTerms:
    return replace(
        line,
        base=LineBase(0),
        known_sent=KnownRegister(),
        known_received=KnownRegister(),
        paid_mws=0,
        paid_until_s=0,
        acc=0,
    )


class Fingerprint:
    """Names what the days of a line follow from."""

    def __init__(self, inputs: Inputs) -> None:
        """`inputs` of the line: what is the same for all days is looked at once."""
        line = canonical_json(line_json(_of_days(inputs.line)))
        alike = {**inputs.settings, "line.json": line, "network": inputs.network.encode()}
        self._alike = hashlib.sha256(_PROGRAM)
        for name, data in sorted(alike.items()):
            self._alike.update(f"{name} {len(data)} ".encode() + data)

    def of(self, day_s: int, segments: Segments) -> bytes:
        """Return the SHA-256 of what a day follows from."""
        found = self._alike.copy()
        found.update(day_s.to_bytes(8, "big"))
        for device in sorted(device for device in segments if segments[device]):
            found.update(device + len(segments[device]).to_bytes(4, "big") + b"".join(segments[device]))
        return found.digest()


def _program() -> bytes:
    """Return the SHA-256 of all that derives: what was derived otherwise is not taken for what it would be now."""
    found = hashlib.sha256()
    for package in (settlement, maxgreen.verify, maxgreen.protocol, native):
        for path in sorted(path for folder in package.__path__ for path in Path(folder).iterdir()):
            if path.suffix in {".py", ".so"}:
                found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.digest()


_PROGRAM: Final = _program()  # as it is loaded: an upgrade may change the files under a process


def is_by_days(inputs: Inputs, seqs: Mapping[bytes, tuple[int, int]]) -> bool:
    """Tell whether a line's account follows from its days: nothing waits, was disputed before or decided on.

    `seqs`: the first seq of each device's segments, and the one after the last.
    """
    before = (numbers for window_s, (_, numbers) in inputs.windows_before.items() if window_s >= inputs.start_s)
    decided = (
        decision
        for decision in inputs.rules.decisions
        if decision.device in seqs
        and decision.from_seq <= seqs[decision.device][1]
        and decision.to_seq >= seqs[decision.device][0]
    )
    disputed = (numbers for numbers in before if _DISPUTES.intersection(numbers.split()))
    return not inputs.waiting and next(decided, None) is None and next(disputed, None) is None


def derive_day(inputs: Inputs, evidence: Evidence) -> KeptDay:
    """Return the line-day of a day's inputs (`day_inputs`) and evidence."""
    facts = {party.device: evidence.facts.get(party.device, ()) for party in inputs.parties}
    attested = line_windows(inputs, facts, attested=True)
    sent, received = _end_day(inputs, attested.miner), _end_day(inputs, attested.node)
    by_itself = _reach((sent, received), (sent.cut, received.cut))
    last = None if by_itself else _line_day(inputs, line_windows(inputs, facts))
    links = tuple((device.hex(), Link.of(judged)) for device, chain in evidence.chains.items() for judged in chain)
    alone = not evidence.troubles and not _reaches_back(inputs, evidence)
    return KeptDay(_line_day(inputs, attested), last, sent, received, links, alone)


def _reaches_back(inputs: Inputs, evidence: Evidence) -> bool:
    """Tell whether a channel of the miner may have read the same since before the segments of one of its keys."""
    parties = inputs.keys(inputs.line.miner)
    channels = {inputs.line.miner_channel, *parties[-1].numbers(Role.GENERATION)}
    stuck_ms = min(limits.stuck_s for _, limits in inputs.rules.limits) * 1000
    for number, party in enumerate(parties):
        chain = evidence.chains.get(party.device, ())
        if not chain or (number == 0 and chain[0].previous is None):  # nothing was before
            continue
        facts = [fact for later in parties[number:] for fact in evidence.facts.get(later.device, ())]
        if any(reaches_back(facts, channel, inputs.start_s, stuck_ms) for channel in channels):
            return True
    return False


def _line_day(inputs: Inputs, found: LineWindows) -> LineDay | None:
    days = account_of(inputs, found).days
    return days[0] if days else None


def _end_day(inputs: Inputs, end: End) -> EndDay:
    day_s, until_s = inputs.start_s, inputs.until_s
    newest: dict[int, int] = {}
    for fact in end.facts:
        if fact.dated and day_s <= fact.window_s < line_end(inputs):
            newest[fact.key_number] = max(newest.get(fact.key_number, -1), fact.seq)
    cuts = [end.registers.cuts(unix_s) for unix_s in (day_s, until_s, until_s + 1)]
    attested = {(one.key_number, one.seq): one for cut in cuts for one in cut.values()}
    closed = end.registers.cuts(line_end(inputs))  # of a line that was closed within the day
    attested |= {(one.key_number, one.seq): one for one in closed.values()}
    by_key = {key: one.seq for key, one in closed.items()}
    return EndDay(tuple(attested[place] for place in sorted(attested)), newest, by_key)


def account_of_days(inputs: Inputs, kept: Mapping[int, KeptDay], segments: Mapping[int, Segments]) -> Account | None:
    """Return what a line's days come to, by their midnight, where it is by days (`is_by_days`).

    `segments`: what each day follows from. None where it is not known whether that holds together, or what of them is
    attested; where a day does not stand alone, or has a batch in another segment.
    """
    links = {(device, link.digest): link for day in kept.values() for device, link in day.links}
    named = {device: [(device.hex(), digest.hex()) for digest in found] for device, found in inputs.segments.items()}
    if not all(place in links for places in named.values() for place in places):
        return None
    if troubles_of(inputs, {device: [links[place] for place in places] for device, places in named.items()}):
        return None
    if not all(day.alone for day in kept.values()) or _strays(inputs, links, segments):
        return None
    days = [kept[day_s] for day_s in sorted(kept)]
    line = inputs.line
    sent = _registers(line.sent_base, (day.sent for day in days))
    received = _registers(line.received_base, (day.received for day in days))
    cuts = [{key: one.seq for key, one in end.cuts(line_end(inputs)).items()} for end in (sent, received)]
    found = []
    for day in days:
        ends = day.sent, day.received
        if _reach(ends, cuts):
            found.append(day.whole)
        elif all(cut.get(key) == end.cut.get(key) for end, cut in zip(ends, cuts, strict=True) for key in end.newest):
            found.append(day.last or day.whole)
        else:
            return None
    return Account([day for day in found if day is not None], sent, received)


def _reach(ends: Sequence[EndDay], cuts: Sequence[Mapping[int, int]]) -> bool:
    """Tell whether the cuts of both ends are not before any batch of a day."""
    both = zip(ends, cuts, strict=True)
    return all(seq <= cut.get(key, -1) for end, cut in both for key, seq in end.newest.items())


def _strays(inputs: Inputs, links: Mapping[tuple[str, str], Link], segments: Mapping[int, Segments]) -> bool:
    """Tell whether a segment has a batch of a day that does not know of the segment: of a clock that went wrong."""
    for device, digests in inputs.segments.items():
        for digest in digests:
            for day_s in (day * DAY_S for day in links[device.hex(), digest.hex()].days):
                known = segments.get(day_s, {}).get(device, ())
                if inputs.start_s <= day_s < inputs.until_s and digest not in known:
                    return True
    return False


def _registers(base: Base, ends: Iterable[EndDay]) -> Registers:
    attested = {(one.key_number, one.seq): one for end in ends for one in end.attested}
    return Registers(base, tuple(attested[place] for place in sorted(attested)))


def encode_day(day: KeptDay) -> bytes:
    """Return a line-day as the ledger holds it."""
    links = [(device, *link) for device, link in day.links]
    value = [_day(day.whole), _day(day.last), _end(day.sent), _end(day.received), links, day.alone]
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def decode_day(data: bytes) -> KeptDay:
    """Read such a line-day, of a ledger: nobody else made it."""
    whole, last, sent, received, links, alone = json.loads(zlib.decompress(data))
    return KeptDay(
        _read_day(whole), _read_day(last), _read_end(sent), _read_end(received), tuple(map(_read_link, links)), alone
    )


def _read_link(value: Sequence[Any]) -> tuple[str, Link]:
    device, digest, previous, start, end, tip, predecessor, days, trouble = value
    before = None if predecessor is None else Tip(*predecessor)
    return device, Link(digest, previous, start, end, Tip(*tip), before, tuple(days), trouble)


def _day(day: LineDay | None) -> list[Any] | None:
    if day is None:
        return None
    day_s, sums, counted, sent, received, held, disputed, *rest = astuple(day)
    return [day_s, sums, counted, sent, received, list(held.items()), list(disputed.items()), *rest]


def _read_day(value: Sequence[Any] | None) -> LineDay | None:
    if value is None:
        return None
    day_s, sums, counted, sent, received, held, disputed, *rest = value
    return LineDay(day_s, Sums(*sums), counted, sent, received, dict(held), dict(disputed), *rest)


def _end(end: EndDay) -> list[Any]:
    attested = [
        [one.key_number, one.seq, a.channel, a.unix_s, a.register_mws, a.seq, a.signature.hex()]
        for one in end.attested
        for a in (one.attestation,)
    ]
    return [attested, list(end.newest.items()), list(end.cut.items())]


def _read_end(value: Sequence[Any]) -> EndDay:
    attested, newest, cut = value
    read = [
        Attested(key, seq, Attestation(channel, unix_s, register_mws, number, bytes.fromhex(signature)))
        for key, seq, channel, unix_s, register_mws, number, signature in attested
    ]
    return EndDay(tuple(read), dict(newest), dict(cut))
