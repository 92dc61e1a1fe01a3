"""Who may see and do what: every route, every role."""

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from dapp import api
from dapp.keep import IDLE_MS, NONCE_MS, SESSION_MS, Keep
from dapp.pages import ROUTERS
from dapp.signin import sign_in, text_to_sign
from maxgreen.errors import Fatal, UsageError
from tests.dapp.conftest import URL

EVERYBODY = {"stranger", "nobody", "reader", "script", "owner", "other", "node", "member", "operator"}
SIGNED_IN = EVERYBODY - {"stranger", "reader"}
PERSONS = SIGNED_IN - {"script"}
SEES = {"owner", "script", "reader", "member"}  # system 1
EARNS = SEES - {"reader"}  # a link shows what is measured, not what is earned
LOOKS_AFTER = EARNS | {"operator"}
COUNCIL = {"member", "operator"}
# routes, and who is let in; what others get is 401, 403 or 404
ALLOWED = {
    "GET /": EVERYBODY, "GET /public": EVERYBODY, "GET /verify": EVERYBODY, "GET /docs": EVERYBODY,
    "GET /language/{language}": EVERYBODY, "GET /sign-in": EVERYBODY, "POST /sign-in/text": EVERYBODY,
    "POST /sign-in": set(), "POST /sign-out": EVERYBODY,
    "GET /account": PERSONS, "POST /account/tokens": PERSONS, "POST /account/tokens/{number}/end": PERSONS,
    "GET /home": SIGNED_IN, "GET /wallet": SIGNED_IN, "GET /apply": SIGNED_IN, "GET /act/{name}": SIGNED_IN,
    "GET /actions": SIGNED_IN,
    "GET /systems/{system}": SEES, "GET /live/{system}": SEES, "GET /systems/{system}/statements/{period}": EARNS,
    "GET /systems/{system}/statements/{period}.pdf": EARNS, "GET /systems/{system}/evidence/{period}/{line}.zip": EARNS,
    "POST /systems/{system}/name": {"owner"}, "POST /systems/{system}/links": {"owner"},
    "POST /systems/{system}/links/{number}/end": {"owner"}, "GET /shared/{secret}": set(),
    "GET /nodes/{node}": {"node", "member"},
    "GET /dao": EVERYBODY, "GET /dao/members": EVERYBODY, "GET /dao/ballots/{body}/{proposal}": EVERYBODY,
    "GET /dao/orders/{number}": EVERYBODY, "GET /dao/orders/{number}/evidence.zip": {"member"},
    "POST /dao/orders/{number}/audit": {"member"}, "GET /dao/orders/{number}/audit": {"member"},
    "GET /fleet": COUNCIL, "GET /devices/{device}": LOOKS_AFTER, "POST /devices/{device}/decisions": {"operator"},
    "POST /devices/{device}/commands": {"operator"},
    "GET /api/v1/me": EVERYBODY, "GET /api/v1/totals": EVERYBODY, "GET /api/v1/systems": EVERYBODY,
    "GET /api/v1/periods": EVERYBODY, "GET /api/v1/periods/{period}/run": EVERYBODY, "GET /api/v1/pools": EVERYBODY,
    "GET /api/v1/ballots": EVERYBODY, "GET /api/v1/ballots/{proposal}": EVERYBODY,
    "GET /api/v1/applications": EVERYBODY, "GET /api/v1/orders": EVERYBODY, "GET /api/v1/verdicts": EVERYBODY,
    "GET /api/v1/actions": EVERYBODY, "GET /api/v1/openapi.json": EVERYBODY,
    "GET /api/v1/systems/{system}": SEES, "GET /api/v1/systems/{system}/curve": SEES,
    "GET /api/v1/systems/{system}/days": SEES, "GET /api/v1/systems/{system}/months": SEES,
    "GET /api/v1/systems/{system}/windows": SEES, "GET /api/v1/systems/{system}/statements": EARNS,
    "GET /api/v1/systems/{system}/lines": EARNS,
    "GET /api/v1/tokens": SIGNED_IN, "GET /api/v1/requests": SIGNED_IN, "POST /api/v1/actions/{name}": SIGNED_IN,
    "GET /api/v1/transactions/{digest}": SIGNED_IN,
    "GET /api/v1/orders/{number}/lines": {"member"}, "GET /api/v1/fleet": COUNCIL,
    "GET /api/v1/rejected": COUNCIL, "GET /api/v1/devices/{device}/batches": LOOKS_AFTER,
    "GET /api/v1/devices/{device}/commands": LOOKS_AFTER, "GET /api/v1/devices/{device}/decisions": LOOKS_AFTER,
    "POST /api/v1/devices/{device}/decisions": {"operator"}, "POST /api/v1/devices/{device}/commands": {"operator"},
}  # fmt: skip
OPEN = {"GET /health/live", "GET /health/ready"}
FORMS = {
    "POST /sign-in/text": {"address": "0x" + "11" * 20},
    "POST /sign-in": {"text": "x", "signature": "0x00"},
    "POST /account/tokens": {"label": "x", "days": "9"},
    "POST /devices/{device}/decisions": {"action": "reject", "from_seq": 10**6, "to_seq": 10**6, "text": "a test"},
    "POST /devices/{device}/commands": {"kind": "registers"},
}
BODIES = {
    "POST /api/v1/actions/{name}": {},
    "POST /api/v1/devices/{device}/decisions": FORMS["POST /devices/{device}/decisions"],
    "POST /api/v1/devices/{device}/commands": {"kind": "registers"},
}
QUERIES = {
    "GET /api/v1/ballots": "?ended=true",
    "GET /api/v1/systems/{system}/curve": "?day=2026-10-02", "GET /api/v1/systems/{system}/windows": "?day=2026-10-02",
    "GET /api/v1/systems/{system}/days": "?month=2026-10", "GET /api/v1/systems/{system}/months": "?year=2026",
}  # fmt: skip


