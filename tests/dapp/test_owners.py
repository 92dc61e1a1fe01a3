"""What owners read: what is theirs of a payment, what became of it, who sees what of their house, where a click leads."""

import re

import pytest

from dapp import words
from dapp.views import money
from dapp.views.fleet import in_runs
from maxgreen.chain.dao import Proposal
from maxgreen.chain.market import Exchange
from tests.dapp.conftest import URL


@pytest.fixture(autouse=True)
def _no_name(site):
    site.world.name(1, "")


@pytest.fixture
def moment(site):
    """A moment of the chain that is taken back afterwards; `as_timelock` does what a vote would have done."""
    chain = site.world.deployment.chain
    ask = chain.web3.provider.make_request
    mark = ask("evm_snapshot", [])["result"]
    timelock = site.world.deployment.addresses.timelock

    def as_timelock(call):
        ask("anvil_impersonateAccount", [timelock])
        ask("anvil_setBalance", [timelock, hex(10**18)])
        sent = {"from": timelock, "to": call.address, "data": call._encode_transaction_data(), "gas": hex(10**6)}
        assert "result" in ask("eth_sendTransaction", [sent])
        ask("evm_mine", [])
        site.world.memory._clear()

    yield as_timelock
    ask("evm_revert", [mark])
    site.world.memory._clear()


def drafted(site, who, action, **values):
    client = site.client(who, "application/json")
    return client.post(f"/api/v1/actions/{action}", json=values).json()


def test_a_statement_says_what_is_its_readers_part_and_that_it_was_paid(site):
    period = site.story.packs[0].run.period
    row = next(one for one in money.statements(site.world, 1) if one["period"] == period)
    owner, node = (money.with_state(site.world, system, row) for system in (1, 3))
    assert int(owner["yours_wei"]) + int(node["yours_wei"]) == int(row["mint_wei"])
    assert (owner["yours_ppm"], node["yours_ppm"]) == (900_000, 100_000)
    assert (owner["state"], node["state"]) == ("paid", "paid")
    page = site.client("owner").get(f"/systems/1/statements/{period}").text
    assert f"{words.worth(owner['yours_wei'])} <small>in tokens, yours: 90 %" in page
    assert "Paid on 2026-" in page
    assert ">Claim</a>" not in page
    assert words.worth(node["yours_wei"]) in site.client("node").get(f"/systems/3/statements/{period}").text
    pdf = site.client("owner").get(f"/systems/1/statements/{period}.pdf")
    assert (pdf.status_code, pdf.content[:4]) == (200, b"%PDF")


def test_what_was_got_in_all_is_what_the_wallet_got(site):
    got = sum(money.yours_in_all(site.world, 1, line) for line in money.lines_of(site.world, {1}))
    assert words.worth(got) in site.client("owner").get("/home").text


def test_a_name_is_its_owners_and_theirs_whom_a_link_shows_it(site):
    owner = site.client("owner")
    came = URL + "/systems/1?day=2026-10-01"
    assert owner.post("/systems/1/name", data={"name": "Roof of Ana"}, headers={"Referer": came}).headers[
        "location"
    ] == came.removeprefix(URL)
    try:
        for who, path, seen in (
            ("owner", "/systems/1", True), ("reader", "/systems/1", True), ("owner", "/api/v1/systems", True),
            ("member", "/systems/1", False), ("node", "/nodes/3", False), ("operator", "/fleet", False),
            ("member", "/act/hold", False),
        ):  # fmt: skip
            assert ("Roof of Ana" in site.client(who).get(path).text) is seen, (who, path)
        assert "Solar system 1" in site.client("node").get("/nodes/3").text
    finally:
        site.world.name(1, "")


def test_a_link_shows_what_is_measured_and_not_what_is_earned(site):
    page = site.client("reader").get("/systems/1").text
    assert "Ten-minute windows" in page
    for private in (site.accounts["owner"].address, ">Payment<", "Statements", "/devices/", "/act/"):
        assert private not in page
    period = site.story.packs[0].run.period
    assert site.client("reader").get(f"/systems/1/statements/{period}").status_code == 404


def test_a_suspension_is_seen_at_once_with_the_words_of_the_dao(site, moment):
    assert "All is well" not in site.client("stranger").get("/").text
    moment(site.world.deployment.registry.functions.setStatus(1, 2, "its meter was <opened>"))
    for path in ("/home", "/systems/1"):
        page = site.client("owner").get(path).text
        assert "Nothing that it measures is paid while it is suspended." in page
        assert "its meter was &lt;opened&gt;" in page
    assert "suspended by the DAO" in site.client("owner").get("/home").text


