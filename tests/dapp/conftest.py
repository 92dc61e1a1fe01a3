"""A deployment with a past, and the pages over it."""

import shutil

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import sync_playwright

from dapp.app import make_app
from dapp.audits import Audits
from dapp.keep import Keep
from dapp.live import Live
from dapp.world import World
from maxgreen.chain.deployment import Deployment
from tests.chain.world import on_anvil
from tests.conftest import need, running_anvil
from tests.e2e.story import Story, tell
from tests.ingest.desks import BACKEND

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
URL = "http://pages.example"
MORNING = ("--timestamp", "1790841600")  # 2026-10-01 08:00 UTC: a chain's day is not over before the story is


def world_of(story, url=URL, keep=None, signer=BACKEND, **more):
    chain = story.world.chain.trying()
    deployment = Deployment(chain, story.deployment.addresses)
    return World(story.engine, story.store, deployment, story.world.clock, keep or Keep(None), url, signer, **more)


class Site:
    """The pages, and people at them; `reader` follows a link to system 1, `script` has a token of its owner."""

    def __init__(self, story):
        self.story = story
        self.world = world_of(story, per_minute=10**9)
        self.app = make_app(self.world, Live(self.world, None), Audits("", None))
        accounts = story.world.accounts
        self.accounts = {
            "owner": accounts[5], "other": accounts[0], "node": accounts[6], "member": accounts[2],
            "operator": accounts[1], "nobody": accounts[7],
        }  # fmt: skip
        owner = accounts[5].address
        self.link = self.world.keep.add_link(owner, 1, "a friend", self.world.now_ms)
        self.token = self.world.keep.add_token(owner, "cron", 9, self.world.now_ms)

    def client(self, who="stranger", accept="text/html"):
        headers = {"Accept": accept, "Origin": URL}
        client = TestClient(self.app, URL, follow_redirects=False, headers=headers, raise_server_exceptions=False)
        if who == "reader":
            client.cookies.set("mg_link", self.link)
        elif who == "script":
            client.headers["Authorization"] = f"Bearer {self.token}"
        elif who != "stranger":
            address = self.accounts[who].address
            client.cookies.set("mg_session", self.world.keep.begin_session(address, self.world.now_ms))
        return client


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The pages after the whole story, on an anvil of their own."""
    with running_anvil(*MORNING) as url:
        story = Story(on_anvil(url), tmp_path_factory.mktemp("dapp"))
        tell(story)
        yield Site(story)


@pytest.fixture(scope="module")
def browser():
    """A real browser."""
    program = need(shutil.which("chromium"), "chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()