def routes(app):
    for route in (*app.routes, *(r for one in ROUTERS for r in one.routes), *api.router.routes):
        for method in getattr(route, "methods", None) or ():
            if method in {"GET", "POST"}:
                yield f"{method} {route.path}"


@cache
def place(site):
    statement = site.story.packs[0].run.lines
    own = next(line for line in statement if line["miner"] == "1")
    ballot = site.world.ballots["technical"].all()[0]
    return {
        "system": "1", "node": "3", "number": "2", "gone": "999", "body": "technical", "proposal": f"{ballot.number:064x}",
        "period": site.story.packs[0].run.period, "line": own["line"], "name": "claim", "language": "es",
        "device": site.world.systems[1].record.device.hex(), "digest": "0x" + "00" * 32, "secret": "none",
    }  # fmt: skip


def ask(site, who, route):
    method, _, path = route.partition(" ")
    places = place(site)
    path = path.replace("{number}/end", "{gone}/end")
    path = re.sub(r"\{(\w+)\}", lambda found: places[found[1]], path) + QUERIES.get(route, "")
    client = site.client(who, "application/json" if "/api/" in path else "text/html")
    if route == "GET /live/{system}":  # it never ends: whoever is let in is asked no more
        return client.get(path.replace("/live/", "/api/v1/systems/"))
    if method == "GET":
        return client.get(path)
    if route in BODIES:
        return client.post(path, json=BODIES[route])
    return client.post(path, data=FORMS.get(route, {"label": ""}))


def test_every_route_is_in_the_table(site):
    known = {route for route in routes(site.app) if not route.startswith(("GET /static", "GET /health"))}
    assert known == set(ALLOWED)


