"""What pages do while the chain refuses, hangs or answers rubbish: owners still see their panels."""

import socket
import threading
from contextlib import contextmanager

import pytest

from maxgreen.chain.client import connect
from maxgreen.chain.deployment import Deployment
from maxgreen.clock import SystemClock
from tests.dapp.conftest import Site
from tests.services import free_port


@contextmanager
def answering(answer):
    """A server that takes every connection, and answers with some bytes; nothing: it hangs."""
    server = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            kept.append(connection)
            if answer:
                connection.recv(65_536)
                connection.sendall(answer)
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()
    for connection in kept:
        connection.close()


RUBBISH = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"


@pytest.mark.parametrize("answer", [None, b"", RUBBISH], ids=["refuses", "hangs", "rubbish"])
def test_an_owner_sees_the_panel_without_the_chain(site, monkeypatch, answer):
    monkeypatch.setattr("maxgreen.chain.client.ANSWER_S", 0.5)
    monkeypatch.setattr("maxgreen.chain.client.SILENT_S", 0.3)
    there = Site(site.story)
    with answering(answer) as port:
        where = free_port() if answer is None else port
        chain = connect(f"http://127.0.0.1:{where}", SystemClock()).trying(60)
        there.world.deployment = Deployment(chain, site.world.deployment.addresses)
        owner, member = there.client("owner"), there.client("member")
        home = owner.get("/home")
        assert home.status_code == 200
        assert "Not everything is shown: the chain does not answer" in home.text
        assert "Solar system 1" in home.text
        day = site.story.packs[0].run.period
        assert owner.get(f"/systems/1?day={day}").status_code == 200
        assert owner.get(f"/systems/1/statements/{day}").status_code == 200
        assert member.get("/systems/1").status_code == 404  # nobody is more than a stranger meanwhile
        assert owner.get("/dao").status_code == 503
        assert there.client().get("/health/ready").status_code == 503
        refused = there.client("owner", "application/json").post("/api/v1/actions/sweep", json={})
        assert refused.json()["detail"].startswith("the chain does not answer")
