"""Messages to verdicts in the ledger, and receipts: on SQLite and on PostgreSQL."""

import random
from collections import Counter
from dataclasses import replace

import cbor2
import psycopg
import pytest
from sqlalchemy import event

from ingest import judging
from ingest.judging import FOLLOW
from ingest.worker import GROUP
from maxgreen.errors import Retryable
from maxgreen.ledger import rejections, writing
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import ConflictError, LedgerAwayError
from maxgreen.protocol import cose
from maxgreen.protocol.backend import Rejection
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Reason, Verdict
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action
from simulator.lab import NETWORK, Lab
from tests.ingest.desks import LATER, Bench, kept_evidence, made, reasons, register, rows


def counted(engine):
    """Return the verdicts as they are counted, and as the rows and the evidence have them."""
    with engine.begin() as connection:
        book = Book(connection)
        said = book.verdict_counts()
        found = Counter((row.verdict, row.reason) for row in book.changed_since(0, 10**6))
    for item in kept_evidence(engine):
        found[Verdict.REJECTED.value, item.reason] += 1
    return said, dict(found)


@pytest.mark.rule("P-ING-3")
def test_batches_in_any_order_end_in_the_same_chain(bench, engine):
    lab = Lab()
    messages = [lab.next() for _ in range(30)]
    random.Random(1).shuffle(messages)
    for k, message in enumerate(messages):
        bench.send(*([message] * (k % 3 + 1)))
        bench.send(message)
    assert reasons(engine) == [Reason.NONE] * 30
    receipt = bench.receipt()
    assert (receipt.next_seq, receipt.head, receipt.held) == (30, lab.head, ())
    assert counted(engine)[0] == counted(engine)[1]


def test_a_long_backlog_behind_a_hole_follows_some_at_a_time(bench, engine):
    lab = Lab()
    first, *rest = [lab.next([(1, 1)]) for _ in range(2 * FOLLOW + 50)]
    bench.send(*rest)
    assert bench.receipt().held == tuple(range(1, 65))
    bench.send(first)
    assert 0 < len(reasons(engine)) <= FOLLOW + 1
    late = lab.next([(1, 1)])
    bench.send(late)
    bench.settle()
    assert reasons(engine) == [Reason.NONE] * (2 * FOLLOW + 51)
    assert (bench.receipt().next_seq, bench.receipt().head) == (2 * FOLLOW + 51, lab.head)
    assert counted(engine)[0] == counted(engine)[1] == {("accepted", 0): 2 * FOLLOW + 51}


def test_what_is_due_goes_on_after_a_restart(bench, engine):
    lab = Lab()
    first, *rest = [lab.next([(1, 1)]) for _ in range(FOLLOW + 50)]
    bench.send(*rest)
    bench.send(first)
    again = Bench(engine)
    again.settle()
    assert len(reasons(engine)) == FOLLOW + 50
    assert again.receipt().next_seq == FOLLOW + 50


@pytest.mark.rule("P-ING-3")
def test_forged_and_foreign_messages_are_kept_with_their_reason(bench, engine):
    lab = Lab()
    good = lab.next()
    broken = good[:-1] + bytes([good[-1] ^ 1])
    assert bench.send(broken).reason is Reason.BAD_SIGNATURE
    assert bench.send(b"noise").reason is Reason.MALFORMED
    assert bench.send(Lab(secret=3).next()).reason is Reason.UNKNOWN_DEVICE
    assert bench.send(good, topic="mg/v1/00/00/batch").reason is Reason.MALFORMED
    assert bench.send(good).reason is Reason.NONE
    kept = kept_evidence(engine)
    assert {Reason(row.reason) for row in kept} == {Reason.BAD_SIGNATURE, Reason.MALFORMED, Reason.UNKNOWN_DEVICE}
    assert broken in {bytes(row.message) for row in kept}
    assert counted(engine)[0] == counted(engine)[1]