@pytest.mark.parametrize("who", sorted(EVERYBODY))
def test_every_route_lets_in_whom_it_should_and_nobody_else(site, who):
    for route, allowed in ALLOWED.items():
        answer = ask(site, who, route)
        if who in allowed:
            assert answer.status_code in {200, 201, 303}, (route, answer.status_code, answer.text[:300])
        else:
            assert answer.status_code in {400, 401, 403, 404}, (route, answer.status_code)
            assert "Traceback" not in answer.text


def test_a_household_is_seen_by_its_owner_the_dao_and_whom_it_shows_it_to(site):
    curve = f"/api/v1/systems/1/curve?day={site.story.packs[0].run.period}"
    seen = {who: site.client(who, "application/json").get(curve) for who in EVERYBODY}
    assert {who for who, answer in seen.items() if answer.status_code == 200} == SEES
    assert any(any(line) for line in seen["owner"].json()["watts"].values())
    texts = {seen[who].text.replace("/systems/1/", "/systems/N/") for who in EVERYBODY - SEES}
    none = site.client("other", "application/json").get(curve.replace("systems/1/", "systems/99/"))
    assert none.status_code == 404
    assert len(texts) == 1  # nobody learns whether a system is there


def test_a_link_and_a_token_end_on_demand(site):
    reader, owner = site.client(), site.client("owner")
    made = owner.post("/systems/1/links", data={"label": "an aunt"}).text
    path = re.search(r"/shared/[\w-]+", made)[0]
    assert reader.get(path).headers["location"] == "/systems/1"
    assert reader.get("/systems/1").status_code == 200
    page = owner.get("/systems/1").text
    numbers = re.findall(r"/systems/1/links/(\d+)/end", page)[1:]
    assert numbers
    for number in numbers:
        assert site.client("other").post(f"/systems/1/links/{number}/end").status_code == 403
        assert owner.post(f"/systems/1/links/{number}/end").status_code == 303
    assert reader.get("/systems/1").status_code == 404
    shown = owner.post("/account/tokens", data={"label": "cron", "days": "3"}).text
    secret = re.search(r"mgt_[\w-]+", shown)[0]
    bearer = {"Authorization": f"Bearer {secret}", "Accept": "application/json"}
    stranger = site.client()
    assert stranger.get("/api/v1/me", headers=bearer).json()["miners"] == [1]
    assert stranger.post("/account/tokens", data={"label": "x", "days": "3"}, headers=bearer).status_code == 403
    for number in re.findall(r"/account/tokens/(\d+)/end", shown):
        owner.post(f"/account/tokens/{number}/end")
    assert stranger.get("/api/v1/me", headers=bearer).status_code == 401


def test_signing_out_everywhere_ends_every_session(site):
    site.world.keep.end_sessions(site.accounts["other"].address)  # others of this moment: only some are kept
    here, there = site.client("other"), site.client("other")
    assert there.get("/home").status_code == 200
    here.post("/sign-out", data={"everywhere": "yes"})
    assert there.get("/home").status_code == 401


