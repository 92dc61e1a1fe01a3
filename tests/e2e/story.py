"""The whole story of a deployment, with real contracts, ledger, settlement and audit; time is the chain's.

Two miners, one storage node, three members: admission, lines, a period that the DAO rejects and that is revised, votes,
payment, a key that is rotated, energy that is taken out again, and a second period. `python -m tests.e2e.story` says how
long it takes on the embedded chain, `... anvil` on anvil.
"""

import hashlib
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from sqlalchemy import select

from ingest.mirror import mirror_devices
from maxgreen.chain.claims import claim_json
from maxgreen.chain.dao import Dao, Proposal, ProposalState
from maxgreen.chain.market import Exchange, RequestStatus, balances, coin, sweep, wei_of
from maxgreen.chain.orders import Ends, LossTerms, OrderStatus
from maxgreen.chain.registry import admission, apply_for, each_key, key_words
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine, reader
from maxgreen.ledger.schema import chains
from maxgreen.protocol.attestation import attest, hand_over, prove_possession
from maxgreen.protocol.backend import Beacon, Rejection, decode_rejection, sign_beacon
from maxgreen.protocol.batch import Role
from maxgreen.protocol.pack import canonical_json
from maxgreen.protocol.reasons import Reason
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec
from maxgreen.store import FolderStore
from maxgreen.verify.rules import Action, Decision, Limits
from settlement.audit import audit
from settlement.audit_chain import Pinned, module_files
from settlement.close import Closer
from settlement.evidence import Judge
from settlement.findings import Difference
from settlement.inputs import Inputs
from settlement.orders import Payer, open_line
from settlement.packs import Pack, keep_run, open_pack, seal, stored_pack, write_pack_of
from settlement.periods import period_bounds
from settlement.run import make_run
from settlement.service import tell_devices
from settlement.statement import derive
from settlement.status import look
from simulator.lab import EASY, Lab
from tests.chain.world import DAY_S, embedded, on_anvil
from tests.ingest.desks import BACKEND, Bench

PEAK_MW = 40_000
WINDOW_S = 600
STEP_MS = 30_000
RESISTANCE_UOHM = 200_000
MINER_ROLES = (Role.GENERATION, Role.SENT, Role.RECEIVED)
NODE_ROLES = (Role.RECEIVED, Role.RECEIVED, Role.RECEIVED, Role.DELIVERED)
DARK = [(18_000_000, 0)] * 20


