"""The demo as a user runs it, and the audit of what it leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.sensors.trace import read_trace
from maxgreen.chain.claims import claim_json
from maxgreen.keyfile import load_key_file
from maxgreen.protocol.backend import BackendKeys
from maxgreen.protocol.pack import RUN, PackError, canonical_json, read_pack, write_pack
from settlement.audit import audit
from settlement.audit_cli import open_chain
from settlement.evidence import Judge
from settlement.inputs import Inputs
from settlement.packs import Pack, open_pack, pack_of
from settlement.statement import derive
from simulator.demo import RESISTANCE_UOHM
from simulator.evidence import line_pack
from tests.conftest import TRACES

MAXGREEN = Path(sys.executable).parent / "maxgreen"


def run(*arguments, **options):
    return subprocess.run([MAXGREEN, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = run("demo", "--json", "--dir", folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def integral_mws(points, drop_uohm=0):
    total = 0
    for a, b in zip(points, points[1:]):
        powers = [
            (p.reading.voltage_uv - p.reading.current_ua * drop_uohm // 10**6) * p.reading.current_ua
            if abs(p.reading.current_ua) >= 5_000
            else 0
            for p in (a, b)
        ]
        if sum(powers) > 0:
            total += sum(powers) * (b.t_ms - a.t_ms)
    return total // (2 * 10**12)


def test_the_demo_mints_what_an_independent_integral_gives(demo):
    result, _ = demo
    points = read_trace(TRACES[0]).channel(None)
    assert result["sent_mws"] == integral_mws(points)
    assert result["received_mws"] == integral_mws(points, RESISTANCE_UOHM)
    assert result["loss_mws"] == result["sent_mws"] - result["received_mws"]
    assert result["payable_mws"] == result["received_mws"]
    assert result["mint_wei"] == result["payable_mws"] * 2_500_000_000 // 9
    assert result["token_balance_wei"] == result["mint_wei"]
    assert result["audit"] == "ok"
    assert result["batches_rejected"] == 1
    assert result["forged"].startswith("bad_signature")
    assert result["votes_for"] == 3
    assert result["online_windows"] == result["windows"] == 136
    assert result["shares"] >= result["windows"]


def test_status_and_explanation_say_where_everything_is(demo, tmp_path):
    result, folder = demo
    for name in ("chain.db", "ledger.db", "clock", "deployment.json"):
        shutil.copy(folder / name, tmp_path / name)
    settings = tmp_path / "settlement.toml"
    paths = {name: tmp_path / file for name, file in (("rpc", "chain.db"), ("deployment", "deployment.json"))}
    lines = [f'{name} = "{path}"' for name, path in {**paths, "clock_file": tmp_path / "clock"}.items()]
    settings.write_text(
        "\n".join([*lines, f'ledger = "sqlite:///{tmp_path}/ledger.db"', f'evidence = "{folder}/evidence"'])
    )
    said = json.loads(run("settle", "status", "--config", settings, "--json").stdout)
    assert (said["period"], said["order"], said["state"]) == ("2015-11", 1, "approved")
    assert [line["waits_for"] for line in said["lines"]] == ["nothing: all of it is paid"]
    assert "waits for nothing" in run("settle", "status", "--config", settings).stdout
    explained = json.loads(run("settle", "explain", "--period", "2015-11", "--config", settings, "--json").stdout)
    assert sum(part["energy_mws"] for part in explained["parts"]) == explained["sent_mws"] == result["sent_mws"]
    for name, begins in {"s.csv": "period,line", "s.json": "{", "s.html": "<!doctype html>"}.items():
        [line] = open_pack(Path(result["pack"])).lines
        written = run("settle", "statement", "--pack", result["pack"], "--line", line[:6], "--out", tmp_path / name)
        assert written.returncode == 0, written.stderr
        assert (tmp_path / name).read_text().startswith(begins)
    inputs = Inputs.from_entries(open_pack(Path(result["pack"])).entries(line))
    keys = BackendKeys(inputs.backend_keys, inputs.network)
    keys.open((tmp_path / "s.cose").read_bytes(), "statement", detached_payload=(tmp_path / "s.json").read_bytes())
    assert run("settle", "statement", "--pack", result["pack"], "--out", tmp_path / "s.doc").returncode == 2
    told = run("settle", "explain", "ffff", "--pack", result["pack"])
    assert told.returncode == 2
    assert "lines are meant" in told.stderr


def there(folder):
    """What names the chain, and the contracts that are meant."""
    return "--rpc", folder / "chain.db", "--deployment", folder / "deployment.json"


def test_one_more_command_checks_the_mint_and_says_the_same_twice(demo):
    result, folder = demo
    first = run("audit", result["pack"], *there(folder))
    second = run("audit", result["pack"], *there(folder))
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout == second.stdout
    assert "wei minted" in first.stdout
    alone = json.loads(run("audit", result["pack"], "--json").stdout)
    assert alone["audit"] == "ok"
    assert "not compared with the chain" in " ".join(alone["believed"])
    unpinned = run("audit", result["pack"], "--rpc", folder / "chain.db")
    assert unpinned.returncode == 2
    assert "--deployment" in unpinned.stderr
    value = json.loads((folder / "deployment.json").read_text())
    assert value["network"] in first.stdout
    assert value["settlement"] in first.stdout
    other = folder / "other.json"
    other.write_text(json.dumps({**value, "settlement": value["registry"]}))
    wrong = run("audit", result["pack"], "--rpc", folder / "chain.db", "--deployment", other)
    assert wrong.returncode == 1
    assert "not those of the deployment file" in wrong.stdout


def _one_byte_apart(told: str, name: str) -> bool:
    """Tell whether a name is told as it is, or as the changed byte makes it."""
    return len(told) == len(name) and sum(a != b for a, b in zip(told, name, strict=True)) <= 1


def test_a_changed_byte_anywhere_fails_with_the_entrys_name(demo, tmp_path):
    result, _ = demo
    data = Path(result["pack"]).read_bytes()
    entries = read_pack(Path(result["pack"]))
    path = tmp_path / "pack.zip"
    for position in range(0, len(data), len(data) // 40):
        broken = bytearray(data)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(PackError) as caught:
            audit(open_pack(path))
        told = re.search("at entry '([^']+)'", str(caught.value))
        assert told, caught.value
        # a byte of a name's length makes what follows a part of the name
        assert any(_one_byte_apart(told[1], name) or told[1].startswith(name) for name in entries), caught.value
    path.write_bytes(bytes(broken))
    done = run("audit", path)
    assert done.returncode == 1
    assert done.stdout.startswith("DIFFERENCE")
    assert "Traceback" not in done.stderr


def test_a_lie_in_the_order_is_found_on_the_chain(demo, tmp_path):
    result, folder = demo
    entries = read_pack(Path(result["pack"]))
    order = json.loads(entries["order.json"])
    shutil.copy(folder / "chain.db", tmp_path / "chain.db")
    chain = open_chain(str(tmp_path / "chain.db"))
    assert audit(pack_of(entries), chain=chain).checks

    with pytest.raises(PackError, match="order.json"):
        audit(pack_of({**entries, "order.json": canonical_json({**order, "order": 2})}), chain=chain)
    [claim] = order["claims"]
    lies = [
        {"claims": [{**claim, "payable_total_mws": "1"}]},
        {"claims": [{**claim, "proof": ["00" * 32]}]},
        {"claims": [{**claim, "sent": claim["received"]}]},
        {"claims": []},
        {"posting": {**order["posting"], "total_mws": str(10**15)}},
        {"posting": {**order["posting"], "manifest": "00" * 32}},
        {"posting": {}},
        {"order": "one"},
    ]
    for lie in lies:
        with pytest.raises(PackError, match="order.json"):
            audit(pack_of({**entries, "order.json": canonical_json({**order, **lie})}))
    assert write_pack(entries) == Path(result["pack"]).read_bytes()


LIES = {  # what an operator, who holds the backend's key, makes of the evidence: entry, change
    "place": ("devices.json", lambda d: {**d, "latitude": 35.1, "longitude": -106.6}),
    "peak": ("devices.json", lambda d: {**d, "channels": [{**c, "peak_mw": 10**9} for c in d["channels"]]}),
    "error": ("devices.json", lambda d: {**d, "channels": [{**c, "error_ppm": 10**6} for c in d["channels"]]}),
    "offset": ("devices.json", lambda d: {**d, "channels": [{**c, "offset_mw": 10**6} for c in d["channels"]]}),
    "registration": ("devices.json", lambda d: {**d, "status": [{**s, "from_ms": 0} for s in d["status"]]}),
    "kind": ("devices.json", lambda d: {**d, "kind": "miner"}),
    "token": ("devices.json", lambda d: {**d, "efficiency_ppm": 10**7}),
    "battery": ("devices.json", lambda d: {**d, "battery_wh": 10**9}),
    "online": ("devices.json", lambda d: {**d, "online_required": not d["online_required"]}),
    "loss": ("line.json", lambda line: {**line, "max_loss_ppm": 10**6}),
    "resistance": ("line.json", lambda line: {**line, "resistance_uohm": 10**6}),
    "opened": (
        "line.json",
        lambda line: {**line, "opened": {**line["opened"], "sent": {**line["opened"]["sent"], "time": 1}}},
    ),
    "base": (
        "line.json",
        lambda line: {
            **line,
            "opened": {**line["opened"], "received": {**line["opened"]["received"], "register": "7"}},
        },
    ),
    "closed": ("line.json", lambda line: {**line, "closed": 4_000_000_000}),
    "paid": ("line.json", lambda line: {**line, "paid_mws": str(10**15)}),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_an_operator_changes_in_the_evidence_is_found_on_the_chain(demo, tmp_path, lie):
    result, folder = demo
    pack = open_pack(Path(result["pack"]))
    [line] = pack.lines
    entries, (name, change) = pack.entries(line), LIES[lie]
    value = json.loads(entries[name])
    lied = {
        **entries,
        name: canonical_json([change(one) for one in value] if isinstance(value, list) else change(value)),
    }
    assert lied[name] != entries[name]
    inputs = Inputs.from_entries(lied)
    named, run = line_pack(derive(inputs, Judge(pack.segment).evidence(inputs)), load_key_file(folder / "backend.pem"))
    order = json.loads(pack.order_data)
    posting = {
        **order["posting"],
        "root": run.root.hex() if run.claims else "00" * 32,
        "count": len(run.claims),
        "total_mws": str(run.total_mws),
        "manifest": run.digest.hex(),
    }
    claims = [claim_json(claim) for claim in run.claims]
    own = {entry.removeprefix(f"{line}/"): data for entry, data in named.items() if entry != RUN}
    lying = Pack(run.data, canonical_json({**order, "posting": posting, "claims": claims}), {line: own}, pack.segment)
    if run.claims:
        assert audit(lying).checks  # the pack is in itself right
    chain = open_chain(str(shutil.copy(folder / "chain.db", tmp_path / "chain.db")))
    with pytest.raises(PackError, match=rf"{name}|{RUN}" if not run.claims else name):
        audit(lying, chain=chain)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--trace", "missing.csv"], 2, "missing.csv"),
        (["--channel", "nope"], 2, "it has: sandia_sys1_str1"),
        (["--place", "north"], 2, "LATITUDE,LONGITUDE"),
    ],
)
def test_bad_input_gets_one_sentence_and_no_traceback(arguments, status, says, tmp_path):
    done = run("demo", *arguments, "--dir", tmp_path / "out")
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_is_not_a_demos_is_never_emptied(tmp_path):
    (tmp_path / "mine").write_text("keep")
    done = run("demo", "--dir", tmp_path)
    assert done.returncode == 78
    assert "--dir" in done.stderr
    assert (tmp_path / "mine").read_text() == "keep"


def test_ctrl_c_leaves_nothing_running(tmp_path):
    process = subprocess.Popen(
        [MAXGREEN, "demo", "--dir", tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert b"Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("channel", ["sandia_sys1_str2"])
def test_a_channel_without_energy_mints_nothing_and_still_audits(channel, tmp_path):
    done = run("demo", "--json", "--channel", channel, "--dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["payable_mws"], result["mint_wei"], result["token_balance_wei"]) == (0, 0, 0)
    assert result["audit"] == "ok"


def test_two_months_close_one_after_the_other(tmp_path):
    source = read_trace(TRACES[0]).channel(None)[600:840:4]
    rows = ["ts_utc,channel,v_bus_V,i_A"]
    from datetime import UTC, datetime

    for shift in (0, 20 * 86_400_000):
        for p in source:
            t = datetime.fromtimestamp((p.t_ms + shift) / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            rows.append(f"{t},a,{p.reading.voltage_uv / 1e6},{p.reading.current_ua / 1e6}")
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(rows) + "\n")
    done = run("demo", "--json", "--trace", path, "--dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["audit"] == "ok"
    assert len(result["packs"]) == 2
    assert result["token_balance_wei"] == result["mint_wei"] > 0
    first, second = result["packs"]
    alone = run("audit", second).stdout
    assert "disputes of before this period" in alone
    assert "follow from the previous pack" in run("audit", second, "--previous", first).stdout
