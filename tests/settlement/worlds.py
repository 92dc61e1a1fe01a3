"""Random worlds of a line: what its batches are, judged already, and all that speaks of them; against the oracle.

`python -m tests.settlement.worlds 100000` is the long run, in line-days.
"""

import hashlib
import random
import sys
import time
from collections import Counter
from dataclasses import replace

from maxgreen.ledger.segments import Cut
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action, Decision, DeviceRecord, Limits, Rules
from settlement.evidence import Evidence, Judged
from settlement.facts import NO_STRETCHES, Fact, Metered, Stretch, Stretches
from settlement.gather import _by_day, _reaching
from settlement.inputs import Base, ChannelTerms, Inputs, KnownRegister, LineBase, LineTerms, Party
from settlement.kept_days import account_of_days, day_inputs, decode_day, derive_day, encode_day, is_by_days
from settlement.statement import derive, fold, read_windows, settle
from settlement.sums import Sums
from simulator.lab import NETWORK, T0_MS, Lab
from tests.settlement.oracle import DAY, WINDOW, Oracle

CONTEXT_S = Limits().stuck_s + WINDOW
COUNTS = Counter()
PEAK_MW = 40_000
BEGIN_S = T0_MS // 1000
MINER, NODE, NEXT = (Lab(secret=secret) for secret in (51, 52, 53))
REASONS = [Reason.SUSPENDED_DEVICE, Reason.REGISTER_MISMATCH, Reason.BAD_WORK, Reason.BAD_ATTESTATION,
           Reason.TAKEN_OUT, Reason.TIME_OVERLAP, Reason.WRONG_ROLE]  # fmt: skip
RELEASES = ["41", "42 43", "46 47", "47", "44 55", "52 54 55", "40 49 51", "x", ""]


