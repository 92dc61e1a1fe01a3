"""Reading and writing the ledger; a Book lives within one transaction of its caller."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from maxgreen.ledger.schema import (
    batches,
    beacons,
    commands,
    decisions,
    devices,
    evidence,
    limits,
    periods,
    positions,
    receipts,
)
from maxgreen.protocol.backend import Beacon, Command, decode_beacon
from maxgreen.protocol.cose import parse
from maxgreen.protocol.reasons import Reason, Rejected, Verdict
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action, Decision, DeviceRecord, Limits, Rules
from maxgreen.verify.verdict import Judgement

# what is asked of the ledger for every batch, made once
_AT_SEQ: Final = (batches.c.device == bindparam("at_device"), batches.c.seq == bindparam("at_seq"))
_BATCH_AT: Final = select(batches).where(*_AT_SEQ)
_DIGEST_AT: Final = select(batches.c.digest).where(*_AT_SEQ)
_ADD_BATCH: Final = insert(batches)
_PUT_CHAIN: Final = update(devices).where(devices.c.device == bindparam("at_device")).values(chain=bindparam("chain"))


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A registered device with its chain state."""

    record: DeviceRecord
    token: int
    owner: str
    system: Mapping[str, Any]
    chain: ChainState | None
    receipt: bytes | None


