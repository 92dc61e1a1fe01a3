"""The ledger's own check: it says nothing of a sound ledger, and finds every kind of damage."""

import json
import sqlite3

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from ingest.check import check
from ingest.cli import app
from maxgreen.chain.deployment import FIELDS, Addresses
from maxgreen.verify.rules import Action
from simulator.lab import NETWORK, Lab
from tests.ingest.desks import LATER, NOBODY, Bench, made, register


@pytest.fixture
def full(bench, engine):
    """A ledger with everything: rejected, held, skipped, undated, halted, waiting."""
    lab, other, broken = Lab(), Lab(secret=3), Lab(secret=4)
    register(engine, lab, other, broken)
    bench.send(lab.next(synchronised=False, t0_ms=0), lab.next(), lab.next(t0_ms=LATER + 10**9))
    bench.send(*[lab.next() for _ in range(3)], b"noise")
    lost = other.next()
    bench.send(other.next(), other.next())
    bench.decide(Action.SKIP, 0, 1, device=other.device)
    other.next()
    bench.send(other.next(), lost)
    other.next()
    bench.send(other.next())  # it waits for the one before
    bench.send(broken.next())
    bench.send(Lab(secret=4).next([(1, 6_000)]), broken.next())
    return engine


def test_a_sound_ledger_is_whole(full):
    found = check(full, NETWORK)
    assert (found.damages, found.counters, found.differing) == ((), (), ())
    assert (found.devices, found.batches) == (3, 6 + 2 + 1)
    assert found.whole


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("UPDATE batches SET message = digest WHERE seq = 1", "damage"),
        ("UPDATE batches SET digest = message WHERE seq = 2", "damage"),
        ("DELETE FROM batches WHERE seq = 1", "damage"),
        ("DELETE FROM chains", "damage"),
        ("UPDATE chains SET next_seq = 0", "damage"),
        ("UPDATE chains SET state = device", "damage"),
        ("UPDATE batches SET digest = message WHERE NOT in_chain", "damage"),
        ("UPDATE batches SET verdict = 'rejected' WHERE seq = 4", "damage"),
        ("UPDATE batches SET reason = 9, verdict = 'rejected' WHERE seq = 4", "differs"),
        ("UPDATE batches SET shares = 3 WHERE seq = 4", "differs"),
        ("UPDATE verdicts SET count = count + 1", "counter"),
        ("UPDATE chains SET waiting = waiting + 1", "counter"),
        ("UPDATE counters SET value = 1 WHERE name = 'revision'", "counter"),
    ],
)
def test_every_kind_of_damage_is_found_and_counters_are_mended(full, damage, kind):
    with full.begin() as connection:
        connection.execute(text(damage))
    found = check(full, NETWORK, repair=True)
    assert bool(found.damages) == (kind == "damage")
    if kind == "damage":  # what is counted now may be what is damaged
        assert check(full, NETWORK).counters == found.counters
    if kind == "counter":
        assert found.counters
        assert check(full, NETWORK).whole
    if kind == "differs":
        assert found.differing


def test_the_command_checks_a_ledger(tmp_path):
    engine = made(f"sqlite:///{tmp_path / 'ledger.db'}")
    bench, lab = Bench(engine), Lab()
    bench.send(*[lab.next() for _ in range(5)])
    chain_id, registry = NETWORK.removeprefix("eip155:").split(":")
    Addresses(chain_id=int(chain_id), **{**dict.fromkeys(FIELDS.values(), NOBODY), "registry": registry}).save(
        tmp_path / "deployment.json"
    )
    config = tmp_path / "ingest.toml"
    config.write_text(
        f'ledger = "sqlite:///{tmp_path}/ledger.db"\n[chain]\ndeployment = "{tmp_path}/deployment.json"\n'
    )

    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments), "--config", str(config)])

    assert "1 device, 5 batches: whole" in run("check").stdout
    assert json.loads(run("check", "--json").stdout)["batches"] == 5
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE batches SET message = x'00' WHERE seq = 2")
    damaged = run("check")
    assert damaged.exit_code == 1
    assert "damaged: device" in damaged.stdout
    assert "seq 2" in damaged.stdout


def test_config_check_says_all_that_run_would_refuse(tmp_path):
    config = tmp_path / "ingest.toml"
    config.write_text(
        'ledger = "mysql://x@h/y"\n[influx]\nurl = "not a url"\ntoken_file = "/nowhere/token"\n'
        '[broker]\nca = "/nowhere/ca"\n[chain]\ndeployment = "/nowhere/deployment.json"\n'
    )
    checked = CliRunner().invoke(app, ["config", "check", "--config", str(config)])
    said = checked.stderr + str(checked.exception)
    for name in ("ledger:", "influx.url", "influx.token_file", "broker.ca", "chain.deployment"):
        assert name in said
    Addresses(chain_id=1, **dict.fromkeys(FIELDS.values(), NOBODY)).save(tmp_path / "deployment.json")
    config.write_text(f'[chain]\ndeployment = "{tmp_path}/deployment.json"\n[influx]\ntoken_file = ""\n')
    assert CliRunner().invoke(app, ["config", "check", "--config", str(config)]).exit_code == 0