class World:
    """A line of a miner, that changes its key sometimes, and a node."""

    def __init__(self, rng, days):
        self.rng, self.days = rng, days
        self.begin_window = rng.randrange(0, 130)
        self.count = rng.randrange(3, 14)  # windows with sun, each day
        self.rotated = rng.random() < 0.2 and days > 1
        self.sunny = rng.choice([500, 15_000, 45_000, 60_000])
        self.unruly = rng.choice([0.0, 0.05, 0.3])
        self.registers = {}
        self.facts = {lab.device: [] for lab in (MINER, NODE, NEXT)}
        for lab in (MINER, NODE):
            self.live(lab)
        if rng.random() < 0.2:
            self.ahead(rng.choice([MINER, NODE]))
        self.decisions = [self.decision() for _ in range(rng.choice([0, 0, 1, 3]))]

    def live(self, lab):
        seq, key, rng = 0, 0, self.rng
        for day in range(self.days):
            if lab is MINER and self.rotated and day == self.days // 2:
                seq, key = 0, 1
            for k in range(self.count):
                window_s = BEGIN_S + day * DAY + (self.begin_window + k) * WINDOW
                for fact in self.window(lab, key, window_s):
                    self.facts[(NEXT if key else lab).device].append(fact._replace(seq=seq))
                    seq += 1 if rng.random() > 0.01 else 2  # a hole that was skipped

    def window(self, lab, key, window_s):
        """Yield the batches of ten minutes: one, or some, or none, or ones that overlap."""
        rng = self.rng
        shown = random.Random(f"{window_s}{self.sunny}")  # what the sun does at both ends
        power_mw = int(self.sunny * shown.random())
        parts = rng.choice([1] * 12 + [0, 2, 2, 3])
        for part in range(parts):
            begin_s = window_s + 600 * part // parts
            end_s = window_s + 600 * (part + 1) // parts
            if rng.random() < self.unruly:
                begin_s += rng.randrange(0, 90)
                end_s -= rng.randrange(0, 90)
            if rng.random() < self.unruly / 4:
                end_s += 300
            reason = rng.choice(REASONS) if rng.random() < self.unruly / 3 else Reason.NONE
            yield self.batch(lab, key, begin_s, max(begin_s, end_s), power_mw, reason)

    def batch(self, lab, key, begin_s, end_s, power_mw, reason):
        rng = self.rng
        roles = ((0, 0), (1, 1)) if lab is MINER else ((0, 2),)
        channels, attestations = [], []
        interval_ms = rng.choice([1_000, 30_000, 30_000, 60_000, 300_000])
        for channel, role in roles:
            lost = 0.97 if role == 2 else 1.0
            if rng.random() < self.unruly:
                lost *= rng.choice([0.5, 0.8, 0.9, 1.1, 1.6])
            energy = int(power_mw * (end_s - begin_s) * lost)
            spans = self.spans(begin_s, end_s)
            counted_ms = sum(b - a for a, b in spans)
            square = (power_mw * 50) ** 2 * counted_ms // 400 if role == 1 else 0
            longest = min(counted_ms, interval_ms)
            channels.append(Metered(channel, role, energy, energy // 50, square, counted_ms, longest, spans))
            place = lab.secret, key, channel
            self.registers[place] = self.registers.get(place, 0) + energy
            if rng.random() < 0.3:
                attestations.append(Attestation(channel, end_s, self.registers[place], 0, b""))
        device = (NEXT if key else lab).device
        if reason is not Reason.NONE:
            return Fact(device, key, 0, reason, Reason.NONE, begin_s * 1000, b"", interval_ms)
        shares = int(rng.random() > self.unruly)
        return Fact(
            device, key, 0, reason, Reason.NONE, begin_s * 1000, b"", interval_ms, tuple(channels),
            tuple(attestations), shares=shares, hashes=shares * 7,
        )  # fmt: skip

    def spans(self, begin_s, end_s):
        if self.rng.random() < self.unruly and end_s - begin_s > 60:
            cut = self.rng.randrange(begin_s + 10, end_s - 10)
            return ((begin_s * 1000, cut * 1000), (min(end_s, cut + self.rng.randrange(1, 200)) * 1000, end_s * 1000))
        return ((begin_s * 1000, end_s * 1000),)

    def ahead(self, lab):
        last = max([f.seq for f in self.facts[lab.device]], default=0)
        t0_s = BEGIN_S + self.rng.randrange(0, self.days * DAY)
        waits = Fact(lab.device, 0, last + self.rng.choice([2, 5]), Reason.GAP_BEFORE, Reason.NONE, t0_s * 1000)
        self.facts[lab.device].append(waits)

    def decision(self):
        rng = self.rng
        lab = rng.choice([MINER, NODE, NEXT])
        first = rng.randrange(0, 20)
        return Decision(
            lab.device, first, first + rng.choice([0, 3, 30]), Action.RELEASE, rng.choice(RELEASES), "dao", 0, ""
        )

    def inputs(self):
        """Return the inputs of the whole of it, as one period."""
        rng = self.rng
        place = rng.choice([None, None, (0.0, 0.0), (40.0, -105.0)])
        miner = tuple(ChannelTerms(0, n, n, PEAK_MW, rng.choice([0, 5_000]), rng.choice([0, 3])) for n in (0, 1))
        node = (ChannelTerms(0, 0, 2, PEAK_MW, 5_000, rng.choice([0, 3])),)
        statuses = ((0, "active"),)
        parties = [
            Party(lab.device, DeviceRecord(lab.signer.spki, statuses), kind, token, terms, where, 10**6, 10**6,
                  token == 2 and rng.random() < 0.3, key)
            for lab, kind, token, terms, where, key in (
                (MINER, "miner", 1, miner, place, 0), (NODE, "storage_node", 2, node, None, 0),
                (NEXT, "miner", 1, miner, place, 1),
            )
        ]  # fmt: skip
        if not self.rotated:
            parties.pop()
        first_s = BEGIN_S + self.begin_window * WINDOW
        bases = [Base(first_s + rng.choice([0, 0, 700]), rng.choice([0, 0, 2])) for _ in range(2)]
        resistance, loss_ppm = rng.choice([(200_000, 0), (0, 30_000), (0, 0)])
        until_s = BEGIN_S + self.days * DAY
        closed_s = rng.choice([0, 0, 0, until_s - DAY // 2])
        line = LineTerms(
            bytes(32), 1, 1, 2, 0, resistance, loss_ppm, rng.choice([0, 100_000, 200_000]), *bases, LineBase(BEGIN_S),
            closed_s, KnownRegister(), KnownRegister(), 0, 0, 0,
        )  # fmt: skip
        limits = Limits(unmetered_ppm=rng.choice([0, 50_000, 200_000]), edge_ms=rng.choice([1_000, 60_000]))
        before = {}
        for _ in range(rng.choice([0, 0, 3])):
            w = first_s + rng.randrange(0, self.days * self.count) * WINDOW
            before[w] = (rng.choice(["held", "disputed"]), rng.choice(["", "46", "47", "46 47"]))
        devices = {party.device for party in parties}
        period = f"2026-01-{self.days:02}"
        return Inputs(
            NETWORK, period, until_s, BEGIN_S, None, tuple(parties), line,
            Rules(NETWORK, limits=[(0, limits)], decisions=[d for d in self.decisions if d.device in devices]),
            (), {}, {}, before,
        )  # fmt: skip


def evidence_of(facts):
    return Evidence(facts, {}, {}, {}, 0, {})


def check(seed, days):
    """Compare a world's windows and what is payable with the oracle's, also when each day is closed by itself."""
    rng = random.Random(seed)
    world = World(rng, days)
    inputs = world.inputs()
    facts = {party.device: tuple(world.facts[party.device]) for party in inputs.parties}
    result = derive(inputs, evidence_of(facts))
    oracle = Oracle(inputs, facts)
    judged = oracle.judge()
    found = {w.window_s: w for w in result.windows.windows}
    assert set(found) == set(judged), (seed, "windows")
    for window_s, (state, reasons, dispute) in judged.items():
        w, row = found[window_s], oracle.row[window_s]
        numbers = {
            "sent": w.measured.sent_mws, "received": w.measured.received_mws, "q": w.measured.square_current,
            "expected": w.measured.expected_mws, "e": w.measured.error_mws, "edge": w.measured.edge_mws,
            "sent_dark": w.measured.sent_dark_ms, "received_dark": w.measured.received_dark_ms,
            "sent_unmet": w.measured.sent_unmet_mws, "received_unmet": w.measured.received_unmet_mws,
            "metered": w.measured.metered_ms,
        }  # fmt: skip
        assert numbers == row, (seed, window_s)
        assert (w.state.value, w.reasons, w.dispute) == (state, reasons, dispute), (seed, window_s)
    assert int(result.statement["payable_total_mws"]) == oracle.payable(judged), (seed, "payable")
    assert [w.reasons for w in read_windows(result.entries)] == [w.reasons for w in result.windows.windows]
    # a base of the days before, and the windows of the rest, come to the same
    cut_s = BEGIN_S + rng.randrange(0, days + 1) * DAY
    base = fold(LineBase(BEGIN_S), read_windows(result.entries), cut_s)
    rest = derive(replace(inputs, start_s=cut_s, line=replace(inputs.line, base=base)), evidence_of(facts))
    assert rest.statement["payable_total_mws"] == result.statement["payable_total_mws"], (seed, "split")
    assert inputs.line.base.sums == Sums()
    by_days(seed, inputs, facts)
    return len({w // DAY for w in judged})


def by_days(seed, inputs, facts):
    """Compare what the days come to, each derived from the segments that reach it and kept, with the whole."""
    waits = any(fact.reason is Reason.GAP_BEFORE for own in facts.values() for fact in own)
    if waits or not is_by_days(inputs, dict.fromkeys(facts, (0, 2**63))):
        return
    rng = random.Random(f"{seed} segments")
    compare_days(seed, inputs, {device: parted(rng, device, stuck(rng, own)) for device, own in facts.items()})


def compare_days(seed, inputs, chains):
    cuts, days = {}, {}
    for device, own in chains.items():
        cuts[device] = _reaching([cut for cut, _ in own], inputs.start_s - CONTEXT_S, inputs.until_s)
        for day_s, (first, last) in _by_day(cuts[device], inputs.start_s, inputs.until_s, CONTEXT_S).items():
            days.setdefault(day_s, {})[device] = tuple(cut.digest for cut in cuts[device][first : last + 1])
    inputs = replace(inputs, segments={device: tuple(cut.digest for cut in own) for device, own in cuts.items()})
    whole = derive(inputs, judged(chains, inputs.segments))
    kept = {
        day_s: decode_day(encode_day(derive_day(day_inputs(inputs, day_s, near), judged(chains, near))))
        for day_s, near in days.items()
    }
    account = account_of_days(inputs, kept, days)
    COUNTS["by days" if account is not None else "not by days"] += 1
    if account is not None:
        found = settle(inputs, account)
        assert found.statement == whole.statement, (seed, "days")
        assert found.entries == whole.entries, (seed, "days")
        assert found.cuts == whole.cuts, (seed, "days")


def night(seed):
    """Compare days with the whole where a reading may stay the same over midnights, boots, keys and segments."""
    rng = random.Random(f"night {seed}")
    world = World(rng, 3)
    world.rotated, world.decisions = rng.random() < 0.3, []
    inputs = world.inputs()
    bases = {"sent_base": Base(BEGIN_S), "received_base": Base(BEGIN_S)}
    limits = [(0, Limits(stuck_s=3_600, unmetered_ppm=1_000_000))]
    inputs = replace(
        inputs, line=replace(inputs.line, **bases, closed_s=0), rules=Rules(NETWORK, limits=limits), windows_before={}
    )
    keys = [(MINER, 0, (0, 1)), (NEXT, 1, (0, 1))][: 1 + world.rotated]
    chains = {NODE.device: parted(rng, NODE.device, list(dark(rng, NODE, 0, (2,), BEGIN_S, inputs.until_s)))}
    bounds = [BEGIN_S, BEGIN_S + DAY + rng.choice([-3_600, 0, 600]), inputs.until_s]
    for k, (lab, key, roles) in enumerate(keys):
        until_s = bounds[k + 1] if world.rotated else inputs.until_s
        chains[lab.device] = parted(rng, lab.device, list(dark(rng, lab, key, roles, bounds[k], until_s)))
    compare_days(f"night {seed}", inputs, chains)


def dark(rng, lab, key, roles, from_s, until_s):
    """Yield batches around the midnights of a time, one reading each, which is the same for long."""
    boots, boot, began_s, value = (b"A" * 16, b"B" * 16), b"A" * 16, BEGIN_S - 86_400 * rng.choice([0, 1]), (1, 9_000)
    t_s, seq = from_s, 0
    while t_s < until_s:
        near = min(t_s % DAY, -t_s % DAY) < 2 * 3_600
        t_s += rng.choice([600, 600, 1_800, 5_100]) if near else DAY // 6
        boot = rng.choice(boots) if rng.random() < 0.2 else boot
        value = (1, rng.choice([9_000, 9_001])) if rng.random() < 0.1 else value
        reason = rng.choice([Reason.TIME_OVERLAP, Reason.REGISTER_MISMATCH]) if rng.random() < 0.1 else Reason.NONE
        off_s = rng.choice([-DAY, 0, DAY]) if reason is Reason.TIME_OVERLAP else 0
        if t_s >= until_s:
            return
        one = Stretch(value, (t_s - began_s) * 1000, (t_s - began_s) * 1000)
        spans = ((t_s * 1000, t_s * 1000 + 60_000),)
        channels = [
            Metered(n, role, 1_000, 0, 0, 60_000, 60_000, spans, Stretches(one, one, 0)) for n, role in enumerate(roles)
        ]
        attested = tuple(Attestation(n, t_s + 60, seq, 0, b"") for n in range(len(roles)) if rng.random() < 0.5)
        accepted = reason is Reason.NONE
        yield Fact(
            lab.device, key, seq, reason, Reason.NONE, (t_s + off_s) * 1000, boot, 600_000,
            tuple(channels) if accepted else (), attested if accepted else (), shares=int(accepted),
        )  # fmt: skip
        seq += 1


def stuck(rng, facts):
    """Return batches of which some show one reading all the time, as a stuck sensor does."""
    value, changed = (1, 9_000), []
    for fact in facts:
        value = value if rng.random() < 0.8 else (1, rng.choice([9_000, 9_001]))
        begin_ms, kind = fact.t0_ms - BEGIN_S * 1000, rng.choice(["dark", "sun", "one", "one"])
        one = Stretch(value, begin_ms, begin_ms + 540_000)
        other = Stretch((2, 9_000), begin_ms + 560_000, begin_ms + 560_000)
        stretches = {"dark": NO_STRETCHES, "sun": Stretches(one, other, 540_000), "one": Stretches(one, one, 540_000)}
        channels = tuple(metered._replace(stretches=stretches[kind]) for metered in fact.channels)
        changed.append(fact._replace(channels=channels))
    return changed


def parted(rng, device, facts):
    """Return a chain's batches in segments: each as the ledger knows it, and judged."""
    found, state, rest = [], ChainState.start(NETWORK), list(facts)
    while rest:
        count = rng.choice([1, 3, 20])
        own, rest = rest[:count], rest[count:]
        times = [fact.t0_ms for fact in own if fact.dated]
        number = len(found)
        digest = hashlib.sha256(device + bytes([number])).digest()
        cut = Cut(number, number, number + 1, digest, min(times, default=None), max(times, default=None), b"")
        end = replace(state, next_seq=number + 1, boot=own[-1].boot)
        previous = found[-1][0].digest if found else None
        found.append((cut, Judged(digest, tuple(own), previous, state, end, None, (), len(own), 0)))
        state = end
    return found


def judged(chains, segments):
    """Return the evidence that these segments are."""
    found = {
        device: [one for cut, one in own if cut.digest in segments.get(device, ())] for device, own in chains.items()
    }
    facts = {device: tuple(fact for one in own for fact in one.facts) for device, own in found.items()}
    return Evidence(facts, {}, {device: own for device, own in found.items() if own}, {}, 0, {})


def run(line_days, seed=1, progress=None):
    """Check worlds until they have so many line-days; return how many worlds that were."""
    worlds = done = 0
    while done < line_days:
        done += check(f"{seed}/{worlds}", 1 + worlds % 4)
        worlds += 1
        if progress is not None:
            progress(worlds, done)
    return worlds


def main():
    """Check as many line-days as asked for."""
    line_days, begun = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, time.monotonic()

    def progress(worlds, done):
        if worlds % 5_000 == 0:
            print(f"{done} line-days, {worlds} worlds, {time.monotonic() - begun:.0f} s", flush=True)

    worlds = run(line_days, progress=progress)
    print(f"{line_days} line-days in {worlds} worlds: no difference from the oracle; {dict(COUNTS)}")


if __name__ == "__main__":
    main()
