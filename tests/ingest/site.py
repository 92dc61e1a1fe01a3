"""A site for the real service: chain, key, clock and settings in a folder; `maxgreen ingest run` as a process."""

import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import paho.mqtt.client as mqtt
from eth_account import Account
from paho.mqtt.enums import CallbackAPIVersion

from maxgreen.chain.client import connect
from maxgreen.chain.deploying import deploy
from maxgreen.chain.deployment import Governance
from maxgreen.chain.embedded import dev_secret
from maxgreen.clock import SystemClock
from maxgreen.keyfile import create_key_file
from maxgreen.ledger.book import Book
from maxgreen.verify.rules import Limits
from simulator.lab import EASY, Lab
from tests.ingest.desks import register
from tests.services import wait_for

MAXGREEN = Path(sys.executable).parent / "maxgreen"


class Site:
    """Devices by secret; their batches are made for this deployment."""

    def __init__(self, folder, url, broker_port, labs, behind=""):
        """`behind`: more lines of the broker's settings."""
        self.folder, self.url, self.broker_port, self.behind = folder, url, broker_port, behind
        accounts = [Account.from_key(dev_secret(k)) for k in range(3)]
        chain = connect(str(folder / "deployed.db"), SystemClock())
        deployment = deploy(chain, accounts[0], accounts[1].address, [accounts[2].address], Governance())
        deployment.addresses.save(folder / "deployment.json")
        self.network = deployment.network
        create_key_file(folder / "backend.pem")
        from maxgreen.ledger.engine import open_engine

        self.engine = open_engine(url)
        register(self.engine, *labs)
        with self.engine.begin() as connection:
            Book(connection).set_limits(0, Limits(pow_nbits_min=EASY, late_s=10**8))

    def service(self, name="ingest", http=0, processes=1, more="", environment=None, before=(), client_id=None):
        """Start a service; a chain's file has one owner, so each has its own copy. `before`: what starts the command."""
        with (
            sqlite3.connect(self.folder / "deployed.db") as deployed,
            sqlite3.connect(self.folder / f"{name}.db") as copy,
        ):
            deployed.backup(copy)
        config = self.folder / f"{name}.toml"
        config.write_text(
            f'ledger = "{self.url}"\nprocesses = {processes}\nkey_file = "{self.folder}/backend.pem"\n'
            + (f'clock_file = "{self.folder}/clock"\n' if (self.folder / "clock").exists() else "")
            + f'[broker]\nport = {self.broker_port}\nclient_id = "{client_id or name}"\n{self.behind}'
            f'[chain]\nrpc = "{self.folder}/{name}.db"\ndeployment = "{self.folder}/deployment.json"\n'
            f"refresh_s = 3600\n[http]\nport = {http}\n{more}"
        )
        return self.service_from(config, name, environment, before)

    def service_from(self, config, name, environment=None, before=()):
        log = (self.folder / f"{name}.log").open("a")
        command = [*before, MAXGREEN, "ingest", "run", "-c", config]
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})

    def log(self, name="ingest"):
        return (self.folder / f"{name}.log").read_text()

    def client(self, name):
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name)
        client.max_queued_messages_set(0)
        client.connect("127.0.0.1", self.broker_port)
        client.loop_start()
        return client

    def subscribed(self, name):
        """Let the broker know a session, so that it queues for it."""
        from maxgreen.protocol.identity import ROOT

        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        done = []
        client.on_subscribe = lambda *_: done.append(1)
        client.connect("127.0.0.1", self.broker_port)
        client.loop_start()
        client.subscribe(f"{ROOT}/+/+/batch", 1)
        wait_for(lambda: done, what="the subscription")
        client.disconnect()
        client.loop_stop()

    def lab(self, secret):
        from maxgreen.protocol.cose import network_digest

        return Lab(secret, head=network_digest(self.network))

    def ready(self, port):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2).read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()
