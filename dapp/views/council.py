"""What the DAO has before it: proposals decoded from their calls, applications, orders, members, modules."""

import re
from collections.abc import Mapping
from typing import Any, Final

from dapp.views import metered, money
from dapp.world import BLOCK_S, World
from maxgreen.actions.ballots import Ballot
from maxgreen.chain.dao import ENDED, ProposalState
from maxgreen.chain.doctor import diagnose
from maxgreen.chain.market import RequestStatus
from maxgreen.chain.registry import application, module_history
from maxgreen.errors import UsageError
from maxgreen.protocol.batch import Role
from maxgreen.said import visible

MODULES: Final = ("agent", "limits", "backend keys", "checks")
LABELS: Final = {  # of what is known of a deployment
    "network": "Network", "voting_delay_s": "A vote begins after", "voting_period_s": "A vote lasts",
    "timelock_s": "What passed waits for", "members": "Members", "votes_to_pass": "Votes that it takes",
    "operators": "Operators", "guardian": "Guardian",
}  # fmt: skip
_ORDERS: Final = 50
_LONGEST_TITLE: Final = 160
_TITLE: Final = re.compile(r"(, attempt \d+)?( #proposer=0x[0-9a-f]{40})?$")  # what the governor wants behind a title


def ballots(world: World, body: str, *, ended: bool = False) -> list[dict[str, Any]]:
    """Return a body's proposals, the newest first; those that are over only when asked for."""
    found = []
    for ballot in _all(world, body):
        row = ballot_row(world, body, ballot)
        if ended or not row["over"]:
            found.append(row)
    return found


def _all(world: World, body: str) -> list[Ballot]:
    return world.memory.get(("ballots", body), BLOCK_S, world.ballots[body].all)


def find(world: World, body: str, digits: str) -> Ballot:
    """Return the proposal whose number begins with these hex digits; UsageError unless there is one."""
    wanted = digits.lower().removeprefix("0x")
    found = [ballot for ballot in _all(world, body) if wanted and f"{ballot.number:064x}".startswith(wanted)]
    if len(found) != 1:
        raise UsageError(f"proposal {digits[:70]!r}: {len(found)} begin with this")
    return found[0]


def ballot_row(world: World, body: str, ballot: Ballot) -> dict[str, Any]:
    """Return where a proposal stands."""

    def fetch() -> dict[str, Any]:
        known = world.ballots[body]
        state = known.state(ballot)
        against, in_favour, abstaining = known.dao.votes_of(ballot.number)
        return {
            "proposal": ballot.short,
            "id": f"{ballot.number:064x}",
            "body": body,
            "state": state.name.lower(),
            "over": state in ENDED,
            "for": in_favour,
            "against": against,
            "abstaining": abstaining,
            "needed": known.dao.needed_of(ballot.number),
            "due_ms": known.dao.due_of(ballot.number, state),
            "description": visible(_TITLE.sub("", ballot.description), _LONGEST_TITLE),
            "proposer": ballot.proposer,
            "next": {
                ProposalState.ACTIVE: "vote", ProposalState.SUCCEEDED: "queue", ProposalState.QUEUED: "execute",
            }.get(state, ""),
        }  # fmt: skip

    key = (body, ballot.number)
    if key not in world.ended:
        row = world.memory.get(("ballot", *key), BLOCK_S, fetch)
        if not row["over"]:
            return row
        world.ended[key] = row
    return world.ended[key]


def ballot_page(world: World, body: str, digits: str, address: str) -> dict[str, Any]:
    """Return a proposal with its calls decoded, and whether an account may vote on it and has."""
    ballot = find(world, body, digits)
    known = world.ballots[body]
    row = ballot_row(world, body, ballot)
    voted, weight = False, 0
    if address:
        voted = known.dao.has_voted(ballot.number, address)
        weight = known.dao.weight_of(ballot.number, address)
    calls = world.memory.get(
        ("calls", body, ballot.number), BLOCK_S, lambda: [c.to_json() for c in known.calls(ballot)]
    )
    orders = sorted({int(c["arguments"]["orderId"]) for c in calls if "orderId" in c["arguments"]})
    return {**row, "calls": calls, "voted": voted, "weight": weight, "orders": orders}


