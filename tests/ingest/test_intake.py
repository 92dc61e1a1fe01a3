"""Messages to verdicts in the ledger, and receipts."""

import random

import pytest

from ingest.influx import batch_lines
from ingest.intake import Intake, receipt_for
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Reason, Verdict
from maxgreen.verify.rules import Action, Decision, Limits
from simulator.lab import EASY, NETWORK, T0_MS, Lab

LATER = T0_MS + 3_600_000
SYSTEM = {"kind": "miner", "channels": [], "place_deci": None, "since_ms": 0}


@pytest.fixture
def engine(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    with engine.begin() as connection:
        book = Book(connection)
        book.put_device(Lab().record(), 1, "0x" + 40 * "0", SYSTEM)
        book.set_limits(0, Limits(pow_nbits_min=EASY))
    return engine


def send(engine, message, received_ms=LATER, topic=None):
    with engine.begin() as connection:
        book = Book(connection)
        return Intake(book, NETWORK, book.rules(NETWORK)).handle(
            topic or device_topic(Lab().device, "batch"), message, received_ms
        )


def reasons(engine):
    with engine.connect() as connection:
        return [Reason(row.reason) for row in Book(connection).chain_of(Lab().device)]


def decide(engine, action, from_seq, to_seq):
    with engine.begin() as connection:
        book = Book(connection)
        book.add_decision(Decision(Lab().device, from_seq, to_seq, action, "", "operator", LATER, "test"))
        Intake(book, NETWORK, book.rules(NETWORK)).resume(Lab().device)


@pytest.mark.rule("P-ING-3")
def test_batches_in_any_order_end_in_the_same_chain(engine):
    lab = Lab()
    messages = [lab.next() for _ in range(30)]
    random.Random(1).shuffle(messages)
    for message in messages:
        send(engine, message)
        send(engine, message)
    assert reasons(engine) == [Reason.NONE] * 30
    with engine.connect() as connection:
        receipt = receipt_for(Book(connection), lab.device, NETWORK, LATER)
    assert (receipt.next_seq, receipt.head, receipt.held) == (30, lab.head, ())


def test_a_long_backlog_behind_a_hole_does_not_exhaust_the_stack(engine):
    lab = Lab()
    first, *rest = [lab.next([(1, 1)]) for _ in range(1_500)]
    with engine.begin() as connection:
        book = Book(connection)
        intake = Intake(book, NETWORK, book.rules(NETWORK))
        for message in [*rest, first]:
            intake.handle(device_topic(lab.device, "batch"), message, LATER)
    assert len(reasons(engine)) == 1_500


@pytest.mark.rule("P-ING-3")
def test_forged_and_foreign_messages_are_kept_with_their_reason(engine):
    lab = Lab()
    good = lab.next()
    broken = good[:-1] + bytes([good[-1] ^ 1])
    assert send(engine, broken).reason is Reason.BAD_SIGNATURE
    assert send(engine, b"noise").reason is Reason.MALFORMED
    assert (
        send(engine, Lab(secret=3).next(), topic=device_topic(Lab(secret=3).device, "batch")).reason
        is Reason.UNKNOWN_DEVICE
    )
    assert send(engine, good).reason is Reason.NONE
    with engine.connect() as connection:
        kept = Book(connection).all_evidence()
    assert {Reason(row.reason) for row in kept} == {Reason.BAD_SIGNATURE, Reason.MALFORMED, Reason.UNKNOWN_DEVICE}
    assert broken in {bytes(row.message) for row in kept}


@pytest.mark.rule("P-ING-3")
def test_equivocation_halts_the_chain_until_the_decision_to_continue(engine):
    lab = Lab()
    send(engine, lab.next())
    assert send(engine, Lab().next([(1, 6_000)])).reason is Reason.EQUIVOCATION
    held = lab.next()
    assert send(engine, held).reason is Reason.SUSPENDED_DEVICE
    assert reasons(engine) == [Reason.NONE]
    decide(engine, Action.CONTINUE, 0, 1)
    assert reasons(engine) == [Reason.NONE, Reason.NONE]
    assert send(engine, lab.next()).reason is Reason.NONE


@pytest.mark.rule("P-ING-4")
def test_a_hole_is_closed_by_the_decision_to_skip(engine):
    lab = Lab()
    send(engine, lab.next())
    lost = lab.next()
    for _ in range(2):
        assert send(engine, lab.next()).reason is Reason.GAP_BEFORE
    decide(engine, Action.SKIP, 1, 2)
    assert reasons(engine) == [Reason.NONE] * 3
    assert send(engine, lost).verdict is Verdict.HELD
    assert send(engine, lab.next()).reason is Reason.NONE


@pytest.mark.rule("P-BAT-7")
def test_held_batches_get_their_verdict_when_the_date_comes(engine):
    lab = Lab()
    for _ in range(2):
        assert send(engine, lab.next(synchronised=False, t0_ms=0)).reason is Reason.CLOCK_UNSYNCHRONISED
    send(engine, lab.next())
    assert reasons(engine) == [Reason.NONE] * 3


@pytest.mark.rule("P-RCT-1")
def test_a_receipt_tells_each_verdict_once(engine):
    lab = Lab()
    send(engine, lab.next())
    with engine.begin() as connection:
        assert receipt_for(Book(connection), lab.device, NETWORK, LATER).verdicts == ((0, 0),)
    with engine.begin() as connection:
        assert receipt_for(Book(connection), lab.device, NETWORK, LATER).verdicts == ()


@pytest.mark.rule("P-RCT-2")
def test_before_the_first_batch_the_receipts_head_is_the_networks_digest(engine):
    from maxgreen.protocol.cose import network_digest

    with engine.begin() as connection:
        receipt = receipt_for(Book(connection), Lab().device, NETWORK, LATER)
    assert (receipt.next_seq, receipt.head) == (0, network_digest(NETWORK))


def test_the_greatest_numbers_do_not_break_the_ledger(engine):
    lab = Lab()
    assert send(engine, lab.sign(lab.batch(seq=2**53 - 1))).verdict is Verdict.HELD
    assert send(engine, Lab().next(t0_ms=4_102_444_800_000)).reason is Reason.FUTURE_TIME
    assert send(engine, lab.sign(lab.batch(seq=2**64 - 1))).reason is Reason.MALFORMED


@pytest.mark.rule("P-BAT-2")
def test_the_ledger_keeps_the_signed_bytes_verbatim(engine):
    message = Lab().next()
    send(engine, message)
    with engine.connect() as connection:
        row = Book(connection).batch(Lab().device, 0)
    assert bytes(row.message) == message
    assert len(list(batch_lines(row))) == 1 + 2 * (10 + 1)
