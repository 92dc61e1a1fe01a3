"""What an operator who holds the backend's key makes of evidence, so that it is right in itself: found by what was before."""

from dataclasses import replace

import pytest

from maxgreen.chain.orders import Reading
from maxgreen.ledger.book import Book
from maxgreen.protocol.backend import decode_beacon, sign_beacon
from maxgreen.protocol.cose import parse
from maxgreen.protocol.pack import MANIFEST, PackError
from maxgreen.verify.rules import Action, Decision, Rules
from maxgreen.verify.segment import Segment
from settlement.audit import audit
from settlement.audit_base import _check_terms
from settlement.close import Closer, NotReadyError
from settlement.evidence import Judge
from settlement.findings import Difference
from settlement.inputs import Inputs, LineBase
from settlement.packs import Pack, seal
from settlement.run import make_run
from settlement.statement import derive
from settlement.sums import Sums
from simulator.lab import NETWORK, T0_MS
from tests.ingest.desks import BACKEND
from tests.settlement.test_splits import DAY_MS, WINDOW_MS, Site

DAY_S = 86_400


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two days of a line, closed one after the other; a window of the first is disputed."""
    folder = tmp_path_factory.mktemp("operator")
    site = Site(f"sqlite:///{folder}/ledger.db", folder)
    for day in range(2):
        for lab in (site.miner, site.node):
            lab.reboot(bytes([day + 1, lab.secret] * 8), wall_ms=T0_MS + day * DAY_MS)
        for number in range(5):
            for lab in (site.miner, site.node):
                skim = 2 if (day, number, lab) == (0, 2, site.node) else 1
                lost = 200_000 if lab is site.node else 0
                batch = lab.batch([(18_000_000 + k - lost, (1_000_000 + k) // skim) for k in range(20)])
                if lab is site.miner:
                    batch = replace(batch, work=lab.work(site.beacon))
                message = lab.sign(lab.attested(batch) if number in {0, 4} else batch)
                site.bench.send(message, received_ms=T0_MS + day * DAY_MS + (number + 1) * WINDOW_MS)
        site.close(f"2026-01-0{day + 1}", T0_MS + (day + 9) * DAY_MS)
    return site


def inputs_of(pack):
    [line] = pack.lines
    return Inputs.from_entries(pack.entries(line))


def lie(site, inputs, segments=()):
    """Return the second pack as these inputs make it; `segments` are forged ones."""
    more = {segment.digest: segment.data for segment in segments}
    before, honest = site.packs

    def fetch(digest):
        return more[digest] if digest in more else honest.segment(digest)

    result = derive(inputs, Judge(fetch).evidence(inputs))
    sealed = seal(result, BACKEND)
    claims = [sealed.claim] if sealed.claim else []
    run = make_run(NETWORK, inputs.period, inputs.until_s, before.run.digest, [sealed.statement], claims)
    pack = Pack(run.data, None, {result.line.hex(): sealed.entries}, fetch)
    return pack, int(result.statement["payable_total_mws"])


def test_the_honest_packs_follow_one_another(site):
    before, honest = site.packs
    again, total = lie(site, inputs_of(honest))
    assert again.entries(min(again.lines))[MANIFEST] == honest.entries(min(honest.lines))[MANIFEST]
    assert "follow from the previous pack" in " ".join(audit(again, previous=before).checks)
    assert total > 0
    assert int(honest.run.lines[0]["disputed"].get("47", 0)) == 0  # of the second day: it stays in the first
    assert int(before.run.lines[0]["disputed"]["47"]) > 0


def test_a_day_that_is_in_the_base_counts_once(site):
    before, honest = site.packs
    inputs = inputs_of(honest)
    base = LineBase(inputs.start_s, Sums(10**9, 10**9, 0, 0, 0))
    pack, _ = lie(site, replace(inputs, line=replace(inputs.line, base=base)))
    with pytest.raises(Difference, match="base is not the previous pack's sums"):
        audit(pack, previous=before)
    third = replace(inputs, start_s=inputs.start_s - DAY_S)
    pack, _ = lie(site, replace(third, line=replace(third.line, base=LineBase(third.start_s, Sums(1, 1, 0, 0, 0)))))
    with pytest.raises(Difference, match="start: it lies before the previous pack's"):
        audit(pack, previous=before)


def test_who_has_the_pack_before_is_not_told_that_there_is_none(site):
    before, honest = site.packs
    inputs = inputs_of(honest)
    base = LineBase(inputs.start_s, Sums(10**12, 10**12, 0, 0, 0))
    for lied in (
        replace(inputs, previous=None),
        replace(inputs, previous=None, line=replace(inputs.line, base=base)),
        replace(inputs, previous=None, windows_before={}),
        replace(inputs, previous=bytes(32)),
    ):
        pack, _ = lie(site, lied)
        with pytest.raises(Difference, match="previous"):
            audit(pack, previous=before)
    pack, _ = lie(site, replace(inputs, previous=None, line=replace(inputs.line, base=base)))
    with pytest.raises(Difference, match="no earlier period has the line"):
        audit(pack)


def test_a_dispute_is_not_dropped(site):
    before, honest = site.packs
    inputs = inputs_of(honest)
    pack, _ = lie(site, replace(inputs, windows_before={}))
    with pytest.raises(Difference, match="of the previous pack is left out|states before"):
        audit(pack, previous=before)
    calm = dict.fromkeys(inputs.windows_before, ("counted", ""))
    pack, _ = lie(site, replace(inputs, windows_before=calm))
    with pytest.raises(Difference, match="states before are not the previous pack's"):
        audit(pack, previous=before)
    later = inputs.until_s - DAY_S
    pack, _ = lie(site, replace(inputs, start_s=later, windows_before={}))
    with pytest.raises(Difference, match=r"start|base"):
        audit(pack, previous=before)


def test_segments_are_not_left_out(site):
    before, honest = site.packs
    inputs = inputs_of(honest)
    for device, chain in inputs.segments.items():
        assert len(chain) == 2
        for left in (chain[1:], ()):
            pack, _ = lie(site, replace(inputs, segments={**inputs.segments, device: left}))
            with pytest.raises(Difference, match=r"is left out|states before"):
                audit(pack, previous=before)


def test_what_the_dao_rejected_since_is_listed(site):
    before, honest = site.packs
    inputs = inputs_of(honest)
    decision = Decision(site.miner.device, 1, 1, Action.REJECT, "60", "dao", T0_MS, "a twin")
    decided = replace(inputs, rules=Rules(NETWORK, limits=inputs.rules.limits, decisions=[decision]))
    later = replace(decided, start_s=inputs.until_s - DAY_S, windows_before={})
    pack, _ = lie(site, later)
    with pytest.raises(Difference, match=r"was decided on since|left out|base"):
        audit(pack, previous=before)
    pack, total = lie(site, decided)
    assert total < int(honest.run.lines[0]["payable_total_mws"])
    assert audit(pack, previous=before).checks


def test_a_chain_has_one_history(site):
    before, honest = site.packs
    inputs = inputs_of(honest)
    chain = inputs.segments[site.miner.device]
    whole = Segment.parse(honest.segment(chain[1]))
    # the same seqs in another segment: what a key that signs twice would allow
    other = replace(whole, receipts=())
    pack, _ = lie(
        site, replace(inputs, segments={**inputs.segments, site.miner.device: (chain[0], other.digest)}), [other]
    )
    assert audit(pack, previous=before).checks  # after the previous pack's end it is the first
    forked = replace(Segment.parse(honest.segment(chain[0])), receipts=())
    own = {**inputs.segments, site.miner.device: (forked.digest,)}
    pack, _ = lie(site, replace(inputs, segments=own), [forked])
    with pytest.raises(Difference, match=r"two histories|left out"):
        audit(pack, previous=before)


def test_beacons_of_one_number_are_one(site):
    honest = site.packs[1]
    inputs = inputs_of(honest)
    chain = inputs.segments[site.miner.device]
    first = Segment.parse(honest.segment(chain[0]))
    real = decode_beacon(parse(first.beacons[0]).payload)
    fake = sign_beacon(replace(real, block_hash=bytes(32)), BACKEND, NETWORK)
    for beacons in ((fake,), (first.beacons[0], fake)):
        forged = replace(first, beacons=beacons)
        own = {**inputs.segments, site.miner.device: (forged.digest, chain[1])}
        with pytest.raises(PackError, match=r"beacon|does not lead"):
            pack, _ = lie(site, replace(inputs, segments=own), [forged])
            audit(pack)
            raise PackError("does not lead: " + pack.run.lines[0]["trouble"])


def test_an_entry_of_another_line_has_no_place(site):
    before, honest = site.packs
    inputs = inputs_of(honest)
    stranger = Decision(bytes(16), 0, 1, Action.RELEASE, "41", "dao", T0_MS, "")
    pack, _ = lie(site, replace(inputs, rules=Rules(NETWORK, limits=inputs.rules.limits, decisions=[stranger])))
    with pytest.raises(Difference, match="a device of neither end"):
        audit(pack, previous=before)
    pack, _ = lie(site, replace(inputs, line=replace(inputs.line, epoch=1)))
    with pytest.raises(Difference, match="not that of its ends"):
        audit(pack, previous=before)


def test_what_held_before_holds_still(site):
    before, honest = site.packs
    inputs = inputs_of(honest)
    decision = Decision(site.miner.device, 0, 0, Action.RELEASE, "41", "dao", T0_MS, "")
    decided = replace(inputs_of(before), rules=Rules(NETWORK, limits=inputs.rules.limits, decisions=[decision]))
    limits = [(0, replace(inputs.rules.limits[0][1], unmetered_ppm=10**6))]
    lies = {
        "resistance_uohm": replace(inputs, line=replace(inputs.line, resistance_uohm=10**6)),
        "max_loss_ppm": replace(inputs, line=replace(inputs.line, max_loss_ppm=10**6)),
        "limits of before": replace(inputs, rules=Rules(NETWORK, limits=limits)),
        "start: days since the period before": replace(inputs, start_s=inputs.until_s, windows_before={}),
        "is no midnight": replace(inputs, start_s=inputs.start_s + 600),
        "is not what the previous pack has": replace(
            inputs, parties=tuple(replace(p, channels=p.channels[:1]) for p in inputs.parties)
        ),
    }
    for said, lied in lies.items():
        pack, _ = lie(site, lied)
        with pytest.raises(PackError, match=rf"{said}|base"):
            audit(pack, previous=before)
    _check_terms(decided, decided)
    with pytest.raises(Difference, match=r"release of batches 0 to 0 .* is left out"):
        _check_terms(inputs, decided)


@pytest.mark.parametrize("action", [Action.RELEASE, Action.REJECT])
def test_an_honest_operator_is_believed_though_more_of_the_past_is_looked_at(tmp_path, action):
    """The chains are older than the line; a decision, or longer limits, let evidence reach back to before it."""
    site = Site(f"sqlite:///{tmp_path}/ledger.db", tmp_path)
    base = Reading((T0_MS + DAY_MS) // 1000, 0, 2)
    site.line = replace(site.line, opened_s=base.time_s, base_sent=base, base_received=base)
    for day in range(5):
        for lab in (site.miner, site.node):
            lab.reboot(bytes([day + 1, lab.secret] * 8), wall_ms=T0_MS + day * DAY_MS)
        for number in range(3):
            for lab in (site.miner, site.node):
                lost = 200_000 if lab is site.node else 0
                batch = lab.batch([(18_000_000 + k - lost, 1_000_000 + k) for k in range(20)])
                if lab is site.miner:
                    batch = replace(batch, work=lab.work(site.beacon))
                message = lab.sign(lab.attested(batch) if number in {0, 2} else batch)
                site.bench.send(message, received_ms=T0_MS + day * DAY_MS + (number + 1) * WINDOW_MS)
        if day == 3:
            site.decide(site.miner, action, 4, 4, "43", at_ms=T0_MS + day * DAY_MS)
        if day == 4:
            with site.engine.begin() as connection:
                book = Book(connection)
                book.set_limits(T0_MS + 4 * DAY_MS, replace(book.limits()[-1][1], stuck_s=3 * 86_400))
        if day:
            site.close(f"2026-01-0{day + 1}", T0_MS + (day + 9) * DAY_MS)


def test_two_periods_that_close_at_once_name_one_another_rightly(tmp_path, monkeypatch):
    site = Site(f"sqlite:///{tmp_path}/ledger.db", tmp_path)
    for day in range(2):
        for lab in (site.miner, site.node):
            lab.reboot(bytes([day + 1, lab.secret] * 8), wall_ms=T0_MS + day * DAY_MS)
        for lab in (site.miner, site.node):
            batch = lab.batch([(18_000_000, 1_000_000)] * 20)
            site.bench.send(lab.sign(lab.attested(batch)), received_ms=T0_MS + day * DAY_MS + WINDOW_MS)
    make, closed = Closer._make, []

    def late(self, lines, period, times=0):
        made = make(self, lines, period, times)
        if period == "2026-01-02" and not closed:
            closed.append(
                Closer(site.engine, site.store, site, BACKEND, NETWORK).close("2026-01-01", T0_MS + 19 * DAY_MS)
            )
        return made

    monkeypatch.setattr(Closer, "_make", late)
    with pytest.raises(NotReadyError, match="another period was closed meanwhile"):
        site.closer.close("2026-01-02", T0_MS + 19 * DAY_MS)
    assert site.closer.close("2026-01-02", T0_MS + 19 * DAY_MS).document["previous"] == closed[0].digest.hex()