def applications(world: World) -> list[dict[str, Any]]:
    """Return the applications that wait, the newest first."""

    def fetch() -> list[dict[str, Any]]:
        functions: Any = world.deployment.registry.functions
        count = int(world.deployment.chain.call(functions.applications()))
        found = []
        for number in range(count, 0, -1):
            if number in world.admitted:
                continue
            one = application(world.deployment, number)
            if one.token:
                world.admitted.add(number)
                continue
            found.append(
                {
                    "number": number,
                    "applicant": one.applicant,
                    "kind": one.spec.kind.label,
                    "peak_w": max((c.peak_mw for c in one.spec.channels), default=0) / 1000,
                    "channels": [{"number": c.number, "role": c.role, "peak_mw": c.peak_mw} for c in one.spec.channels],
                    "place": one.spec.place_deci and [d / 10 for d in one.spec.place_deci],
                    "battery_wh": one.spec.battery_wh,
                }
            )
        return found

    return world.memory.get("applications", BLOCK_S, fetch)


def voted_on(world: World) -> dict[str, dict[int, str]]:
    """Return the applications and orders that open proposals are about, and by which."""

    def fetch() -> dict[str, dict[int, str]]:
        found: dict[str, dict[int, str]] = {"applications": {}, "orders": {}}
        for row in ballots(world, "technical")[:_ORDERS]:
            for call in ballot_page(world, "technical", row["id"], "")["calls"]:
                for kind, name in (("applications", "applicationId"), ("orders", "orderId")):
                    if name in call["arguments"]:
                        found[kind][int(call["arguments"][name])] = row["id"]
        return found

    return world.memory.get("voted on", BLOCK_S, fetch)


def waiting_orders(world: World) -> list[dict[str, Any]]:
    """Return the orders that wait for the DAO and that no proposal is about."""
    known = voted_on(world)["orders"]
    return [one for one in orders(world) if one["status"] == "posted" and one["order"] not in known]


def wanted_lines(world: World) -> list[dict[str, Any]]:
    """Return the lines that storage nodes accepted and the DAO did not allow yet, with meters that are free."""
    ends = world.ends.values()
    joined = {(one.miner_token, one.node_token) for one in ends}
    taken = {(e.miner_token, e.miner_channel) for e in ends} | {(e.node_token, e.node_channel) for e in ends}

    def meter(system: int, role: Role) -> str:
        known = world.systems.get(system)
        channels = metered.channels_of(known, role) if known is not None else ()
        return next((f"{system}.{number}" for number in channels if (system, number) not in taken), "")

    return [
        {
            "number": r.number, "miner": r.miner, "node": r.node,
            "miner_meter": meter(r.miner, Role.SENT), "node_meter": meter(r.node, Role.RECEIVED),
        }
        for r in money.requests(world)[0]
        if r.status is RequestStatus.ACCEPTED and (r.miner, r.node) not in joined
    ]  # fmt: skip


def orders(world: World) -> list[dict[str, Any]]:
    """Return the orders, the newest first."""
    count = world.memory.get("orders", BLOCK_S, world.contract.order_count)
    return [
        world.memory.get(("order", n), BLOCK_S, lambda n=n: money.order(world, n))  # type: ignore[misc]
        for n in range(count, max(0, count - _ORDERS), -1)
    ]


def order_lines(world: World, order: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of an order's run, the oddest first: how much of what was sent is not counted, or was lost."""
    period = money.period_of(world, order)
    if period is None:
        return []
    found = []
    for line in period["run"]["lines"]:
        sent = int(line["sent_mws"])
        aside = sum(int(mws) for mws in {**line["held"], **line["disputed"]}.values())
        odd = (aside + abs(int(line["loss_mws"]) - int(line["expected_loss_mws"]))) / max(1, sent + aside)
        found.append({**line, "period": period["period"], "aside_mws": str(aside), "odd": round(odd, 4)})
    return sorted(found, key=lambda line: (-line["odd"], line["line"]))


def members(world: World) -> Mapping[str, Any]:
    """Return who may vote, how long a vote takes, and what is wrong or odd with the deployment."""

    def fetch() -> Mapping[str, Any]:
        found = diagnose(world.deployment)
        return {**found.facts, "wrong": found.wrong, "odd": found.odd}

    return world.memory.get("members", 10 * BLOCK_S, fetch)


def modules(world: World) -> dict[str, list[str]]:
    """Return the digests of the versions of each module, oldest first."""

    def fetch() -> dict[str, list[str]]:
        return {name: [digest.hex() for digest in module_history(world.deployment, name)] for name in MODULES}

    return world.memory.get("modules", 10 * BLOCK_S, fetch)
