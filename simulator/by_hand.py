"""The demo by hand: in the browser you are the owners and the members of the DAO, and the demo is everything else.

It waits for each of your steps, and lets time pass where only time is left to wait for.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from maxgreen.actions.ballots import Ballots
from maxgreen.chain.dao import ProposalState
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.orders import Ends, OrderStatus, SettlementContract
from maxgreen.errors import Fatal
from maxgreen.protocol.batch import Role
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.system import SystemSpec
from settlement.service import Settled, SettlementService
from simulator.demo import MAX_LOSS_PPM, RESISTANCE_UOHM, Demo, DemoOptions, DemoResult, Progress, token_of
from simulator.site import RECEIVED_CHANNEL, SENT_CHANNEL, Site

_LOOK_S: Final = 0.5
Say = Callable[[str], None]


def run_by_hand(options: DemoOptions, progress: Progress, say: Say, *, serving: Callable[[DemoResult], None]) -> None:
    """Run the demo with somebody at its pages; `say` is told what is to be done next."""
    with ExitStack() as stack:
        ByHand(options, stack, say).run(progress, serving)


class ByHand(Demo):
    """A run in which somebody does what owners and members do."""

    def __init__(self, options: DemoOptions, stack: ExitStack, say: Say) -> None:
        super().__init__(options, stack)
        self._say, self._voters = say, ()

    def _enrol(
        self, deployment: Deployment, keys: dict[str, MemorySigner], site: Site, page: str | None
    ) -> dict[str, int]:
        specs = self._specs()
        for name, spec in specs.items():
            folder = self._folder / name
            (folder / "system.toml").write_text(_system_file(spec))
            (folder / "agent.toml").write_text(_agent_file(site, folder, spec))
        self._say(f"The pages: {page}")
        for name, who in (("miner", "owner of the panel"), ("node", "owner of the storage node")):
            folder = self._folder / name
            self._say(
                f"Sign in as '{who}' and apply, with {folder / 'system.toml'} and what this prints:\n"
                f"  maxgreen agent prove {self._owners[name].address} --system {folder / 'system.toml'} "
                f"--config {folder / 'agent.toml'}"
            )
        self._say("Then, as 'member 1': DAO, propose to admit both, and vote as two of the members.")
        self._wait(deployment, lambda: all(token_of(deployment, key) for key in keys.values()))
        return {name: token_of(deployment, key) for name, key in keys.items()}

    def _approve_line(self, deployment: Deployment, tokens: dict[str, int]) -> Ends:
        contract = SettlementContract(deployment)
        self._say(
            f"As a member: DAO, propose a line from {tokens['miner']}.{SENT_CHANNEL} to "
            f"{tokens['node']}.{RECEIVED_CHANNEL}, resistance {RESISTANCE_UOHM} µΩ, at most {MAX_LOSS_PPM} ppm lost; "
            "vote, queue and carry it out."
        )
        wanted = (tokens["miner"], SENT_CHANNEL, tokens["node"], RECEIVED_CHANNEL)

        def found() -> list[Ends]:
            lines = [contract.line(line).ends for line in contract.line_ids()]
            return [ends for ends in lines if ends.values[:4] == wanted]

        self._wait(deployment, lambda: bool(found()))
        self._say("The sun rises: look at the owner's pages while a day is measured, and the month is closed.")
        return found()[0]

    def _decided(self, settlement: SettlementService, month: str) -> Settled:
        settled = settlement.run(month, wait=False)
        posted = settled.posted
        if posted is None:
            return settled
        deployment, contract = settlement.deployment, SettlementContract(settlement.deployment)
        self._say(
            "The month is closed. Sign in as a member again, for weeks have passed: DAO, order "
            f"{posted.order_id}: look at its lines, audit it, propose to approve it; vote, queue and carry it out."
        )
        self._wait(deployment, lambda: contract.order(posted.order_id).status is not OrderStatus.POSTED)
        if contract.order(posted.order_id).status is not OrderStatus.APPROVED:
            raise Fatal(f"the DAO did not approve order {posted.order_id}: nothing is paid; begin again")
        self._say("Sign in as 'owner of the panel': Home, claim it.")
        lines = settled.closed.lines
        self._wait(
            deployment,
            lambda: all(
                contract.line(bytes.fromhex(line["line"])).paid_mws >= int(line["payable_total_mws"]) for line in lines
            ),
        )
        self._say("It is yours: Tokens shows it, and the statement says why it is that much.")
        ballots = Ballots(deployment, self._clock)
        return replace(settlement.run(month, wait=False), votes=ballots.dao.votes_of(ballots.all()[0].number))

    def _wait(self, deployment: Deployment, done: Callable[[], bool]) -> None:
        """Wait for somebody; where a vote only waits for its end, let that time pass."""
        ballots = Ballots(deployment, self._clock)
        while not done():
            if self._let_pass(ballots):
                deployment.chain.newest_block(fresh=True)
                self._forget()
            time.sleep(_LOOK_S)

    def _let_pass(self, ballots: Ballots) -> bool:
        """Let time pass to what comes next by itself; not beyond the end of a vote that somebody may still decide."""
        waits: list[int] = []
        ends_ms: list[int] = []
        for ballot in ballots.all():
            state = ballots.state(ballot)
            due_ms = ballots.dao.due_of(ballot.number, state)
            decided = max(ballots.dao.votes_of(ballot.number)) > len(self._members) // 2
            if due_ms:
                (ends_ms if state is ProposalState.ACTIVE and not decided else waits).append(due_ms)
        if waits and min(waits) < min(ends_ms, default=math.inf):
            self._clock.sleep_until(min(waits))
            return True
        return False


def _system_file(spec: SystemSpec) -> str:
    """Return what a system is as a file for an application."""
    lines = [f'kind = "{spec.kind.label}"']
    if spec.place_deci is not None:
        lines.append(f"place = {[deci / 10 for deci in spec.place_deci]}")
    if spec.battery_wh:
        lines.append(f"battery_wh = {spec.battery_wh}")
    for channel in spec.channels:
        lines += [
            "[[channels]]", f"number = {channel.number}", f'role = "{Role(channel.role).name.lower()}"',
            f"peak_w = {channel.peak_mw / 1000}", f"error_percent = {channel.error_ppm / 10_000}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _agent_file(site: Site, folder: Path, spec: SystemSpec) -> str:
    """Return the settings of an agent, as far as its key needs them."""
    lines = [
        f'network = "{site.network}"', f'backend_keys = ["{site.backend_spki.hex()}"]', f'state_dir = "{folder}"',
        f'clock_file = "{site.clock_file}"', "[broker]", f"port = {site.port}",
        "[replay]", f'trace = "{site.trace}"',
    ]  # fmt: skip
    for channel in spec.channels:
        lines += [
            "[[channels]]", f"number = {channel.number}", f'role = "{Role(channel.role).name.lower()}"',
            'sensor = "replay"', f'trace_channel = "{site.channel}"',
        ]  # fmt: skip
    return "\n".join(lines) + "\n"
