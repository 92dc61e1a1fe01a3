"""Sums by proof window: the same whatever the order of arrival, exact, with a revision, made again by the check."""

import random

import pytest
from sqlalchemy import text

from ingest.check import check
from maxgreen.errors import UsageError
from maxgreen.ledger.bulk import Bulk
from maxgreen.ledger.sums import add_sums, read_sums, sums_revision
from maxgreen.protocol.work import window_of
from maxgreen.verify.rules import Action
from maxgreen.verify.sums import Break, ChannelSum, DeviceSum, Sums
from simulator.lab import NETWORK, T0_MS, Lab
from tests.ingest.desks import LATER, Bench, made, register

DAY_S = T0_MS // 1000


def of_day(engine, device, day=0):
    with engine.begin() as connection:
        from_s = DAY_S + day * 86_400
        found = read_sums(connection, device, from_s, from_s + 86_400)
        return found, sums_revision(connection, device, from_s, from_s + 86_400)


def test_a_window_is_summed_exactly(bench, engine):
    lab = Lab()
    bench.send(lab.next([(10_000_000, 1_000_000)] * 10), lab.next([(10_000_000, -2_000_000)] * 5))
    sums, revision = of_day(engine, lab.device)
    assert revision == 2
    assert sums.devices == {(lab.device, DAY_S): DeviceSum(2, 0, 0, 0, 0, 1_000, Break.BOOT)}
    # 9 s at 10 W forward; then half a second's mean of 10 W and -20 W, and 4 s at -20 W backward
    square = 2 * 10**12 * 9_000 + (1 + 4) * 10**12 * 1_000 + 8 * 10**12 * 4_000
    one = sums.channels[lab.device, DAY_S, 0]
    assert one == ChannelSum(90_000, 85_000, square, 14_000, 0, 1_000)
    assert one.square_current > 2**55


def test_what_is_larger_than_a_column_is_summed_too(bench, engine):
    lab = Lab(interval_ms=60_000)
    most = 2**31 - 1
    bench.send(*[lab.next([(1_000_000, most)] * 5) for _ in range(4)])
    sums, _ = of_day(engine, lab.device)
    squares = [one.square_current for (_, _, channel), one in sums.channels.items() if channel == 0]
    assert sum(squares) == 2 * most**2 * 19 * 60_000 > 2**63


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_arrival_adds_up_to_the_same(bench, engine, tmp_path, seed):
    lab, rng, messages = Lab(), random.Random(seed), []
    for boot in range(3):
        lab.reboot(bytes([boot]) * 16, wall_ms=T0_MS + boot * 86_400_000)
        messages += [lab.next(synchronised=False, t0_ms=0) for _ in range(2)]
        for _ in range(20):
            lab.boot_ms += rng.choice([0, 0, 70_000, 600_000])
            messages.append(lab.next([(18_000_000, rng.randrange(3_000_000))] * rng.randrange(1, 9)))
    later = LATER + 3 * 86_400_000
    bench.send(*messages, received_ms=later)
    other = Bench(made(f"sqlite:///{tmp_path / 'other.db'}"))
    for message in rng.sample(messages, len(messages)):
        other.send(message, received_ms=later)
        other.settle()
    other.send(*messages, received_ms=later)
    for day in range(3):
        assert of_day(engine, lab.device, day)[0] == of_day(other.engine, lab.device, day)[0]
        assert sum(one.accepted for one in of_day(engine, lab.device, day)[0].devices.values()) == 22
    assert check(other.engine, NETWORK).whole
    other.engine.dispose()


def test_what_is_rejected_or_suspended_counts_as_that_and_a_reinstated_batch_once(bench, engine):
    lab, suspended = Lab(), Lab(secret=3)
    register(engine, lab)
    register(engine, suspended, statuses=((0, "suspended"),))
    bench.send(lab.next(), lab.next(t0_ms=LATER + 10**6))  # in the future
    bench.send(suspended.next(), suspended.next())
    one, future = of_day(engine, lab.device)[0].devices.values()
    assert (one.accepted, one.rejected, one.suspended) == (1, 0, 0)
    assert (future.accepted, future.rejected, future.suspended) == (0, 1, 0)
    held, revision = of_day(engine, suspended.device)
    assert held.devices[suspended.device, DAY_S].suspended == 2
    assert held.channels == {}
    bench.decide(Action.REINSTATE, 0, 9, device=suspended.device)
    bench.settle()
    sums, newer = of_day(engine, suspended.device)
    (one,) = sums.devices.values()
    assert (one.accepted, one.rejected, one.suspended) == (2, 0, 0)
    assert sums.channels[suspended.device, DAY_S, 0].energy_mws == 19 * 18_000
    assert newer > revision
    assert check(engine, NETWORK).whole


