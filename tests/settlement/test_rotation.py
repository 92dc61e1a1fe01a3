"""A key is changed in mid-month: registry, ledger, settlement, payment and audit go on, and nothing counts twice."""

from dataclasses import replace

import pytest

from ingest.mirror import mirror_devices
from maxgreen.chain.dao import Proposal
from maxgreen.chain.orders import LossTerms
from maxgreen.chain.registry import admission, apply_for, each_key, key_words, read_systems
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.attestation import hand_over, prove_possession
from maxgreen.protocol.backend import Beacon, sign_beacon
from maxgreen.protocol.batch import Role
from maxgreen.protocol.reasons import Reason
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec
from maxgreen.store import FolderStore
from maxgreen.verify.rules import Limits
from settlement.audit import audit
from settlement.close import Closer
from settlement.orders import Payer, open_line
from settlement.packs import keep_run, stored_pack
from settlement.statement import read_windows
from simulator.lab import EASY, Lab
from tests.chain.test_contracts import halves
from tests.chain.world import embedded
from tests.ingest.desks import BACKEND, Bench, reasons

PEAK_MW = 40_000
WINDOW_MS = 600_000
RESISTANCE_UOHM = 200_000


class Site:
    """A miner and a node on a real registry, ledger and settlement; batches of ten minutes, made by hand."""

    def __init__(self, tmp_path):
        self.world = world = embedded(tmp_path)
        self.network = world.deployment.network
        self.miner = Lab(secret=11, roles=(Role.GENERATION, Role.SENT), interval_ms=30_000, network=self.network)
        self.node = Lab(secret=12, roles=(Role.RECEIVED,), interval_ms=30_000, network=self.network)
        terms = [ChannelSpec(n, int(role), PEAK_MW, 5_000, 0) for n, role in enumerate(self.miner.roles)]
        self.spec = SystemSpec(Kind.MINER, tuple(terms))
        node = SystemSpec(Kind.STORAGE_NODE, (ChannelSpec(0, 2, PEAK_MW, 5_000, 0),), battery_wh=10_000)
        ids = [
            apply_for(world.deployment, world.accounts[5], world.miner, self.spec),
            apply_for(world.deployment, world.accounts[6], world.node, node),
        ]
        world.pass_(admission(world.deployment, ids))
        ends = replace(world.ends)
        world.pass_(world.contract.line_approval([(ends, LossTerms(RESISTANCE_UOHM, 0, 100_000))]))
        self.line = ends.line_id
        self.engine = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
        self.window_ms = (world.chain.newest_block(fresh=True).time_s // 600 + 1) * WINDOW_MS
        block = world.chain.newest_block()
        self.beacon = Beacon(1, self.window_ms // 1000 - 1, 10 * 86_400, block.number, block.hash)
        with self.engine.begin() as connection:
            book = Book(connection)
            book.set_limits(0, Limits(pow_nbits_min=EASY, shares_per_window=1))
            book.add_beacon(self.beacon, sign_beacon(self.beacon, BACKEND, self.network))
        self.bench = Bench(self.engine, network=self.network)
        self.mirror()
        self.store = FolderStore(tmp_path / "evidence")
        self.closer = Closer(self.engine, self.store, world.contract, BACKEND, self.network)
        self.packed = None

    def mirror(self):
        with self.engine.begin() as connection:
            mirror_devices(connection, each_key(self.world.deployment))

    def pass_to(self, t_ms):
        if t_ms > self.world.clock.now_ms():
            self.world.pass_time(t_ms // 1000 - self.world.chain.newest_block(fresh=True).time_s)

    def made(self, lab, number, *, attested=False, **changes):
        lost = RESISTANCE_UOHM // 10**6 if lab is self.miner else 200_000
        readings = [(18_000_000 + k - (0 if lab is self.miner else lost), 1_000_000 + number) for k in range(20)]
        lab.wall_offset_ms = self.window_ms - lab.boot_ms
        batch = lab.batch(readings, **changes)
        if lab is self.miner:
            batch = replace(batch, work=lab.work(self.beacon))
        return lab.sign(lab.attested(batch) if attested else batch)

    def send(self, message):
        return self.bench.send(message, received_ms=self.window_ms + WINDOW_MS + 1_000).reason

    def window(self, number, *, attested=False, **changes):
        found = {self.send(self.made(lab, number, attested=attested)) for lab in (self.node,)}
        found.add(self.send(self.made(self.miner, number, attested=attested, **changes)))
        self.window_ms += WINDOW_MS
        self.pass_to(self.window_ms + 5_000)
        return found

    def later(self, boot):
        """A day passes; both devices boot."""
        self.window_ms += 86_400_000
        for lab in (self.miner, self.node):
            lab.reboot(bytes([boot] * 16), wall_ms=self.window_ms)
        self.pass_to(self.window_ms)

    def rotate(self, new):
        world, old = self.world, self.miner
        owner = world.accounts[5]
        proof = prove_possession(new.signer, self.network, bytes.fromhex(owner.address[2:]), 0, self.spec.digest)
        over = hand_over(old.signer, self.network, new.device)
        call = world.deployment.registry.functions.rotateKey(1, key_words(new.signer.spki), halves(over), halves(proof))
        world.send(owner, call)
        self.mirror()

    def replace_key(self, new):
        world, owner = self.world, self.world.accounts[5]
        functions = world.deployment.registry.functions
        proof = prove_possession(new.signer, self.network, bytes.fromhex(owner.address[2:]), 0, self.spec.digest)
        world.send(owner, functions.requestKey(1, key_words(new.signer.spki), *halves(proof)))
        world.pass_(Proposal((functions.replaceKey(1, new.device),), "Replace the key of system 1"))
        self.mirror()

    def settle(self, period, now_ms):
        self.pass_to(now_ms)
        world = self.world
        closed = self.closer.close(period, now_ms)
        payer = Payer(world.deployment, world.clock, world.operator, world.members)
        posted = payer.post(closed)
        payer.decide(closed, posted, wait=True)
        payer.claim(closed, posted)
        assert payer.refused == {}
        keep_run(self.store, closed, payer.order_entry(closed, payer.look(posted)))
        previous, self.packed = self.packed, stored_pack(self.store, period)
        windows = read_windows(self.packed.entries(self.line.hex()))
        [statement] = closed.lines
        return statement, windows, audit(self.packed, previous=previous, chain=world.chain)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def next_of(site, old, **changes):
    return Lab(
        secret=21,
        roles=old.roles,
        interval_ms=old.interval_ms,
        network=site.network,
        boot=bytes([7] * 16),
        boot_ms=5_000,
        **changes,
    )


@pytest.mark.rule("P-ID-6", "P-ING-3", "P-ING-6", "P-BAT-3")
@pytest.mark.parametrize("how", ["rotated", "replaced"])
def test_a_device_goes_on_with_another_key_and_is_paid_for_both(site, how):
    assert site.window(0, attested=True) == {Reason.NONE}
    open_line(site.engine, site.world.deployment, site.world.operator, site.world.ends)
    for k in range(1, 4):
        assert site.window(k, attested=k in (1, 3)) == {Reason.NONE}
        if k == 1:
            site.later(5)
    old = site.miner
    new = next_of(site, old)
    if how == "rotated":
        site.rotate(new)
    else:
        site.replace_key(new)
    site.window_ms = (site.world.clock.now_ms() // WINDOW_MS + 1) * WINDOW_MS
    site.pass_to(site.window_ms + 5_000)
    site.miner = new
    site.node.reboot(bytes([6] * 16), wall_ms=site.window_ms)
    succeeds = {"succeeds": (old.device, old.head)} if how == "rotated" else {}
    assert site.window(4, **succeeds) == {Reason.NONE}
    for k in range(5, 8):
        assert site.window(k, attested=k == 7) == {Reason.NONE}
    # the old key goes on: whatever it says counts nowhere
    fields = old.seq, old.head, old.boot_ms, dict(old.meters)
    old.wall_offset_ms = site.window_ms - old.boot_ms
    thief = site.bench.send(old.next([(18_000_000, 2_000_000)] * 20), received_ms=site.window_ms + WINDOW_MS)
    assert thief.reason is (Reason.SUSPENDED_DEVICE if how == "rotated" else Reason.NONE)
    old.seq, old.head, old.boot_ms, old.meters = fields
    midnight_ms = (site.window_ms // 86_400_000 + 1) * 86_400_000
    site.window_ms = midnight_ms
    for lab in (site.miner, site.node):
        lab.reboot(bytes([8] * 16), wall_ms=midnight_ms)
    site.window(9, attested=True)
    statement, windows, report = site.settle("2026-01-02", midnight_ms + 2 * WINDOW_MS)
    line = site.world.contract.line(site.line)
    counted = [w for w in windows if w.counts]
    assert len(counted) == 7
    assert line.paid_mws == int(statement["payable_total_mws"]) == sum(w.measured.received_mws for w in counted)
    assert (line.sent.key_number, line.received.key_number) == (1, 0)
    assert line.carried_sent_mws == old.meters[1].register_mws
    assert int(statement["to_register"]) == line.carried_sent_mws + line.sent.register_mws
    assert "wei minted" in report.checks[-1]
    # and the month after: the old chain is no longer in the evidence
    day_ms = midnight_ms + 86_400_000
    for k in range(10, 13):
        assert site.window(k, attested=k == 12) == {Reason.NONE}
    site.window_ms = day_ms
    for lab in (site.miner, site.node):
        lab.reboot(bytes([9] * 16), wall_ms=day_ms)
    site.window(13, attested=True)
    more, _, report = site.settle("2026-01-03", day_ms + 2 * WINDOW_MS)
    after = site.world.contract.line(site.line)
    assert after.paid_mws == int(more["payable_total_mws"]) > line.paid_mws
    assert "wei minted" in report.checks[-1]


def test_a_key_that_is_not_the_registrys_successor_takes_nothing_over(site):
    site.window(0, attested=True)
    old = site.miner
    stranger = Lab(secret=33, roles=old.roles, interval_ms=30_000, network=site.network, boot=bytes([7] * 16))
    stranger.wall_offset_ms = site.window_ms - stranger.boot_ms
    batch = stranger.batch([(18_000_000, 1_000_000)] * 20, succeeds=(old.device, old.head))
    assert site.send(stranger.sign(batch)) is Reason.UNKNOWN_DEVICE
    site.later(5)
    site.window(0)
    new = next_of(site, old)
    site.rotate(new)
    site.window_ms = (site.world.clock.now_ms() // WINDOW_MS + 1) * WINDOW_MS
    new.wall_offset_ms = site.window_ms - new.boot_ms
    early = new.sign(new.batch([(18_000_000, 1_000_000)] * 20, succeeds=(old.device, bytes(32))))
    assert site.send(early) is Reason.GAP_BEFORE  # the old chain has another end
    assert site.send(site.made(old, 1)) is Reason.NONE  # and is not closed
    assert reasons(site.engine, old.device) == [Reason.NONE] * 3
    assert set(read_systems(site.world.deployment)) == {new.device, site.node.device}
