"""The registry in the ledger: read once, then followed by its events; and commands that no chain keeps back."""

import threading
from dataclasses import replace

import pytest
from sqlalchemy import select

from ingest import mirror
from ingest.housekeeping import Housekeeping
from ingest.mirror import Registry
from maxgreen.chain.dao import Proposal, ProposalState
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.errors import Fatal, Retryable
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.schema import devices
from maxgreen.verify.rules import Status
from tests.chain.test_contracts import world  # noqa: F401 - a fixture
from tests.chain.world import World
from tests.ingest.desks import BACKEND, Clock, Wire


@pytest.fixture
def ledger(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield engine
    engine.dispose()


def known(engine):
    with engine.begin() as connection:
        return {device.token: device.record.statuses[-1][1] for device in Book(connection).all_devices()}


def position(engine):
    with engine.begin() as connection:
        return Book(connection).position("registry")


def settle(registry):
    while registry.step() == 0.0:
        pass


class Counted:
    """Counts what a chain is asked."""

    def __init__(self, chain, monkeypatch):
        self.calls, call = 0, chain.call

        def counting(function, **where):
            self.calls += 1
            return call(function, **where)

        monkeypatch.setattr(chain, "call", counting)

    def __call__(self):
        calls, self.calls = self.calls, 0
        return calls


@pytest.mark.services
def test_systems_are_read_once_and_then_what_events_speak_of(world, ledger, monkeypatch):  # noqa: F811
    world.enrol()
    asked = Counted(world.chain, monkeypatch)
    monkeypatch.setattr(mirror, "_AGAIN", 0)
    registry = Registry(ledger, world.deployment, refresh_s=30)
    settle(registry)
    assert known(ledger) == {1: Status.ACTIVE, 2: Status.ACTIVE}
    assert position(ledger) == world.chain.newest_block().number + 1
    assert asked() == 1 + 2 * 5
    world.chain.newest_block(fresh=True)
    settle(registry)
    assert asked() <= 1  # how many there are
    functions = world.deployment.registry.functions
    assert ProposalState.EXECUTED is world.pass_(Proposal((functions.setStatus(2, 2, "it lies"),), "Suspend it"))
    asked()
    settle(Registry(ledger, world.deployment, refresh_s=30))  # another process goes on where the first stopped
    assert known(ledger) == {1: Status.ACTIVE, 2: Status.SUSPENDED}
    assert asked() == 1 + 5
    assert position(ledger) == world.chain.newest_block().number + 1


def test_nothing_is_taken_from_another_chain_or_other_code(world_of_two, ledger):
    chain, addresses = world_of_two.chain, world_of_two.deployment.addresses
    for wrong, said in (
        (replace(addresses, chain_id=5), "the deployment of chain 5"),
        (replace(addresses, registry=addresses.badge), "is not that of MinerRegistry"),
    ):
        with pytest.raises(Fatal, match=said):
            Registry(ledger, Deployment(chain, wrong), refresh_s=30).step()
    assert known(ledger) == {}


def test_a_server_that_gives_few_blocks_at_once_is_asked_for_fewer(world_of_two, ledger, monkeypatch):
    chain, deployment = world_of_two.chain, world_of_two.deployment
    settle(Registry(ledger, deployment, refresh_s=30))
    functions = deployment.registry.functions
    assert ProposalState.EXECUTED is world_of_two.pass_(Proposal((functions.setStatus(1, 2, "it lies"),), "Suspend it"))
    for _ in range(40):
        chain.newest_block(fresh=True)
    events, ranges = chain.all_events, []

    def grudging(contract, first, last):
        if last - first > 7:
            raise ChainRefusedError("", "query exceeds max block range")
        ranges.append((first, last))
        return events(contract, first, last)

    monkeypatch.setattr(chain, "all_events", grudging)
    monkeypatch.setattr(mirror, "_AGAIN", 3)
    registry, refused = Registry(ledger, deployment, refresh_s=30), 0
    while position(ledger) <= chain.newest_block().number:
        try:
            registry.step()
        except Retryable:
            refused += 1
    assert refused > 5
    assert known(ledger)[1] == Status.SUSPENDED
    covered = {block for first, last in ranges for block in range(first, last + 1)}
    assert covered >= set(range(min(covered), chain.newest_block().number + 1))


@pytest.fixture
def world_of_two(tmp_path):
    from tests.chain.world import embedded

    return embedded(tmp_path).enrol()


def test_a_chain_that_fails_in_the_middle_is_begun_again(world_of_two, ledger, monkeypatch):
    registry, call = Registry(ledger, world_of_two.deployment, refresh_s=30), world_of_two.chain.call
    left = [3]

    def failing(function):
        left[0] -= 1
        if left[0] < 0:
            raise Retryable("away")
        return call(function)

    monkeypatch.setattr(world_of_two.chain, "call", failing)
    with pytest.raises(Retryable):
        registry.step()
    assert position(ledger) == 0
    left[0] = 1_000
    settle(registry)
    assert len(known(ledger)) == 2
    with ledger.begin() as connection:
        assert connection.execute(select(devices)).first() is not None


def test_a_chain_that_hangs_keeps_no_command_back(ledger):
    hangs = threading.Event()

    class Chain:
        def newest_block(self, fresh=False):
            hangs.wait(60)
            raise Retryable("away")

    deployment = type("Deployment", (), {"network": "x", "chain": Chain(), "registry": None})()
    house = Housekeeping(ledger, Wire(), deployment, BACKEND, Clock(), refresh_s=1)
    tasks = house.tasks()
    threads = [
        threading.Thread(target=lambda name=name: run(tasks[name]), daemon=True) for name in ("registry", "beacons")
    ]
    for thread in threads:
        thread.start()
    assert tasks["commands"]() > 0
    assert all(thread.is_alive() for thread in threads)
    hangs.set()
    for thread in threads:
        thread.join()


def run(task):
    try:
        task()
    except Retryable:
        pass


def test_a_ledger_of_another_chain_is_read_from_the_beginning(world_of_two, ledger):
    with ledger.begin() as connection:
        Book(connection).set_position("registry", 10**9)
    settle(Registry(ledger, world_of_two.deployment, refresh_s=30))
    assert len(known(ledger)) == 2
    assert position(ledger) == world_of_two.chain.newest_block().number + 1
    assert isinstance(world_of_two, World)
