"""What the guard keeps out, and that no input at all makes the pages stumble."""

import json
import random
import string
from types import SimpleNamespace

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from dapp import words
from dapp.api import _csv
from dapp.charts import calendar_rows
from dapp.guard import Rate
from dapp.world import Memory
from maxgreen.actions.all import ACTIONS
from maxgreen.actions.catalog import Kind
from tests.dapp.conftest import URL
from tests.dapp.examples import answer_to, described


def test_other_hosts_and_other_pages_are_refused(site):
    owner = site.client("owner")
    assert owner.get("/home", headers={"Host": "evil.example"}).status_code == 421
    for origin in ("https://evil.example", "null", URL + ".evil.example"):
        assert owner.post("/systems/1/name", data={"name": "mine"}, headers={"Origin": origin}).status_code == 403
    del owner.headers["Origin"]
    assert owner.post("/systems/1/name", data={"name": "mine"}).status_code == 403
    assert owner.get("/health/ready", headers={"Host": "10.0.0.1"}).json() == {"status": "ok"}


def test_large_and_unmeasured_bodies_are_refused(site):
    owner = site.client("owner")
    assert owner.post("/systems/1/name", data={"name": "x" * 300_000}).status_code == 413
    assert owner.post("/systems/1/name", content=iter([b"name=x"])).status_code == 411
    padded = {"Content-Length": "00000000000030000011", "Content-Type": "application/json"}
    assert owner.post("/api/v1/actions/sweep", content=b"{}", headers=padded).status_code == 413


def test_every_answer_tells_the_browser_what_it_may_do(site):
    for path in ("/", "/nothing", "/static/app.js", "/api/v1/totals", "/sign-in"):
        policy = site.client().get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src 'self'" in policy
    page = site.client("owner").get("/systems/1").text
    assert "style=" not in page
    assert "<script>" not in page
    assert " onclick" not in page


def shape(value):
    """What a value is made of: names, and of a list its first element."""
    if isinstance(value, list):
        return [shape(one) for one in value[:1]]
    return {name: shape(one) for name, one in value.items()} if isinstance(value, dict) else ""


def alike(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        numbered = all(name.isdigit() for name in (*one, *other))  # by channel, by reason
        return numbered or (one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one))
    return not one or not other or (type(one) is type(other) and all(map(alike, one, other)))


def test_the_description_has_an_example_of_every_answer_as_it_is(site):
    schema = site.client(accept="application/json").get("/api/v1/openapi.json").json()
    for name in described():
        method, _, path = name.partition(" ")
        responses = schema["paths"][path][method.lower()]["responses"]
        assert "application/problem+json" in responses["default"]["content"]
        [example] = [one["content"]["application/json"]["example"] for s, one in responses.items() if s[0] == "2"]
        assert alike(shape(example), shape(answer_to(site, name))), name


def test_who_asks_too_often_waits():
    rate = Rate(60)
    assert not any(rate.wait_s("a") for _ in range(60))
    assert 0 < rate.wait_s("a") <= 1
    assert rate.wait_s("b") == 0
    for number in range(20_000):
        rate.wait_s(str(number))
    assert len(rate._left) == 10_000


def test_errors_are_problems_for_scripts_and_pages_for_people(site):
    answer = site.client("owner", "application/json").get("/api/v1/systems/99")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 404
    assert {"type", "title", "detail", "instance"} <= answer.json().keys()
    assert "<h1>" in site.client("owner").get("/systems/99").text
    assert site.client("owner", "application/json").get("/api/v1/systems/1/days?month=2026-13").status_code == 400


