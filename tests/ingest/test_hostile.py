"""What a hostile device, an unlucky order and a second process try on one chain: on SQLite and on PostgreSQL."""

from dataclasses import replace

import pytest
from sqlalchemy import event, select

from ingest import judging
from ingest.judging import FOLLOW
from maxgreen.errors import Retryable
from maxgreen.ledger import writing
from maxgreen.ledger.book import Book
from maxgreen.ledger.schema import chains
from maxgreen.protocol.backend import decode_receipt
from maxgreen.protocol.batch import Work
from maxgreen.protocol.cose import parse
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action, Decision, Limits
from simulator.lab import EASY, Lab
from tests.ingest.desks import LATER, Bench, kept_evidence, made, reasons, register, rows


def chain(engine):
    with engine.begin() as connection:
        return connection.execute(select(chains)).first()


def halted(engine):
    return ChainState.from_bytes(bytes(chain(engine).state)).halted


def decided(engine, action, from_seq, to_seq):
    with engine.begin() as connection:
        Book(connection).add_decision(Decision(Lab().device, from_seq, to_seq, action, "", "operator", LATER, "test"))


def test_undated_batches_that_waited_for_a_hole_are_dated_with_the_one_that_fills_it(bench, engine):
    lab = Lab()
    first = lab.next(synchronised=False, t0_ms=0)
    rest = [lab.next(synchronised=False, t0_ms=0) for _ in range(3)] + [lab.next(), lab.next()]
    bench.send(*rest)
    bench.send(first)
    bench.settle()
    assert reasons(engine) == [Reason.NONE] * 6


def test_a_message_that_comes_before_the_worker_looks_loses_no_decision(bench, engine):
    lab = Lab()
    bench.send(lab.next(), Lab().next([(1, 6_000)]))
    held = lab.next()
    bench.send(held)
    decided(engine, Action.CONTINUE, 0, 1)
    bench.worker._due_at = 1e18
    bench.send(held)
    bench.settle()
    assert reasons(engine) == [Reason.NONE] * 2


@pytest.mark.parametrize("action", [Action.SKIP, Action.REJECT, Action.RELEASE, Action.REINSTATE])
def test_only_a_decision_to_continue_ends_a_halt_and_only_the_one_before_it(bench, engine, action):
    lab = Lab()
    bench.send(lab.next(), Lab().next([(1, 6_000)]))
    bench.decide(Action.CONTINUE, 0, 1)
    bench.send(lab.next(), Lab().next([(1, 7_000)]))
    assert halted(engine)
    bench.decide(action, 100, 101)
    assert halted(engine)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_break_of_the_chain_is_a_proof_and_blocks_no_place_whenever_it_came(bench, engine, ahead):
    lab = Lab()
    first, good = lab.next(), lab.batch()
    bad = Lab().sign(replace(good, prev=bytes(32)))
    good = lab.sign(good)
    last = lab.next()
    for message in (bad, first) if ahead else (first, bad):
        bench.send(message)
    assert [Reason(row.reason) for row in kept_evidence(engine)] == [Reason.CHAIN_BREAK]
    bench.send(last)
    bench.decide(Action.CONTINUE, 0, 1)
    bench.send(good)
    assert (chain(engine).next_seq, chain(engine).waiting) == (3, 0)


def test_a_decision_between_two_reads_of_a_group_is_not_lost(bench, engine, monkeypatch):
    lab = Lab()
    first, second, _, last = (lab.next() for _ in range(4))
    bench.send(first, last)
    known, done = bench.worker._shelf.known, []

    def late(connection, ids):
        found = known(connection, ids)
        if not done and ids:
            done.append(1)
            decided(engine, Action.SKIP, 2, 3)
        return found

    monkeypatch.setattr(bench.worker._shelf, "known", late)
    bench.worker._due_at = 1e18
    bench.send(second)
    bench.settle()
    assert chain(engine).next_seq == 4


def test_limits_that_change_while_a_group_is_judged_hold_for_it(bench, engine, monkeypatch):
    write, done = writing.write, []

    def meanwhile(engine, desk):
        if not done:
            done.append(1)
            with engine.begin() as connection:
                Book(connection).set_limits(LATER - 10, Limits(pow_nbits_min=EASY, future_s=1))
        return write(engine, desk)

    monkeypatch.setattr("ingest.worker.write", meanwhile)
    bench.send(Lab().next(t0_ms=LATER + 100_000))
    assert reasons(engine) == [Reason.FUTURE_TIME]


def test_one_group_makes_a_bounded_number_follow(bench, engine):
    lab = Lab()
    messages = [lab.next([(1, 1)]) for _ in range(4 * FOLLOW)]
    bench.send(*messages[1 : 2 * FOLLOW])
    bench.send(*messages[2 * FOLLOW :])
    bench.worker._due_at = 1e18
    bench.send(messages[0], messages[FOLLOW + 1], messages[2 * FOLLOW + 1])
    assert chain(engine).next_seq <= FOLLOW + 1
    receipt = bench.receipt()
    assert receipt.held == tuple(range(receipt.next_seq, receipt.next_seq + 64))


