"""The client on a real anvil: behind an RPC that lies, on a quiet chain, with stuck transactions, beside others."""

import json
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from eth_account import Account
from typer.testing import CliRunner

from maxgreen.chain import client, sending
from maxgreen.chain.cli import app
from maxgreen.chain.client import connect
from maxgreen.chain.code import code_findings, verify
from maxgreen.chain.dao import Dao, Proposal, ProposalState
from maxgreen.chain.deploying import check_arguments, deploy
from maxgreen.chain.deployment import FIELDS, Addresses, Deployment, Governance
from maxgreen.chain.doctor import diagnose
from maxgreen.chain.explain import NO_FUNDS, ChainRefusedError
from maxgreen.clock import SystemClock
from maxgreen.errors import Fatal, Retryable, UsageError
from tests.chain.world import ANVIL_SECRETS
from tests.conftest import ROOT, need
from tests.services import free_port, stop, wait_for

pytestmark = pytest.mark.services
ACCOUNTS = [Account.from_key(secret) for secret in ANVIL_SECRETS]
GOVERNANCE = Governance(1, 900, 1)
MEMBERS = [account.address for account in ACCOUNTS[2:5]]


def rpc(url, method, *params):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
    assert "error" not in answer, answer
    return answer["result"]


@pytest.fixture
def own():
    """An anvil of one test; called with more arguments it begins another."""
    processes = []

    def begin(*more):
        port = free_port()
        program = need(ROOT / "contracts/node_modules/.bin/anvil", "anvil is not installed (make services)")
        processes.append(subprocess.Popen([program, "--port", str(port), "--silent", *more]))
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: rpc(url, "eth_chainId"), what="anvil")
        return url

    yield begin
    for process in processes:
        stop(process)


