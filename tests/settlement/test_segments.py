"""From the ledger to the store and back: whatever a chain went through, its segments give the ledger's verdicts again."""

import random
from dataclasses import replace
from multiprocessing import get_context

import pytest

from ingest.check import check
from maxgreen.errors import Fatal
from maxgreen.ledger import segments
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.ledger.segments import StoredBytes, cut_segments, cuts_of, prune
from maxgreen.protocol.backend import sign_beacon
from maxgreen.protocol.batch import Role, Work
from maxgreen.protocol.pack import PackError
from maxgreen.protocol.reasons import Malformed, Reason, Verdict
from maxgreen.store import FolderStore
from maxgreen.verify.rules import Action, DeviceRecord, Limits, Rules
from maxgreen.verify.segment import Segment, segment_name
from settlement.evidence import Judge, Task, judge
from settlement.inputs import Base, ChannelTerms, Inputs, KnownRegister, LineBase, LineTerms, Party
from simulator.lab import EASY, NETWORK, T0_MS, Lab, beacon
from tests.ingest.desks import BACKEND, NOBODY, SYSTEM, Bench, made, rows

MINUTE_MS = 60_000
HOUR_MS = 3_600_000


def party(lab):
    terms = tuple(ChannelTerms(0, n, int(role), 40_000, 5_000, 0) for n, role in enumerate(lab.roles))
    return Party(lab.device, lab.record(), "miner", 1, terms, None, 10**6, 0, False)


