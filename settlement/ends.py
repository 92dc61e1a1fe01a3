"""One end of a line: which of a device's batches count for it, and when it metered."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from maxgreen.chain.orders import Closing
from maxgreen.protocol.attestation import Attestation
from settlement.facts import Fact, Span
from settlement.inputs import Base, ChannelTerms, KnownRegister, Party

Spans = list[Span]  # ascending and apart


class Attested(NamedTuple):
    """What an accepted batch attests of a line's channel."""

    key_number: int
    seq: int
    attestation: Attestation


@dataclass(frozen=True)
class Registers:
    """What one end of a line attested, in the order of its keys and chains."""

    base: Base
    attested: tuple[Attested, ...]

    def cuts(self, until_s: int) -> dict[int, Attested]:
        """Return each key's last attestation before `until`, by the key's number."""
        return {one.key_number: one for one in self.attested if one.attestation.unix_s < until_s}

    def cut(self, until_s: int) -> Attestation | None:
        """Return the last attestation before `until`: of the newest key that attested."""
        cuts = self.cuts(until_s)
        return cuts[max(cuts)].attestation if cuts else None

    def closings(self, until_s: int, *, miner_end: bool) -> tuple[Closing, ...]:
        """Return the last registers that the keys before that of the cut attested."""
        cuts = self.cuts(until_s)
        keys = range(self.base.key_number, max(cuts, default=self.base.key_number))
        return tuple(
            Closing(miner_end, number, cuts[number].attestation if number in cuts else None) for number in keys
        )

    def register_mws(self, until_s: int, known: KnownRegister) -> int:
        """Return the line's register at the cut: what was carried when keys changed, and all since (P-BAT-3)."""
        registers = {known.key_number: known.register_mws}
        for number, one in self.cuts(until_s).items():
            if number >= known.key_number:
                registers[number] = max(registers.get(number, 0), one.attestation.register_mws)
        return known.carried_mws + sum(registers.values())


@dataclass(frozen=True)
class End:
    """One end of a line: its system, channel and what the batches of its keys say, key by key."""

    party: Party  # with the newest key
    channel: int
    base: Base
    facts: tuple[Fact, ...]
    online_required: bool

    def terms(self, t_ms: int) -> ChannelTerms:
        """Return the channel's registration; one without it meters nothing."""
        return self.party.terms(self.channel, t_ms) or ChannelTerms(0, self.channel, 0, 0, 0, 0)

    @cached_property
    def registers(self) -> Registers:
        """What was attested of the channel."""
        return Registers(self.base, tuple(self.attested(self.facts)))

    def attested(self, facts: Iterable[Fact]) -> Iterator[Attested]:
        """Yield what batches attest of the channel."""
        for fact in facts:
            for attestation in fact.attestations:
                if attestation.channel == self.channel:
                    yield Attested(fact.key_number, fact.seq, attestation)
                    break

    def windows(self) -> dict[int, list[Fact]]:
        """Return the facts that count for the line, by window: what came after its base, by seq and by time."""
        by_window: dict[int, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            after = (fact.key_number, fact.seq) > (self.base.key_number, self.base.seq)
            if after and fact.t0_ms >= self.base.time_s * 1000:
                by_window[fact.window_s].append(fact)
        return by_window

    def metered(self, facts: Iterable[Fact]) -> Spans:
        """Return when the channel was metered by these batches."""
        return merged(span for fact in facts for span in fact.channel(self.channel).spans)


def merged(spans: Iterable[tuple[int, int]]) -> Spans:
    """Return spans that may overlap as ones that lie apart."""
    found: Spans = []
    for begin_ms, end_ms in sorted(spans):
        if found and begin_ms <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end_ms))
        else:
            found.append((begin_ms, end_ms))
    return found


def length_ms(spans: Sequence[tuple[int, int]]) -> int:
    """Return how long merged spans are together."""
    return sum(end_ms - begin_ms for begin_ms, end_ms in spans)