@pytest.mark.rule("P-ING-3")
def test_equivocation_halts_the_chain_until_the_decision_to_continue(bench, engine):
    lab = Lab()
    bench.send(lab.next())
    assert bench.send(Lab().next([(1, 6_000)])).reason is Reason.EQUIVOCATION
    held = lab.next()
    assert bench.send(held).reason is Reason.SUSPENDED_DEVICE
    assert reasons(engine) == [Reason.NONE]
    bench.decide(Action.CONTINUE, 0, 1)
    assert reasons(engine) == [Reason.NONE, Reason.NONE]
    assert bench.receipt().next_seq == 2
    assert bench.send(lab.next()).reason is Reason.NONE
    assert bench.send(Lab().next([(1, 7_000)])).reason is Reason.EQUIVOCATION
    assert bench.send(lab.next()).reason is Reason.SUSPENDED_DEVICE
    bench.settle()
    assert len(reasons(engine)) == 3  # a decision of before says nothing of it


@pytest.mark.rule("P-ING-4")
def test_a_hole_is_closed_by_the_decision_to_skip(bench, engine):
    lab = Lab()
    bench.send(lab.next())
    lost = lab.next()
    for _ in range(2):
        assert bench.send(lab.next()).reason is Reason.GAP_BEFORE
    bench.decide(Action.SKIP, 1, 2)
    assert reasons(engine) == [Reason.NONE] * 3
    assert bench.send(lost).verdict is Verdict.HELD
    assert bench.send(lab.next()).reason is Reason.NONE
    assert bench.receipt().held == ()


@pytest.mark.rule("P-ING-4")
def test_a_skip_passes_over_what_waited_and_counts_it_no_more(bench, engine):
    lab = Lab()
    messages = [lab.next() for _ in range(8)]
    bench.decide(Action.SKIP, 1, 6)  # before anything came
    bench.send(messages[0])
    bench.send(messages[3], messages[4])
    bench.send(messages[6], messages[7])
    assert [row.seq for row in rows(engine)] == [0, 6, 7]
    assert bench.known(lab)[lab.device].waiting == 0
    assert bench.receipt().held == ()


@pytest.mark.rule("P-BAT-7")
@pytest.mark.parametrize("together", [True, False])
def test_held_batches_get_their_verdict_when_the_date_comes(bench, engine, together):
    lab = Lab()
    messages = [lab.next(synchronised=False, t0_ms=0) for _ in range(3)] + [lab.next() for _ in range(2)]
    if together:
        bench.send(*messages)
    else:
        for message in messages:
            bench.send(message)
    assert reasons(engine) == [Reason.NONE] * 5
    assert counted(engine)[0] == counted(engine)[1] == {("accepted", 0): 5}


@pytest.mark.rule("P-BAT-7")
def test_a_long_time_without_a_date_is_dated_some_at_a_time(bench, engine):
    lab = Lab()
    count = 2 * FOLLOW + 10
    messages = [lab.next([(18_000_000, 1_000_000)], synchronised=False, t0_ms=0) for _ in range(count)]
    for start in range(0, count, 100):
        bench.send(*messages[start : start + 100])
    bench.send(lab.next())
    after = lab.next()
    assert bench.send(after).verdict is Verdict.HELD  # waits until the earlier ones have their verdicts
    bench.settle()
    assert reasons(engine) == [Reason.NONE] * (count + 2)
    times = [row.t0_ms for row in rows(engine)]
    assert times == sorted(set(times))
    assert bench.receipt().next_seq == count + 2
    assert counted(engine)[0] == counted(engine)[1] == {("accepted", 0): count + 2}


def test_the_state_of_a_chain_does_not_grow_with_what_it_waits_for(bench, engine):
    lab = Lab()
    sizes = []
    for _ in range(30):
        bench.send(lab.next([(1, 1)], synchronised=False, t0_ms=0))
        sizes.append(len(bench.known(lab)[lab.device].state.to_bytes()))
    assert max(sizes) - min(sizes[1:]) < 40


@pytest.mark.rule("P-RCT-1")
def test_a_receipt_tells_each_verdict_once_and_those_that_are_not_accepted_first(bench):
    lab = Lab()
    bench.send(lab.next())
    assert bench.receipt().verdicts == ((0, 0),)
    bench.send(lab.next(t0_ms=LATER + 10**9))
    assert bench.receipt().verdicts == ((1, int(Reason.FUTURE_TIME)),)
    bench.send(*[lab.next([(1, 1)]) for _ in range(70)], lab.next([(1, 1)], t0_ms=LATER + 10**9))
    verdicts = bench.receipt().verdicts
    assert len(verdicts) == 64
    assert verdicts[-1] == (72, int(Reason.FUTURE_TIME))


