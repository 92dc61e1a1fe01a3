"""The commands of people, on the embedded chain served over JSON-RPC's own client: what they send, say and refuse."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maxgreen.actions import dao_cli, node_cli, operator_cli, owner_cli, session, wallet_cli
from maxgreen.actions.session import kwh, tokens, wei
from maxgreen.actions.wallet import load_account, make_wallet
from maxgreen.chain.claims import attestation_json
from maxgreen.chain.market import pool_opening
from maxgreen.errors import Fatal, MaxgreenError, UsageError
from maxgreen.protocol.attestation import hand_over, prove_possession
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.protocol.system import ChannelSpec, Kind, SystemSpec, parse_system
from tests.chain.test_market import Market
from tests.chain.world import KWH

APPS = {
    "owner": owner_cli.app, "node": node_cli.app, "dao": dao_cli.app, "operator": operator_cli.app,
    "wallet": wallet_cli.app,
}  # fmt: skip


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Commands that reach the market's own embedded chain; each person's account in a file."""
    return desk_of(Market(tmp_path, carbon=True), tmp_path, monkeypatch)


def desk_of(market, tmp_path, monkeypatch):
    world = market.world
    monkeypatch.setattr(session, "connect", lambda *_: world.chain)
    monkeypatch.setattr(session, "make_clock", lambda *_: world.clock)
    world.deployment.addresses.save(tmp_path / "deployment.json")
    names = ("stranger", "operator", "m1", "m2", "m3", "ana", "bo", "guardian")
    for name, account in zip(names, world.accounts, strict=True):
        path = tmp_path / f"{name}.key"
        path.touch(0o600)
        path.write_text(bytes(account.key).hex())

    def run(who, command, *arguments, fails=None):
        app, *words = command.split()
        options = ["--as", str(tmp_path / f"{who}.key"), "--deployment", str(tmp_path / "deployment.json"), "--json"]
        done = CliRunner().invoke(APPS[app], [*words, *map(str, arguments), *options])
        world.chain.sends = True
        if fails is not None:
            assert isinstance(done.exception, MaxgreenError), done.output
            assert fails in str(done.exception)
            return None
        assert done.exit_code == 0, (done.exception, done.output)
        return json.loads(done.output)

    run.market, run.folder = market, tmp_path
    return run


def file_of(desk, name, attestation):
    path = desk.folder / f"{name}.json"
    path.write_text(json.dumps(attestation_json(attestation)))
    return path


def passed(desk, proposer, *rest):
    """Let two members vote for what one proposes, and carry it out."""
    world = desk.market.world
    proposal = desk(proposer, *rest)["proposal"]
    world.pass_time(2)
    for member in ("m1", "m2"):
        desk(member, "dao vote", proposal, "for")
    world.pass_time(10)
    desk("stranger", "dao queue", proposal)
    world.pass_time(3)
    return desk("stranger", "dao execute", proposal)