def test_a_list_that_is_in_memory_is_for_nobody_else(site):
    """It is answered without a thread where all is remembered: who may see it is asked all the same."""
    site.world.keep.end_sessions(site.accounts["operator"].address)  # others of this moment: only some are kept
    first, second, owner = site.client("operator"), site.client("operator"), site.client("owner")
    for _ in range(3):
        assert first.get("/api/v1/fleet").status_code == second.get("/api/v1/fleet").status_code == 200
        assert owner.get("/api/v1/fleet").status_code == 403
        assert site.client().get("/api/v1/fleet").status_code == 401
        assert site.client("script").get("/api/v1/fleet").status_code in {401, 403}  # its token may be over
        assert site.client("reader").get("/api/v1/fleet").status_code == 401
    answer = first.get("/api/v1/fleet")
    assert first.get("/api/v1/fleet", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert first.get("/api/v1/fleet", headers={"Accept": "text/csv"}).text.startswith("device,token,")
    first.post("/sign-out")
    assert first.get("/api/v1/fleet").status_code == 401
    assert second.get("/api/v1/fleet").status_code == 200
    site.world.keep.end_sessions(site.accounts["operator"].address)
    assert second.get("/api/v1/fleet").status_code == 401


def test_a_remembered_session_is_over_when_it_is(tmp_path):
    keep = Keep(tmp_path / "dapp.db")
    secret = keep.begin_session("0xA", 0)
    assert keep.recent_session(secret, 0) is None  # nobody has asked for it
    assert keep.session(secret, 1) == keep.recent_session(secret, 1) == "0xA"
    assert keep.recent_session(secret, IDLE_MS + 1) is None
    assert keep.session(secret, IDLE_MS + 1) is None
    keep.end_session(secret)
    assert keep.recent_session(secret, 1) is None
    assert keep.session(secret, 1) is None
    keep.close()


# signing in


@pytest.fixture
def desk(site):
    account, keep = Account.from_key(b"\7" * 32), Keep(None)

    def text(address=account.address, now_ms=1_000):
        return text_to_sign(keep, URL, site.world.deployment.addresses.chain_id, address, now_ms)

    def enter(text, signer=account, now_ms=1_000, signature=None):
        signed = signer.sign_message(encode_defunct(text=text)).signature.hex()
        return sign_in(keep, site.world.deployment.chain, text, signature if signature is not None else signed, now_ms)

    return keep, account, text, enter


def test_whoever_signs_the_text_is_in_and_the_text_says_where(desk):
    keep, account, text, enter = desk
    asked = text()
    assert asked.startswith("pages.example wants you to sign in with your Ethereum account:\n")
    address, secret = enter(asked)
    assert address == account.address == keep.session(secret, 2_000)


@pytest.mark.parametrize("times", [1, 2])
def test_a_nonce_is_used_up_by_every_attempt(desk, times):
    _, _, text, enter = desk
    asked = text()
    for _ in range(times):
        with pytest.raises(UsageError):
            enter(asked, signature="0x00")
    with pytest.raises(UsageError):
        enter(asked)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace("pages.example", "evil.example"),
        lambda t: t.replace("Chain ID: ", "Chain ID: 9"),
        lambda t: t + "\nResources:\n- https://evil.example",
        lambda t: t.replace("Issued At: 1970", "Issued At: 2970"),
        lambda t: t.replace("\n", "\r\n"),
        lambda _t: "",
        lambda _t: "\nNonce: \n",
    ],
)
def test_only_the_text_that_we_wrote_is_taken(desk, change):
    _, _, text, enter = desk
    with pytest.raises(UsageError):
        enter(change(text()))


def test_another_key_an_old_text_and_noise_are_refused(desk):
    _, account, text, enter = desk
    with pytest.raises(UsageError, match="not the signature"):
        enter(text(), signer=Account.from_key(b"\1" * 32))
    with pytest.raises(UsageError):
        enter(text(now_ms=1_000), now_ms=1_001 + NONCE_MS)
    for noise in ("", "0x", "zz", "0x" + "00" * 65, "0x" + "ff" * 5_000, "é"):
        with pytest.raises(UsageError):
            enter(text(), signature=noise)
    with pytest.raises(UsageError, match="40 hex digits"):
        text(address="0x12")
    assert account.address in text(address=account.address.lower())


def test_a_contract_that_answers_nothing_signs_nobody_in_and_keeps_nobody_out(site, desk):
    _, _, text, enter = desk
    chain, strange = site.world.deployment.chain, "0x" + "be" * 20
    for code in ("0x00", "0xfe", "0x5b5f56", "0x60016000526001601ff3", "0x7f" + "16" * 32 + "5f5260205ff3"):
        chain.web3.provider.make_request("anvil_setCode", [strange, code])
        with pytest.raises(UsageError, match="not the signature"):
            enter(text(address=strange), signature="0x00")
    assert site.client().get("/api/v1/orders").status_code == 200
    wise = "0x7f1626ba7e" + "00" * 28 + "5f5260205ff3"  # it says yes to everything
    chain.web3.provider.make_request("anvil_setCode", [strange, wise])
    assert enter(text(address=strange), signature="0x00")[0].lower() == strange


