"""What pages show is what the ledger, the evidence and the chain say."""

from datetime import UTC, datetime
from types import SimpleNamespace

from dapp import words
from dapp.charts import bars, map_of
from dapp.views import council, money
from dapp.views.metered import ROLES, devices_of, total_by_role
from maxgreen.chain.market import balances

DAY_S = 86_400


def month_of(unix_s):
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m")


def test_days_and_months_add_up_to_the_registers_of_every_key(site):
    owner = site.client("owner", "application/json")
    month = month_of(site.story.window_s)
    days = owner.get(f"/api/v1/systems/1/days?month={month}").json()
    devices = devices_of(site.world, 1)
    assert len(devices) == 2  # its key was rotated
    registers = dict.fromkeys(ROLES, 0)
    with site.world.book() as book:
        for known in devices:
            for channel in book.state(known.record.device).channels.values():
                registers[ROLES[channel.role]] += channel.register_mws
    total = total_by_role(days)
    assert total["sent"] == registers["sent"] > 0
    assert total["generation"] == registers["generation"] > 0
    months = owner.get(f"/api/v1/systems/1/months?year={month[:4]}").json()
    assert total_by_role(months)["sent"] == registers["sent"]


def test_a_curve_is_the_energy_of_its_windows(site):
    owner = site.client("owner", "application/json")
    for pack in site.story.packs:
        day = pack.run.period
        curve = owner.get(f"/api/v1/systems/1/curve?day={day}").json()
        [row] = [row for row in owner.get(f"/api/v1/systems/1/days?month={day[:7]}").json() if row["day"] == day]
        wh = sum(watts or 0 for watts in curve["watts"]["sent 1"]) / 6
        assert abs(wh * 3.6e6 - row["energy_mws"]["sent"]) < 1_000
        assert len(curve["times"]) == 144


def test_statements_lines_and_tokens_are_the_chains(site):
    owner = site.client("owner", "application/json")
    rows = owner.get("/api/v1/systems/1/statements").json()
    assert [row["period"] for row in rows] == [pack.run.period for pack in reversed(site.story.packs)]
    [line] = owner.get("/api/v1/systems/1/lines").json()
    assert line["paid_mws"] == rows[0]["payable_total_mws"]
    assert line["turn"] == "nothing"
    found = money.explained(site.world, rows[0]["period"], rows[0])
    assert found.sent_mws >= int(rows[0]["sent_mws"])
    held = {name: int(amount) for name, amount in owner.get("/api/v1/tokens").json().items()}
    known = balances(site.story.deployment, site.accounts["owner"].address, [3])
    assert held == {name: amount for name, amount in known.items() if amount}


def test_the_oddest_line_of_an_order_comes_first(site):
    rows = council.order_lines(site.world, money.order(site.world, 2))
    assert len(rows) == 2
    assert [row["odd"] for row in rows] == sorted((row["odd"] for row in rows), reverse=True)
    rejected = money.order(site.world, 1)
    assert (rejected["status"], rejected["code"]) == ("rejected", 62)
    assert council.order_lines(site.world, rejected) == []  # it was closed again: nobody judges it by another run
    assert site.client("member").get("/dao/orders/1/evidence.zip").status_code == 404
    assert site.client("member").get("/dao/orders/2/evidence.zip").status_code == 200
    assert "nobody looked at the seal" in site.client("member").get("/dao/orders/1").text


def test_bars_are_as_high_as_what_they_stand_for():
    visit = SimpleNamespace(say=str, energy=words.energy)
    found = bars([("a", {"sent": 10, "received": 5}), ("b", {"sent": 0, "received": 0})], visit)
    assert found["kinds"] == ["sent", "received"]
    heights = [part["height"] for part in found["bars"][0]["parts"]]
    assert heights == [120, 60]
    piled = bars([("a", {"counted": 6, "lost": 2, "held": 0})], visit, ("counted", "lost", "held"))
    assert [part["y"] for part in piled["bars"][0]["parts"]] == [30, 0]
    assert bars([], visit)["kinds"] == []


def test_devices_are_where_they_say():
    rows = [{"place": [36.7, -4.4], "how": "well", "token": 1}, {"place": None, "how": "well", "token": 2},
            {"place": [36.7, -4.4], "how": "silent", "token": 3}, {"place": [40.4, -3.7], "how": "well", "token": 4}]  # fmt: skip
    found = map_of(rows)
    assert len(found["dots"]) == 2
    assert [dot["well"] for dot in found["dots"]] == [False, True]
    assert found["dots"][1]["y"] < found["dots"][0]["y"]  # north is up
    assert map_of([]) is None
