"""Parts of the fleet divided among services by leases: fairly, again when one comes, goes or hangs."""

import subprocess
import sys

import pytest

from ingest import shards
from ingest.shards import PARTS, Shards, shards_of, share_of
from maxgreen.errors import Retryable
from maxgreen.ledger import lease


class Clock:
    s = 1_000.0

    def monotonic(self):
        return self.s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    monkeypatch.setattr(shards, "time", clock)
    return clock


def turn(clock, *services, seconds=40):
    """Let so much time pass; no part is ever held by two who may write."""
    for _ in range(seconds):
        clock.s += 1
        held = [service.step() for service in services]
        assert sum(map(len, held)) == len(frozenset().union(*held))
    return [len(one) for one in held]


def test_every_shard_is_in_one_part():
    assert sorted(shard for part in range(PARTS) for shard in shards_of(part)) == [f"{n:02x}" for n in range(256)]
    assert [share_of(members) for members in (0, 1, 2, 3, 5, 16, 40)] == [16, 16, 8, 6, 4, 1, 1]


def test_services_divide_the_parts_and_take_over_what_is_given_up(engine, clock):
    first, second, third = Shards(engine), Shards(engine), Shards(engine)
    assert turn(clock, first, seconds=2) == [16]
    assert turn(clock, first, second) == [8, 8]
    assert sorted(turn(clock, first, second, third)) == [4, 6, 6]
    second.release()
    assert turn(clock, first, third, seconds=10) == [8, 8]
    first.release()
    assert turn(clock, third, seconds=10) == [16]


def test_the_parts_of_one_that_hangs_are_taken_after_its_term(engine, clock):
    first, second = Shards(engine), Shards(engine)
    turn(clock, first, second)
    before = second.step()
    turn(clock, second, seconds=10)
    assert second.step() == before
    assert turn(clock, second, seconds=30) == [16]
    assert len(first.step()) < PARTS  # it comes back, and does not think that all is its own
    assert turn(clock, first, second) == [8, 8]


def test_the_parts_of_one_that_was_killed_are_taken_at_once(engine, ledger_url, clock):
    code = "import sys; from ingest.shards import Shards; from maxgreen.ledger.engine import open_engine\n"
    code += f"print(len(Shards(open_engine({ledger_url!r})).step()), flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "16\n"
    here = Shards(engine)
    assert turn(clock, here, seconds=3) == [0]
    process.kill()
    process.wait()
    turn(clock, here, seconds=1)
    assert len(here.step()) >= 8  # its share; all of them once the other is not counted any more
    assert turn(clock, here) == [16]


def test_while_the_ledger_is_away_parts_are_held_for_a_term(engine, clock, monkeypatch):
    one = Shards(engine)
    held = one.step()

    def away(_self, for_s=0.0):
        raise Retryable("away")

    monkeypatch.setattr(lease.Lease, "held", away)
    assert one.step() == held
    clock.s += lease.TERM_S + 1  # others may reach it, and hold them now
    assert one.step() == frozenset()
