"""How the pages look and read: no width or theme breaks them, the keyboard suffices, axe finds nothing serious."""

import ast
import json
import re
import threading

import pytest
import segno
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from dapp import words
from dapp.app import make_app
from dapp.audits import Audits
from dapp.live import Live
from dapp.pages.rendering import SCRIPT_TEXTS, STATES
from dapp.views import council, fleet
from maxgreen.actions.all import ACTIONS
from maxgreen.chain.explain import SENTENCES
from settlement.explain import WHY
from tests.conftest import ROOT
from tests.dapp.conftest import world_of
from tests.dapp.test_browser import PATIENCE_MS  # and its patience of `expect`
from tests.services import free_port, wait_for

pytestmark = pytest.mark.services
FIRST_LOAD_BYTES, ALL_BYTES = 120_000, 300_000


@pytest.fixture(scope="module")
def served(site):
    """The pages after the whole story, to browsers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    world = world_of(site.story, url, per_minute=10**6)
    live = Live(world, None)
    server = uvicorn.Server(uvicorn.Config(make_app(world, live, Audits("", None)), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, 30, "the pages")
    yield site, world, url
    live.stop()
    server.should_exit = True
    thread.join(60)


def pages_of(site):
    day, ballot = site.story.packs[0].run.period, site.world.ballots["technical"].all()[0]
    device = site.world.systems[1].record.device.hex()
    return {
        "stranger": ["/", "/verify", "/sign-in", "/docs", "/dao"],
        "owner": [
            "/home", f"/systems/1?day={day}", f"/systems/1/statements/{day}", "/wallet", "/account", "/apply",
            "/act/take-out", "/actions", f"/devices/{device}",
        ],
        "node": ["/home", "/nodes/3"],
        "member": ["/home", "/dao?ended=yes", f"/dao/ballots/technical/{ballot.number:064x}", "/dao/orders/1",
                   "/dao/members"],
        "operator": ["/home", "/fleet"],
    }  # fmt: skip


def at(browser, served, who, **options):
    site, world, url = served
    context = browser.new_context(base_url=url, **options)
    context.set_default_timeout(PATIENCE_MS)
    if who != "stranger":
        secret = world.keep.begin_session(site.accounts[who].address, world.now_ms)
        context.add_cookies([{"name": "mg_session", "value": secret, "url": url}])
    return context


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_breaks_a_page_and_axe_finds_nothing_serious(browser, served, scheme):
    axe = Axe()
    for who, paths in pages_of(served[0]).items():
        context = at(browser, served, who, color_scheme=scheme)
        page = context.new_page()
        broken = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda said: broken.append(said.text) if "Security Policy" in said.text else None)
        for path in paths:
            for width in (360, 768, 1280):
                page.set_viewport_size({"width": width, "height": 800})
                page.goto(path)
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (path, width, wide)
            found = axe.run(page).response["violations"]
            serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in {"serious", "critical"}]
            assert serious == [], path
        assert broken == []
        context.close()


def test_the_keyboard_alone_suffices(browser, served):
    context = at(browser, served, "owner")
    page = context.new_page()
    page.goto("/home")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    names = []
    for _ in range(40):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Home", "Tokens", "DAO", "Solar system 1"} <= set(names)
    page.goto("/act/take-out")
    page.locator("#f-buyer").focus()
    page.keyboard.type("Solar system 1")
    page.keyboard.press("Tab")
    page.keyboard.type("Storage node 3")
    for value in ("0.001", "7"):
        page.keyboard.press("Tab")
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
    page.keyboard.press("Enter")
    expect(page.locator("#act-steps .sign")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#act-steps .note")).to_be_visible()  # no wallet is in this browser
    context.close()


def test_pages_are_light_and_need_nobody_else(browser, served):
    context = at(browser, served, "owner")
    page, sizes, hosts = context.new_page(), {}, set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.on(
        "response", lambda answer: sizes.__setitem__(answer.url, len(answer.body())) if "live" not in answer.url else 0
    )
    page.goto("/home")
    page.wait_for_load_state("load")
    assert sum(sizes.values()) <= FIRST_LOAD_BYTES
    assert hosts == {served[2].split("/")[2]}
    everything = sum(path.stat().st_size for path in (ROOT / "dapp/static").iterdir())
    assert everything <= ALL_BYTES


def test_a_browser_without_scripts_still_shows_the_numbers(browser, served):
    context = at(browser, served, "owner", java_script_enabled=False)
    page = context.new_page()
    page.goto("/home")
    expect(page.locator("main")).to_contain_text("Got in all")
    page.goto(f"/systems/1?day={served[0].story.packs[0].run.period}")
    page.locator("details summary").first.click()
    expect(page.locator("details table").first).to_be_visible()
    context.close()


def test_times_are_those_of_the_visitor_and_the_zone_is_named(browser, served):
    context = at(browser, served, "owner", timezone_id="Europe/Madrid")
    page = context.new_page()
    page.goto("/systems/1")
    page.wait_for_function("document.cookie.includes('tz=')")
    page.goto("/systems/1")
    expect(page.locator("footer")).to_contain_text("Europe/Madrid")
    context.close()


TEXT = re.compile(r'_\("((?:[^"\\]|\\.)*)"')


SAYING = {"said", "_plain", "_of_proposal", "_one_of", "_about_line", "_redeemed"}


def sentences_of(path):
    """What a module says: the templates that are written in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in SAYING:
            shown = node.args if node.func.id == "_one_of" else node.args[:1]
            yield from (one.value for one in shown if isinstance(one, ast.Constant) and one.value)


