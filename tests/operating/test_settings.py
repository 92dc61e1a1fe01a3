"""`config check` and `run` of every backend service say the same of every wrong setting: a sentence, status 78."""

import json

import pytest
from typer.testing import CliRunner

import dapp.cli
import ingest.cli
import settlement.cli
from maxgreen.authority import Authority, make_key
from maxgreen.chain.deployment import FIELDS, Addresses
from maxgreen.errors import Fatal
from maxgreen.keyfile import create_key_file

NOBODY = "0x" + 40 * "0"
APPS = {"ingest": ingest.cli.app, "settle": settlement.cli.app, "dapp": dapp.cli.app}
RUN = {"ingest": ["run"], "settle": ["run", "--period", "2026-01"], "dapp": ["run"]}


class Machine:
    """Settings that are right, of each service, and files for them."""

    def __init__(self, folder):
        self.folder = folder
        Addresses(chain_id=1, **dict.fromkeys(FIELDS.values(), NOBODY)).save(folder / "deployment.json")
        create_key_file(folder / "backend.pem")
        (folder / "operator.key").write_text("11" * 32)
        (folder / "operator.key").chmod(0o600)
        authority = Authority.create(folder / "ca", "test", 5)
        for name in ("ingest", "dapp"):
            (folder / f"{name}.crt").write_text(authority.issue(make_key(folder / f"{name}.key", name), 100).pem)
        common = (
            f'ledger = "sqlite:///{folder}/ledger.db"\nkey_file = "{folder}/backend.pem"\nevidence = "{folder}/e"\n'
        )
        chain = f'rpc = "http://127.0.0.1:1"\ndeployment = "{folder}/deployment.json"\n'
        tls = 'ca = "{0}/ca/ca.crt"\ncertificate = "{0}/{1}.crt"\nkey = "{0}/{1}.key"\n'
        self.good = {
            "ingest": f"{common}[broker]\nport = 1\n{tls.format(folder, 'ingest')}[chain]\n{chain}[http]\nport = 0\n",
            "settle": f'{common}{chain}operator_file = "{folder}/operator.key"\noutput_dir = "{folder}/out"\n',
            "dapp": f'{common}{chain}state_file = "{folder}/dapp.db"\n[http]\nport = 0\n[live]\nenabled = true\n'
            f"{tls.format(folder, 'dapp')}",
        }  # fmt: skip

    def said(self, service, text, *command, status=78):
        config = self.folder / f"{service}.toml"
        config.write_text(text)
        done = CliRunner().invoke(APPS[service], [*command, "--config", str(config)])
        if status:
            assert isinstance(done.exception, Fatal), (done.exception, done.output)  # which is 78 and one sentence
        else:
            assert done.exit_code == 0, done.output
        return f"{done.output}{done.exception or ''}"


WRONG = [
    ("all", "sqlite:///", "mysql://", "expected sqlite:///FILE or postgresql://"),
    ("all", "ledger =", "unknown = 1\nledger =", "unknown"),
    ("all", "deployment.json", "none.json", "No such file"),
    ("all", "/backend.pem", "/ca/ca.crt", "key"),
    ("all", 'evidence = "', 'evidence = "ftp://x', "evidence store"),
    ("ingest", "[broker]\nport = 1\n", "[broker]\nport = 99999\n", "broker.port"),
    ("ingest", "port = 0", "port = 99999", "http.port"),
    ("ingest", "/ca/ca.crt", "/ca/none.crt", "broker.ca"),
    ("ingest", "/ca/ca.crt", "/deployment.json", "no certificate (PEM)"),
    ("ingest", "/ingest.key", "/dapp.key", "do not belong together"),
    ("ingest", "[http]", '[influx]\nurl = "nonsense"\n[http]', "influx.url"),
    ("ingest", "[http]", '[influx]\nurl = "http://h:1"\ntoken_file = "/nowhere"\n[http]', "influx.token_file"),
    ("dapp", "port = 0", "port = 99999", "http.port"),
    ("dapp", "port = 0", 'port = 0\nurl = "power"', "http.url"),
    ("dapp", "/dapp.key", "/ingest.key", "do not belong together"),
    ("settle", "/operator.key", "/nobody.key", "operator_file"),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return Machine(tmp_path_factory.mktemp("machine"))


CASES = [(s, *rest) for service, *rest in WRONG for s in (RUN if service == "all" else [service])]


@pytest.mark.parametrize(("service", "old", "new", "word"), CASES)
def test_a_wrong_setting_is_one_sentence_for_check_and_run_alike(machine, service, old, new, word):
    assert old in machine.good[service]
    text = machine.good[service].replace(old, new)
    assert word in machine.said(service, text, "config", "check")
    assert word in machine.said(service, text, *RUN[service])


@pytest.mark.parametrize("service", RUN)
def test_right_settings_are_right_and_a_broken_deployment_file_is_said_in_words(machine, service):
    assert "ok" in machine.said(service, machine.good[service], "config", "check", status=0)
    path = machine.folder / "deployment.json"
    kept = path.read_text()
    try:
        for text, word in (("{}", "it says nothing of 'chain_id'"), ("[1]", "no JSON object"), ("{", "no JSON object")):
            path.write_text(text)
            assert word in machine.said(service, machine.good[service], "config", "check")
        path.write_text(json.dumps({"chain_id": 1}))
        assert "it says nothing of" in machine.said(service, machine.good[service], *RUN[service])
    finally:
        path.write_text(kept)
