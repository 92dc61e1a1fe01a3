"""Sums by proof window. Of batches that are there already `maxgreen ingest check --repair` makes them."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002_sums"
down_revision = "0001_ledger"


def _keys() -> list[Any]:
    return [
        sa.Column("device", sa.LargeBinary, primary_key=True),
        sa.Column("window_s", sa.BigInteger, primary_key=True),
    ]


def upgrade() -> None:
    kinds = {"shares": sa.BigInteger, "hashes": sa.BigInteger, "revision": sa.BigInteger}
    names = ("accepted", "rejected", "suspended", "shares", "hashes", "interval_ms", "breaks", "revision")
    columns = [sa.Column(name, kinds.get(name, sa.Integer), nullable=False) for name in names]
    op.create_table("windows", *_keys(), *columns, sqlite_with_rowid=False)
    registers = ("energy_mws", "reverse_mws", "square_high", "square_low", "counted_ms", "unmetered_ms", "longest_ms")
    columns = [sa.Column(name, sa.BigInteger, nullable=False) for name in registers]
    op.create_table(
        "sums", *_keys(), sa.Column("channel", sa.Integer, primary_key=True), *columns, sqlite_with_rowid=False
    )


def downgrade() -> None:
    op.drop_table("sums")
    op.drop_table("windows")
