"""From batches to pay, on hand-made chains."""

import struct
from dataclasses import replace

import pytest

from maxgreen.chain.orders import Ends
from maxgreen.errors import UsageError
from maxgreen.protocol import cose
from maxgreen.protocol.backend import sign_beacon
from maxgreen.protocol.batch import Role
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.pack import PackError, manifest_bytes
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action, Decision, Limits, Rules
from settlement.audit import Difference, audit
from settlement.inputs import Arrival, Base, ChannelTerms, Inputs, KnownRegister, LineBase, LineTerms, Party
from settlement.periods import month_before, months_of, period_bounds
from settlement.statement import derive, fold, mint_wei
from settlement.sun import elevation_mdeg
from settlement.windows import DAY_S, State, Window, sums_of
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon

BACKEND = MemorySigner.from_secret(2)
PERIOD = "2026-01-01"
BEGIN_S, UNTIL_S = period_bounds(PERIOD)
WINDOW = 600
RESISTANCE = 200_000
PEAK_MW = 40_000


class Pair:
    """A miner and its node, ten-minute batches of 30 s samples."""

    def __init__(self, options=None, windows=8):
        self.miner = Lab(secret=1, roles=(Role.GENERATION, Role.SENT), interval_ms=30_000)
        self.node = Lab(secret=4, roles=(Role.RECEIVED,), interval_ms=30_000)
        self.node.boot = bytes(16)
        self.messages = {self.miner.device: [], self.node.device: []}
        self.beacon = beacon()
        self.options = options or {}
        for lab in (self.miner, self.node):
            self.messages[lab.device].append(lab.sign(lab.attested(lab.batch([(18_000_000, 1_000_000)]))))
        for number in range(windows):
            self.window(number, last=number == windows - 1)

    def window(self, number, *, last=False):
        change = self.options.get(number, {})
        current = change.get("current", 1_000_000)
        for lab, lost in ((self.miner, 0), (self.node, change.get("drop", current * RESISTANCE // 10**6))):
            if lab is self.node and change.get("silent"):
                lab.boot_ms += 20 * 30_000
                continue
            count = 19 if number == 0 else 20
            readings = [(18_000_000 + k - lost, current + k) for k in range(count)]
            batch = lab.batch(readings)
            if lab is self.miner and not change.get("offline"):
                batch = replace(batch, work=lab.work(self.beacon))
            if last and not self.options.get("unattested"):
                batch = lab.attested(batch)
            self.messages[lab.device].append(lab.sign(batch))

    def inputs(self, **changes):
        parties = tuple(
            Party(
                lab.device,
                lab.record(),
                kind,
                token,
                tuple(ChannelTerms(0, n, int(role), PEAK_MW, 5_000, 0) for n, role in enumerate(lab.roles)),
                self.options.get("place"),
                1_000_000,
                1_000_000,
                False,
            )
            for lab, kind, token in ((self.miner, "miner", 1), (self.node, "storage_node", 2))
        )
        line = LineTerms(
            Ends(1, 1, 2, 0).line_id, 1, 1, 2, 0, RESISTANCE, 0, 100_000, Base(T0_MS // 1000), Base(T0_MS // 1000),
            LineBase(BEGIN_S), 0, KnownRegister(), KnownRegister(), 0, 0, 0,
        )  # fmt: skip
        rules = Rules(
            NETWORK,
            limits=[(0, Limits(pow_nbits_min=EASY))],
            beacons={self.beacon.number: self.beacon},
            decisions=self.options.get("decisions", ()),
        )
        arrived = T0_MS + 86_400_000
        found = Inputs(
            network=NETWORK,
            period=PERIOD,
            until_s=UNTIL_S,
            start_s=BEGIN_S,
            previous=None,
            parties=parties,
            lines=(line,),
            rules=rules,
            backend_keys=(BACKEND.spki,),
            beacon_messages=(sign_beacon(self.beacon, BACKEND, NETWORK),),
            receipts={},
            batches={device: tuple(messages) for device, messages in self.messages.items()},
            arrivals={d: tuple(Arrival(k, arrived) for k in range(len(m))) for d, m in self.messages.items()},
            starts={d: ChainState.start(NETWORK) for d in self.messages},
            windows_before={},
        )
        return replace(found, **changes)

    def pack(self):
        inputs = self.inputs()
        derived = derive(inputs)
        entries = {**inputs.entries(), **derived.entries}
        entries["statement.cose"] = cose.sign(entries["statement.json"], BACKEND, NETWORK, "statement", detached=True)
        entries["manifest.json"] = manifest_bytes(NETWORK, PERIOD, UNTIL_S, None, entries)
        return entries


def limits(_window_s):
    return Limits()


def windows(pair):
    [result] = derive(pair.inputs()).lines
    return {(w.window_s - BEGIN_S) // WINDOW: w for w in result.windows.windows}, result


def test_an_honest_line_is_counted_and_paid_what_arrived():
    found, result = windows(Pair())
    assert {found[k].state for k in range(8)} == {State.COUNTED}
    received = sum(w.measured.received_mws for w in found.values())
    sent = sum(w.measured.sent_mws for w in found.values())
    assert int(result.statement["received_mws"]) == received
    assert int(result.statement["loss_mws"]) == sent - received
    for k in range(1, 8):
        w = found[k].measured
        assert abs(w.expected_mws - (w.sent_mws - w.received_mws)) <= 200
    assert int(result.statement["payable_total_mws"]) == received
    assert int(result.statement["mint_wei"]) == received * 2_500_000_000 // 9
    assert result.leaf.claim.payable_total_mws == received
    assert result.statement["online_windows"] == 8


@pytest.mark.parametrize(
    ("options", "number", "state", "reason"),
    [
        ({3: {"offline": True}, 4: {"offline": True}}, 3, State.HELD, Reason.OFFLINE_WINDOW),
        ({3: {"drop": -8_000_000}}, 3, State.DISPUTED, Reason.RECEIVED_EXCEEDS_SENT),
        ({3: {"drop": 9_000_000}}, 3, State.DISPUTED, Reason.LOSS_EXCEEDS_LIMIT),
        ({3: {"silent": True}}, 3, State.HELD, Reason.UNMETERED),
        ({3: {"current": 2_900_000}}, 3, State.HELD, Reason.OVER_CAPACITY),
        ({"unattested": True}, 5, State.HELD, Reason.UNATTESTED),
        ({"place": (0.0, 0.0)}, 5, State.HELD, Reason.AT_NIGHT),
    ],
)
def test_each_window_has_its_state_and_reason(options, number, state, reason):
    found, _ = windows(Pair(options))
    assert found[number].state is state
    assert reason in found[number].reasons


def test_one_offline_window_between_online_ones_is_online():
    found, _ = windows(Pair({3: {"offline": True}}))
    assert found[3].state is State.COUNTED


def test_a_held_window_counts_when_the_dao_releases_it():
    options = {3: {"offline": True}, 4: {"offline": True}}
    held = windows(Pair(options))[1]
    decision = Decision(Pair().miner.device, 4, 5, Action.RELEASE, "41", "dao", T0_MS, "work was seen")
    found, released = windows(Pair({**options, "decisions": [decision]}))
    assert found[3].state is State.COUNTED
    assert int(released.statement["payable_mws"]) > int(held.statement["payable_mws"])
    assert held.statement["held"].keys() == {"41"}


def test_more_sent_than_generated_holds_the_day():
    pair = Pair()
    inputs = pair.inputs()
    miner = inputs.parties[0]
    from settlement.checks import not_generated_days
    from settlement.replay import replay

    facts = replay(inputs).facts[miner.device]
    assert not_generated_days(miner, facts, limits, set()) == set()
    doubled = [
        replace(f, readings=tuple(replace(r, energy_mws=2 * r.energy_mws) if r.role == 1 else r for r in f.readings))
        for f in facts
    ]
    assert not_generated_days(miner, doubled, limits, set()) == {BEGIN_S}


def test_a_reading_that_never_changes_is_a_stuck_sensor():
    from settlement.checks import stuck_windows
    from settlement.replay import replay

    pair = Pair()
    inputs = pair.inputs()
    facts = replay(inputs).facts[inputs.parties[0].device]
    assert stuck_windows(facts, 0, limits) | stuck_windows(facts, 1, limits) == set()
    flat = [
        replace(
            f,
            batch=replace(
                f.batch,
                channels=tuple(
                    replace(c, voltage=struct.pack("<i", 5) * c.count, current=struct.pack("<i", 9_000) * c.count)
                    for c in f.batch.channels
                ),
            ),
        )
        for f in facts
    ]
    assert stuck_windows(flat, 0, limits) == {BEGIN_S + 6 * WINDOW, BEGIN_S + 7 * WINDOW}  # after an hour
    booted = [replace(f, batch=replace(f.batch, boot=bytes([k] * 16))) if k > 4 else f for k, f in enumerate(flat)]
    assert stuck_windows(booted, 1, limits) == set()


@pytest.mark.rule("P-ING-1", "P-PCK-1")
def test_the_audit_of_a_pack_gives_the_same_statement():
    entries = Pair().pack()
    report = audit(entries)
    assert report.statement == entries["statement.json"]
    assert audit(entries).text() == report.text()
    assert Inputs.from_entries(entries).entries() == Pair().inputs().entries()


@pytest.mark.rule("P-PCK-1")
def test_any_changed_entry_is_named():
    entries = Pair().pack()
    for name in entries:
        data = bytearray(entries[name])
        if not data:
            continue
        data[len(data) // 2] ^= 0x01
        with pytest.raises(PackError) as caught:
            audit({**entries, name: bytes(data)})
        assert name in str(caught.value) or name == "manifest.json"
        with pytest.raises(PackError, match=name if name != "manifest.json" else "manifest"):
            audit({k: v for k, v in entries.items() if k != name})


def test_a_statement_that_does_not_follow_is_a_difference_even_with_a_right_manifest():
    entries = Pair().pack()
    lie = entries["statement.json"].replace(b'"payable_mws":"', b'"payable_mws":"1')
    forged = {**entries, "statement.json": lie}
    forged["statement.cose"] = cose.sign(lie, BACKEND, NETWORK, "statement", detached=True)
    forged["manifest.json"] = manifest_bytes(NETWORK, PERIOD, UNTIL_S, None, forged)
    with pytest.raises(Difference, match="statement.json"):
        audit(forged)


def test_sums_over_split_packs_are_those_of_one():
    [result] = derive(Pair().inputs()).lines
    days = 5
    every = [
        Window(replace(w.measured, window_s=w.window_s + k * DAY_S), w.reasons)
        for k in range(days)
        for w in result.windows.windows
    ]
    whole = sums_of(every)
    assert whole.received_mws == days * sums_of(result.windows.windows).received_mws > 0
    for day in range(days + 1):
        cut_s = BEGIN_S + day * DAY_S
        base = fold(LineBase(0), every, cut_s)
        assert base.sums + sums_of(w for w in every if w.window_s >= cut_s) == whole


def test_minting_rounds_down_and_carries_ninths():
    assert mint_wei(3_600_000_000, 1_000_000, 0) == 10**18
    # one mW·s is 2,500,000,000 / 9 wei: what is cut off is carried (settlement.md, Minting)
    assert [mint_wei(1, 1_000_000, acc) for acc in range(9)] == [277_777_777] * 2 + [277_777_778] * 7
    assert mint_wei(9, 1_000_000, 0) == 2_500_000_000
    assert mint_wei(3_600_000_000, 700_000, 0) == 7 * 10**17


@pytest.mark.parametrize(("period", "days"), [("2026-01", 31), ("2024-02", 29), ("2025-12", 31), ("2026-10-31", 1)])
def test_periods_are_whole_utc_days(period, days):
    begin_s, until_s = period_bounds(period)
    assert until_s - begin_s == days * 86_400
    assert begin_s % 86_400 == 0


def test_a_bad_period_says_what_is_expected():
    for text in ("2026", "2026-13", "january", "2026-02-30", ""):
        with pytest.raises(UsageError, match="2026-10"):
            period_bounds(text)
    assert months_of(T0_MS - 1, T0_MS + 40 * 86_400_000) == ["2025-12", "2026-01", "2026-02"]
    assert month_before(T0_MS) == "2025-12"


@pytest.mark.parametrize(
    ("unix_s", "place", "degrees"),
    [
        (1_767_268_800, (0.0, 0.0), 67.0),  # 2026-01-01 12:00 UTC, equator: 90 minus the declination of -23.0
        (1_767_225_600, (0.0, 0.0), -67.0),
        (1_782_043_200, (40.0, -105.0), 4.0),  # 2026-06-21 12:00 UTC, Boulder: half an hour after sunrise
    ],
)
def test_the_sun_stands_where_almanacs_have_it(unix_s, place, degrees):
    assert elevation_mdeg(unix_s, *place) / 1000 == pytest.approx(degrees, abs=0.5)