@pytest.mark.rule("P-RCT-2")
def test_receipts_tell_what_the_dao_said_no_to_until_it_is_over(bench, engine):
    """At once, to a device that sends nothing, and with every receipt after; other devices hear nothing."""
    lab, other = Lab(), Lab(secret=2)
    register(engine, lab, other)
    bench.put(lab.next())
    bench.put(other.next(), topic=device_topic(other.device, "batch"))
    bench.run()
    no, later = Rejection(1_767_225_600, 63, "the loss is not explained"), Rejection(1_769_904_000, 62, "é" * 300)

    def tell(rejection):
        return rejections.tell(engine, {lab.device, b"a stranger's one"}, rejection)

    assert tell(no) == 1
    assert tell(no) == 0
    bench.settle()
    assert bench.receipt(lab.device).rejection == no
    assert bench.receipt(other.device).rejection is None
    bench.put(lab.next())
    bench.run()
    assert (bench.receipt(lab.device).next_seq, bench.receipt(lab.device).rejection) == (2, no)
    assert rejections.over(engine, no.until_s - 1) == 0  # an order before it is well
    assert tell(later) == 1
    assert tell(no) == 0  # older than what it knows
    bench.settle()
    assert bench.receipt(lab.device).rejection == Rejection(later.until_s, 62, "é" * 256)
    assert rejections.over(engine, later.until_s + 2_678_400) == 1  # what came later was approved
    forged = bytearray(lab.next())
    forged[-1] ^= 1
    bench.send(bytes(forged))  # what names the device and is rejected takes no receipt away
    assert bench.receipt(lab.device).rejection is None
    assert not bench.worker._shelf.due(1)


def test_before_the_first_batch_the_receipts_head_is_the_networks_digest(bench):
    lab = Lab()
    lab.next()
    bench.send(lab.next())
    receipt = bench.receipt()
    assert (receipt.next_seq, receipt.head, receipt.held) == (0, network_digest(NETWORK), (1,))


def test_the_greatest_numbers_do_not_break_the_ledger(bench):
    lab = Lab()
    assert bench.send(lab.sign(lab.batch(seq=2**53 - 1))).verdict is Verdict.HELD
    assert bench.send(Lab().next(t0_ms=4_102_444_800_000)).reason is Reason.FUTURE_TIME
    assert bench.send(lab.sign(lab.batch(seq=2**64 - 1))).reason is Reason.MALFORMED


@pytest.mark.rule("P-BAT-2")
def test_the_ledger_keeps_the_signed_bytes_verbatim(bench, engine):
    message = Lab().next()
    bench.send(message)
    [row] = rows(engine)
    assert bytes(row.message) == message


def poison(lab, network=NETWORK):
    """Messages that broke a service: huge numbers as keys and values, foreign text, deep nesting, odd topics."""
    huge = 10**5_000
    payloads = [
        cbor2.dumps({huge: 1}),
        cbor2.dumps({-huge: 1}),
        cbor2.dumps({0: huge}),
        cbor2.dumps({1.5: 1, "\ud800".encode("utf-8", "surrogatepass"): 2}),
        b"\xa1\x00" + b"\x81" * 200 + b"\x00",
        b"\x9f" * 1_000,
        b"\x00" * 65_537,
    ]
    for payload in payloads:
        yield cose.sign(payload, lab.signer, network, "batch")
        yield payload
    yield lab.sign(lab.batch(t0_boot_ms=2**64 - 1), network=network)
    yield lab.sign(replace(lab.batch(), seq=2**63), network=network)


def test_no_message_ends_ingest_and_each_is_kept(bench, engine):
    lab = Lab()
    bad = list(poison(Lab()))
    topics = ["", "mg/v1/\ud800/batch", "a\0b", "x" * 65_000, "mg/v1/+/#"]
    good = [lab.next() for _ in range(3)]
    bench.put(good[0], *bad)
    for topic in topics:
        bench.put(Lab().next(), topic=topic)
    bench.put(*good[1:])
    bench.run()
    assert reasons(engine) == [Reason.NONE] * 3
    assert len(bench.wire.acknowledged) == 3 + len(bad) + len(topics)
    kept = {bytes(row.message) for row in kept_evidence(engine)}
    assert kept >= set(bad) - {b""}
    assert bench.worker.alarm is None


