"""Runs of equal readings, found by looking at few samples, are those that every sample tells."""

import random

import pytest

from maxgreen.protocol.batch import Channel
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.meter import longest_segment_ms
from maxgreen.verify.rules import Limits
from settlement.checks import stuck_windows
from settlement.facts import Fact, Metered, stretches_of
from simulator.lab import BOOT, T0_MS, Lab

DEAD_BAND_UA = 5_000


def story(rng):
    """Return facts whose readings are few values, with gaps, boots and a dead band."""
    lab, facts, boot_ms, boot = Lab(), [], 60_000, BOOT
    interval_ms = rng.choice([1_000, 20_000])
    for _ in range(rng.randrange(2, 12)):
        if rng.random() < 0.1:
            boot = rng.randbytes(16)
        count, values = rng.randrange(1, 30), [(1, 6_000), (1, 7_000), (2, 6_000), (1, 4_000)]
        steady, times = rng.choice(values), []
        for _ in range(count):
            boot_ms += interval_ms if rng.random() < 0.97 else 15 * interval_ms + 20_000
            times.append(boot_ms)
        picked = [steady if rng.random() < 0.9 else rng.choice(values) for _ in times]
        channel = Channel.of(
            0, 0, [v for v, _ in picked], [i for _, i in picked], [t - times[0] for t in times], (0, 0, 0)
        )
        batch = lab.batch((), boot=boot, t0_boot_ms=times[0], interval_ms=interval_ms, channels=(channel,))
        stretches = stretches_of(channel, times[0], interval_ms, DEAD_BAND_UA)
        metered = Metered(0, 0, stretches=stretches)
        t0_ms = T0_MS + times[0]
        fact = Fact(lab.device, 0, 0, Reason.NONE, Reason.NONE, t0_ms, boot, interval_ms, (metered,))
        facts.append((fact, batch))
    return facts


def told(facts, stuck_ms):
    """Return the same, sample by sample."""
    found, run = set(), None
    for fact, batch in facts:
        [channel] = batch.channels
        for v, i, offset in zip(channel.voltage_uv, channel.current_ua, channel.offsets_ms, strict=True):
            boot_ms = batch.t0_boot_ms + offset
            if abs(i) < DEAD_BAND_UA:
                run = None
                continue
            near = run and run["boot"] == batch.boot and run["value"] == (v, i)
            if near and 0 < boot_ms - run["last"] <= longest_segment_ms(batch.interval_ms):
                run["last"] = boot_ms
            else:
                run = {"boot": batch.boot, "value": (v, i), "first": boot_ms, "last": boot_ms}
            if run["last"] - run["first"] >= stuck_ms:
                found.add(fact.window_s)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_few_samples_tell_what_all_of_them_do(seed):
    rng = random.Random(seed)
    facts = story(rng)
    for stuck_s in (0, 5, 60, 400, 3_600):
        assert stuck_windows([fact for fact, _ in facts], 0, lambda _w, s=stuck_s: Limits(stuck_s=s)) == told(
            facts, stuck_s * 1_000
        )
