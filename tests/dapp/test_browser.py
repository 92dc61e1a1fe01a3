"""People at the pages, in a real browser with a wallet in it, on a real chain: from an application to burned tokens."""

import json
import threading
import time

import pytest
from playwright.sync_api import expect

from dapp.config import DappSettings, HttpSettings
from dapp.service import DappService
from maxgreen.chain.deployment import Governance
from maxgreen.chain.orders import OrderStatus
from maxgreen.protocol.attestation import prove_possession
from maxgreen.protocol.system import Kind
from settlement.orders import open_line
from settlement.packs import keep_run
from simulator.trial_wallet import trial_wallet
from tests.chain.world import on_anvil
from tests.conftest import running_anvil
from tests.dapp.conftest import MORNING, world_of
from tests.e2e.story import DAY_S, Story
from tests.services import free_port

pytestmark = pytest.mark.services
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)
GOVERNANCE = Governance(voting_delay_s=1, voting_period_s=3_600, timelock_s=1)  # people and browsers take a while
ROLES = ("generation", "sent", "received", "delivered")


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A deployment that nobody has applied to yet, its pages, and what its people measure."""
    with running_anvil(*MORNING) as rpc:
        folder = tmp_path_factory.mktemp("town")
        story = Story(on_anvil(rpc, GOVERNANCE), folder)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        story.deployment.addresses.save(folder / "deployment.json")
        settings = DappSettings(
            rpc=rpc, deployment=folder / "deployment.json", http=HttpSettings(port=port, url=url, per_minute=10**6)
        )
        accounts = story.world.accounts
        names = ("other", "operator", "member 1", "member 2", "member 3", "owner", "node")
        wallet = trial_wallet(story.world.chain, dict(zip(names, accounts, strict=False)))
        world = world_of(story, url, trial=True, per_minute=10**6)
        service = DappService(world, settings, wallet)
        thread = threading.Thread(target=service.run, daemon=True)
        thread.start()
        story.url, story.pages = url, world
        yield story
        service.stop()
        thread.join(60)
        assert not thread.is_alive()


class Person:
    """Somebody at a browser of their own; whatever a page complains of fails the test."""

    def __init__(self, browser, town, name, **options):
        self.town, self.name, self.complaints = town, name, []
        self.context = browser.new_context(base_url=town.url, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if "Content Security Policy" in said.text else None,
        )

    def sign_in(self):
        self.page.goto("/sign-in")
        self.page.get_by_role("button", name=f"Trial: {self.name}", exact=True).click()
        self.page.wait_for_url("**/home")
        return self

    def goes(self, path):
        self.town.pages.memory._clear()  # these people are faster than those for whom things are remembered
        self.page.goto(path)
        return self.page

    def acts(self, name=None, **values):
        """Fill in an action's form, sign what it needs, and see that it was done."""
        if name is not None:
            self.goes(f"/act/{name}")
        for field, value in values.items():
            box = self.page.locator(f"#f-{field}")
            if box.evaluate("e => e.tagName") == "SELECT":
                box.select_option(value)
            else:
                box.fill(value)
        self.page.locator("#act button[type=submit]").click()
        done, sign = self.page.locator("#act-steps > p.note"), self.page.locator("#act-steps button.sign")
        while True:
            expect(done.or_(sign).first).to_be_visible(timeout=PATIENCE_MS)
            if done.count():
                break
            sign.click()
            expect(sign).to_have_count(0)
        text = self.page.locator("#act-steps").inner_text()
        assert done.inner_text() == "Done.", text
        expect(self.page.locator("#act")).to_be_hidden()  # nobody does it twice by a second press
        return text

    def leaves(self):
        assert self.complaints == []
        self.context.close()


def system_text(spec):
    channels = "".join(
        f'[[channels]]\nnumber = {c.number}\nrole = "{ROLES[c.role]}"\npeak_w = {c.peak_mw / 1000}\n'
        for c in spec.channels
    )
    battery = f"battery_wh = {spec.battery_wh}\n" if spec.kind is Kind.STORAGE_NODE else ""
    return f'kind = "{spec.kind.label}"\n{battery}{channels}'


def proof_text(story, token):
    lab, owner, spec = story.labs[token], story.owners[token], story.specs[token]
    proof = prove_possession(lab.signer, story.network, bytes.fromhex(owner.address[2:]), 0, spec.digest)
    return json.dumps(
        {
            "network": story.network, "device": lab.device.hex(), "public_key": lab.signer.spki.hex(),
            "owner": owner.address, "nonce": 0, "system": spec.digest.hex(), "signature": proof.hex(),
        }
    )  # fmt: skip


def passes(town, members, title):
    """Vote in three browsers, queue and carry out; time is the chain's."""
    town.world.pass_time(3)
    for member in members:
        page = member.goes("/dao")
        page.get_by_role("link", name=title).first.click()
        page.get_by_role("link", name="Vote for").click()
        assert "Vote for on proposal" in member.acts(reason="it is right")
    town.world.pass_time(3_600)
    for button in ("Queue it", "Carry it out"):
        page = members[0].goes("/dao")
        page.get_by_role("link", name=title).first.click()
        page.get_by_role("link", name=button).click()
        members[0].acts()
        town.world.pass_time(3)