def test_a_message_that_breaks_us_is_set_aside_alone(bench, engine, monkeypatch):
    lab, other = Lab(), Lab(secret=3)
    register(engine, lab, other)
    judge = judging.Judge.handle

    def breaks(self, message, opened, received_ms):
        if message.payload is bad:
            raise ZeroDivisionError("a bug of ours")
        return judge(self, message, opened, received_ms)

    monkeypatch.setattr(judging.Judge, "handle", breaks)
    good, bad = [lab.next() for _ in range(2)], other.next()
    bench.put(good[0], bad, good[1])
    bench.run()
    assert reasons(engine) == [Reason.NONE] * 2
    [kept] = kept_evidence(engine)
    assert (Reason(kept.reason), bytes(kept.message)) == (Reason.INTERNAL_ERROR, bad)
    assert "ZeroDivisionError" in bench.worker.alarm
    assert len(bench.wire.acknowledged) == 3
    monkeypatch.undo()
    assert bench.send(bad).reason is Reason.NONE  # the same bytes may be accepted later


def test_a_ledger_that_is_away_keeps_the_group_unacknowledged(bench, engine, monkeypatch):
    lab = Lab()
    bench.put(lab.next(), lab.next())

    def away(_engine, _desk):
        raise LedgerAwayError("away")

    monkeypatch.setattr("ingest.worker.write", away)
    for _ in range(3):
        with pytest.raises(Retryable):
            bench.worker.step()
    assert bench.wire.acknowledged == bench.wire.sent == []
    monkeypatch.undo()
    bench.run()
    assert reasons(engine) == [Reason.NONE] * 2
    assert len(bench.wire.acknowledged) == 2


def test_two_workers_on_one_device_lose_and_double_nothing(bench, engine, monkeypatch):
    """Each judges while the other has just written: one of them is told, and judges again."""
    lab = Lab()
    messages = [lab.next() for _ in range(40)]
    other = Bench(engine)
    write = writing.write
    chance, depth = random.Random(5), []

    def interleaved(engine, desk):
        if not depth and messages and chance.random() < 0.7:
            depth.append(1)
            other.put(messages[0], *messages[1 : chance.randrange(4)])
            other.run()
            depth.pop()
        return write(engine, desk)

    monkeypatch.setattr("ingest.worker.write", interleaved)
    while messages:
        bench.put(*messages[: chance.randrange(1, 5)])
        bench.run()
        del messages[0]
    assert [row.seq for row in rows(engine)] == list(range(40))
    assert reasons(engine) == [Reason.NONE] * 40
    assert bench.metrics.conflicts._value.get() > 2
    revisions = [row.revision for row in rows(engine)]
    assert len(set(revisions)) == 40
    assert counted(engine)[0] == counted(engine)[1]


def test_a_decision_while_a_batch_is_judged_is_not_lost(bench, engine, monkeypatch):
    lab = Lab()
    bench.send(lab.next())
    lost = lab.next()
    write, meanwhile = writing.write, []

    def interleaved(engine, desk):
        if not meanwhile:
            meanwhile.append(1)
            Bench(engine).decide(Action.SKIP, 1, 2)
        return write(engine, desk)

    monkeypatch.setattr("ingest.worker.write", interleaved)
    assert bench.send(lab.next()).verdict is Verdict.HELD
    bench.settle()
    assert [row.seq for row in rows(engine)] == [0, 2]
    del lost


def test_a_write_over_another_version_writes_nothing(bench, engine):
    lab = Lab()
    first = bench.worker._judge([_incoming(lab.next())], (), LATER)[0]
    writing.write(engine, first)
    with pytest.raises(ConflictError):
        writing.write(engine, first)
    assert len(rows(engine)) == 1
    with engine.begin() as connection:
        assert Book(connection).revision() == 1


