"""A close that dies at any point, or that two processes do at once, comes to the same run, once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from maxgreen.errors import UsageError
from maxgreen.ledger.book import Book
from maxgreen.ledger.schema import periods, replaced_periods
from maxgreen.store import FolderStore
from maxgreen.verify.rules import Action
from settlement.audit import audit
from settlement.close import Closer, NotReadyError
from settlement.packs import keep_run, stored_pack
from simulator.lab import NETWORK, T0_MS
from tests.ingest.desks import BACKEND
from tests.settlement.test_splits import DAY_MS, WINDOW_MS, Site

NOW_MS = T0_MS + 9 * DAY_MS
PERIOD = "2026-01-01"


class Dies(BaseException):
    """The process ends here."""


class Dying(FolderStore):
    """A store whose process dies before or after it keeps so many things."""

    def __init__(self, folder, left, *, after):
        super().__init__(folder)
        self.left, self.after = left, after

    def put(self, name, data):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Dies
        super().put(name, data)
        if self.left == 0:
            raise Dies


def made(folder):
    site = Site(f"sqlite:///{folder}/ledger.db", folder)
    for number in range(4):
        for lab in (site.miner, site.node):
            lost = 200_000 if lab is site.node else 0
            batch = lab.batch([(18_000_000 + k - lost, 1_000_000 + k) for k in range(20)])
            if lab is site.miner:
                batch = replace(batch, work=lab.work(site.beacon))
            message = lab.sign(lab.attested(batch) if number in {0, 3} else batch)
            site.bench.send(message, received_ms=T0_MS + (number + 1) * WINDOW_MS)
    return site


def counts(site):
    with site.engine.begin() as connection:
        return [connection.scalar(select(func.count()).select_from(table)) for table in (periods, replaced_periods)]


@pytest.mark.parametrize("after", [False, True])
def test_a_close_that_dies_anywhere_comes_to_the_same(tmp_path, after):
    expected = made(tmp_path_of(tmp_path, "calm")).closer.close(PERIOD, NOW_MS)
    site, died = made(tmp_path_of(tmp_path, "rough")), 0
    for left in range(1, 20):
        store = Dying(tmp_path / "rough" / "evidence-ledger.db", left, after=after)
        closer = Closer(site.engine, store, site, BACKEND, NETWORK)
        try:
            run = closer.close(PERIOD, NOW_MS)
        except Dies:
            died += 1
            continue
        break
    assert died > 0
    assert run.digest == expected.digest
    assert counts(site) == [1, 0]
    keep_run(site.store, run, None)
    assert audit(stored_pack(site.store, PERIOD)).checks
    assert site.closer.close(PERIOD, NOW_MS).data == run.data


def tmp_path_of(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    return folder


def test_a_line_whose_devices_the_ledger_does_not_know_yet_is_waited_for(tmp_path):
    site = made(tmp_path)
    known = site.line
    site.line = replace(known, ends=replace(known.ends, node_token=9))
    with pytest.raises(NotReadyError, match="not in the ledger's copy of the registry: system 9;"):
        site.closer.close(PERIOD, NOW_MS)
    site.line = known
    assert site.closer.close(PERIOD, NOW_MS).claims


def test_closes_at_once_come_to_one(tmp_path):
    site = made(tmp_path)
    closers = [Closer(site.engine, FolderStore(tmp_path / "evidence"), site, BACKEND, NETWORK) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda closer: closer.close(PERIOD, NOW_MS), closers))
    assert len({run.digest for run in runs}) == 1
    assert counts(site) == [1, 0]


def test_a_revision_takes_the_place_of_a_close_and_the_store_shows_it(tmp_path):
    site = made(tmp_path)
    first = site.closer.close(PERIOD, NOW_MS)
    keep_run(site.store, first, None)
    with pytest.raises(UsageError, match="it would be the same again"):
        site.closer.revise(first, NOW_MS)
    site.decide(site.miner, Action.REJECT, 1, 1, "60", at_ms=NOW_MS)
    second = site.closer.revise(first, NOW_MS)
    keep_run(site.store, second, None)
    assert (first.document["revision"], second.document["revision"]) == (0, 1)
    assert int(second.lines[0]["payable_mws"]) < int(first.lines[0]["payable_mws"])
    assert stored_pack(site.store, PERIOD).run.digest == second.digest
    assert counts(site) == [1, 1]
    with site.engine.begin() as connection:
        [old] = Book(connection).replaced(first.until_s)
    assert bytes(old.run) == first.digest
    assert audit(stored_pack(site.store, PERIOD)).checks