def inputs(engine, lab):
    """Return a line's inputs that need this device alone."""
    with engine.begin() as connection:
        found = tuple(cut.digest for cut in cuts_of(connection, lab.device))
        rules = Book(connection).rules(NETWORK)
    base = Base(T0_MS // 1000)
    line = LineTerms(
        bytes(32), 1, 1, 1, 0, 0, 0, 0, base, base, LineBase(0), 0, KnownRegister(), KnownRegister(), 0, 0, 0
    )
    return Inputs(
        NETWORK, "2026-01", 1_769_904_000, T0_MS // 1000, None, (party(lab),), line,
        Rules(NETWORK, limits=rules.limits, decisions=rules.decisions), (BACKEND.spki,), {lab.device: found}, {}, {},
    )  # fmt: skip


def again(engine, store, lab):
    """Return what the segments of a device give."""
    return Judge(lambda digest: store.get(segment_name(digest))).evidence(inputs(engine, lab))


def live(engine, rng, cut):
    """Let a device have a life, with cuts in between."""
    bench, lab = Bench(engine), Lab(roles=(Role.GENERATION, Role.SENT))
    challenge, now_ms, boots, lost = beacon(valid_s=40 * 86_400), T0_MS + HOUR_MS, 0, None
    with engine.begin() as connection:
        book = Book(connection)
        book.set_limits(0, Limits(pow_nbits_min=EASY, shares_per_window=1))
        book.add_beacon(challenge, sign_beacon(challenge, BACKEND, NETWORK))
    for _ in range(rng.randrange(20, 60)):
        now_ms += MINUTE_MS
        what = rng.choice(["batch"] * 8 + ["undated"] * 2 + ["boot", "bad", "hole", "fill", "twin", "cut", "cut"])
        if what == "cut":
            cut()
        elif what == "boot":
            boots += 1
            lab.reboot(bytes([boots] * 16), wall_ms=T0_MS + boots * 2 * HOUR_MS)
        elif what == "hole" and lost is None:
            lost = lab.seq, lab.next()
        elif what == "fill" and lost is not None:
            seq, message = lost
            lost = None
            if rng.random() < 0.5:
                bench.send(message, received_ms=now_ms)
            elif lab.seq > seq + 1:
                bench.decide(Action.SKIP, seq, seq + 1, device=lab.device, at_ms=now_ms)
            bench.settle()
        elif what == "twin" and lab.seq and lost is None:
            twin = Lab(roles=lab.roles, seq=lab.seq - 1, head=bytes(32))
            bench.send(twin.next(), received_ms=now_ms)
            bench.decide(Action.CONTINUE, 0, lab.seq + 9, device=lab.device, at_ms=now_ms)
        else:
            changes = {"undated": {"synchronised": False, "t0_ms": 0}, "bad": {"interval_ms": 900}}.get(what, {})
            batch = lab.batch([(18_000_000 + k, 1_000_000 + k) for k in range(10)], **changes)
            if rng.random() < 0.5:
                batch = replace(batch, work=lab.work(challenge))
            bench.send(lab.sign(batch), received_ms=now_ms)
            bench.settle()
    return lab


@pytest.mark.rule("P-PCK-3", "P-BAT-7", "P-ING-4")
@pytest.mark.parametrize("seed", range(40))
def test_segments_give_the_ledgers_verdicts_again(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(segments, "MAX_BATCHES", rng.choice([1, 3, 7, 4_096]))
    engine, store = made(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store")
    device = [Lab().device]
    lab = live(engine, rng, lambda: cut_segments(engine, store, NETWORK, device))
    cut_segments(engine, store, NETWORK, device)
    assert cut_segments(engine, store, NETWORK, device) == 0
    with engine.begin() as connection:
        cuts, state = cuts_of(connection, lab.device), Book(connection).state(lab.device)
    kept = [row for row in rows(engine, lab.device) if cuts and row.seq < cuts[-1].next_seq]
    waits = [row for row in rows(engine, lab.device) if row.seq >= (cuts[-1].next_seq if cuts else 0)]
    assert all(row.verdict == Verdict.HELD.value for row in waits) or state.undated_from is not None
    found = again(engine, store, lab)
    assert found.troubles == {}
    assert found.batches == len(kept)
    facts = {fact.seq: fact for fact in found.facts[lab.device]}
    assert set(facts) == {row.seq for row in kept if row.t0_ms is not None}
    for row in kept:
        if row.t0_ms is not None:
            fact = facts[row.seq]
            assert (fact.reason, fact.t0_ms, fact.shares) == (Reason(row.reason), row.t0_ms, row.shares)
    if state is not None and state.undated_from is None and cuts:
        assert found.chains[lab.device][-1].end == replace(state, halted=False)


def test_a_segment_never_changes_and_the_next_one_goes_on(tmp_path):
    engine, store, lab = made(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store"), Lab()
    bench = Bench(engine)
    bench.send(*[lab.next() for _ in range(5)])
    assert cut_segments(engine, store, NETWORK, [lab.device]) == 1
    [first] = list(store.names("segments/"))
    data = store.get(first)
    bench.send(*[lab.next() for _ in range(5)])
    assert cut_segments(engine, store, NETWORK, [lab.device]) == 1
    assert store.get(first) == data
    with engine.begin() as connection:
        one, two = (Segment.parse(store.get(cut.name)) for cut in cuts_of(connection, lab.device))
    assert (two.previous, len(one.batches), len(two.batches)) == (one.digest, 5, 5)
    assert one.start.next_seq == 0
    assert two.start.next_seq == 5
    assert [len(s.receipts) for s in (one, two)] == [1, 1]  # what the day's receipt was when each was cut


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_process_that_dies_while_it_cuts_leaves_nothing_half_done(tmp_path, at):
    engine, store, lab = made(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store"), Lab()
    Bench(engine).send(*[lab.next() for _ in range(5)])

    class Dies(FolderStore):
        def put(self, name, data):
            if at == "after":
                super().put(name, data)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_segments(engine, Dies(tmp_path / "store"), NETWORK, [lab.device])
    assert cut_segments(engine, store, NETWORK, [lab.device]) == 1
    assert len(list(store.names(""))) == 1
    assert again(engine, store, lab).batches == 5


def _cut_in_a_process(url, folder, device):
    cut_segments(open_engine(url), FolderStore(folder), NETWORK, [device])


def test_processes_that_cut_at_once_agree(ledger_url, tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "MAX_BATCHES", 3)
    engine, store, lab = made(ledger_url), FolderStore(tmp_path / "store"), Lab()
    Bench(engine).send(*[lab.next([(1, 1)]) for _ in range(30)])
    url = engine.url.render_as_string(hide_password=False)
    engine.dispose()
    context = get_context("fork")
    workers = [context.Process(target=_cut_in_a_process, args=(url, tmp_path / "store", lab.device)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert cut_segments(engine, store, NETWORK, [lab.device]) == 0
    found = again(engine, store, lab)
    assert (found.batches, found.troubles) == (30, {})
    assert len(list(store.names("segments/"))) == 10
    engine.dispose()


@pytest.mark.rule("P-PCK-3")
def test_any_other_bytes_are_no_segment(tmp_path):
    engine, store, lab = made(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store"), Lab()
    Bench(engine).send(*[lab.next() for _ in range(3)])
    cut_segments(engine, store, NETWORK, [lab.device])
    [name] = store.names("segments/")
    data, rng = store.get(name), random.Random(1)
    whole = Segment.parse(data)
    assert whole.data == data
    for _ in range(3_000):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 1, 2])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        if rng.random() < 0.3:
            del broken[rng.randrange(len(broken)) :]
        try:
            found = Segment.parse(bytes(broken))
        except Malformed:
            continue
        assert found.data == bytes(broken)
        task = Task(
            NETWORK, lab.record(), 0, ((0, Limits(pow_nbits_min=EASY)),), (), (BACKEND.spki,), found.digest, found.data
        )
        try:
            judged = judge(task)
        except PackError:
            continue
        assert (
            judged.trouble or bytes(broken) == data or judged.start != whole.start or judged.previous or judged.batches
        )


def test_what_was_pruned_is_checked_and_shown_from_the_store(ledger_url, tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_RECENT", 4)
    engine, store, lab = made(ledger_url), FolderStore(tmp_path / "store"), Lab()
    bench = Bench(engine)
    bench.send(*[lab.next() for _ in range(5)])
    cut_segments(engine, store, NETWORK, [lab.device])
    bench.send(*[lab.next() for _ in range(5)])
    cut_segments(engine, store, NETWORK, [lab.device])
    before = [bytes(row.message) for row in rows(engine, lab.device)]
    assert prune(engine, store, [lab.device], 0) == (0, 0)  # nothing is as old
    told = prune(engine, store, [lab.device], 2**50, dry_run=True)
    assert told == (5, sum(map(len, before[:5])))
    assert prune(engine, store, [lab.device], 2**50) == told
    assert prune(engine, store, [lab.device], 2**50) == (0, 0)
    assert [bytes(row.message) for row in rows(engine, lab.device)] == [b""] * 5 + before[5:]
    stored = StoredBytes(store)
    with engine.begin() as connection:
        assert [bytes(row.message) for row in Book(connection, stored).chain_of(lab.device)] == before
    assert check(engine, NETWORK, stored).whole
    assert "pruned" in check(engine, NETWORK).damages[0]
    duplicate = bench.send(before[2])
    assert duplicate.reason is Reason.NONE  # the digest stays: a device may send it again
    twin = Lab(seq=2, head=bytes(32)).next()
    assert bench.send(twin).reason is Reason.EQUIVOCATION
    [first, _] = sorted(store.names("segments/"), key=lambda name: Segment.parse(store.get(name)).start.next_seq)
    store.put(first, b"lost")
    with pytest.raises(Fatal, match="restore it from a backup|restore the evidence store"):
        check(engine, NETWORK, StoredBytes(store))
    engine.dispose()


def test_nothing_is_pruned_that_the_store_does_not_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_RECENT", 0)
    engine, store, lab = made(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store"), Lab()
    Bench(engine).send(*[lab.next() for _ in range(5)])
    cut_segments(engine, store, NETWORK, [lab.device])
    [name] = store.names("segments/")
    (tmp_path / "store" / name).unlink()
    with pytest.raises(Fatal, match="restore the evidence store"):
        prune(engine, store, [lab.device], 2**50)
    assert all(row.message for row in rows(engine, lab.device))


def test_a_beacon_that_comes_later_changes_no_verdict(tmp_path):
    engine, store, lab = made(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store"), Lab()
    bench, later = Bench(engine), beacon(number=8, issued_s=T0_MS // 1000 + 30, valid_s=40 * 86_400)
    bench.send(lab.next())
    guessed = replace(lab.batch(), work=Work(8, 0x1F400000, (1, 2)))  # no work was done for it
    assert bench.send(lab.sign(guessed)).reason is Reason.NONE
    with engine.begin() as connection:
        Book(connection).add_beacon(later, sign_beacon(later, BACKEND, NETWORK))
    bench.send(lab.next())
    cut_segments(engine, store, NETWORK, [lab.device])
    bench.send(lab.next())
    cut_segments(engine, store, NETWORK, [lab.device])
    found = again(engine, store, lab)
    assert found.troubles == {}
    assert [(fact.reason, fact.shares) for fact in found.facts[lab.device]] == [(Reason.NONE, 0)] * 4


def test_segments_are_bounded_in_bytes_and_what_waits_too_large_for_a_date_stops_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "CUT_BYTES", 4_000)
    monkeypatch.setattr(segments, "_WAITING_BYTES", 30_000)
    lab, other = Lab(), Lab(secret=5)
    engine, store = made(f"sqlite:///{tmp_path}/ledger.db", lab, other), FolderStore(tmp_path / "store")
    bench = Bench(engine)
    bench.send(*[lab.next() for _ in range(30)])
    assert cut_segments(engine, store, NETWORK, [lab.device]) > 2
    assert max(len(store.get(name)) for name in store.names("segments/")) < 6_000
    lab.reboot(bytes([2] * 16), wall_ms=lab.boot_ms + lab.wall_offset_ms)
    undated = [lab.next([(1, k)] * 100, synchronised=False, t0_ms=0) for k in range(60)]
    bench.send(*undated[:5])
    bench.send(*undated[5:], lab.next(), received_ms=T0_MS + 9 * HOUR_MS)
    bench.settle()
    bench.send(other.next())
    assert cut_segments(engine, store, NETWORK, [lab.device, other.device]) == 1  # the other's
    monkeypatch.setattr(segments, "_WAITING_BYTES", 2**30)
    assert cut_segments(engine, store, NETWORK, [lab.device]) > 0
    assert again(engine, store, lab).troubles == {}


def test_a_decision_on_a_batch_of_no_real_date_moves_no_start(tmp_path):
    engine, lab = made(f"sqlite:///{tmp_path}/ledger.db"), Lab()
    bench = Bench(engine)
    bench.send(lab.next([(18_000_000, 1)] * 2, synchronised=False, t0_ms=0))
    lab.boot_ms = 10 * 31_557_600_000 - 10**6
    bench.send(lab.sign(replace(lab.batch([(18_000_000, 1)] * 2), t0_ms=1_000)))
    bench.settle()
    assert [(row.reason, row.t0_ms < 0) for row in rows(engine)] == [(Reason.TIME_OVERLAP, True), (0, False)]
    with engine.begin() as connection:
        assert Book(connection).earliest_of(lab.device, 0, 5) == 1_000


def test_a_key_that_follows_begins_where_the_old_chain_was_then(tmp_path):
    old, new = Lab(secret=1), Lab(secret=9)
    engine, store = made(f"sqlite:///{tmp_path}/ledger.db", old), FolderStore(tmp_path / "store")
    following = DeviceRecord(new.signer.spki, ((0, "active"),), old.record().roles, old.device)
    with engine.begin() as connection:
        rotated = replace(old.record(), until_ms=T0_MS + HOUR_MS)
        known = [
            KnownDevice(rotated, 1, NOBODY, SYSTEM),
            KnownDevice(following, 1, NOBODY, {**SYSTEM, "key_number": 1}),
        ]
        put_devices(connection, known)
    bench = Bench(engine)
    bench.send(*[old.next() for _ in range(3)])
    new.reboot(bytes([5] * 16), wall_ms=T0_MS + HOUR_MS)
    assert bench.send(new.sign(replace(new.batch(), succeeds=(old.device, old.head)))).reason is Reason.NONE
    bench.decide(Action.CONTINUE, 0, 99, device=old.device)
    assert bench.send(old.next()).reason is Reason.NONE
    cut_segments(engine, store, NETWORK, [old.device, new.device])
    with engine.begin() as connection:
        [cut] = cuts_of(connection, new.device)
    limits = ((0, Limits(pow_nbits_min=EASY)),)
    judged = judge(Task(NETWORK, following, 1, limits, (), (BACKEND.spki,), cut.digest, store.get(cut.name)))
    assert judged.trouble == ""
    assert judged.predecessor.next_seq == 3