def test_the_check_finds_wrong_sums_and_makes_them_again(bench, engine):
    lab = Lab()
    bench.send(*[lab.next([(18_000_000, 1_000_000)] * 100) for _ in range(14)])
    before, revision = of_day(engine, lab.device)
    for damage in ("UPDATE sums SET energy_mws = energy_mws + 1", "DELETE FROM sums", "UPDATE windows SET shares = 9"):
        with engine.begin() as connection:
            connection.execute(text(damage))
        (wrong,) = check(engine, NETWORK).counters
        assert "3 windows have other sums than their batches" in wrong
        check(engine, NETWORK, repair=True)
        after, newer = of_day(engine, lab.device)
        assert check(engine, NETWORK).whole
        assert after == before
        assert newer > revision


def test_a_batch_lies_in_the_window_of_its_time(bench, engine):
    lab = Lab()
    lab.boot_ms += 599_000
    bench.send(lab.next([(18_000_000, 1_000_000)] * 2), lab.next())
    assert [window for _, window in of_day(engine, lab.device)[0].devices] == [
        window_of(T0_MS + 599_000),
        window_of(T0_MS + 601_000),
    ]


def test_a_batch_that_waited_behind_a_halt_was_never_suspended(bench, engine):
    lab = Lab()
    bench.send(lab.next())
    bench.send(Lab().next([(1, 6_000)]), lab.next())
    bench.decide(Action.CONTINUE, 0, 9)
    bench.settle()
    (one,) = of_day(engine, lab.device)[0].devices.values()
    assert (one.accepted, one.suspended) == (2, 0)
    assert check(engine, NETWORK).whole


def test_a_batch_that_waited_for_its_date_and_then_for_the_dao_is_reinstated(bench, engine):
    lab = Lab(secret=3)
    register(engine, lab, statuses=((0, "active"), (T0_MS, "suspended"), (T0_MS + 20_000, "active")))
    bench.send(lab.next(synchronised=False, t0_ms=0))
    lab.boot_ms += 30_000
    bench.send(lab.next())
    bench.settle()
    assert sum(one.suspended for one in of_day(engine, lab.device)[0].devices.values()) == 1
    bench.decide(Action.REINSTATE, 0, 0, device=lab.device)
    bench.settle()
    bench.send(lab.next())
    assert [one.accepted for one in of_day(engine, lab.device)[0].devices.values()] == [3]
    assert bench.receipt(lab.device).next_seq == 3
    assert check(engine, NETWORK).whole


def test_q_carries_beyond_any_column(bench, engine):
    device, most = Lab().device, 2**62 * 315_576_000_000
    with engine.begin() as connection:
        for _ in range(40):
            with Bulk(connection) as bulk:
                add_sums(bulk, Sums(channels={(device, DAY_S, 0): ChannelSum(square_current=most + 7)}), 1)
        found = read_sums(connection, device, DAY_S, DAY_S + 1)
    assert found.channels[device, DAY_S, 0].square_current == 40 * (most + 7)


def test_a_date_before_the_epoch_is_checked_too_and_a_repair_beside_a_service_is_refused(bench, engine):
    lab = Lab(boot_ms=1_000)
    bench.send(lab.next(synchronised=False, t0_ms=0))
    lab.boot_ms = 315_000_000_000
    bench.send(lab.next(t0_ms=1_000))
    bench.settle()
    assert check(engine, NETWORK).whole
    with engine.begin() as connection:
        connection.execute(text("UPDATE windows SET shares = 9"))
    with pytest.raises(UsageError, match="stop every service"):
        check(engine, NETWORK, repair=True, progress=lambda _count: bench.send(lab.next()))
