"""What an operator sees: every device, what is wrong now, a device's chain and verdicts.

No energy is in it: that is its owner's to show.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import func, select

from dapp.world import SOON_S, World
from ingest.commands import command_json
from maxgreen.backend import SILENT_MS
from maxgreen.errors import UsageError
from maxgreen.ledger.registry import KnownDevice
from maxgreen.ledger.schema import aside, batches, beacons, evidence, positions, verdicts
from maxgreen.protocol.batch import channels_of
from maxgreen.protocol.reasons import RELEASABLE, Reason
from maxgreen.verify.chain import ChainState
from settlement.explain import WHY

MOST: Final = 1_000
_BEACON_LATE_S: Final = 600
EXPLANATIONS: Final = {
    Reason.GAP_BEFORE: "waits for an earlier batch that has not arrived yet; the device sends it again by itself",
    Reason.CLOCK_UNSYNCHRONISED: "waits until the device's clock is set and gives it a date",
    Reason.SUSPENDED_DEVICE: "the device is suspended; the DAO can reinstate it",
    Reason.TIME_OVERLAP: "its times overlap an earlier batch; look at the device's clock",
    Reason.FUTURE_TIME: "its times lie in the future; look at the device's clock, then restart it",
    Reason.REGISTER_MISMATCH: "its registers do not follow from its samples",
    Reason.BAD_WORK: "a share misses its target",
    Reason.BAD_ATTESTATION: "a register attestation is wrong; look whether the device's clock went back",
    Reason.BIRTH_MISSING: "it names a channel that the device has not described",
    Reason.CROSSES_WINDOW: "it lies in two proof windows, or is longer than ten minutes; update the agent",
    Reason.WRONG_ROLE: "a channel has another role than the registry gives it; see the agent's settings",
}

_ARGUMENTS: Final = {"sampling_interval": ("interval_ms",)}
COMMANDS: Final = {  # by kind: what a device is told
    "start_transfer": "deliver on channel {channel} for {seconds} s",
    "stop_transfer": "stop delivering on channel {channel}",
    "send_registers": "send its registers now",
    "sampling_interval": "measure every {interval_ms} ms",
}
EFFECTS: Final = {  # of decisions, for those who make them
    "skip": "the chain goes on without these batches, which did not arrive; they never count",
    "release": "these batches count, though a check of theirs failed: name the reasons that it lifts",
    "reject": "these batches never count; nothing takes that back",
    "reinstate": "batches that were held while the device was suspended count again",
    "continue": "the chain goes on from these batches, though it contradicts itself there",
}


def devices(world: World) -> list[dict[str, Any]]:
    """Return every device that counts now, with how it is, by token."""

    def fetch() -> list[dict[str, Any]]:
        with world.book() as book:
            states = book.states()
        now_ms = world.now_ms
        return [_row(now_ms, token, known, states.get(known.record.device)) for token, known in world.systems.items()]

    return world.memory.get("fleet", SOON_S, fetch)


def _row(now_ms: int, token: int, known: KnownDevice, state: ChainState | None) -> dict[str, Any]:
    measured_ms = state.wall_ms if state is not None and state.wall_ms >= 0 else None
    status = str(known.record.statuses[-1][1])
    if status != "active":
        how = "suspended"
    elif state is None:
        how = "never seen"
    elif state.halted:
        how = "halted"
    elif measured_ms is None or now_ms - measured_ms > SILENT_MS:
        how = "silent"
    else:
        how = "well"
    return {
        "device": known.record.device.hex(),
        "token": token,
        "kind": known.system["kind"],
        "owner": known.owner,
        "status": status,
        "how": how,
        "batches": state.next_seq if state is not None else 0,
        "measured_ms": measured_ms,
        "place": _place(known.system),
    }


def _place(system: Mapping[str, Any]) -> list[float] | None:
    deci = system.get("place_deci")
    return [d / 10 for d in deci] if deci else None


def wrong_now(world: World) -> list[dict[str, Any]]:
    """Return what an operator should look at now: each with a word, a sentence, its numbers and where to look."""
    return world.memory.get("wrong", SOON_S, lambda: list(_wrong(world)))


def _wrong(world: World) -> Iterator[dict[str, Any]]:
    rows = devices(world)
    for how, text in (
        ("silent", "{count} of {all} devices have sent nothing for twenty minutes"),
        ("halted", "{count} of {all} devices are halted: their chain contradicts itself; decide, or ask the owner"),
        ("never seen", "{count} of {all} devices are registered and have never sent anything"),
    ):
        count = sum(row["how"] == how for row in rows)
        if count:
            numbers = {"count": count, "all": len(rows)}
            yield {"what": how, "text": text, "numbers": numbers, "where": f"/fleet?how={how}"}
    with world.book() as book:
        newest = book.connection.execute(select(func.max(beacons.c.issued_s))).scalar()
        refused = int(book.connection.execute(select(func.count()).select_from(aside)).scalar() or 0)
    if newest is None or world.now_ms // 1000 - newest > _BEACON_LATE_S:
        minutes = None if newest is None else (world.now_ms // 1000 - newest) // 60
        text = "no beacon was ever issued" if newest is None else "no beacon was issued for {minutes} minutes"
        yield {
            "what": "beacon", "text": f"{text}: is ingest running, and the chain there?",
            "numbers": {"minutes": minutes}, "where": "/fleet",
        }  # fmt: skip
    if refused:
        yield {
            "what": "view", "text": "messages that are not in InfluxDB: {count} (maxgreen ingest aside)",
            "numbers": {"count": refused}, "where": "/fleet",
        }  # fmt: skip


def facts(world: World) -> dict[str, Any]:
    """Return how the parts are: newest beacon and batch (ms), the chain's newest block, how far views are behind."""
    with world.book() as book:
        newest = book.connection.execute(select(func.max(beacons.c.issued_s))).scalar()
        heard = book.connection.execute(select(func.max(batches.c.received_ms))).scalar()
        revision = book.revision()
        behind = {
            row.name: revision - int(row.value)
            for row in book.connection.execute(select(positions).where(positions.c.name != "registry"))
        }
    block = world.memory.get("block", SOON_S, world.deployment.chain.newest_block)
    return {
        "beacon_ms": None if newest is None else int(newest) * 1000,
        "heard_ms": heard,
        "block": block.number,
        "block_ms": block.time_s * 1000,
        "views_behind": behind,
    }