def test_a_slip_in_a_skip_can_be_mended_with_another(bench, engine):
    lab = Lab()
    messages = [lab.next() for _ in range(6)]
    bench.send(messages[0], messages[4], messages[5])
    bench.decide(Action.SKIP, 1, 2)  # 2 is not there
    bench.decide(Action.SKIP, 1, 4)
    assert chain(engine).next_seq == 6


def test_a_hole_of_any_width_can_be_skipped(bench, engine):
    lab = Lab()
    bench.send(lab.next())
    lab.next()
    far = lab.sign(lab.batch(seq=50_000))
    bench.decide(Action.SKIP, 1, 50_000)
    bench.send(far)
    assert chain(engine).next_seq == 50_001


def test_a_batch_that_a_skip_led_to_counts_nowhere_also_when_it_is_dated_later(bench, engine):
    lab = Lab()
    bench.send(lab.next())
    lab.reboot(b"B" * 16, wall_ms=LATER - 3_000_000)
    lab.next(synchronised=False, t0_ms=0)
    lab.born = False
    bench.send(lab.next(synchronised=False, t0_ms=0))
    bench.decide(Action.SKIP, 1, 2)
    bench.send(lab.next())
    row = rows(engine)[1]
    assert (row.seq, row.skipped_to, Reason(row.reason)) == (2, True, Reason.NONE)


def test_beacons_that_nobody_issued_cost_no_statement_each(bench, engine):
    lab = Lab()
    messages = [lab.next([(1, 1)], work=Work(10**6 + k, EASY, (1,))) for k in range(100)]
    statements = []
    for target in {engine, bench.worker._shelf._engine}:
        event.listen(target, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    bench.send(*messages)
    assert len(statements) < 25


def test_what_was_kept_for_nobody_hides_no_proof(bench, engine):
    bench.send(Lab().next())
    proof = Lab().next([(1, 6_000)])
    bench.send(proof, topic="mg/v1/x")
    assert bench.send(proof).reason is Reason.EQUIVOCATION
    assert {bytes(row.device) for row in kept_evidence(engine)} == {b"", Lab().device}


@pytest.mark.rule("P-ING-3")
def test_batches_of_a_suspended_device_count_once_they_are_reinstated(ledger_url):
    lab = Lab()
    engine = made(ledger_url, Lab(secret=9))
    register(engine, lab, statuses=((0, "active"), (1, "suspended")))
    bench = Bench(engine)
    bench.send(lab.next(), lab.next())
    assert reasons(engine) == [Reason.SUSPENDED_DEVICE] * 2
    bench.decide(Action.REINSTATE, 0, 0)
    assert reasons(engine) == [Reason.NONE, Reason.SUSPENDED_DEVICE]
    bench.decide(Action.REINSTATE, 0, 10)
    assert reasons(engine) == [Reason.NONE] * 2
    assert bench.receipt().verdicts == ((1, 0),)


def test_an_older_receipt_replaces_no_newer_one(bench, engine, monkeypatch):
    lab, write, done = Lab(), writing.write, []
    first = lab.next()
    bench.send(first)

    def meanwhile(engine, desk):
        if not done:
            done.append(1)
            Bench(engine).send(lab.next(), received_ms=LATER + 1_000)
        return write(engine, desk)

    monkeypatch.setattr("ingest.worker.write", meanwhile)
    bench.send(first)
    with engine.begin() as connection:
        assert decode_receipt(parse(Book(connection).receipts_of(lab.device)[-1]).payload).next_seq == 2


def test_a_database_without_a_free_connection_or_that_only_reads_is_waited_for(bench, engine):
    if engine.dialect.name != "postgresql":
        pytest.skip("SQLite has neither a server's connections nor a standby")
    lab, messages = Lab(), []
    messages = [lab.next() for _ in range(3)]
    engine.pool._timeout = 0.3
    held = [engine.connect() for _ in range(15)]
    bench.put(messages[0])
    try:
        with pytest.raises(Retryable):
            bench.worker.step()
    finally:
        for connection in held:
            connection.close()

    def read_only(connection):
        if standby and not connection.get_execution_options().get("postgresql_readonly"):
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    event.listen(engine, "begin", read_only)
    standby = True
    bench.put(*messages[1:])
    with pytest.raises(Retryable):
        bench.worker.step()
    standby = False
    bench.run()
    assert reasons(engine) == [Reason.NONE] * 3
    assert bench.worker.alarm is None


def test_a_chain_that_breaks_us_holds_up_no_other(bench, engine, monkeypatch):
    labs = [Lab(secret=k) for k in range(1, 4)]
    register(engine, *labs)
    bench.worker._due_at = 1e18
    for lab in labs:
        first, *rest = [lab.next([(1, 1)]) for _ in range(FOLLOW + 50)]
        bench.send(*rest)
        bench.send(first)
    go_on = judging.Judge.go_on

    def breaks(self, chain):
        if chain.device == labs[0].device:
            raise ZeroDivisionError("a bug of ours")
        return go_on(self, chain)

    monkeypatch.setattr(judging.Judge, "go_on", breaks)
    for _ in range(6):
        bench.worker._due_at = 0
        bench.worker.step()
    assert [len(rows(engine, lab.device)) for lab in labs[1:]] == [FOLLOW + 50] * 2
    assert labs[0].device.hex() in bench.worker.alarm
