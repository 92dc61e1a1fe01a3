"""Commands and pages are two hands on one list of actions."""

import pytest
import typer

from maxgreen.actions.all import ACTIONS, COMMANDS
from maxgreen.actions.calls import _SAYS
from maxgreen.actions.catalog import Field, Kind
from maxgreen.actions.dao_cli import app as dao
from maxgreen.actions.node_cli import app as node
from maxgreen.actions.operator_cli import app as operator
from maxgreen.actions.owner_cli import app as owner
from maxgreen.chain.artifacts import artifact
from maxgreen.errors import UsageError
from scripts.web_abi import SIGNED

LOOKS = {"sample", "status", "pool", "list", "show", "order", "members", "claims", "orders", "reading"}
OTHERWISE = {("operator", "withdraw"): "withdraw-order", ("dao", "status"): "status", ("dao", "pool"): "pool"}


def test_every_command_that_sends_is_an_action_and_every_action_a_command():
    found = set()
    for name, app in {"owner": owner, "node": node, "dao": dao, "operator": operator}.items():
        for command in typer.main.get_command(app).commands:
            if (name, command) in OTHERWISE or command not in LOOKS:
                found.add(OTHERWISE.get((name, command), command))
    assert found == set(ACTIONS)
    groups = {"owner": owner, "node": node, "dao": dao, "operator": operator}
    for command in COMMANDS.values():
        group, _, name = command.partition(" ")
        assert name in typer.main.get_command(groups[group]).commands, command


def test_wallets_can_read_every_function_that_is_signed():
    known = {name for contract in SIGNED for name in SIGNED[contract]}
    for contract, functions in SIGNED.items():
        there = {entry["name"] for entry in artifact(contract)["abi"] if entry["type"] == "function"}
        assert set(functions) <= there
    assert {"propose", "castVoteWithReason", "claim", "approve", "applyFor"} <= known


def test_every_function_that_is_signed_has_its_sentence():
    assert {f"{contract}.{name}" for contract, names in SIGNED.items() for name in names} <= set(_SAYS)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind.AMOUNT, "1.5", ["0", "-1", "1e400", "x", "nan", "0.0000000000000000001"]),
        (Kind.ENERGY, "0.001", ["0", "1/2", "inf"]),
        (Kind.NUMBER, "12", ["-1", "1.0", "\u0661", "9" * 30]),
        (Kind.LINE, "0x" + "ab" * 32, ["ab", "zz" * 32]),
        (Kind.METER, "1.2", ["1", "1.2.3", "a.b", ".1"]),
        (Kind.ADDRESS, "0x" + "11" * 20, ["0x12", "11" * 21]),
        (Kind.PROPOSAL, "0xAB", ["xyz", ""]),
        (
            Kind.PROOF,
            '{"network":"n","owner":"o","nonce":0,"system":"s","public_key":"00","signature":"00"}',
            ["{", "1", "[]"],
        ),
        (Kind.READING, '{"channel":1,"time":2,"register":"3","seq":4,"signature":"00"}', ["{}", "null", "[" * 50_000]),
        (Kind.SYSTEM, 'kind = "miner"\n[[channels]]\nnumber = 1\nrole = "sent"\npeak_w = 5\n', ["kind = 1", "\0"]),
    ],
)
def test_a_field_is_read_or_refused_in_words(kind, good, bad):
    action = next(iter(ACTIONS.values()))
    one = Field("x", kind, "the field")
    action = type(action)("t", action.who, "", "", (one,), action.step)
    assert action.read({"x": good})["x"] is not None
    for text in (*bad, "x" * 70_000):
        with pytest.raises(UsageError):
            action.read({"x": text})
    with pytest.raises(UsageError, match="the field: is missing"):
        action.read({})
