"""docs/dapp.md, From nothing to a kilowatt-hour that is yours: its steps, word for word, in a browser."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.conftest import ROOT

pytestmark = pytest.mark.services
PATIENCE_MS = 300_000  # the embedded chain is slow, and a machine may be busy
MAXGREEN = Path(sys.executable).parent / "maxgreen"
GUIDE = (ROOT / "docs/dapp.md").read_text().partition("## From nothing")[2].partition("\n## ")[0]


class Terminal:
    """`maxgreen demo --by-hand`, and what it has said."""

    def __init__(self, folder):
        self.said_file = folder / "said"
        with self.said_file.open("w") as said:
            command = [MAXGREEN, "demo", "--by-hand", "--dir", folder / "demo"]
            self.process = subprocess.Popen(command, stdout=said, stderr=said, text=True)

    def says(self, pattern, timeout_s=400):
        """Wait until it has said something; return the match."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = re.search(pattern, self.said_file.read_text())
            if found:
                return found
            assert self.process.poll() is None, self.said_file.read_text()
            time.sleep(0.2)
        raise AssertionError(f"not said: {pattern}\n{self.said_file.read_text()}")


@pytest.fixture
def terminal(tmp_path):
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.process.terminate()
    terminal.process.wait(60)


class Reader:
    """Somebody who follows the guide: it must name whatever they press."""

    def __init__(self, page, url):
        self.page, self.url = page, url
        page.set_default_timeout(PATIENCE_MS)

    def sign_in(self, name):
        assert f"`Trial: {name}`" in GUIDE
        self.page.context.clear_cookies()
        self.page.goto(f"{self.url}/sign-in")
        self.page.get_by_role("button", name=f"Trial: {name}", exact=True).click()
        self.page.wait_for_url("**/home")

    def press(self, name, first=True):
        assert f"*{name}*" in re.sub(r"\s+", " ", GUIDE), name
        found = self.page.locator(f"a:text-is('{name}'), button:text-is('{name}')")
        (found.first if first else found.last).click()
        self.pressed = name

    def sign(self):
        deadline = time.monotonic() + PATIENCE_MS / 1000
        asked, refused = self.pressed, self.page.locator("#act-steps > .note.bad")
        while not self.page.locator("button:text-is('Sign')").count():
            assert time.monotonic() < deadline, self.page.locator("main").inner_text()
            time.sleep(0.5)
            if refused.count():  # on a busy machine the chain may not answer at once: people press again
                self.press(asked)
        self.press("Sign")
        expect(self.page.locator("#act-steps > .note")).to_have_text("Done.", timeout=PATIENCE_MS)

    def open_ballot(self, title):
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while True:  # what the chain says is remembered for some seconds
            self.press("DAO")
            found = self.page.get_by_role("link", name=re.compile(rf"^{re.escape(title)} \("))
            if found.count():
                found.first.click()
                return
            assert time.monotonic() < deadline, title
            time.sleep(1)

    def when(self, name):
        """Wait for a button of the page, as people do: they load it again."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.locator(f"a:text-is('{name}')").count():
            assert time.monotonic() < deadline, (name, self.page.locator("main").inner_text())
            time.sleep(2)
            self.page.reload()
        self.press(name)

    def choose(self, texts):
        """Choose from lists that are offered once the pages have read what was admitted."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not all(self.page.locator(f"{field} option", has_text=text).count() for field, text in texts.items()):
            assert time.monotonic() < deadline, (texts, self.page.locator("main").inner_text())
            time.sleep(1)
            self.page.reload()
        for field, text in texts.items():
            assert f"`{text}`" in GUIDE
            self.page.locator(field).select_option(text)

    def pass_(self, titles):
        """Vote as two members, queue, carry out."""
        for member in ("member 1", "member 2"):
            self.sign_in(member)
            for title in titles:
                self.open_ballot(title)
                self.when("Vote for")
                self.press("Vote")
                self.sign()
        for title in titles:
            for button, deed in (("Queue it", "Queue"), ("Carry it out", "Carry out")):
                self.open_ballot(title)
                self.when(button)
                self.press(deed)
                self.sign()


def apply(reader, terminal, name, who):
    said = terminal.says(rf"maxgreen (agent prove \S+ --system (\S+{name}/system.toml) --config \S+)")
    proof = subprocess.run([MAXGREEN, *shlex.split(said[1])], capture_output=True, text=True, check=True).stdout
    assert json.loads(proof)["nonce"] == 0
    reader.sign_in(who)
    reader.press("Apply for one")
    reader.page.locator("#f-system").fill(Path(said[2]).read_text())
    reader.page.locator("#f-proof").fill(proof)
    reader.press("Apply")
    reader.sign()


@pytest.mark.timeout(1_800)
def test_the_guide_leads_from_nothing_to_a_claimed_kilowatt_hour(browser, terminal):
    url = terminal.says(r"The pages: (\S+)/")[1]
    context = browser.new_context(base_url=url)
    reader = Reader(context.new_page(), url)
    page = reader.page
    apply(reader, terminal, "miner", "owner of the panel")
    apply(reader, terminal, "node", "owner of the storage node")
    reader.sign_in("member 1")
    for number in (1, 2):
        reader.press("Home")
        page.locator(f"a[href='/act/admit?number={number}']").click()
        reader.press("Propose to admit")
        reader.sign()
    reader.pass_(["Admit applications 1", "Admit applications 2"])
    terminal.says("propose a line from 1.1 to 2.0")
    reader.press("DAO")
    reader.press("Propose a line")
    reader.choose({"#f-miner": "Solar system 1, channel 1", "#f-node": "Storage node 2, channel 0"})
    assert "resistance 150000 µΩ, at most 200000 ppm" in GUIDE
    page.locator("#f-resistance_uohm").fill("150000")
    page.locator("#f-max_loss_ppm").fill("200000")
    reader.press("Propose a line")
    reader.sign()
    reader.pass_(["Approve lines 1.1 to 2.0"])
    terminal.says("The month is closed")
    reader.sign_in("member 1")
    reader.press("DAO")
    page.locator("a[href='/dao/orders/1']").click()
    reader.press("Audit it here")
    expect(page.locator("#audit .tag")).to_have_text("ok", timeout=PATIENCE_MS)
    page.goto(f"{url}/dao/orders/1")
    reader.press("Propose to approve")
    reader.press("Propose to approve an order")
    reader.sign()
    reader.pass_(["Approve order 1"])
    terminal.says("Sign in as 'owner of the panel'")
    reader.sign_in("owner of the panel")
    reader.when("Claim it")
    reader.press("Claim what was approved")
    reader.sign()
    terminal.says("check the mint yourself")
    reader.press("Tokens")
    expect(page.locator("main")).to_contain_text("0.200998", timeout=PATIENCE_MS)
    context.close()