def test_a_group_takes_at_most_eight_statements(bench, engine, monkeypatch):
    labs = [Lab(secret=k) for k in range(1, 13)]
    register(engine, *labs)
    bench.send(*[lab.next() for lab in labs])
    statements = []

    def note(_connection, _cursor, text, *_):
        if not text.startswith("BEGIN") and "chains.due > " not in text:
            statements.append(text)

    if engine.dialect.name == "postgresql":  # those that go to its driver alone
        execute = psycopg.Connection.execute

        def noted(connection, statement, values):
            statements.append(statement)
            return execute(connection, statement, values)

        monkeypatch.setattr(psycopg.Connection, "execute", noted)
    event.listen(engine, "before_cursor_execute", note)
    if engine.dialect.name == "sqlite":  # the reading engine is another one there
        event.listen(bench.worker._shelf._engine, "before_cursor_execute", note)
    group = [lab.next() for lab in labs for _ in range(4)]
    bench.send(*group)
    assert len(statements) <= 8, statements
    assert len(rows(engine, labs[3].device)) == 5
    statements.clear()
    bench.send(*group)  # what came twice is looked up together
    assert len(statements) <= 8, statements


def test_evidence_is_bounded_in_messages_and_bytes_and_each_sender_has_its_own(bench, engine, monkeypatch):
    monkeypatch.setattr(writing, "EVIDENCE_MESSAGES", 50)
    monkeypatch.setattr(writing, "EVIDENCE_BYTES", 40_000)
    lab = Lab()
    bench.send(lab.next())
    assert bench.send(Lab().next([(1, 6_000)])).reason is Reason.EQUIVOCATION
    for k in range(12):
        bench.send(*[b"noise %d" % n for n in range(20 * k, 20 * k + 20)], topic="mg/v1/x")
    noise = [row for row in kept_evidence(engine) if bytes(row.device) == b""]
    assert [bytes(row.message) for row in noise] == [b"noise %d" % n for n in range(239, 189, -1)]
    bench.send(*[bytes([k]) * 9_000 for k in range(10)], topic="mg/v1/x")
    sizes = [len(row.message) for row in kept_evidence(engine) if bytes(row.device) == b""]
    assert sizes == [9_000] * 5  # the newest, until they reach the bound
    assert [Reason(row.reason) for row in kept_evidence(engine) if bytes(row.device) == lab.device] == [
        Reason.EQUIVOCATION
    ]


def test_what_a_halted_or_broken_chain_waits_for_is_bounded(bench, engine, monkeypatch):
    monkeypatch.setattr(judging, "MOST_WAITING_BYTES", 20_000)
    lab = Lab()
    bench.send(lab.next())
    bench.send(Lab().next([(1, 6_000)]))
    sizes = [len(message) for message in (lab.next() for _ in range(60))]
    other = Lab()
    other.next()
    for _ in range(60):
        assert bench.send(other.next()).verdict is Verdict.HELD
    with engine.begin() as connection:
        kept = [row for row in Book(connection).changed_since(0, 10**6) if not row.in_chain]
    assert 10 <= len(kept) < 60
    assert sum(len(row.message) for row in kept) <= 20_000
    del sizes


def test_the_state_is_read_as_it_was_written(bench, engine):
    lab = Lab()
    for _ in range(3):
        bench.send(lab.next())
    state = bench.known(lab)[lab.device].state
    assert ChainState.from_bytes(state.to_bytes()) == state == ChainState.from_json(state.to_json())
    assert (state.next_seq, state.head) == (3, lab.head)


def test_a_full_group_of_many_devices(ledger_url):
    labs = [Lab(secret=k) for k in range(1, 41)]
    engine = made(ledger_url, *labs)
    bench = Bench(engine)
    messages = [lab.next([(1, 1)]) for _ in range(GROUP // 40) for lab in labs]
    random.Random(3).shuffle(messages)
    bench.put(*messages)
    bench.run()
    for lab in labs:
        assert reasons(engine, lab.device) == [Reason.NONE] * (GROUP // 40)
        assert bench.receipt(lab.device).head == lab.head


def _incoming(message):
    from maxgreen.mqtt import Incoming

    return Incoming(device_topic(Lab().device, "batch"), message)