def test_every_text_has_its_spanish():
    spanish = words.said("es")
    known = set()
    for path in (ROOT / "dapp/templates").glob("*.html"):
        known |= set(TEXT.findall(path.read_text()))
    scripts = set(re.findall(r'say\("([^"]+)"', (ROOT / "dapp/web/src/wallet.js").read_text()))
    assert scripts == set(SCRIPT_TEXTS)
    for path in (ROOT / "dapp").rglob("*.py"):
        known |= set(re.findall(r"""say\(\s*["']([^"']+)["']""", path.read_text()))
    known |= (
        scripts | set(WHY.values()) | set(STATES.values()) | set(words.KINDS.values()) | set(council.LABELS.values())
    )
    for texts in (fleet.EFFECTS, fleet.COMMANDS, fleet.EXPLANATIONS):
        known |= set(texts.values())
    for action in ACTIONS.values():
        known |= {action.title, action.about, *(f.label for f in action.fields)}
        known |= {choice for field in action.fields for choice in field.choices}
        known.add(action.nothing)
    known |= set(SENTENCES.values()) | set(sentences_of(ROOT / "dapp/acting.py"))
    for path in ROOT.glob("maxgreen/**/*.py"):
        known |= set(sentences_of(path))
    missing = sorted(text for text in known if text not in spanish)
    assert missing == []
    for text, said in spanish.items():
        assert set(re.findall(r"\{[\w:]+\}", text)) == set(re.findall(r"\{[\w:]+\}", said)), text


def test_scripts_speak_the_visitors_language(browser, served):
    context = at(browser, served, "stranger")
    context.add_cookies([{"name": "lang", "value": "es", "url": served[2]}])
    page, broken = context.new_page(), []
    page.on("console", lambda said: broken.append(said.text) if "Security Policy" in said.text else None)
    page.goto("/sign-in")
    expect(page.locator("#wallets")).to_contain_text("No hay ningún monedero en este navegador.")
    assert page.locator("html").get_attribute("lang") == "es"
    assert broken == []
    context.close()


def test_a_photograph_of_the_devices_code_is_read(browser, served, tmp_path):
    proof = json.dumps({"network": "eip155:1:0x" + "ab" * 20, "public_key": "30" * 91, "signature": "cd" * 64})
    segno.make_qr(proof, error="l").save(str(tmp_path / "code.png"), scale=6)
    (tmp_path / "none.png").write_bytes((ROOT / "docs/pages/home.png").read_bytes())
    context = at(browser, served, "owner")
    page = context.new_page()
    page.goto("/apply")
    page.locator("#photo").set_input_files(tmp_path / "none.png")
    page.wait_for_function("document.getElementById('f-proof').validationMessage !== ''")
    page.locator("#photo").set_input_files(tmp_path / "code.png")
    expect(page.locator("#f-proof")).to_have_value(proof)
    context.close()