def test_nobody_signs_an_allowance_for_what_then_does_not_go(site):
    answer = drafted(site, "owner", "take-out", buyer="1.0", node="3", amount="0.001")
    assert answer["status"] == 409
    assert "channel 0 of token 1 is not of the kind 'received'" in answer["detail"]
    answer = drafted(site, "owner", "take-out", buyer="1.2", node="3", amount="5")
    assert re.search(r"you hold 0\.\d+ \w.*, and this needs 5", answer["detail"])
    good = drafted(site, "owner", "take-out", buyer="1.2", node="3", amount="0.001")["transaction"]
    assert (good["function"], good["last"]) == ("approve", False)
    assert good["says"].startswith("let the exchange take 0.001 energy of node 3")


def test_forms_know_what_cannot_be(site):
    assert "holds 10 kWh" in drafted(site, "owner", "request-storage", miner="1", node="3", energy="11")["detail"]
    for action, values in (("approve", {}), ("reject", {"code": "other", "text": "x"})):
        answer = drafted(site, "member", action, number="2", **values)
        assert "order 2 is approved already" in answer["detail"]


def test_a_line_is_named_by_its_first_digits(site):
    line = site.story.lines[0].line_id.hex()
    for digits in (line, line[:8], "0x" + line[:8].upper()):
        given = drafted(site, "member", "hold", line=digits, code="other", text="a look at it")["transaction"]
        assert f"stop the payment of line {line[:8]} (system 1 to node 3) (64: “a look at it”)" in given["says"]
        assert line in given["data"]
    assert "0 lines begin with this" in drafted(site, "member", "hold", line="00", code="other", text="x")["detail"]


def test_forms_offer_what_there_is(site):
    page = site.client("owner").get("/act/take-out").text
    assert '<option value="1.2">Solar system 1, channel 2</option>' in page
    assert re.search(r'<option value="3">Storage node 3, you hold [\d.]+ k?Wh</option>', page)
    page = site.client("owner").get("/act/request-storage").text
    assert re.search(r'<option value="3">Storage node 3, room for [\d.]+ k?Wh</option>', page)
    line = site.story.lines[0].line_id.hex()
    assert (
        f'<option value="{line}">Solar system 1 → Storage node 3 ({line[:8]})'
        in site.client("member").get("/act/hold").text
    )
    given = site.client("member").get(f"/act/hold?line={line}").text
    assert f'<input type="hidden" name="line" value="{line}">' in given
    assert "Solar system 1 → Storage node 3" in given
    spanish = site.client("owner")
    spanish.cookies.set("lang", "es")
    assert '<option value="energy">energía</option>' in spanish.get("/act/deposit").text


def test_a_vote_is_chosen_and_signed_by_what_it_would_do(site, moment):
    del moment  # all of it is taken back
    dao, deployment = site.story.world.dao, site.story.deployment
    sweep = deployment.functions("Rewards").sweep()
    for call, title in ((sweep, "Mint, attempt 1"), (deployment.functions("DaoBadge").revoke(site.accounts["member"].address), "Mint, attempt 2")):  # fmt: skip
        dao.propose(site.accounts["member"], Proposal((call,), title))
    site.story.world.chain.web3.provider.make_request("evm_increaseTime", [2])
    site.story.world.chain.web3.provider.make_request("evm_mine", [])
    site.world.memory._clear()
    page = site.client("member").get("/act/vote").text
    links = re.findall(r'<a href="(/act/vote\?[^"]+)">([^<]+)<', page)
    assert len({said for _, said in links}) == len(links) == 2
    for path, _ in links:
        shown = site.client("member").get(path.replace("&amp;", "&")).text
        number = re.search(r'name="proposal" value="(\w+)"', shown)[1]
        says = drafted(site, "member", "vote", proposal=number, choice="for")["transaction"]["says"]
        what = "end the membership" if "end the membership" in shown else "mint the coins that are due"
        assert says.startswith(f"vote for on proposal {number[:10]}: {what}")