def find(world: World, device: str) -> KnownDevice:
    """Return a device by its id; UsageError when there is none."""
    for known in world.devices:
        if known.record.device.hex() == device.lower():
            return known
    raise UsageError(f"device {device[:40]!r} is not registered")


def batches_of(world: World, device: bytes, before: int | None, limit: int) -> list[dict[str, Any]]:
    """Return a device's newest batches before a seq: verdict, reason, what it means and what releases it."""
    query = select(batches).where(batches.c.device == device)
    if before is not None:
        query = query.where(batches.c.seq < before)
    with world.book() as book:
        rows = book.connection.execute(query.order_by(batches.c.seq.desc()).limit(min(max(1, limit), MOST))).all()
    return [_batch(row) for row in rows]


def in_runs(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return batches, the newest first, with those in a row that are simply accepted as one: `first` is its oldest."""
    rows: list[dict[str, Any]] = []
    for one in found:
        plain = one["verdict"] == "accepted" and not one["remark"] and one["measured_ms"] is not None
        last = rows[-1] if rows else None
        if plain and last is not None and last["plain"] and last["first"] == one["seq"] + 1:
            rows[-1] = {
                **last, "first": one["seq"], "begin_ms": one["measured_ms"],
                "samples": last["samples"] + one["samples"], "shares": last["shares"] + one["shares"],
            }  # fmt: skip
        else:
            rows.append({**one, "plain": plain, "first": one["seq"], "begin_ms": one["measured_ms"]})
    return rows


def _batch(row: Any) -> dict[str, Any]:
    reason = Reason(row.reason)
    channels = channels_of(bytes(row.message)) if row.message else ()  # else it was pruned
    return {
        "seq": row.seq,
        "verdict": row.verdict,
        "reason": reason.label if reason else "",
        "explanation": EXPLANATIONS.get(reason, WHY.get(reason, "")),
        "releasable": reason in RELEASABLE,
        "remark": Reason(row.remark).label if row.remark else "",
        "measured_ms": row.t0_ms,
        "received_ms": row.received_ms,
        "shares": row.shares,
        "samples": sum(channel.count for channel in channels),
        "sha256": bytes(row.digest).hex(),
    }


def commands_of(world: World, device: bytes | None, limit: int) -> list[dict[str, Any]]:
    """Return the newest commands, and what became of them."""
    with world.book() as book:
        rows = book.all_commands(min(max(1, limit), MOST), device=device)
    found = [command_json(row, world.now_ms) for row in rows]
    return [{**one, "text": COMMANDS[one["kind"]], "numbers": _numbers(one)} for one in found]


def _numbers(command: Mapping[str, Any]) -> dict[str, int]:
    names = _ARGUMENTS.get(command["kind"], ("channel", "seconds", "energy_mws"))
    return {name: command["arguments"].get(k, 0) for k, name in enumerate(names)}


def decisions_of(world: World, device: bytes) -> list[dict[str, Any]]:
    """Return the recorded decisions on a device, the newest first."""
    with world.book() as book:
        found = [decision for decision in book.decisions() if decision.device == device]
    return [
        {
            "from_seq": d.from_seq, "to_seq": d.to_seq, "action": d.action.value, "reason": d.reason, "who": d.who,
            "at_ms": d.at_ms, "text": d.text,
        }
        for d in reversed(found)
    ]  # fmt: skip


def rejected(world: World, limit: int) -> list[dict[str, Any]]:
    """Return the newest messages that were refused before they took a place in a chain."""
    with world.book() as book:
        rows = book.all_evidence(min(max(1, limit), MOST))
    return [
        {"reason": Reason(r.reason).label, "text": r.text, "topic": r.topic, "received_ms": r.received_ms} for r in rows
    ]


def counts(world: World) -> dict[str, Any]:
    """Return how many batches have each verdict, and how many messages were refused."""
    with world.book() as book:
        rows = book.connection.execute(select(verdicts).where(verdicts.c.count > 0)).all()
        refused = int(book.connection.execute(select(func.max(evidence.c.id))).scalar() or 0)
    found = [{"verdict": r.verdict, "reason": Reason(r.reason).label, "count": r.count} for r in rows]
    return {"verdicts": sorted(found, key=lambda one: -one["count"]), "refused": refused}
