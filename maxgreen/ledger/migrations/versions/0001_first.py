"""The first ledger. A migration never changes: what the tables are today is `maxgreen.ledger.schema`."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001_ledger"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TABLES = (
    "devices", "chains", "batches", "verdicts", "evidence", "beacons", "receipts", "commands", "decisions", "limits",
    "counters", "leases", "aside", "positions", "periods",
)  # fmt: skip


def _key(name: str, kind: Any = _ID, **options: Any) -> Any:
    return sa.Column(name, kind, primary_key=True, **options)


def _row() -> Any:
    return _key("id", autoincrement=True)


def _big(*names: str, kind: Any = sa.BigInteger, nullable: bool = False) -> list[Any]:
    return [sa.Column(name, kind, nullable=nullable) for name in names]


def _ids(*names: str) -> list[Any]:
    return _big(*names, kind=_ID)


def _small(*names: str) -> list[Any]:
    return _big(*names, kind=sa.Integer)


def _bytes(*names: str, nullable: bool = False) -> list[Any]:
    return _big(*names, kind=sa.LargeBinary, nullable=nullable)


def _texts(*names: str) -> list[Any]:
    return _big(*names, kind=sa.Text)


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    text16, text64 = sa.String(16), sa.String(64)
    op.create_table(
        "devices", _key("device", sa.LargeBinary), *_ids("token"), *_big("owner", kind=sa.String(42)), *_texts("system")
    )
    op.create_table(
        "chains", _key("device", sa.LargeBinary), *_ids("version", "next_seq"), *_bytes("state"), *_small("waiting"),
        *_ids("waiting_bytes"), *_small("due"), *_bytes("credited"),
        sa.Index("chains_due", "device", **_where("due > 0")),
    )  # fmt: skip
    op.create_table(
        "batches", _row(), *_bytes("device"), *_ids("seq"), *_bytes("digest", "message"), *_big("received_ms"),
        *_big("in_chain", kind=sa.Boolean), *_big("verdict", kind=text16), *_small("reason", "remark"),
        *_big("t0_ms", nullable=True), *_small("shares"), *_big("hashes", kind=sa.String(80)),
        *_big("skipped_to", kind=sa.Boolean), *_bytes("state_before", nullable=True), *_ids("revision"),
        sa.UniqueConstraint("device", "seq"), sa.Index("batches_by_revision", "revision"),
        sa.Index("batches_by_time", "device", "t0_ms"),
        sa.Index("batches_waiting", "device", "seq", **_where("NOT in_chain")),
    )  # fmt: skip
    op.create_table("verdicts", _key("verdict", text16), _key("reason", sa.Integer), *_ids("count"))
    op.create_table(
        "evidence", _row(), *_small("reason"), *_texts("text", "topic"), *_bytes("device"), *_ids("number", "bytes"),
        *_big("seq", kind=sa.String(20), nullable=True), *_bytes("digest", "message"), *_big("received_ms"),
        sa.UniqueConstraint("device", "number"), sa.UniqueConstraint("digest", "device"),
        sa.Index("evidence_by_bytes", "device", "bytes"),
    )  # fmt: skip
    op.create_table("beacons", _key("number"), *_big("issued_s"), *_bytes("message"))
    op.create_table(
        "receipts", _key("device", sa.LargeBinary), _key("day", sa.Integer), *_big("server_ms"), *_bytes("message")
    )
    op.create_table(
        "commands", _row(), *_bytes("device"), *_ids("number"), *_big("expires_ms"), *_texts("who"), *_bytes("message"),
        sa.UniqueConstraint("device", "number"),
    )  # fmt: skip
    op.create_table(
        "decisions", _row(), *_bytes("device"), *_ids("from_seq", "to_seq"), *_big("action", kind=text16),
        *_texts("reason", "who"), *_big("at_ms"), *_texts("text"),
    )  # fmt: skip
    op.create_table("limits", _key("from_ms", sa.BigInteger), *_texts("value"))
    counters = op.create_table("counters", _key("name", text64), *_ids("value"))
    op.create_table("leases", _key("name", text64), *_big("holder", kind=text64), *_ids("renewals"))
    op.create_table(
        "aside", _row(), *_bytes("device"), *_ids("number"), *_texts("text"), sa.UniqueConstraint("device", "number")
    )
    op.create_table("positions", _key("name", text64), *_ids("value"))
    op.create_table(
        "periods", _key("until_s", sa.BigInteger), *_big("period", kind=sa.String(10)), *_bytes("manifest"),
        *_texts("statement"), *_bytes("pack"), *_big("closed_ms"), *_ids("revision"),
    )  # fmt: skip
    op.bulk_insert(counters, [{"name": "revision", "value": 0}, {"name": "rules", "value": 0}])


def downgrade() -> None:
    for name in _TABLES:
        op.drop_table(name)