class Book:
    """The ledger within one transaction; what it read of a device, it knows until the end of it."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection
        self._known: dict[bytes, KnownDevice] = {}
        self._revision: int | None = None

    # devices

    def device(self, device: bytes) -> KnownDevice | None:
        """Return a device, or None when the registry does not have it."""
        if device not in self._known:
            row = self._db.execute(select(devices).where(devices.c.device == device)).first()
            if row is None:
                return None
            self._known[device] = _known(row)
        return self._known[device]

    def all_devices(self) -> list[KnownDevice]:
        """Return every device, by token."""
        return [_known(row) for row in self._db.execute(select(devices).order_by(devices.c.token))]

    def put_device(self, record: DeviceRecord, token: int, owner: str, system: Mapping[str, Any]) -> None:
        """Mirror a registry entry."""
        self._known.pop(record.device, None)
        text = json.dumps({**system, "spki": record.spki.hex(), "statuses": [list(s) for s in record.statuses]})
        values = {"token": token, "owner": owner, "system": text}
        changed = self._db.execute(update(devices).where(devices.c.device == record.device).values(values))
        if not changed.rowcount:
            self._db.execute(insert(devices).values(device=record.device, reported=0, **values))

    def put_chain(self, device: bytes, state: ChainState) -> None:
        """Keep a device's chain state."""
        self._db.execute(_PUT_CHAIN, {"at_device": device, "chain": json.dumps(state.to_json())})
        if device in self._known:
            self._known[device] = replace(self._known[device], chain=state)

    # batches

    def digest_at(self, device: bytes, seq: int) -> bytes | None:
        """Return the SHA-256 of the message that holds a seq, in the chain or ahead of it."""
        digest = self._db.execute(_DIGEST_AT, {"at_device": device, "at_seq": seq}).scalar()
        return None if digest is None else bytes(digest)

    def add_batch(
        self,
        device: bytes,
        message: bytes,
        seq: int,
        received_ms: int,
        judgement: Judgement | None,
        state_before: ChainState | None = None,
    ) -> None:
        """Keep a batch: with its judgement in the chain, or without one ahead of it."""
        values = {
            "device": device,
            "seq": seq,
            "digest": hashlib.sha256(message).digest(),
            "message": message,
            "received_ms": received_ms,
            **_judged(judgement),
            "state_before": json.dumps(state_before.to_json()) if state_before else None,
            "revision": self._next_revision(),
        }
        self._db.execute(_ADD_BATCH, values)

    def judge_batch(self, device: bytes, judgement: Judgement, state_before: ChainState | None = None) -> None:
        """Change the verdict on a batch that was kept before."""
        self._db.execute(
            update(batches)
            .where(batches.c.device == device, batches.c.seq == judgement.seq)
            .values(
                **_judged(judgement),
                state_before=json.dumps(state_before.to_json()) if state_before else None,
                revision=self._next_revision(),
            )
        )

    def batch(self, device: bytes, seq: int) -> Any:
        """Return the row of a batch, or None."""
        return self._db.execute(_BATCH_AT, {"at_device": device, "at_seq": seq}).first()

    def chain_of(self, device: bytes, *, from_seq: int = 0) -> Iterator[Any]:
        """Yield the rows of a device's chain, ascending seq."""
        query = select(batches).where(batches.c.device == device, batches.c.in_chain, batches.c.seq >= from_seq)
        yield from self._db.execute(query.order_by(batches.c.seq))

    def recent_batches(self, device: bytes, limit: int) -> list[Any]:
        """Return a device's newest batches, newest first."""
        query = select(batches).where(batches.c.device == device).order_by(batches.c.seq.desc()).limit(limit)
        return list(self._db.execute(query))

    def changed_since(self, revision: int, limit: int) -> list[Any]:
        """Return batches whose verdict changed after `revision`, in that order."""
        query = select(batches).where(batches.c.revision > revision).order_by(batches.c.revision).limit(limit)
        return list(self._db.execute(query))

    def held_beyond(self, device: bytes, next_seq: int, limit: int) -> list[int]:
        """Return seqs that wait ahead of the chain."""
        query = select(batches.c.seq).where(
            batches.c.device == device, batches.c.in_chain.is_(False), batches.c.seq >= next_seq
        )
        return [int(seq) for seq in self._db.execute(query.order_by(batches.c.seq).limit(limit)).scalars()]

    def hashes_since(self, device: bytes, t_ms: int) -> int:
        """Return the hashes credited to a device's batches from `t_ms` on."""
        query = select(batches.c.hashes).where(batches.c.device == device, batches.c.t0_ms >= t_ms)
        return sum(int(hashes) for hashes in self._db.execute(query).scalars())

    def verdict_counts(self) -> dict[tuple[str, int], int]:
        """Return how many batches have each (verdict, reason)."""
        query = select(batches.c.verdict, batches.c.reason, func.count()).group_by(batches.c.verdict, batches.c.reason)
        counts = {(str(verdict), int(reason)): int(count) for verdict, reason, count in self._db.execute(query)}
        for reason, count in self._db.execute(select(evidence.c.reason, func.count()).group_by(evidence.c.reason)):
            key = (Verdict.REJECTED.value, int(reason))
            counts[key] = counts.get(key, 0) + int(count)
        return counts

    # evidence

    def add_evidence(
        self, error: Rejected, topic: str, message: bytes, received_ms: int, device: bytes | None, seq: int | None
    ) -> None:
        """Keep a message that was rejected before it took a place; the same bytes are kept once."""
        digest = hashlib.sha256(message).digest()
        if self._db.execute(select(evidence.c.id).where(evidence.c.digest == digest)).first():
            return
        self._db.execute(
            insert(evidence).values(
                reason=int(error.reason),
                text=str(error),
                topic=topic,
                device=device,
                seq=None if seq is None else str(seq),
                digest=digest,
                message=message,
                received_ms=received_ms,
            )
        )

    def all_evidence(self, limit: int = 100) -> list[Any]:
        """Return the newest rejected messages."""
        return list(self._db.execute(select(evidence).order_by(evidence.c.id.desc()).limit(limit)))

    def trim_evidence(self, quota: int) -> None:
        """Keep only the newest `quota` messages that name no chain."""
        newest = select(evidence.c.id).where(evidence.c.device.is_(None)).order_by(evidence.c.id.desc()).offset(quota)
        if (row := self._db.execute(newest.limit(1)).first()) is not None:
            self._db.execute(delete(evidence).where(evidence.c.device.is_(None), evidence.c.id <= row[0]))

    # beacons, receipts, decisions, limits

    def add_beacon(self, beacon: Beacon, message: bytes) -> None:
        """Keep a beacon before it is published."""
        self._db.execute(insert(beacons).values(number=beacon.number, issued_s=beacon.issued_s, message=message))

    def newest_beacon(self) -> tuple[Beacon, bytes] | None:
        """Return the newest beacon with its signed message."""
        row = self._db.execute(select(beacons.c.message).order_by(beacons.c.number.desc()).limit(1)).first()
        return (_beacon(row[0]), bytes(row[0])) if row else None

    def all_beacons(self, *, after: int = -1) -> dict[int, bytes]:
        """Return the signed beacons later than a number."""
        query = select(beacons.c.number, beacons.c.message).where(beacons.c.number > after)
        rows = self._db.execute(query.order_by(beacons.c.number))
        return {int(number): bytes(message) for number, message in rows}

    def put_receipt(self, device: bytes, server_ms: int, message: bytes) -> None:
        """Keep a device's newest receipt; the last of each UTC day stays for ever (P-RCT-4)."""
        day = server_ms // 86_400_000
        values = {"server_ms": server_ms, "message": message}
        changed = self._db.execute(
            update(receipts).where(receipts.c.device == device, receipts.c.day == day).values(values)
        )
        if not changed.rowcount:
            self._db.execute(insert(receipts).values(device=device, day=day, **values))
        self._db.execute(update(devices).where(devices.c.device == device).values(receipt=message))
        self._known.pop(device, None)

    def receipts_of(self, device: bytes) -> list[bytes]:
        """Return the last receipt of each UTC day."""
        query = select(receipts.c.message).where(receipts.c.device == device).order_by(receipts.c.server_ms)
        return [bytes(message) for message in self._db.execute(query).scalars()]

    def unreported(self, device: bytes, limit: int) -> list[tuple[int, int]]:
        """Return verdicts (seq, reason) that no receipt told yet, and mark them as told."""
        since = self._db.execute(select(devices.c.reported).where(devices.c.device == device)).scalar() or 0
        query = (
            select(batches.c.seq, batches.c.reason, batches.c.revision)
            .where(batches.c.device == device, batches.c.revision > since, batches.c.in_chain)
            .order_by(batches.c.revision)
            .limit(limit)
        )
        rows = list(self._db.execute(query))
        if rows:
            self._db.execute(update(devices).where(devices.c.device == device).values(reported=rows[-1][2]))
        return [(int(seq), int(reason)) for seq, reason, _ in rows]

    def add_command(self, command: Command, who: str, message: bytes) -> None:
        """Keep a command that is to be sent."""
        values = {"device": command.device, "number": command.number, "expires_ms": command.expires_ms}
        self._db.execute(insert(commands).values(**values, who=who, message=message))

    def newest_command(self, device: bytes) -> int | None:
        """Return the highest number that a device was sent."""
        number: int | None = self._db.scalar(select(func.max(commands.c.number)).where(commands.c.device == device))
        return number

    def commands_to_send(self, now_ms: int, *, after: int) -> list[Any]:
        """Return the commands that have not expired, of the rows after `after`."""
        waiting = (commands.c.id > after, commands.c.expires_ms > now_ms)
        return list(self._db.execute(select(commands).where(*waiting).order_by(commands.c.id)))

    def all_commands(self, limit: int = 100) -> list[Any]:
        """Return the newest commands, newest first."""
        return list(self._db.execute(select(commands).order_by(commands.c.id.desc()).limit(limit)))

    def add_decision(self, decision: Decision) -> None:
        """Record a decision of the operator or the DAO."""
        self._db.execute(insert(decisions).values(**{**asdict(decision), "action": decision.action.value}))

    def rules(self, network: str, known: dict[int, Beacon] | None = None) -> Rules:
        """Return limits, beacons and decisions as the verifier takes them; `known` beacons are not read again."""
        found = {} if known is None else known
        newer = self.all_beacons(after=max(found, default=-1))
        found.update((number, _beacon(message)) for number, message in newer.items())
        return Rules(network, limits=self.limits(), beacons=found, decisions=self.decisions())

    def decisions(self) -> list[Decision]:
        """Return every recorded decision, oldest first."""
        rows = self._db.execute(select(decisions).order_by(decisions.c.at_ms, decisions.c.id)).mappings()
        return [
            Decision(
                bytes(row["device"]),
                row["from_seq"],
                row["to_seq"],
                Action(row["action"]),
                row["reason"],
                row["who"],
                row["at_ms"],
                row["text"],
            )
            for row in rows
        ]

    def limits(self) -> list[tuple[int, Limits]]:
        """Return the limits by time; the protocol's defaults when none were set."""
        rows = self._db.execute(select(limits).order_by(limits.c.from_ms))
        return [(int(from_ms), Limits.from_json(json.loads(value))) for from_ms, value in rows] or [(0, Limits())]

    def set_limits(self, from_ms: int, value: Limits) -> None:
        """Let limits hold from a time on; nothing is written when they hold already."""
        if self.limits()[-1][1] == value and self._db.execute(select(limits.c.from_ms)).first():
            return
        self._db.execute(delete(limits).where(limits.c.from_ms == from_ms))
        self._db.execute(insert(limits).values(from_ms=from_ms, value=json.dumps(asdict(value))))

    # positions

    def position(self, name: str) -> int:
        """Return a reader's position; 0 when it never read."""
        return int(self._db.execute(select(positions.c.value).where(positions.c.name == name)).scalar() or 0)

    def set_position(self, name: str, value: int) -> None:
        """Keep a reader's position."""
        if not self._db.execute(update(positions).where(positions.c.name == name).values(value=value)).rowcount:
            self._db.execute(insert(positions).values(name=name, value=value))

    # periods

    def period(self, until_s: int) -> Any:
        """Return a closed period, or None."""
        return self._db.execute(select(periods).where(periods.c.until_s == until_s)).first()

    def period_before(self, until_s: int) -> Any:
        """Return the last closed period that ends before, or None."""
        query = select(periods).where(periods.c.until_s < until_s).order_by(periods.c.until_s.desc()).limit(1)
        return self._db.execute(query).first()

    def period_after(self, until_s: int) -> Any:
        """Return a closed period that ends later, or None."""
        return self._db.execute(select(periods).where(periods.c.until_s > until_s).limit(1)).first()

    def add_period(
        self, until_s: int, period: str, manifest: bytes, statement: str, pack: bytes, closed_ms: int
    ) -> None:
        """Keep a closed period: its statement and pack never change."""
        self._db.execute(
            insert(periods).values(
                until_s=until_s,
                period=period,
                manifest=manifest,
                statement=statement,
                pack=pack,
                closed_ms=closed_ms,
                revision=self.revision(),
            )
        )

    def revision(self) -> int:
        """Return the newest verdict's revision."""
        return int(self._db.execute(select(func.max(batches.c.revision))).scalar() or 0)

    def earliest_change(self, device: bytes, revision: int) -> int | None:
        """Return the earliest t0 (ms) among verdicts that changed after `revision`."""
        query = select(func.min(batches.c.t0_ms)).where(
            batches.c.device == device, batches.c.revision > revision, batches.c.verdict == Verdict.ACCEPTED.value
        )
        found = self._db.execute(query).scalar()
        return None if found is None else int(found)

    def dated_range(self, device: bytes, from_ms: int, to_ms: int) -> tuple[int, int] | None:
        """Return the first and last seq of accepted batches with from ≤ t0 < to."""
        query = select(func.min(batches.c.seq), func.max(batches.c.seq)).where(
            batches.c.device == device,
            batches.c.verdict == Verdict.ACCEPTED.value,
            batches.c.t0_ms >= from_ms,
            batches.c.t0_ms < to_ms,
        )
        first, last = self._db.execute(query).one()
        return None if first is None else (int(first), int(last))

    def kept_between(self, device: bytes, first: int, last: int) -> list[Any]:
        """Return every kept batch with first ≤ seq ≤ last, in the chain or ahead of it."""
        query = select(batches).where(batches.c.device == device, batches.c.seq >= first, batches.c.seq <= last)
        return list(self._db.execute(query.order_by(batches.c.seq)))

    def _next_revision(self) -> int:
        self._revision = (self.revision() if self._revision is None else self._revision) + 1
        return self._revision


