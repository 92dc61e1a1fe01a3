"""docs/settlement.md once more, sentence by sentence and as slowly as it reads: what `derive` must agree with.

It works on the facts of batches. Spans are of whole seconds, so metered time is a set of seconds. Stuck sensors are
left to test_stuck.
"""

from fractions import Fraction

from settlement.sun import elevation_mdeg

DAY, WINDOW = 86_400, 600
RELEASABLE = {41, 42, 43, 44, 45, 46, 47, 52, 54, 55}


def up(value):
    return -((-value.numerator) // value.denominator) if isinstance(value, Fraction) else value


class Oracle:
    """One line of a world."""

    def __init__(self, inputs, facts):
        self.inputs, self.line = inputs, inputs.line
        self.ends = []
        for token, channel, base, asked in (
            (self.line.miner, self.line.miner_channel, self.line.sent_base, True),
            (self.line.node, self.line.node_channel, self.line.received_base, None),
        ):
            keys = sorted((p for p in inputs.parties if p.token == token), key=lambda p: p.key_number)
            own = [fact for party in keys for fact in facts[party.device]]
            online = keys[-1].online_required if asked is None else asked
            self.ends.append({"party": keys[-1], "channel": channel, "base": base, "facts": own, "online": online})
        self.end_s = min(inputs.until_s, self.line.closed_s) if self.line.closed_s else inputs.until_s
        self.find_windows()

    def limits(self, window):
        """Return the limits valid at the end of a window's day."""
        return self.inputs.rules.limits_at((window // DAY + 1) * DAY * 1000)

    def counting(self, end):
        base = end["base"]
        return [
            f
            for f in end["facts"]
            if (f.key_number > base.key_number or (f.key_number == base.key_number and f.seq > base.seq))
            and f.t0_ms >= base.time_s * 1000
        ]

    def metered(self, end, fact):
        for metered in fact.channels if fact.reason == 0 else ():
            if metered.channel == end["channel"]:
                return metered
        return None

    def find_windows(self):
        first = max(end["base"].time_s for end in self.ends) // WINDOW * WINDOW
        self.windows = {}
        for number, end in enumerate(self.ends):
            for fact in self.counting(end):
                w = fact.t0_ms // 1000 // WINDOW * WINDOW
                if w >= first and self.inputs.start_s <= w < self.end_s:
                    self.windows.setdefault(w, ([], []))[number].append(fact)
        self.row = {w: self.numbers(w, *self.windows[w]) for w in sorted(self.windows)}
        self.held = {w: set() for w in self.row}
        self.listed = sorted(self.row)

    def numbers(self, w, sent_facts, received_facts):
        """Return the columns of a window (2 and 4)."""
        sent = [m for f in sent_facts if (m := self.metered(self.ends[0], f))]
        received = [m for f in received_facts if (m := self.metered(self.ends[1], f))]
        one = {"sent": sum(m.energy_mws for m in sent), "received": sum(m.energy_mws for m in received)}
        one["q"] = sum(m.square_current for m in sent)
        if self.line.resistance_uohm:
            one["expected"] = int(Fraction(self.line.resistance_uohm * one["q"], 2 * 10**18))
        else:
            one["expected"] = int(Fraction(one["sent"] * self.line.loss_ppm, 10**6))
        terms = [end["party"].terms(end["channel"], w * 1000) for end in self.ends]
        one["e"] = (
            up(Fraction(one["sent"] * terms[0].error_ppm, 10**6))
            + up(Fraction(one["received"] * terms[1].error_ppm, 10**6))
            + up(Fraction((abs(terms[0].offset_mw) + abs(terms[1].offset_mw)) * 600_000, 1000))
        )
        interval = max([f.interval_ms for f in (*sent_facts, *received_facts) if f.reason == 0], default=0)
        peak = terms[0].peak_mw
        one["edge"] = up(Fraction(2 * peak * min(interval, self.limits(w).edge_ms), 1000))
        seconds = [
            {t for m in own for a, b in m.spans for t in range(a // 1000, b // 1000)} for own in (sent, received)
        ]
        longest = max([m.longest_ms for m in (*sent, *received)], default=0)
        one["metered"] = 1000 * len(seconds[0] | seconds[1])
        for name, own, other, energy in (("sent", 0, 1, "received"), ("received", 1, 0, "sent")):
            dark = max(0, 1000 * len(seconds[other] - seconds[own]) - longest)
            one[f"{name}_dark"] = dark
            one[f"{name}_unmet"] = min(one[energy], up(Fraction(peak * dark, 1000)))
        return one

    def day(self, w):
        return w // DAY

    def judge(self):
        """Return (state, reasons, dispute) by window."""
        for end in self.ends:
            self.by_batches(end)
            self.unattested(end)
            self.incomplete(end)
            self.offline(end)
            self.overfull(end)
        self.plausible()
        self.lift()
        for day in sorted({self.day(w) for w in self.row}):
            self.unmetered([w for w in self.listed if self.day(w) == day])
        return self.disputes()

    def hold(self, w, reason):
        if w in self.held:
            self.held[w].add(reason)

    def window(self, fact):
        return fact.t0_ms // 1000 // WINDOW * WINDOW

    def by_batches(self, end):
        for at, fact in enumerate(end["facts"]):
            number = {11: 51, 49: 49, 13: 52, 14: 52, 15: 52}.get(int(fact.reason))
            if number:
                self.hold(self.window(fact), number)
            if fact.reason == 6:
                reached = [self.window(f) for f in end["facts"][:at] if f.reason == 0]
                if not any(w > self.window(fact) for w in reached):
                    self.hold(self.window(fact), 52)

    def attested(self, end, fact):
        return fact.reason == 0 and any(a.channel == end["channel"] for a in fact.attestations)

    def unattested(self, end):
        for key in {f.key_number for f in end["facts"]}:
            cut = -1
            for fact in end["facts"]:
                for a in fact.attestations if fact.key_number == key and fact.reason == 0 else ():
                    if a.channel == end["channel"] and a.unix_s < self.end_s:
                        cut = fact.seq
            for fact in end["facts"]:
                if fact.key_number == key and fact.seq > cut and int(fact.reason) in {0, 11, 13, 14, 15, 49}:
                    self.hold(self.window(fact), 53)

    def incomplete(self, end):
        facts = end["facts"]
        for at in range(1, len(facts)):
            before, after = facts[at - 1], facts[at]
            if after.reason == 6 and after.seq > before.seq + 1:
                self.hold(self.window(before), 40)
                for w in self.listed:
                    if self.window(before) <= w <= self.window(after):
                        self.hold(w, 40)

    def offline(self, end):
        if not end["online"]:
            return
        credited = {self.window(f) for f in end["facts"] if f.reason == 0 and f.shares}
        for fact in end["facts"]:
            w = self.window(fact)
            if fact.reason == 0 and w not in credited and not {w - WINDOW, w + WINDOW} <= credited:
                self.hold(w, 41)

    def of_channel(self, end, channel, w):
        own = [f for f in end["facts"] if f.reason == 0 and self.window(f) == w]
        return [m for f in own for m in f.channels if m.channel == channel]

    def overfull(self, end):
        for w in {self.window(f) for f in end["facts"]}:
            own = self.of_channel(end, end["channel"], w)
            if sum(m.counted_ms for m in own) > 600_000 + max([m.longest_ms for m in own], default=0):
                self.hold(w, 54)

    def plausible(self):
        end = self.ends[0]
        party, sent = end["party"], end["channel"]
        generation = sorted({c.channel for c in party.channels if c.role == 0})
        spoilt = set()
        for channel in {sent, *generation}:
            for w in {self.window(f) for f in end["facts"]}:
                own, limits = self.of_channel(end, channel, w), self.limits(w)
                growth, time = sum(m.energy_mws for m in own), sum(m.counted_ms for m in own)
                terms = party.terms(channel, w * 1000)
                reasons = set()
                if terms and growth * 1000 > Fraction(terms.peak_mw * limits.capacity_ppm, 10**6) * min(600_000, time):
                    reasons.add(43)
                least = max(Fraction(terms.peak_mw if terms else 0, 100), 1)
                dark = party.place and all(elevation_mdeg(t, *party.place) < limits.night_mdeg for t in (w, w + WINDOW))
                if dark and growth > least * Fraction(time, 1000):
                    reasons.add(44)
                for reason in reasons:
                    self.hold(w, reason)
                if reasons and channel in generation:
                    spoilt.add(w)
        self.generated(end, spoilt)

    def generated(self, end, spoilt):
        party = end["party"]
        for day in {self.window(f) // DAY * DAY for f in end["facts"]}:
            sums = {}
            interval = 0
            for fact in end["facts"]:
                w = self.window(fact)
                if fact.reason != 0 or w // DAY * DAY != day or w in spoilt:
                    continue
                interval = max(interval, min(fact.interval_ms, self.limits(w).edge_ms))
                for m in fact.channels:
                    if m.role in {0, 1} and party.terms(m.channel, day * 1000):
                        sums[m.channel, m.role] = sums.get((m.channel, m.role), 0) + m.energy_mws
            sent = sum(v for (_, role), v in sums.items() if role == 1)
            allowed = sum(v for (_, role), v in sums.items() if role == 0)
            for (channel, _), energy in sums.items():
                terms = party.terms(channel, day * 1000)
                allowed += up(Fraction(energy * terms.error_ppm, 10**6)) + abs(terms.offset_mw) * DAY
            peaks = [party.terms(channel, day * 1000).peak_mw for (channel, role) in sums if role == 1]
            allowed += up(Fraction(2 * max(peaks, default=0) * interval, 1000))
            if sent > allowed:
                for w in self.listed:
                    if w // DAY * DAY == day and sum(m.energy_mws for m in self.of_channel(end, end["channel"], w)) > 0:
                        self.hold(w, 42)

    def lift(self):
        self.released = {w: set() for w in self.row}
        for end in self.ends:
            for fact in end["facts"]:
                for decision in self.inputs.rules.decisions:
                    speaks = decision.device == fact.device and decision.from_seq <= fact.seq <= decision.to_seq
                    if speaks and decision.action == "release" and self.window(fact) in self.row:
                        words = {int(word) for word in decision.reason.split() if word.isdigit()}
                        self.released[self.window(fact)] |= words & RELEASABLE
        self.held = {w: reasons - self.released[w] for w, reasons in self.held.items()}

    def unmetered(self, day):
        for own, other in (("sent", "received"), ("received", "sent")):
            for what, whole in ((f"{own}_dark", "metered"), (f"{own}_unmet", other)):
                left = [w for w in day if self.row[w][other] and not self.held[w]]
                most = Fraction(self.limits(day[0]).unmetered_ppm, 10**6) * sum(self.row[w][whole] for w in left)
                for w in sorted(left, key=lambda w: (-self.row[w][what], w)):
                    if sum(self.row[x][what] for x in left) <= most:
                        break
                    left = [x for x in left if x != w]
                    if 55 not in self.released[w]:
                        self.held[w].add(55)

    def exceeds(self, windows):
        if not windows:
            return set()
        total = {name: sum(self.row[w][name] for w in windows) for name in self.row[windows[0]]}
        error = total["e"] + total["sent_unmet"] + total["received_unmet"] + max(self.row[w]["edge"] for w in windows)
        found = set()
        if total["received"] > total["sent"] + error:
            found.add(46)
        lost = total["sent"] - total["received"]
        if lost > total["expected"] + error or lost - error > Fraction(self.line.max_loss_ppm, 10**6) * total["sent"]:
            found.add(47)
        return found

    def disputes(self):
        stays, all_held = {}, {}
        for w in self.listed:
            _, before = self.inputs.windows_before.get(w, ("", ""))
            stays[w] = {int(n) for n in before.split()} & {46, 47} - self.released[w]
            all_held[w] = self.held[w] | (self.exceeds([w]) - self.released[w]) | stays[w]
        for day in {self.day(w) for w in self.listed}:
            together = [
                w
                for w in self.listed
                if self.day(w) == day
                and (self.row[w]["sent"] or self.row[w]["received"])
                and not all_held[w]
                and not self.released[w] & {46, 47}
            ]
            failed = self.exceeds(together)
            for w in together:
                all_held[w] = all_held[w] | failed
        found = {}
        for w in self.listed:
            reasons = all_held[w]
            state = "counted" if not reasons else "disputed" if reasons <= {46, 47} else "held"
            if reasons <= {46, 47}:
                stays[w] |= reasons
            found[w] = (state, tuple(sorted(reasons)), tuple(sorted(stays[w])))
        return found

    def payable(self, judged):
        """Return M + max(0, min(V, S - max(0, E - e))) over the counted windows, without earlier ones (5)."""
        one_sided = matched = sent = received = expected = error = 0
        edges = {}
        for w, (state, _, _) in judged.items():
            row = self.row[w]
            if state != "counted" or not (row["sent"] or row["received"]):
                continue
            if row["sent_dark"] or row["received_dark"]:
                one_sided += 1
                matched += max(0, min(row["received"], row["sent"] - max(0, row["expected"] - row["e"])))
                continue
            sent, received = sent + row["sent"], received + row["received"]
            expected, error = expected + row["expected"], error + row["e"]
            edges[self.day(w)] = max(edges.get(self.day(w), 0), row["edge"])
        error += sum(edges.values())
        return matched + max(0, min(received, sent - max(0, expected - error)))