class Story:
    """Tokens 1 and 2 are miners of accounts 5 and 0, token 3 is the node of account 6."""

    def __init__(self, world, folder):
        self.world, self.deployment, self.folder = world, world.deployment, folder
        self.network = world.deployment.network
        self.owners = {1: world.accounts[5], 2: world.accounts[0], 3: world.accounts[6]}
        self.labs = {
            1: Lab(secret=11, roles=MINER_ROLES, interval_ms=STEP_MS, network=self.network, boot=bytes([1] * 16)),
            2: Lab(secret=13, roles=MINER_ROLES, interval_ms=STEP_MS, network=self.network, boot=bytes([2] * 16)),
            3: Lab(secret=12, roles=NODE_ROLES, interval_ms=STEP_MS, network=self.network, boot=bytes([3] * 16)),
        }
        self.engine = open_engine(f"sqlite:///{folder / 'ledger.db'}")
        self.lines = [Ends(1, 1, 3, 0), Ends(2, 1, 3, 1)]
        self.packs = []
        self.store = FolderStore(folder / "evidence")
        self.closer = Closer(self.engine, self.store, world.contract, BACKEND, self.network)

    @property
    def now_s(self):
        return self.world.chain.newest_block(fresh=True).time_s

    def pass_to(self, unix_s):
        if unix_s > self.now_s:
            self.world.pass_time(unix_s - self.now_s)

    def enrol(self):
        world = self.world
        ids = [
            apply_for(self.deployment, self.owners[token], self.labs[token].signer, self.specs[token])
            for token in self.labs
        ]
        assert world.pass_(admission(self.deployment, ids)) is ProposalState.EXECUTED
        terms = LossTerms(RESISTANCE_UOHM, 0, 100_000)
        approval = world.contract.line_approval([(ends, terms) for ends in self.lines])
        assert world.pass_(approval) is ProposalState.EXECUTED
        self.begin()

    @property
    def specs(self):
        return {
            token: SystemSpec(
                kind,
                tuple(ChannelSpec(n, int(role), PEAK_MW, 5_000, 0) for n, role in enumerate(self.labs[token].roles)),
                battery_wh=10_000 if kind is Kind.STORAGE_NODE else 0,
            )
            for token, kind in ((1, Kind.MINER), (2, Kind.MINER), (3, Kind.STORAGE_NODE))
        }

    def begin(self):
        """Let the ledger know the systems, and the sun rise."""
        world = self.world
        self.mirror()
        self.registered_s = self.now_s
        self.window_s = (self.now_s // WINDOW_S + 1) * WINDOW_S
        block = world.chain.newest_block()
        self.beacon = Beacon(1, self.window_s - 1, 10 * DAY_S, block.number, block.hash)
        with self.engine.begin() as connection:
            book = Book(connection)
            book.set_limits(0, Limits(pow_nbits_min=EASY, shares_per_window=1))
            book.add_beacon(self.beacon, sign_beacon(self.beacon, BACKEND, self.network))
        self.bench = Bench(self.engine, network=self.network)

    def mirror(self):
        with self.engine.begin() as connection:
            mirror_devices(connection, each_key(self.deployment))

    def window(self, changes=MappingProxyType({}), *, attested=False, current=1_000_000, takes_out=None):
        """Ten minutes of sun on both panels; what is between them and the node is lost. One may take energy out."""
        for token, lab in self.labs.items():
            lab.wall_offset_ms = self.window_s * 1000 - lab.boot_ms
            sun = [(18_000_000 + k, current + 7 * token + k) for k in range(20)]
            arrived = {n: [(v - 200_000, current + 7 * (n + 1) + k) for k, (v, _) in enumerate(sun)] for n in (0, 1)}
            taken = [(v, current // 4 - 10_000 * (token != 3)) for v, _ in sun] if takes_out else DARK
            out = {2: taken if takes_out == token else DARK}
            batch = lab.batch(
                sun, others={**arrived, 2: DARK, 3: taken} if token == 3 else out, **changes.get(token, {})
            )
            if token != 3:
                batch = replace(batch, work=lab.work(self.beacon))
            message = lab.sign(lab.attested(batch) if attested else batch)
            outcome = self.bench.send(message, received_ms=(self.window_s + WINDOW_S + 1) * 1000)
            assert outcome.reason is Reason.NONE, (token, outcome)
        self.window_s += WINDOW_S
        self.pass_to(self.window_s + 5)

    def tomorrow(self, boot):
        self.window_s = (self.window_s // DAY_S + 1) * DAY_S
        for lab in self.labs.values():
            lab.reboot(bytes([boot, lab.secret] * 8), wall_ms=self.window_s * 1000)
        self.pass_to(self.window_s)

    def payer(self, closed):
        payer = Payer(self.deployment, self.world.clock, self.world.operator, self.world.members)
        return payer, payer.post(closed)

    def close(self, period):
        return self.closer.close(period, self.now_s * 1000)

    def pay(self, closed):
        """Vote, claim every line, audit the pack against the chain."""
        payer, posted = self.payer(closed)
        payer.decide(closed, posted, wait=True)
        payer.claim(closed, posted)
        assert payer.refused == {}
        tell_devices(self.engine, self.world.contract, closed, payer.look(posted))
        assert self.told() == {None}
        keep_run(self.store, closed, payer.order_entry(closed, payer.look(posted)))
        pack = stored_pack(self.store, closed.period)
        pinned = Pinned(addresses=self.deployment.addresses)
        previous = self.packs[-1] if self.packs else None
        report = audit(pack, previous=previous, chain=self.world.chain, pinned=pinned)
        self.audit_one_line(closed, pinned)
        assert sum("version of the DAO's module" in check for check in report.checks) == (3 if self.packs else 0)
        assert sum("wei minted" in check for check in report.checks) == len(self.lines)
        self.packs.append(pack)
        assert {line.waits_for.split(";")[0] for line in self.status().lines} <= {
            "nothing",
            "nothing: all of it is paid",
        }
        for ends, statement in zip(self.lines, self.by_line(closed), strict=True):
            assert self.world.contract.line(ends.line_id).paid_mws == int(statement["payable_total_mws"]) > 0

    def audit_one_line(self, closed, pinned):
        """An owner gets the evidence of one line alone, and finds its own payment."""
        path, line = self.folder / "line.zip", self.lines[0].line_id.hex()
        write_pack_of(self.store, closed, stored_pack(self.store, closed.period).order_data, path, line)
        report = audit(open_pack(path), chain=self.world.chain, pinned=pinned)
        assert list(report.payable_mws) == [line]
        assert any("1 other lines" in believed for believed in report.believed)
        assert sum("wei minted" in check for check in report.checks) == 1

    def register_modules(self):
        """Members and owners vote on what audits else have to believe."""
        world, electors = self.world, [*self.world.members, self.owners[1], self.owners[3]]
        electorate = self.deployment.functions("Electorate")
        for account in electors:
            world.send(world.stranger, electorate.refresh(account.address))
        world.pass_time(5)
        modules = self.deployment.functions("ModuleRegistry")
        calls = tuple(
            modules.set(name, "1", hashlib.sha256(data).digest(), "")
            for name, (_, data) in module_files(self.packs[-1].entries(self.lines[0].line_id.hex())).items()
        )
        dao = Dao(self.deployment, world.clock, governor="ModuleGovernor")
        proposal = Proposal(calls, "Limits, backend keys, checks")
        assert dao.carry_out(proposal, electors, wait=True) is ProposalState.EXECUTED

    def refuse_other_limits(self):
        """A backend that goes by limits of its own is found, though everything else in its pack is right."""
        pack = self.packs[-1]
        lines, statements, claims = {}, [], []
        for line, kept in pack.lines.items():
            looser = [{**limits, "capacity_ppm": 2_000_000} for limits in json.loads(kept["limits.json"])]
            inputs = Inputs.from_entries({**kept, "limits.json": canonical_json(looser)})
            result = derive(inputs, Judge(pack.segment).evidence(inputs))
            sealed = seal(result, BACKEND)
            lines[line] = sealed.entries
            statements.append(sealed.statement)
            claims.append(sealed.claim)
        previous = bytes.fromhex(pack.run.document["previous"])
        run = make_run(self.network, pack.run.period, pack.run.until_s, previous, statements, claims)
        order = json.loads(pack.order_data)
        order["posting"] |= {"manifest": run.digest.hex(), "root": run.root.hex()}
        order["claims"] = [claim_json(claim) for claim in run.claims]
        lying = Pack(run.data, canonical_json(order), lines, pack.segment)
        assert audit(lying).checks  # in itself it is right
        with pytest.raises(Difference, match="limits.json"):
            audit(lying, chain=self.world.chain)

    def status(self):
        return look(self.engine, self.deployment)

    def by_line(self, closed):
        found = {statement["line"]: statement for statement in closed.lines}
        return [found[ends.line_id.hex()] for ends in self.lines]

    def reject_and_revise(self, closed):
        """The DAO wants one window looked at: the order is rejected, a decision recorded, the period closed again."""
        payer, posted = self.payer(closed)
        assert [line.waits_for for line in self.status().lines] == [f"the DAO's vote on order {posted.order_id}"] * 2
        rejection = self.world.contract.rejection(posted.order_id, posted.posting, 62, "nobody looked at the seal")
        assert self.world.pass_(rejection) is ProposalState.EXECUTED
        posted = payer.look(posted)
        assert posted.status is OrderStatus.REJECTED
        tell_devices(self.engine, self.world.contract, closed, posted)
        assert self.told() == {Rejection(closed.until_s, 62, "nobody looked at the seal")}
        assert "settle revise" in self.status().next
        with self.engine.begin() as connection:
            text = Decision(
                self.labs[1].device, 1, 1, Action.REJECT, "62", "dao", self.now_s * 1000, "the seal was open"
            )
            Book(connection).add_decision(text)
        return self.closer.revise(closed, self.now_s * 1000)

    def told(self):
        """Return what receipts tell of rejected orders, of all devices that have sent something."""
        with reader(self.engine).begin() as connection:
            kept = list(connection.execute(select(chains.c.rejection)).scalars())
        return {decode_rejection(one) if one else None for one in kept}

    def rotate(self, token):
        old, owner = self.labs[token], self.owners[token]
        new = Lab(secret=21, roles=old.roles, interval_ms=STEP_MS, network=self.network, boot=bytes([7] * 16))
        digest = self.specs[token].digest
        proof = prove_possession(new.signer, self.network, bytes.fromhex(owner.address[2:]), 0, digest)
        over = hand_over(old.signer, self.network, new.device)
        halves = [[signature[:32], signature[32:]] for signature in (over, proof)]
        functions = self.deployment.registry.functions
        self.pass_to(self.registered_s + DAY_S + 1)  # a key is kept for a day
        self.world.send(owner, functions.rotateKey(token, key_words(new.signer.spki), *halves))
        self.mirror()
        self.window_s = (self.now_s // WINDOW_S + 1) * WINDOW_S
        self.pass_to(self.window_s)
        for other in self.labs.values():
            other.reboot(bytes([5, other.secret] * 8), wall_ms=self.window_s * 1000)
        self.labs[token] = new
        return {token: {"succeeds": (old.device, old.head)}}

    def meter(self, token, channel, register):
        lab = self.labs[token]
        return attest(lab.signer, self.network, channel, self.now_s, register, 1_000 + register)

    def take_out(self, token, amount_wei):
        """Energy comes back: request, acceptance, both meters, settlement, refund."""
        exchange, owner, node = Exchange(self.deployment), self.owners[token], self.owners[3]
        energy = coin(self.deployment, "energy", 3)
        before = self.world.ask(energy.functions.totalSupply())
        number = exchange.request_take_out(owner, token, 2, 3, amount_wei, 3_600)
        exchange.accept(node, number, self.meter(3, 3, 0), self.meter(token, 2, 0))
        self.pass_to(self.now_s + 3_600)
        delivered = 3_600_000
        exchange.finish(node, number, self.meter(3, 3, delivered))
        exchange.confirm(owner, number, self.meter(token, 2, delivered - 10_000))
        assert exchange.take_out(number).status is RequestStatus.SETTLED
        burned = before - self.world.ask(energy.functions.totalSupply())
        assert 0 < burned <= wei_of(delivered)
        assert exchange.owed(owner.address, energy.address) == amount_wei - burned
        exchange.withdraw(owner, energy.address)


def tell(story):
    """Live through it all; return the seconds that each part took."""
    took, begun = {}, time.monotonic()

    def lap(name):
        nonlocal begun
        took[name], begun = round(time.monotonic() - begun, 1), time.monotonic()

    story.enrol()
    story.window(attested=True)
    for ends in story.lines:
        open_line(story.engine, story.deployment, story.world.operator, ends)
    lap("admission and lines")
    for k in range(4):
        story.window(attested=k == 3)
    story.tomorrow(4)
    story.window(attested=True)
    first_day = time.strftime("%Y-%m-%d", time.gmtime(story.window_s - DAY_S))
    closed = story.close(first_day)
    lap("a day")
    revised = story.reject_and_revise(closed)
    totals = [int(statement["payable_total_mws"]) for statement in story.by_line(revised)]
    assert totals[0] < int(story.by_line(closed)[0]["payable_total_mws"])
    lap("rejection and revision")
    story.pay(revised)
    lap("vote, claims, audit")
    sweep(story.deployment, story.world.stranger)
    held = balances(story.deployment, story.owners[1].address, [3])["energy 3"]
    story.take_out(1, held // 2)
    story.register_modules()
    lap("taken out again")
    succeeds = story.rotate(1)
    story.window(succeeds)
    for k in range(3):
        story.window(attested=k == 2)
    second_day = time.strftime("%Y-%m-%d", time.gmtime(story.window_s))
    story.tomorrow(6)
    story.window(attested=True)
    _, until_s = period_bounds(second_day)
    assert story.now_s > until_s
    lap("rotation and another day")
    story.pay(story.close(second_day))
    story.refuse_other_limits()
    lap("vote, claims, audit again")
    return took


def main():
    """Say how long the story takes."""
    if "anvil" in sys.argv:
        import subprocess

        from maxgreen.chain.client import connect
        from tests.conftest import ROOT, free_port, stop, wait_for

        port = free_port()
        process = subprocess.Popen([ROOT / "contracts/node_modules/.bin/anvil", "--port", str(port), "--silent"])
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: connect(url, None).chain_id, what="anvil")
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        world = on_anvil(url) if "anvil" in sys.argv else embedded(Path(folder))
        deployed = round(time.monotonic() - begun, 1)
        took = tell(Story(world, Path(folder)))
        print(f"deployment {deployed} s, then {round(sum(took.values()), 1)} s: {took}")
    if "anvil" in sys.argv:
        stop(process)


if __name__ == "__main__":
    main()