def test_what_an_address_gives_is_what_is_done(site):
    page = site.client("member").get("/act/decide?number=77").text
    assert '<input type="hidden" name="number" value="77">' in page
    assert '<option value="3"' in site.client("owner").get("/act/take-out").text
    assert '<option value=""></option>' in site.client("owner").get("/act/take-out").text


def test_an_error_of_ours_has_the_headers_of_every_page(site, monkeypatch):
    from dapp.views import everybody

    monkeypatch.setattr(everybody, "totals", lambda _world: 1 / 0)
    answer = site.client("owner").get("/public")
    assert answer.status_code == 500
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "it is in the log" in answer.text


def test_who_can_do_nothing_as_a_member_is_not_offered_it(site):
    assert "Propose to approve an order" not in site.client("owner").get("/actions").text
    assert "Propose to approve an order" in site.client("member").get("/actions").text
    assert "Accept to deliver" not in site.client("owner").get("/actions").text


def test_members_learn_which_lines_were_asked_for(site, moment):
    del moment  # all of it is taken back
    exchange, accounts = Exchange(site.story.deployment), site.accounts
    number = exchange.request_storage(accounts["owner"], 1, 3, 3_600_000_000, 86_400)
    exchange.answer_storage(accounts["node"], number, accept=True)
    site.world.memory._clear()
    assert "Propose the line" not in site.client("member").get("/home").text  # they have one
    ends = {line: one for line, one in site.world.ends.items() if one.miner_token != 1}
    site.world.memory._known["ends"] = (float("inf"), ends)
    page = site.client("member").get("/dao").text
    assert "/act/line?miner=1.1&amp;node=3.0" in page


def test_an_error_keeps_who_one_is_and_ones_language_and_leads_back(site):
    owner = site.client("owner")
    owner.cookies.set("lang", "es")
    page = owner.get("/systems/99").text
    assert "<title>Aquí no</title>" in page or "<title>No está aquí</title>" in page
    assert site.accounts["owner"].address in page
    assert owner.get("/dao/orders/999").status_code == 404
    stranger = site.client().get("/systems/1?day=2026-10-01")
    assert stranger.status_code == 404
    asked = site.client().get("/wallet").text
    assert 'href="/sign-in?to=/wallet"' in asked
    assert 'data-to="/wallet"' in site.client().get("/sign-in?to=/wallet").text
    for evil in (
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "/sign-in?to=/x",
        "/x\r\ny",
        "/\t/evil.example",
    ):
        assert 'data-to="/home"' in site.client().get("/sign-in", params={"to": evil}).text
    assert "expected one like 2026-10-01" in owner.get("/systems/1?day=yesterday").text


def test_signing_out_everywhere_ends_tokens_of_scripts_too(site):
    keep, address = site.world.keep, site.accounts["node"].address
    token = keep.add_token(address, "cron", 9, site.world.now_ms)
    site.client("node").post("/sign-out", data={"everywhere": "yes"})
    assert keep.token(token, site.world.now_ms) is None


def test_batches_that_are_simply_accepted_are_one_row():
    def batch(seq, **more):
        return {"seq": seq, "verdict": "accepted", "remark": "", "measured_ms": seq, "samples": 1, "shares": 2, **more}

    rows = in_runs([batch(9), batch(8), batch(7, verdict="held"), batch(6), batch(4), batch(3, remark="clock")])
    assert [(row["first"], row["seq"], row["samples"]) for row in rows] == [
        (8, 9, 2), (7, 7, 1), (6, 6, 1), (4, 4, 1), (3, 3, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wh", "said"), [(0, "0 Wh"), (999.94, "999.9 Wh"), (999.96, "1 kWh"), (1_234, "1.23 kWh"), (1.5e6, "1.5 MWh")]
)
def test_energy_is_in_the_unit_that_people_would_use(wh, said):
    assert words.energy(round(wh * 3_600_000)) == said


def test_a_decision_that_is_refused_keeps_what_was_written(site):
    device = site.world.devices[0].record.device.hex()
    given = {"action": "skip", "from_seq": "9", "to_seq": "3", "reason": "41", "text": 'a "long" story & its reason'}
    answer = site.client("operator").post(f"/devices/{device}/decisions", data=given)
    assert answer.status_code == 400
    assert "from 9 to 3: the range is reversed" in answer.text
    assert '<option value="skip" selected>' in answer.text
    for text in ('value="9"', 'value="3"', 'value="41"', "a &#34;long&#34; story &amp; its reason"):
        assert text in answer.text