def they_apply(town, owner, other, node):
    """They apply; a proof that is another one's is refused in words."""
    for token, person in ((1, owner), (2, other), (3, node)):
        person.goes("/apply")
        person.acts(system=system_text(town.specs[token]), proof=proof_text(town, token))
    owner.goes("/apply")
    owner.page.locator("#f-system").fill(system_text(town.specs[1]))
    owner.page.locator("#f-proof").fill(proof_text(town, 2))
    owner.page.locator("#act button[type=submit]").click()
    expect(owner.page.locator("#act-steps .bad")).to_contain_text("the device signed for")
    expect(owner.goes("/home").locator("main")).to_contain_text("waits for the DAO")


def members_admit(town, members):
    """Members look, propose and vote."""
    for number in (3, 2, 1):  # their tokens are in the order of admission
        page = members[0].goes("/dao")
        expect(page.locator("main")).to_contain_text(f"{number}:")
    for number in (1, 2, 3):
        members[0].acts("admit", number=str(number))
        passes(town, members, f"Admit applications {number}")
    for ends in town.lines:
        miner, receiver = f"{ends.miner_token}.{ends.miner_channel}", f"{ends.node_token}.{ends.node_channel}"
        members[1].acts("line", miner=miner, node=receiver, resistance_uohm="200000")
        passes(town, members, f"Approve lines {miner} to {receiver}")


def the_sun_shines(town, owner, other):
    """The sun shines; the owner sees it."""
    town.begin()
    town.window(attested=True)
    for ends in town.lines:
        open_line(town.engine, town.deployment, town.world.operator, ends)
    for k in range(4):
        town.window(attested=k == 3)
    main = owner.goes("/home").locator("main")
    expect(main).to_contain_text("All is well")
    page = owner.goes("/systems/1")
    expect(page.locator("#curve canvas")).to_be_visible()
    expect(page.locator(".calendar .w-good")).to_have_count(5)
    assert other.goes("/systems/1").locator("h1").inner_text() == "Not here"


def a_day_is_approved(town, members):
    """The day is closed; members look at its lines, and approve it."""
    town.tomorrow(4)
    town.window(attested=True)
    day = time.strftime("%Y-%m-%d", time.gmtime(town.window_s - DAY_S))
    closed = town.close(day)
    payer, posted = town.payer(closed)
    keep_run(town.store, closed, payer.order_entry(closed, posted))
    page = members[0].goes(f"/dao/orders/{posted.order_id}")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Audit it here").click()
    expect(page.locator("#audit pre")).to_be_visible(timeout=PATIENCE_MS)
    assert page.locator("#audit .tag").inner_text() == "ok", page.locator("#audit pre").inner_text()
    page = members[0].goes(f"/dao/orders/{posted.order_id}")
    page.get_by_role("link", name="Propose to approve").click()
    members[0].acts()
    passes(town, members, f"Approve order {posted.order_id}")
    assert payer.look(posted).status is OrderStatus.APPROVED
    return day


def the_owner_claims(town, owner, day):
    """The owner sees why this amount, and claims it."""
    page = owner.goes(f"/systems/1/statements/{day}")
    expect(page.locator("main")).to_contain_text("Why this amount")
    expect(page.locator("main")).to_contain_text("windows of ten minutes count")
    page = owner.goes("/home")
    page.get_by_role("link", name="Claim it").click()
    owner.acts()
    expect(owner.goes("/wallet").locator("main")).to_contain_text("energy of node 3")
    expect(owner.goes(f"/systems/1/statements/{day}").locator("main")).to_contain_text("Paid on")
    expect(owner.goes("/home").locator("main")).not_to_contain_text("A payment was approved")


def tokens_go_into_a_pool_and_out(town, owner, members):
    """A pool: tokens in, tokens out."""
    members[1].acts("pool", node="3")
    passes(town, members, "Open a pool of node 3")
    owner.goes("/wallet").get_by_role("link", name="Put in").click()
    assert "approve" in owner.acts(amount="0.001", coin="energy")
    expect(owner.goes("/wallet").locator("main")).to_contain_text("Your part: 1 Wh")
    owner.goes("/wallet").get_by_role("link", name="Take out energy tokens").click()
    owner.acts()


def energy_is_taken_out_again(town, owner, node):
    """Energy is taken out again: request, acceptance, both meters, burn, refund."""
    owner.acts("take-out", buyer="1.2", node="3", amount="0.002")
    town.tomorrow(5)
    town.window(attested=True)
    node.sign_in()  # two days have passed
    node.goes("/nodes/3").get_by_role("link", name="Accept", exact=True).click()
    node.acts()
    supply = town.world.ask(town.deployment.energy_token(3).functions.totalSupply())
    town.window(attested=True, takes_out=1)
    node.goes("/nodes/3").get_by_role("link", name="Close the delivery").click()
    node.acts()
    owner.goes("/wallet").get_by_role("link", name="Confirm").click()
    owner.acts()
    assert town.world.ask(town.deployment.energy_token(3).functions.totalSupply()) < supply
    owner.goes("/wallet").get_by_role("link", name="Take back from escrow").click()
    owner.acts()


@pytest.mark.timeout(900)
def test_from_an_application_to_burned_tokens(browser, town):
    owner, other, node = (Person(browser, town, name).sign_in() for name in ("owner", "other", "node"))
    members = [Person(browser, town, f"member {k}").sign_in() for k in (1, 2)]
    they_apply(town, owner, other, node)
    members_admit(town, members)
    the_sun_shines(town, owner, other)
    day = a_day_is_approved(town, members)
    the_owner_claims(town, owner, day)
    tokens_go_into_a_pool_and_out(town, owner, members)
    energy_is_taken_out_again(town, owner, node)
    for person in (owner, other, node, *members):
        person.leaves()
