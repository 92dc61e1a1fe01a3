"""From batches to pay, on hand-made chains."""

from dataclasses import replace

import pytest

from maxgreen.chain.orders import Ends
from maxgreen.errors import UsageError
from maxgreen.protocol.batch import Role
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.pack import RUN, PackError
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.rules import Action, Decision, Limits, Rules
from maxgreen.verify.segment import Segment
from settlement.audit import Difference, audit
from settlement.checks import not_generated_days, stuck_windows
from settlement.inputs import Base, ChannelTerms, Inputs, KnownRegister, LineBase, LineTerms, Party
from settlement.packs import pack_of
from settlement.periods import month_before, months_of, period_bounds
from settlement.statement import fold, mint_wei
from settlement.sun import elevation_mdeg
from settlement.windows import DAY_S, State, Window, sums_of
from simulator.evidence import LineEvidence, line_pack
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon

BACKEND = MemorySigner.from_secret(2)
PERIOD = "2026-01-01"
BEGIN_S, UNTIL_S = period_bounds(PERIOD)
WINDOW = 600
RESISTANCE = 200_000
PEAK_MW = 40_000
LINE = Ends(1, 1, 2, 0).line_id.hex()


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
            step = 0 if self.options.get("flat") else 1
            readings = [(18_000_000 + step * k - lost, current + step * k) for k in range(count)]
            batch = lab.batch(readings)
            if lab is self.miner and not change.get("offline"):
                batch = replace(batch, work=lab.work(self.beacon))
            if last and not self.options.get("unattested"):
                batch = lab.attested(batch)
            self.messages[lab.device].append(lab.sign(batch))

    def made(self, **changes):
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
        found = LineEvidence(
            network=NETWORK,
            period=PERIOD,
            until_s=UNTIL_S,
            start_s=BEGIN_S,
            parties=parties,
            line=line,
            rules=rules,
            signer=BACKEND,
            messages=self.messages,
            received_ms=T0_MS + 86_400_000,
            cuts=self.options.get("cuts", ()),
        )
        return replace(found, **changes)

    def facts(self, device):
        return self.made().evidence().facts[device]

    def entries(self):
        return self.made().entries()


def limits(_window_s):
    return Limits()


def windows(pair):
    result = pair.made().result()
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
    assert result.claim(bytes(32)).payable_total_mws == received
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
    miner = pair.made().parties[0]
    facts = pair.facts(miner.device)
    assert not_generated_days(miner, facts, limits, set()) == set()
    doubled = [
        f._replace(channels=tuple(m._replace(energy_mws=2 * m.energy_mws) if m.role == 1 else m for m in f.channels))
        for f in facts
    ]
    assert not_generated_days(miner, doubled, limits, set()) == {BEGIN_S}


def test_a_reading_that_never_changes_is_a_stuck_sensor():
    pair = Pair()
    facts = pair.facts(pair.miner.device)
    assert stuck_windows(facts, 0, limits) | stuck_windows(facts, 1, limits) == set()
    made = Pair({"flat": True})
    flat = made.facts(made.miner.device)
    assert stuck_windows(flat, 0, limits) == {BEGIN_S + 6 * WINDOW, BEGIN_S + 7 * WINDOW}  # after an hour
    booted = [f._replace(boot=bytes([k] * 16)) if k > 4 else f for k, f in enumerate(flat)]
    assert stuck_windows(booted, 1, limits) == set()


@pytest.mark.rule("P-ING-1", "P-PCK-1")
def test_the_audit_of_a_pack_gives_the_same_statement():
    made = Pair().made()
    report = audit(made.pack())
    assert report.statement == made.entries()[RUN]
    assert audit(made.pack()).text() == report.text()
    pack = made.pack()
    assert Inputs.from_entries(pack.entries(LINE)).entries() == made.inputs.entries()


@pytest.mark.rule("P-PCK-3")
@pytest.mark.parametrize("cuts", [(1,), (3, 4), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_however_chains_are_cut_into_segments_the_statement_is_the_same(cuts):
    whole, parts = Pair().made(), Pair({"cuts": cuts}).made()
    assert len(parts.segments) == 2 * (len(cuts) + 1)
    assert parts.result().statement == whole.result().statement
    assert parts.result().entries == whole.result().entries
    assert audit(parts.pack()).payable_mws == audit(whole.pack()).payable_mws


@pytest.mark.rule("P-PCK-3")
def test_segments_that_do_not_lead_on_put_a_line_in_trouble():
    made = Pair({"cuts": (3, 5)}).made()
    device = made.parties[0].device
    first, second, last = made.inputs.segments[device]
    whole = Segment.parse(made.segments[last])
    forged = replace(whole, start=replace(whole.start, wall_ms=5))
    made.segments[forged.digest] = forged.data
    for chain in ((first, last), (first, second, second, last), (second, first, last), (first, second, forged.digest)):
        changed = {**made.inputs.segments, device: chain}
        assert "does not lead to it" in made.evidence(segments=changed).troubles[device]
        found = made.result(segments=changed)
        assert "does not hold together" in found.statement["trouble"]
        assert int(found.statement["payable_mws"]) == 0


@pytest.mark.rule("P-PCK-1")
def test_any_changed_entry_is_named():
    entries = Pair().entries()
    for name in entries:
        data = bytearray(entries[name])
        if not data:
            continue
        data[len(data) // 2] ^= 0x01
        with pytest.raises(PackError) as caught:
            audit(pack_of({**entries, name: bytes(data)}))
        own = name.rpartition("/")[2].removesuffix(".cbor")
        assert own in str(caught.value) or own in {"manifest.json", RUN}
        with pytest.raises(PackError, match=own):
            audit(pack_of({k: v for k, v in entries.items() if k != name}))


def test_a_segment_that_no_manifest_names_has_no_place():
    entries = Pair().entries()
    for name in ("segments/" + "0" * 64 + ".cbor", "segments/evil"):
        with pytest.raises(Difference, match="no manifest names it"):
            audit(pack_of({**entries, name: b"x"}))
    with pytest.raises(PackError, match="no entry of a pack"):
        pack_of({**entries, "more.txt": b"x"})


def test_a_statement_that_does_not_follow_is_a_difference_even_with_a_right_manifest():
    made = Pair().made()
    result = made.result()
    lie = result.entries["statement.json"].replace(b'"payable_mws":"', b'"payable_mws":"1')
    statement = {**result.statement, "payable_mws": "1" + result.statement["payable_mws"]}
    forged, _ = line_pack(
        replace(result, statement=statement, entries={**result.entries, "statement.json": lie}), BACKEND
    )
    with pytest.raises(Difference, match="statement.json"):
        audit(pack_of({**made.entries(), **forged}))


def test_sums_over_split_packs_are_those_of_one():
    result = Pair().made().result()
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
