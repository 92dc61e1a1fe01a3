"""The ledger's tables. Numbers that may pass 2^63 are decimal text."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)


class Bytes(LargeBinary):
    """Bytes, which the drivers of both databases take and give as they are."""

    def bind_processor(self, _dialect: Dialect) -> None:
        """Hand them over without a copy."""

    def result_processor(self, _dialect: Dialect, _coltype: object) -> None:
        """Take them without a copy."""


metadata: Final = MetaData()
REVISION: Final = "revision"  # counters: the newest change of a verdict
RULES: Final = "rules"  # counters: the newest change of limits or decisions
SQUARE_UNIT: Final = 10**18
_Id = BigInteger().with_variant(Integer, "sqlite")

devices: Final = Table(
    "devices",
    metadata,
    Column("device", Bytes, primary_key=True),
    Column("token", _Id, nullable=False),
    Column("owner", String(42), nullable=False),
    Column("system", Text, nullable=False),  # the registry's record, JSON
    Index("devices_by_token", "token"),
)

chains: Final = Table(
    "chains",
    metadata,
    Column("device", Bytes, primary_key=True),
    Column("version", _Id, nullable=False),  # rises with every write: who read another one does not write
    Column("next_seq", _Id, nullable=False),
    Column("state", Bytes, nullable=False),  # ChainState.to_bytes
    Column("waiting", Integer, nullable=False),  # batches that are kept ahead of the chain
    Column("waiting_bytes", _Id, nullable=False),
    Column("due", Integer, nullable=False),  # ledger.desk.Due: what it waits for that nobody sends
    Column("credited", Bytes, nullable=False),  # hashes by proof window, CBOR: what the difficulty follows
    Column("rejection", Bytes),  # what the DAO said no to, as receipts tell the device (protocol.backend.Rejection)
    Index("chains_due", "device", sqlite_where=text("due > 0"), postgresql_where=text("due > 0")),
)

batches: Final = Table(
    "batches",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("device", Bytes, nullable=False),
    Column("seq", _Id, nullable=False),
    Column("digest", Bytes, nullable=False),
    Column("message", Bytes, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("in_chain", Boolean, nullable=False),  # it took its place; else it waits ahead of the chain
    Column("verdict", String(16), nullable=False),
    Column("reason", Integer, nullable=False),
    Column("remark", Integer, nullable=False),
    Column("t0_ms", BigInteger),  # dated; empty without a date
    Column("shares", Integer, nullable=False),
    Column("hashes", String(80), nullable=False),
    Column("skipped_to", Boolean, nullable=False),
    Column("state_before", Bytes),  # ChainState of its place, while it may be judged again
    Column("revision", _Id, nullable=False),  # rises with every change of a verdict
    UniqueConstraint("device", "seq"),
    Index("batches_by_revision", "revision"),
    Index("batches_by_time", "device", "t0_ms"),
    Index("batches_waiting", "device", "seq", sqlite_where=text("NOT in_chain"), postgresql_where=text("NOT in_chain")),
)

# what batches add up to by proof window (verify.sums); `revision` is the newest that changed it
windows: Final = Table(
    "windows",
    metadata,
    Column("device", Bytes, primary_key=True),
    Column("window_s", BigInteger, primary_key=True),
    Column("accepted", Integer, nullable=False),
    Column("rejected", Integer, nullable=False),
    Column("suspended", Integer, nullable=False),
    Column("shares", BigInteger, nullable=False),
    Column("hashes", BigInteger, nullable=False),
    Column("interval_ms", Integer, nullable=False),
    Column("breaks", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

sums: Final = Table(
    "sums",
    metadata,
    Column("device", Bytes, primary_key=True),
    Column("window_s", BigInteger, primary_key=True),
    Column("channel", Integer, primary_key=True),
    Column("energy_mws", BigInteger, nullable=False),
    Column("reverse_mws", BigInteger, nullable=False),
    Column("square_high", BigInteger, nullable=False),  # Q is over 2^63: square_high · SQUARE_UNIT + square_low
    Column("square_low", BigInteger, nullable=False),
    Column("counted_ms", BigInteger, nullable=False),
    Column("unmetered_ms", BigInteger, nullable=False),
    Column("longest_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

verdicts: Final = Table(
    "verdicts",
    metadata,
    Column("verdict", String(16), primary_key=True),
    Column("reason", Integer, primary_key=True),
    Column("count", _Id, nullable=False),
)

evidence: Final = Table(
    "evidence",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("reason", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("device", Bytes, nullable=False),  # whose key signed it; empty where none is known
    Column("number", _Id, nullable=False),  # of the messages kept for this device
    Column("bytes", _Id, nullable=False),  # of all of them so far, this one included
    Column("seq", String(20)),
    Column("digest", Bytes, nullable=False),
    Column("message", Bytes, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    UniqueConstraint("device", "number"),
    UniqueConstraint("digest", "device"),  # a message that names nobody hides no proof against a device
    Index("evidence_by_bytes", "device", "bytes"),
)

beacons: Final = Table(
    "beacons",
    metadata,
    Column("number", _Id, primary_key=True),
    Column("issued_s", BigInteger, nullable=False),
    Column("message", Bytes, nullable=False),
)

receipts: Final = Table(
    "receipts",
    metadata,
    Column("device", Bytes, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("server_ms", BigInteger, nullable=False),
    Column("message", Bytes, nullable=False),
)

commands: Final = Table(
    "commands",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("device", Bytes, nullable=False),
    Column("number", _Id, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("message", Bytes, nullable=False),
    Column("sent_ms", BigInteger),  # when it was last handed to the broker
    Column("obeyed", Boolean),  # what the device says of it; empty while it says nothing (P-CMD-2)
    Column("refusal", Integer),  # protocol.reasons.Refusal
    Column("told_ms", BigInteger),  # when the batch came that says so
    UniqueConstraint("device", "number"),
)

decisions: Final = Table(
    "decisions",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("device", Bytes, nullable=False),
    Column("from_seq", _Id, nullable=False),
    Column("to_seq", _Id, nullable=False),
    Column("action", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
)

limits: Final = Table(
    "limits",
    metadata,
    Column("from_ms", BigInteger, primary_key=True),
    Column("value", Text, nullable=False),
)

counters: Final = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", _Id, nullable=False),
)

leases: Final = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("renewals", _Id, nullable=False),
)

aside: Final = Table(
    "aside",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("device", Bytes, nullable=False),  # of a batch; empty for a row of evidence
    Column("number", _Id, nullable=False),  # its seq, or that row
    Column("text", Text, nullable=False),
    UniqueConstraint("device", "number"),
)

positions: Final = Table(
    "positions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", _Id, nullable=False),
)

# what the evidence store keeps of each chain; `state` is the chain's after it
segments: Final = Table(
    "segments",
    metadata,
    Column("device", Bytes, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("first_seq", BigInteger, nullable=False),
    Column("next_seq", BigInteger, nullable=False),
    Column("digest", Bytes, nullable=False),
    Column("first_ms", BigInteger),  # t0 of the batches that are known to be of it; empty without any
    Column("last_ms", BigInteger),
    Column("state", Bytes, nullable=False),
)

# what settlement derived of a line for a day: nothing is lost when it is not there
line_days: Final = Table(
    "line_days",
    metadata,
    Column("line", Bytes, primary_key=True),
    Column("day", Integer, primary_key=True),  # since the epoch
    Column("inputs", Bytes, nullable=False),  # SHA-256 of what it follows from
    Column("value", Bytes, nullable=False),
    Index("line_days_by_day", "day"),
)

# what the last close of a line noted for the next one, beside the evidence that it made: nothing is lost without it
line_notes: Final = Table(
    "line_notes",
    metadata,
    Column("line", Bytes, primary_key=True),
    Column("manifest", Bytes, nullable=False),  # SHA-256
    Column("value", Bytes, nullable=False),
)

periods: Final = Table(
    "periods",
    metadata,
    Column("until_s", BigInteger, primary_key=True),
    Column("period", String(10), nullable=False),
    Column("run", Bytes, nullable=False),  # SHA-256 of run.json
    Column("document", Text, nullable=False),  # run.json
    Column("claims", Text, nullable=False),  # with their proofs, as order.json has them
    Column("closed_ms", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),  # of the newest verdict at the close
)

# Closed periods that a revision took the place of: what was rejected or withdrawn stays evidence.
replaced_periods: Final = Table(
    "replaced_periods",
    metadata,
    Column("run", Bytes, primary_key=True),
    Column("until_s", BigInteger, nullable=False),
    Column("period", String(10), nullable=False),
    Column("document", Text, nullable=False),
    Column("closed_ms", BigInteger, nullable=False),
    Column("replaced_ms", BigInteger, nullable=False),
)