def test_energy_is_taken_out_by_commands(desk):
    market, world = desk.market, desk.market.world
    market.give("carbon", market.owner, 10**18)
    would = desk("ana", "owner take-out", "1.2", 2, "1", "--dry-run")
    assert would["would_send"].startswith("approve(")
    assert desk("ana", "owner take-out", "1.2", 2, "1")["request"] == 1
    desk("ana", "owner take-out", "12", 2, "1", fails="TOKEN.CHANNEL")
    assert desk("bo", "node status")["nodes"][0]["take_outs"] == [{"request": 1, "status": "open"}]

    def accept(who, **expected):
        node, buyer = (file_of(desk, name, market.meter(name, 0)) for name in ("node", "miner"))
        return desk(who, "node accept", 1, "--reading", node, "--buyer-reading", buyer, **expected)

    accept("ana", fails="does not own")
    said = accept("bo")
    assert said["status"] == "accepted"
    assert "maxgreen node finish 1" in said["next"]
    world.pass_time(40_000)
    assert "node finish 1" in desk("ana", "owner status")["next"]
    desk("bo", "node finish", 1, "--reading", file_of(desk, "end", market.meter("node", KWH // 2)))
    said = desk("ana", "owner confirm", 1, "--reading", file_of(desk, "got", market.meter("miner", KWH // 2)))
    assert (said["status"], said["measured_mws"]) == ("settled", str(KWH // 2))
    assert set(desk("ana", "owner withdraw")["withdrawn"]) == {"energy 2", "carbon"}
    assert desk("ana", "owner withdraw")["withdrawn"] == {}
    desk("ana", "owner take-out", "1.2", 2, "1")
    assert desk("bo", "node refuse", 2)["status"] == "refused"
    desk("ana", "owner cancel", 2, fails="request 2 is refused")
    (desk.folder / "bad.json").write_text("{}")
    desk("ana", "owner confirm", 2, "--reading", desk.folder / "bad.json", fails="operator reading")


def test_pool_and_storage_by_commands(desk):
    world = desk.market.world
    desk("ana", "owner pool", 2, fails="has opened no pool")
    world.pass_(pool_opening(world.deployment, 2, [10**18] * 3, [10**24] * 4))
    desk("ana", "owner deposit", 2, "0.5")
    passed(desk, "m1", "dao provide", 2, "maxcoin", "1")
    before = desk("ana", "owner pool", 2)
    assert before["reserves"] == {"energy": str(5 * 10**17), "deca": "0", "maxcoin": str(10**18), "carbon": "0"}
    assert desk("ana", "owner swap", 2, "0.1", "energy", "maxcoin")["got_wei"] == str(10**17 * 997 // 1000)
    assert int(desk("ana", "owner pool", 2)["value_wei"]) > int(before["value_wei"])
    desk("ana", "owner redeem", 2, "0.1", "--take", "maxcoin")
    assert desk("ana", "owner redeem", 2)["shares"] == "0"
    desk("ana", "owner redeem", 2, fails="no shares")
    desk("ana", "owner deposit", 2, "x", fails="expected a number")
    desk("ana", "owner deposit", 2, "1e-19", fails="at most 18 decimals")
    assert desk("ana", "owner request-storage", 1, 2, "5")["request"] == 1
    assert "accept-storage 1" in desk("bo", "node status")["next"]
    desk("bo", "node refuse-storage", 1)
    assert desk("ana", "owner request-storage", 1, 2, "5")["request"] == 2
    desk("bo", "node accept-storage", 2)


def test_members_see_what_a_call_would_do_and_not_what_its_text_says(desk):
    market, world = desk.market, desk.market.world
    from maxgreen.chain.dao import Proposal

    authority = world.functions("Authority")
    lie = Proposal((authority.grantRole(0, world.members[2].address, 0),), "Pay the miners")
    world.dao.propose(world.members[2], lie)
    shown = desk("m1", "dao show", "latest")
    assert "GIVE ROLE 0 TO" in shown["calls"][0]["says"]
    own = Proposal((market.world.deployment.energy_token(2).functions.transfer(market.vault, 1),), "y")
    world.dao.propose(world.members[2], own)
    assert "energy of node 2 of the vault" in desk("m1", "dao show", "latest")["calls"][0]["says"]
    strange = Proposal((world.functions("EnergyToken", market.vault).transfer(market.vault, 1),), "x")
    world.dao.propose(world.members[2], strange)
    assert "unknown call" in desk("m1", "dao show", "latest")["calls"][0]["says"]
    assert len(desk("m1", "dao list")["proposals"]) == 3
    desk("m1", "dao show", "zz", fails="no proposal")
    world.pass_time(2)
    desk("m1", "dao vote", "latest", "perhaps", fails="expected one of")
    assert "1 against" in desk("m1", "dao vote", "latest", "against", "--reason", "unknown")["votes"]
    desk("stranger", "dao status", 1, "suspended", "why", fails="holds no badge")
    desk("m1", "dao status", 1, "asleep", "why", fails="expected one of")
    desk("m1", "dao admit", 99, fails="no application 99")
    desk("m1", "dao hold", "12", 63, "why", fails="64 hex digits")
    desk("m1", "dao hold", "00" * 32, 1, "why", fails="expected one of")
    desk("m1", "dao line", "one", "2.0", fails="TOKEN.CHANNEL")
    desk("m1", "dao member", "add", "0x12", fails="40 hex digits")
    first = desk("m1", "dao status", 1, "suspended", "look at it")
    assert desk("m1", "dao status", 1, "suspended", "look at it")["id"] == first["id"]  # found again, not doubled
    world.pass_time(10)
    again = desk("m1", "dao status", 1, "suspended", "look at it")
    assert again["id"] != first["id"]
    assert "attempt 2" in again["description"]
    assert desk("m1", "dao members")["votes_to_pass"] == 2
    assert desk("m1", "dao list", "--ended")["proposals"]


def test_an_order_is_excluded_from_rejected_withdrawn_and_posted_by_commands(desk):
    world = desk.market.world
    world.pass_time(86_400)
    posting, [claim] = world.period(world.claim(3 * KWH, 2, at_s=160_000))
    world.contract.post(world.operator, posting)
    number = world.contract.order_count()
    shown = desk("m1", "dao order", number)
    assert (shown["status"], shown["total_mws"]) == ("posted", str(3 * KWH))
    passed(desk, "m1", "dao reject", number, 63, "the loss is not explained")
    assert desk("m1", "dao order", number)["text"] == "the loss is not explained"
    world.contract.post(world.operator, posting)
    assert desk("operator", "operator orders")["orders"][0]["status"] == "posted"
    desk("operator", "operator withdraw", number + 1)
    desk("operator", "operator withdraw", number + 1, fails="not open any more")
    world.contract.post(world.operator, posting)
    exclude = f"{world.ends.line_id.hex()}:62:its seal is broken"
    desk("m1", "dao approve", number + 2, "--exclude", "x", fails="LINE:CODE:TEXT")
    passed(desk, "m1", "dao approve", number + 2, "--exclude", exclude)
    assert desk("ana", "owner status")["lines"][0]["hold"] == 62
    order = desk.folder / "order.json"
    from maxgreen.chain.claims import claim_json

    order.write_text(json.dumps({"claims": [claim_json(claim)]}))
    assert desk("m1", "dao claims", order)["lines"][0]["hold"] == 62
    done = CliRunner().invoke(
        owner_cli.app,
        ["claim", "--order", str(order), "--as", str(desk.folder / "ana.key"), "--deployment",
         str(desk.folder / "deployment.json"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 1
    assert "held by the DAO" in done.output
    passed(desk, "m1", "dao release", world.ends.line_id.hex())
    assert desk("ana", "owner claim", "--order", order)["claimed"] == [world.ends.line_id.hex()]
    assert desk("ana", "owner claim", "--order", order)["claimed"] == []
    desk("ana", "owner collect", world.ends.line_id.hex(), fails="no credit")
    desk("ana", "owner close-line", world.ends.line_id.hex())
    assert desk("bo", "owner close-line", world.ends.line_id.hex())["closed"]
    desk("operator", "operator sweep")
    record = desk.folder / "record"
    record.write_text("hashes")
    desk("operator", "operator record", 1, "pool", record)
    desk("operator", "operator record", 1, "gold", record, fails="expected one of")


def test_modules_are_voted_on_by_commands(desk):
    world = desk.market.world
    release = desk.folder / "agent.whl"
    release.write_text("a release")
    desk("ana", "dao module", "agent", "2.0.0", release, fails="dao elector")
    for who in ("m1", "m2", "m3", "ana", "bo"):
        assert desk(who, "dao elector")["votes"]
    assert not desk("m1", "dao elector", world.stranger.address)["votes"]
    world.pass_time(2)
    proposal = desk("ana", "dao module", "agent", "2.0.0", release)["proposal"]
    assert "release “agent” “2.0.0”" in desk("m1", "dao show", proposal, "--modules")["calls"][0]["says"]
    assert len(desk("m1", "dao list", "--modules")["proposals"]) == 1
    world.pass_time(2)
    for who in ("m1", "ana", "bo"):
        desk(who, "dao vote", proposal, "for", "--modules")
    world.pass_time(10)
    desk("bo", "dao queue", proposal, "--modules")
    world.pass_time(3)
    desk("bo", "dao execute", proposal, "--modules")
    [found] = world.ask(world.deployment.functions("ModuleRegistry").historyOf("agent"))
    assert found[0] == "2.0.0"


def test_keys_are_rotated_and_replaced_by_commands(desk):
    world = desk.market.world
    owner, network = desk.market.owner, world.deployment.network
    system = desk.folder / "system.toml"
    system.write_text(
        'kind = "miner"\n[[channels]]\nnumber = 1\nrole = "sent"\npeak_w = 100\n'
        '[[channels]]\nnumber = 2\nrole = "received"\npeak_w = 100\n'
    )
    content = parse_system(system.read_text()).digest
    proof = desk.folder / "proof.json"

    def prove(new, nonce=0, **more):
        signature = prove_possession(new, network, bytes.fromhex(owner.address[2:]), nonce, content)
        value = {
            "network": network, "owner": owner.address, "nonce": nonce, "system": content.hex(),
            "public_key": new.spki.hex(), "signature": signature.hex(), **more,
        }  # fmt: skip
        proof.write_text(json.dumps(value))

    new, lost = MemorySigner.from_secret(71), MemorySigner.from_secret(72)
    arguments = (1, "--system", system, "--proof", proof)
    world.pass_time(2 * 86_400)
    prove(new, 5)
    desk("ana", "owner rotate-key", *arguments, fails="--nonce 0")
    prove(new)
    desk("ana", "owner rotate-key", *arguments, fails="--next")
    desk("bo", "owner rotate-key", *arguments, fails="signed for owner")
    prove(new, hand_over=hand_over(world.miner, network, key_id(new.spki)).hex())
    one, two = (file_of(desk, f"n{k}", world.attest(2 * KWH + k, 9, 100_000)[0]) for k in (0, 1))
    desk("stranger", "owner prove-fraud", 1, one, one, fails="do not contradict")
    desk("stranger", "owner prove-fraud", 1, one, two)
    passed(desk, "m1", "dao status", 1, "active", "its clock was reset, by mistake")
    closing = file_of(desk, "closing", world.attest(3 * KWH, 9, 200_000)[0])
    assert desk("ana", "owner rotate-key", *arguments)["device"] == key_id(new.spki).hex()
    line = world.ends.line_id.hex()
    desk("ana", "owner next-key", line, "roof", fails="miner or node")
    assert "show-closing" in desk("ana", "owner next-key", line, "miner")["next"]
    carried = desk("bo", "owner show-closing", line, "miner", "--reading", closing)["carried_mws"]
    assert carried == str(3 * KWH)
    prove(lost)
    desk("m1", "dao replace-key", 1, fails="asked for no other key")
    desk("ana", "owner request-key", *arguments)
    passed(desk, "m1", "dao replace-key", 1)
    assert world.ask(world.deployment.registry.functions.tokenOf(key_id(lost.spki))) == 1
    proof.write_text("[]")
    desk("ana", "owner apply", "--system", system, "--proof", proof, fails="not what 'maxgreen agent prove' prints")


def test_wallets_are_keystores_that_nobody_overwrites(tmp_path, monkeypatch):
    monkeypatch.setenv("MAXGREEN_WALLETS", str(tmp_path / "wallets"))
    monkeypatch.setenv("MAXGREEN_PASSWORD_FILE", str(tmp_path / "password"))
    (tmp_path / "password").write_text("correct horse\n")
    run = CliRunner()
    made = json.loads(run.invoke(wallet_cli.app, ["new", "ana", "--json"]).output)
    assert Path(made["file"]).stat().st_mode & 0o077 == 0
    assert load_account("ana").address == made["address"]
    secret = bytes(load_account("ana").key).hex()
    key = tmp_path / "hex"
    key.touch(0o600)
    key.write_text("11" * 32)
    said = run.invoke(wallet_cli.app, ["import", "old", str(key)]).output
    said += run.invoke(wallet_cli.app, ["list"]).output + run.invoke(wallet_cli.app, ["show", "ana"]).output
    said += Path(made["file"]).read_text()
    assert secret not in said.lower()
    assert "11" * 32 not in said
    assert load_account(str(key)).address == load_account("old").address
    for call, what in (
        (lambda: make_wallet("ana", "correct horse"), "never overwritten"),
        (lambda: make_wallet("../ana", "correct horse"), "letters"),
        (lambda: make_wallet("b", "short"), "8 characters"),
    ):
        with pytest.raises(UsageError, match=what):
            call()
    (tmp_path / "password").write_text("wrong password")
    with pytest.raises(Fatal, match="wrong password"):
        load_account("ana")
    with pytest.raises(Fatal, match="wallets: ana, old"):
        load_account("nobody")
    (tmp_path / "wallets/broken.json").write_text("{")
    with pytest.raises(Fatal, match="not a keystore"):
        load_account("broken")
    (tmp_path / "large").write_bytes(bytes(70_000))
    with pytest.raises(Fatal, match="too large"):
        load_account(str(tmp_path / "large"))
    monkeypatch.delenv("MAXGREEN_PASSWORD_FILE")
    with pytest.raises(Fatal, match="MAXGREEN_PASSWORD_FILE"):
        load_account("ana")


@pytest.mark.parametrize("kind", ["miner", "storage_node"])
def test_the_sample_is_a_system(kind):
    text = CliRunner().invoke(owner_cli.app, ["sample", "--kind", kind]).output
    assert parse_system(text).kind.label == kind


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind = 1", "kind"),
        ('kind = "miner"', "channels"),
        ('kind = "miner"\nwatts = 3\nchannels = [{number=1, role="sent", peak_w=1}]', "watts"),
        ('kind = "miner"\nchannels = [{number=1, role="sent", peak_w=0}]', "peak_w"),
        ('kind = "miner"\nchannels = [{number=1, role="up", peak_w=1}]', "role"),
        ('kind = "miner"\nchannels = [{number=true, role="sent", peak_w=1}]', "number"),
        ('kind = "miner"\nchannels = [{number=1, role="sent", peak_w=1, x=1}]', "x"),
        ('kind = "miner"\nchannels = [{number=1, role="sent", peak_w=1}, {number=1, role="sent", peak_w=1}]', "twice"),
        ('kind = "miner"\nplace = [91, 0]\nchannels = [{number=1, role="sent", peak_w=1}]', "place"),
        ('kind = "miner"\nuri = 3\nchannels = [{number=1, role="sent", peak_w=1}]', "uri"),
        ('kind = "miner"\nonline_required = 3\nchannels = [{number=1, role="sent", peak_w=1}]', "online_required"),
        ('kind = "miner"\nefficiency_percent = nan\nchannels = [{number=1, role="sent", peak_w=1}]', "efficiency"),
        ("kind = ", "system file"),
    ],
)
def test_a_system_file_that_is_none_is_said(text, says):
    with pytest.raises(UsageError, match=says):
        parse_system(text)


def test_digests_differ_in_every_field():
    channel = ChannelSpec(1, 1, 100, 5, 6)
    specs = [
        SystemSpec(kind, (c,), place, efficiency, battery, online, uri)
        for kind, c, place, efficiency, battery, online, uri in (
            (Kind.MINER, channel, None, 1, 2, False, ""),
            (Kind.STORAGE_NODE, channel, None, 1, 2, False, ""),
            (Kind.MINER, ChannelSpec(2, 1, 100, 5, 6), None, 1, 2, False, ""),
            (Kind.MINER, channel, (0, 0), 1, 2, False, ""),
            (Kind.MINER, channel, (0, -1), 1, 2, False, ""),
            (Kind.MINER, channel, None, 2, 2, False, ""),
            (Kind.MINER, channel, None, 1, 3, False, ""),
            (Kind.MINER, channel, None, 1, 2, True, ""),
            (Kind.MINER, channel, None, 1, 2, False, "x"),
        )
    ]
    assert len({spec.digest for spec in specs}) == len(specs)


def test_amounts_are_exact():
    assert wei("1.000000000000000001") == 10**18 + 1
    assert (tokens(10**17), tokens(0), kwh(KWH)) == ("0.1", "0", "1 kWh")
    for text in ("0", "-1", "nan", "inf", "1e40", ""):
        with pytest.raises(UsageError):
            wei(text)