def _judged(judgement: Judgement | None) -> dict[str, Any]:
    if judgement is None:
        return {
            "in_chain": False,
            "verdict": Verdict.HELD.value,
            "reason": int(Reason.GAP_BEFORE),
            "remark": 0,
            "t0_ms": None,
            "shares": 0,
            "hashes": "0",
            "skipped_to": False,
        }
    # a rejected batch may state a time that no database column holds
    t0_ms = judgement.t0_ms if judgement.t0_ms is not None and judgement.t0_ms < 2**63 else None
    return {
        "in_chain": True,
        "verdict": judgement.verdict.value,
        "reason": int(judgement.reason),
        "remark": int(judgement.remark),
        "t0_ms": t0_ms,
        "shares": judgement.shares,
        "hashes": str(judgement.hashes),
        "skipped_to": judgement.skipped_to,
    }


def _known(row: Row[Any]) -> KnownDevice:
    system = json.loads(row.system)
    statuses: Sequence[Sequence[Any]] = system["statuses"]
    record = DeviceRecord(bytes.fromhex(system["spki"]), tuple((int(at), str(status)) for at, status in statuses))
    return KnownDevice(
        record,
        row.token,
        row.owner,
        system,
        ChainState.from_json(json.loads(row.chain)) if row.chain else None,
        bytes(row.receipt) if row.receipt else None,
    )


def _beacon(message: bytes) -> Beacon:
    return decode_beacon(parse(bytes(message)).payload)