def test_what_an_account_keeps_does_not_grow(site):
    keep = Keep(None)
    newest = [keep.begin_session("0xA", number) for number in range(200)][-1]
    assert keep.session(newest, 300) == "0xA"
    assert keep._db.execute("SELECT count(*) FROM sessions").fetchone()[0] == 50
    for _ in range(60):
        keep.add_token("0xA", "", 1, 0)
        keep._db.execute("UPDATE tokens SET until_ms = 0")


def test_a_token_of_a_script_ends_no_session_and_a_language_leads_nowhere_else(site):
    person = site.client("other")
    token = site.world.keep.add_token(site.accounts["other"].address, "", 1, site.world.now_ms)
    script = site.client()
    script.post("/sign-out", data={"everywhere": "yes"}, headers={"Authorization": f"Bearer {token}"})
    assert person.get("/home").status_code == 200
    for there, leads in (("/home", "/home"), ("//evil.example", "/"), ("/\\evil.example", "/"), ("", "/")):
        assert person.get("/language/es", headers={"Referer": URL + there}).headers["location"] == leads
    assert person.get("/language/es", headers={"Referer": "https://evil.example/"}).headers["location"] == "/"


def test_a_claim_without_a_line_is_of_ones_own_lines(site, monkeypatch):
    from maxgreen.actions import owner_actions
    from maxgreen.actions.catalog import Context, visitor

    asked = []
    monkeypatch.setattr(owner_actions.SettlementContract, "claim", lambda *a: asked.append(a[-1].line))
    real = owner_actions.SettlementContract.line
    monkeypatch.setattr(owner_actions.SettlementContract, "line", lambda *a: replace(real(*a), paid_mws=0))
    claims = [SimpleNamespace(line=ends.line_id, payable_total_mws=1) for ends in site.story.lines]
    for who, wanted in (("owner", [0]), ("other", [1]), ("node", [0, 1]), ("nobody", [])):
        asked.clear()
        account = visitor(site.accounts[who].address)
        context = Context(site.world.deployment, site.world.clock, account, lambda: claims)
        owner_actions._claim(context, {"line": None})
        assert asked == [site.story.lines[k].line_id for k in wanted]


def test_sessions_survive_a_restart_end_by_themselves_and_no_secret_is_in_the_file(tmp_path):
    keep = Keep(tmp_path / "dapp.db")
    secret = keep.begin_session("0xA", 0)
    token, link = keep.add_token("0xA", "cron", 1, 0), keep.add_link("0xA", 1, "", 0)
    keep.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not [s for s in (secret, token, link) if s.encode() in kept]
    assert (tmp_path / "dapp.db").stat().st_mode & 0o077 == 0
    again = Keep(tmp_path / "dapp.db")
    assert again.session(secret, 1) == "0xA"
    assert again.session(secret, IDLE_MS + 1) is None
    for step in range(0, SESSION_MS, IDLE_MS // 2):
        assert again.session(secret, step) == "0xA"
    assert again.session(secret, SESSION_MS + 1) is None
    assert (again.token(token, 86_399_999), again.token(token, 86_400_000)) == ("0xA", None)
    again.close()
    with pytest.raises(Fatal, match="state_file"):
        Keep(tmp_path)


def test_what_one_account_keeps_is_bounded():
    keep = Keep(None)
    for _ in range(50):
        keep.add_link("0xA", 1, "", 0)
    with pytest.raises(UsageError, match="end one first"):
        keep.add_link("0xA", 1, "", 0)
    for _ in range(12_000):
        keep.add_nonce(f"{_}", "", 0)
    assert len(keep._nonces) == 10_000