def test_an_answer_that_is_known_is_not_sent_again_and_lists_come_as_csv(site):
    owner = site.client("owner", "application/json")
    day = site.story.packs[0].run.period
    first = owner.get(f"/api/v1/systems/1/days?month={day[:7]}")
    again = owner.get(f"/api/v1/systems/1/days?month={day[:7]}", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    text = owner.get(f"/api/v1/systems/1/days?month={day[:7]}", headers={"Accept": "text/csv"}).text
    assert text.splitlines()[0].startswith("day,energy_mws.generation,")
    sent = {row["day"]: row["energy_mws"]["sent"] for row in first.json()}
    assert f"{day}," in text
    assert str(sent[day]) in text


def test_a_table_keeps_its_numbers_and_has_no_formulas():
    text = _csv([{"loss_mws": "-12", "text": "=HYPERLINK(1)", "more": {"a": "+1.5x"}}]).decode()
    assert text == "loss_mws,text,more.a\n-12,'=HYPERLINK(1),'+1.5x\n"


def test_what_is_remembered_is_forgotten_but_not_without_end():
    memory, asked = Memory(), []
    for _ in range(50):
        memory.get("x", 60, lambda: asked.append(1))
        memory.forget()
    assert 10 <= len(asked) <= 13
    memory._due_s = 1e-9
    memory.get("x", 60, lambda: asked.append(1))
    assert len(asked) >= 11


def test_lists_are_read_page_by_page(site):
    operator = site.client("operator", "application/json")
    found, after = [], 0
    while rows := operator.get(f"/api/v1/fleet?limit=1&after={after}").json():
        found += rows
        after = rows[-1]["token"]
    assert [row["token"] for row in found] == [1, 2, 3]
    device = site.world.systems[3].record.device.hex()
    seqs, before = [], 10**6
    while rows := operator.get(f"/api/v1/devices/{device}/batches?limit=3&before={before}").json():
        seqs += [row["seq"] for row in rows]
        before = seqs[-1]
    assert seqs == sorted(set(seqs), reverse=True)
    assert seqs[-1] == 0
    assert operator.get("/api/v1/fleet?limit=-1").status_code == 422


@pytest.mark.parametrize("who", ["stranger", "owner", "member", "operator"])
def test_no_input_of_the_api_is_an_error_of_ours(site, who):
    site.app.state.world.memory.forget()
    client = site.client(who, "application/json")
    schema = schemathesis.openapi.from_dict(client.get("/api/v1/openapi.json").json())
    count = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if "/decisions" in operation.path and operation.method.upper() == "POST":
            continue  # it would go on with what others look at

        @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def asks(case):
            sent = case.as_transport_kwargs(base_url=URL)
            answer = client.request(
                sent["method"], sent["url"], params=sent.get("params"), json=sent.get("json"),
                headers={k: v for k, v in dict(sent.get("headers") or {}).items() if k.lower() == "accept"},
            )  # fmt: skip
            assert answer.status_code < 500, (case.method, case.path, answer.text[:300])

        given(case=operation.as_strategy())(asks)()
        count += 1
    assert count >= 30


@pytest.mark.parametrize("who", ["stranger", "owner", "member", "operator"])
def test_no_address_of_a_page_is_an_error_of_ours(site, who):
    client, device = site.client(who), site.world.systems[1].record.device.hex()
    big = str(10**40)
    for path in (
        f"/systems/{big}", "/systems/-1", "/systems/x", "/systems/1?day=9999-99-99", "/systems/1?day=9999-12-31",
        "/systems/1?day=0001-01-01", "/systems/1?month=x", f"/systems/1?year={big}", "/systems/1?day=é",
        f"/nodes/{big}", "/nodes/1", f"/dao/orders/{big}", "/dao/orders/-1", "/dao/ballots/x/y",
        "/dao/ballots/technical/zz", "/dao/ballots/modules/0", f"/fleet?after={big}", "/fleet?how=%00",
        f"/devices/{device}?before={big}", f"/devices/{device}?before=-1", "/devices/zz", "/act/none", "/shared/%00",
        "/systems/1/statements/../x", "/systems/1/evidence/x/y.zip", f"/act/claim?line={'x' * 5_000}", "/language/zz",
        f"/live/{big}", "/static/../pages.py", "/static/none",
    ):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code < 500, (path, answer.text[:300])


NOISE = [
    *("9e999999", "281474976710656", "-9e9999", "1e-9999"),
    "",
    " ",
    "0",
    "-1",
    "1.5",
    "1e9",
    "9" * 400,
    "0x",
    "x" * 2_000,
    "é\0\u202e",
    "1.1",
    "64",
    "[]",
    "{}",
    "null",
    "true",
]


def noise(chance, kind):
    if kind is Kind.CHOICE:
        return chance.choice(["for", "energy", "miner", "", "x"])
    if chance.random() < 0.5:
        return chance.choice(NOISE)
    return "".join(chance.choice(string.printable) for _ in range(chance.randrange(80)))


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_an_action_with_any_values_is_refused_in_words_or_drafted(site, name):
    chance, client = random.Random(name), site.client("owner", "application/json")
    for _ in range(40):
        values = {field.name: noise(chance, field.kind) for field in ACTIONS[name].fields}
        answer = client.post(f"/api/v1/actions/{name}", json=values)
        assert answer.status_code in {200, 400, 409}, (values, answer.text[:300])
        if answer.status_code != 200:
            assert answer.json()["detail"]


def test_half_a_character_and_a_node_that_is_none_are_refused_in_words(site):
    owner = site.client("owner", "application/json")
    for name, values in (
        ("hold", {"line": "ab" * 32, "code": "other", "text": "\ud800"}),
        ("take-out", {"buyer": "1.2", "node": "1", "amount": "1"}),
        ("deposit", {"node": "1", "amount": "1", "coin": "energy"}),
        ("line", {"miner": "1.1", "node": "3.0", "epoch": str(2**47)}),
        ("request-storage", {"miner": "1", "node": "3", "energy": "1", "days": str(2**47)}),
    ):
        answer = owner.post(f"/api/v1/actions/{name}", content=json.dumps(values).encode())
        assert answer.status_code in {400, 409, 422}, (name, answer.text)
    for path in (f"/account/tokens/{10**40}/end", f"/systems/1/links/{10**40}/end"):
        assert owner.post(path, data={"x": "y"}).status_code == 422


def test_hours_of_a_zone_off_the_ten_minutes_hold_each_window_once():
    begin, end = words.day_bounds("2026-10-01", "Asia/Kathmandu")
    visit = SimpleNamespace(zone="Asia/Kathmandu", say=lambda text, **values: text.format(**values))
    rows = calendar_rows([], begin, end, visit)
    titles = [cell["title"] for row in rows for cell in row["cells"]]
    assert len(titles) == len(set(titles)) == 145
    assert [row["hour"] for row in rows] == [f"{hour:02}:00" for hour in range(24)]


def test_times_and_amounts_read_well():
    assert words.energy(0) == "0 Wh"
    assert words.energy(-1) == "0 Wh"
    assert words.energy(3_600_000_000 * 12) == "12 kWh"
    assert words.energy(3_600_000) == "1 Wh"
    assert words.power(999.96) == "1 kW"
    assert words.power(1_234.5) == "1.23 kW"
    assert words.tokens(10**18) == "1"
    assert words.moment(1_761_436_800_000, "Europe/Madrid") == "2025-10-26 02:00 CEST"
    assert words.moment(1_761_440_400_000, "Europe/Madrid") == "2025-10-26 02:00 CET"
    begin, end = words.day_bounds("2025-10-26", "Europe/Madrid")
    assert end - begin == 25 * 3_600
    begin, end = words.day_bounds("2026-03-29", "Europe/Madrid")
    assert end - begin == 23 * 3_600
    assert words.known_zone("../../etc/passwd") == "UTC"
    assert words.known_zone("Mars/Olympus") == "UTC"