class Liar:
    """An RPC that hands calls on; `hook(call, forward)` may answer itself: a value, or (HTTP status, text)."""

    def __init__(self, target):
        self.hook, self.asked, outer = None, Counter(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked[call["method"]] += 1

                def forward(changed=call):
                    body = json.dumps(changed).encode()
                    request = urllib.request.Request(target, body, {"Content-Type": "application/json"})
                    return json.loads(urllib.request.urlopen(request, timeout=60).read())

                answer = outer.hook(call, forward) if outer.hook else forward()
                status, text = answer if isinstance(answer, tuple) else (200, json.dumps(answer))
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def result(call, value):
    return {"jsonrpc": "2.0", "id": call["id"], "result": value}


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(client, "ANSWER_S", 1.0)


@pytest.fixture
def deployed(own):
    url = own()
    chain = connect(url, SystemClock())
    return url, deploy(chain, ACCOUNTS[0], ACCOUNTS[1].address, MEMBERS, GOVERNANCE)


LIES = {
    "a gateway's page": lambda call, _: (502, "<html>Bad gateway</html>"),
    "a page with status 200": lambda call, _: (200, "<html>please log in</html>"),
    "too many requests": lambda call, _: (429, "slow down"),
    "null": lambda call, _: result(call, None),
    "half an answer": lambda call, _: {"jsonrpc": "2.0", "id": call["id"]},
    "a list": lambda call, _: [1, 2],
    "no hex": lambda call, _: result(call, "0xzz"),
    "a quota": lambda call, _: {
        "jsonrpc": "2.0", "id": call["id"], "error": {"code": -32000, "message": "daily request count exceeded"},
    },
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_answer_is_asked_again_and_then_said(anvil, short, lie):
    liar = Liar(anvil)
    chain = connect(liar.url, SystemClock())
    token = chain.contract("EnergyToken", "0x" + "11" * 20)
    liar.hook = LIES[lie]
    for ask in (
        lambda: chain.chain_id,
        chain.newest_block,
        lambda: chain.call(token.functions.totalSupply()),
        lambda: chain.balance(ACCOUNTS[0].address),
        lambda: chain.all_events(token, 0, 1),
        lambda: chain.transact(ACCOUNTS[0], token.functions.transfer(ACCOUNTS[1].address, 1)),
    ):
        with pytest.raises(Retryable, match="the chain does not answer at 127.0.0.1") as caught:
            ask()
        assert "<html>p" not in str(caught.value) or "cannot be read" in str(caught.value)
    left = [2]

    def for_a_while(call, forward):
        left[0] -= 1
        return LIES[lie](call, forward) if left[0] >= 0 else forward()

    liar.hook = for_a_while
    assert connect(liar.url, SystemClock()).chain_id == 31_337


def test_a_silent_rpc_is_given_up_in_time(anvil, monkeypatch):
    monkeypatch.setattr(client, "ANSWER_S", 2.0)
    monkeypatch.setattr(client, "SILENT_S", 0.5)
    liar = Liar(anvil)
    over = threading.Event()
    liar.hook = lambda call, forward: (200, "") if over.wait(30) else forward()
    begun = time.monotonic()
    with pytest.raises(Retryable, match="nothing within"):
        connect(liar.url, SystemClock()).newest_block()
    assert liar.asked["eth_getBlockByNumber"] <= 5
    over.set()
    assert time.monotonic() - begun < 25


def badge_of(deployment):
    return deployment.chain.contract("DaoBadge", deployment.addresses.badge)


def token_of(deployment):
    return deployment.chain.contract("EnergyToken", deployment.addresses.energy_token)


def approve(deployment, spender, value=1):
    return token_of(deployment).functions.approve(spender.address, value)


def nonce(url, account):
    return int(rpc(url, "eth_getTransactionCount", account.address, "latest"), 16)


def test_a_stuck_transaction_is_replaced_at_its_nonce(deployed, monkeypatch):
    url, deployment = deployed
    monkeypatch.setattr(client, "RECEIPT_TIMEOUT_S", 1.0)
    rpc(url, "evm_setAutomine", False)
    before = nonce(url, ACCOUNTS[5])
    for _ in range(2):  # a second process finds what the first left
        chain = connect(url, SystemClock())
        with pytest.raises(Retryable, match="in no block yet.*run it again"):
            Deployment(chain, deployment.addresses).chain.transact(ACCOUNTS[5], approve(deployment, ACCOUNTS[6]))
    rpc(url, "anvil_setNextBlockBaseFeePerGas", hex(50 * 10**9))
    monkeypatch.setattr(client, "RECEIPT_TIMEOUT_S", 60.0)
    done = []
    other = threading.Thread(
        target=lambda: done.append(connect(url, SystemClock()).transact(ACCOUNTS[5], approve(deployment, ACCOUNTS[4])))
    )
    other.start()

    def mined():
        rpc(url, "evm_mine")
        return done

    wait_for(mined, 60, "the replacement")
    other.join()
    assert nonce(url, ACCOUNTS[5]) == before + 1
    approved = token_of(deployment).functions.allowance
    assert deployment.chain.call(approved(ACCOUNTS[5].address, ACCOUNTS[4].address))
    assert not deployment.chain.call(approved(ACCOUNTS[5].address, ACCOUNTS[6].address))


def test_a_fee_that_is_too_low_for_long_is_raised(deployed, monkeypatch):
    url, deployment = deployed
    monkeypatch.setattr(sending, "RAISE_AFTER_S", 0.3)
    rpc(url, "evm_setAutomine", False)
    liar = Liar(url)
    sent = []

    def hook(call, forward):
        if call["method"] == "eth_sendRawTransaction":
            sent.append(call["params"][0])
        return forward()

    liar.hook = hook
    done = []
    thread = threading.Thread(
        target=lambda: done.append(
            connect(liar.url, SystemClock()).transact(ACCOUNTS[5], approve(deployment, ACCOUNTS[6]))
        )
    )
    thread.start()
    wait_for(lambda: len(set(sent)) >= 3, 60, "raised fees")
    rpc(url, "evm_mine")
    thread.join()
    assert done[0]["status"] == 1


def test_two_runners_share_an_account_and_nothing_is_lost(deployed, tmp_path, monkeypatch):
    url, deployment = deployed
    before, failures = nonce(url, ACCOUNTS[5]), []

    def run(number):
        chain = connect(url, SystemClock())
        chain._sender._locks = tmp_path / str(number % 2)  # as on two machines
        try:
            for value in range(4):
                chain.transact(ACCOUNTS[5], approve(deployment, ACCOUNTS[number], value % 2))
        except Exception as error:
            failures.append(error)

    for folder in ("0", "1"):
        (tmp_path / folder).mkdir()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert nonce(url, ACCOUNTS[5]) == before + 16


def test_a_receipt_that_is_not_ours_is_not_believed(deployed, short):
    url, deployment = deployed
    liar = Liar(url)
    liar.hook = lambda call, forward: (
        result(call, "0x" + "ab" * 32) if call["method"] == "eth_sendRawTransaction" else forward()
    )
    with pytest.raises(Retryable, match="answers another transaction"):
        connect(liar.url, SystemClock()).transact(ACCOUNTS[5], approve(deployment, ACCOUNTS[6]))


def test_an_account_without_money_is_told_so(deployed):
    _, deployment = deployed
    poor = Account.create()
    with pytest.raises(ChainRefusedError, match="has 0 wei, too little for the transaction's gas") as caught:
        deployment.chain.transact(poor, approve(deployment, ACCOUNTS[6]))
    assert caught.value.name == NO_FUNDS


def test_a_quiet_chain_is_waited_for_without_being_asked_all_the_time(own):
    """anvil makes no block without a transaction; the clock is the machine's."""
    url = own()
    liar = Liar(url)
    chain = connect(liar.url, SystemClock())
    deployment = deploy(chain, ACCOUNTS[0], ACCOUNTS[1].address, MEMBERS, Governance(1, 6, 2))
    dao = Dao(deployment, SystemClock())
    time.sleep(2)  # a proposer's votes must be older than its proposal
    badge = badge_of(deployment)
    proposal = Proposal((badge.functions.grant(ACCOUNTS[6].address),), "One more member")
    before = liar.asked.total()
    assert dao.carry_out(proposal, ACCOUNTS[2:5], wait=True) is ProposalState.EXECUTED
    assert chain.call(badge.functions.balanceOf(ACCOUNTS[6].address)) == 1
    assert liar.asked.total() - before < 250


def test_one_member_of_three_passes_nothing_and_two_do(deployed):
    url, deployment = deployed
    chain = deployment.chain

    class Moves:
        def now_ms(self):
            return chain.newest_block().time_s * 1000

        def sleep_until(self, t_ms):
            if t_ms // 1000 > chain.newest_block().time_s:
                rpc(url, "evm_setNextBlockTimestamp", t_ms // 1000)
            rpc(url, "evm_mine")

    Moves().sleep_until(Moves().now_ms() + 3_000)
    dao = Dao(deployment, Moves())
    grant = badge_of(deployment).functions.grant(ACCOUNTS[6].address)
    assert dao.carry_out(Proposal((grant,), "alone"), ACCOUNTS[2:3], wait=True) is ProposalState.DEFEATED
    abstained = Proposal((grant,), "with two who abstain")
    abstained = dao.propose(ACCOUNTS[2], abstained)
    Moves().sleep_until(dao.due_ms(abstained))
    for member in ACCOUNTS[3:5]:
        chain.transact(member, deployment.governor.functions.castVote(dao.id_of(abstained), 2))
    assert dao.carry_out(abstained, ACCOUNTS[2:3], wait=True) is ProposalState.DEFEATED
    assert dao.carry_out(Proposal((grant,), "two"), ACCOUNTS[2:4], wait=True) is ProposalState.EXECUTED


def test_another_chain_and_other_code_are_refused(own, deployed):
    url, deployment = deployed
    verify(deployment.chain, deployment.addresses)
    elsewhere = connect(own("--chain-id", "777"), SystemClock())
    with pytest.raises(Fatal, match="the RPC is of chain 777, the deployment of chain 31337"):
        verify(elsewhere, deployment.addresses)
    fresh = connect(own(), SystemClock())
    assert len(code_findings(fresh, deployment.addresses)) == len(FIELDS)
    code = rpc(url, "eth_getCode", deployment.addresses.timelock, "latest")
    rpc(url, "anvil_setCode", deployment.addresses.timelock, code[:-2] + "00")
    with pytest.raises(Fatal, match="is not that of Timelock"):
        verify(deployment.chain, deployment.addresses)
    rpc(url, "anvil_setCode", deployment.addresses.timelock, code)
    other = deploy(deployment.chain, ACCOUNTS[0], ACCOUNTS[1].address, MEMBERS, GOVERNANCE).addresses
    for field in ("governor", "registry", "settlement"):  # ours, but of another deployment
        mixed = Addresses(**{**vars(deployment.addresses), field: getattr(other, field)})
        assert code_findings(deployment.chain, mixed), field


def test_a_doctor_names_what_is_wrong_and_what_is_odd(deployed):
    url, deployment = deployed
    found = diagnose(deployment)
    assert found.wrong == []
    assert [text.split()[0] for text in found.odd] == ["voting_period_s", "timelock_s"]
    assert found.facts["votes_to_pass"] == 2
    assert found.facts["operators"] == [ACCOUNTS[1].address]
    timelock = deployment.addresses.timelock
    rpc(url, "anvil_impersonateAccount", timelock)
    rpc(url, "anvil_setBalance", timelock, hex(10**18))
    authority = deployment.chain.contract("Authority", deployment.addresses.authority)
    grant = authority.functions.grantRole(2, ACCOUNTS[6].address, 0)._encode_transaction_data()
    rpc(url, "eth_sendTransaction", {"from": timelock, "to": authority.address, "data": grant})
    assert [ACCOUNTS[6].address in text and "settlement" in text for text in diagnose(deployment).wrong] == [True]


def test_a_block_is_final_when_the_chain_says_so(own):
    url = own("--chain-id", "777")
    chain = connect(url, SystemClock())
    for _ in range(3):
        rpc(url, "evm_mine")
    assert not chain.is_final(3)
    rpc(url, "anvil_mine", hex(64))
    assert chain.is_final(3)
    liar = Liar(url)
    liar.hook = lambda call, forward: result(call, None) if "finalized" in call["params"] else forward()
    client.ANSWER_S, before = 0.5, client.ANSWER_S
    try:
        assert connect(liar.url, SystemClock()).is_final(3)
        assert not connect(liar.url, SystemClock()).is_final(4)
    finally:
        client.ANSWER_S = before
    assert connect(own(), SystemClock()).is_final(10**6)  # a chain for trials


def test_bad_arguments_of_a_deployment_are_said_before_anything_is_sent(own):
    url = own("--chain-id", "777")
    chain = connect(url, SystemClock())
    good = (ACCOUNTS[0].address, ACCOUNTS[1].address, MEMBERS, Governance())
    check_arguments(chain, *good)
    poor = Account.create().address
    for wrong, said in (
        ((good[0], "0x12", *good[2:]), "--operator 0x12"),
        ((good[0], "0x" + "0" * 40, *good[2:]), "--operator"),
        ((*good[:2], [], good[3]), "at least one"),
        ((*good[:2], [MEMBERS[0], MEMBERS[0].lower()], good[3]), "twice"),
        ((*good[:2], ["me"], good[3]), "--member me"),
        ((*good[:3], Governance(voting_delay_s=0)), "--voting-delay-s 0"),
        ((*good[:3], Governance(timelock_s=1)), "--timelock-s 1"),
        ((*good[:3], Governance(voting_period_s=10**9)), "--voting-period-s"),
    ):
        with pytest.raises(UsageError, match=said):
            check_arguments(chain, *wrong)
    with pytest.raises(Fatal, match="send it some first"):
        check_arguments(chain, poor, *good[1:])
    with pytest.raises(Fatal, match="no P-256 precompile"):
        check_arguments(connect(own("--hardfork", "cancun"), SystemClock()), *good)
    assert int(rpc(url, "eth_blockNumber"), 16) == 0


def test_a_deployment_that_is_interrupted_anywhere_goes_on(own, tmp_path, short):
    url = own()
    liar = Liar(url)
    journal = tmp_path / "deployment.json.steps"
    interruptions = 0
    left = [0]

    def hook(call, forward):
        if call["method"] == "eth_sendRawTransaction":
            left[0] -= 1
            if left[0] == 0:
                forward()  # taken, and nobody hears of it
            if left[0] <= 0:
                return (502, "gone")
        return (502, "gone") if left[0] <= 0 else forward()

    liar.hook = hook
    while True:
        left[0] = 3
        try:
            chain = connect(liar.url, SystemClock())
            deployment = deploy(chain, ACCOUNTS[0], ACCOUNTS[1].address, MEMBERS, GOVERNANCE, journal=journal)
            break
        except Retryable:
            interruptions += 1
            assert interruptions < 40
    assert interruptions >= 6
    assert not journal.exists()
    liar.hook = None
    found = diagnose(deployment)
    assert found.wrong == []
    assert found.facts["votes_to_pass"] == 2


def test_the_commands_deploy_once_look_and_refuse_another_plan(own, tmp_path):
    url = own()
    key, out = tmp_path / "key", tmp_path / "deployment.json"
    key.write_text(ANVIL_SECRETS[0])
    key.chmod(0o600)
    arguments = ["deploy", "--rpc", url, "--deployer", str(key), "--operator", ACCOUNTS[1].address]
    members = [word for member in MEMBERS for word in ("--member", member)]
    steps = out.with_name("deployment.json.steps")
    steps.write_text(json.dumps({"plan": "another", "steps": {}}))
    run = CliRunner()
    refused = run.invoke(app, [*arguments, *members, "--deployment", str(out)])
    assert isinstance(refused.exception, Fatal)
    assert "move the file away" in str(refused.exception)
    steps.unlink()
    done = run.invoke(app, [*arguments, *members, "--deployment", str(out)])
    assert done.exit_code == 0, done.output
    assert "network eip155:31337:" in done.output
    again = run.invoke(app, [*arguments, *members, "--deployment", str(out)])
    assert isinstance(again.exception, UsageError)
    look = run.invoke(app, ["doctor", "--rpc", url, "--deployment", str(out), "--json"])
    assert look.exit_code == 0
    assert json.loads(look.output)["wrong"] == []
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(out.read_text()), "chain_id": 5}))
    look = run.invoke(app, ["doctor", "--rpc", url, "--deployment", str(other)])
    assert (look.exit_code, "WRONG: the RPC is of chain 31337" in look.output) == (1, True)
