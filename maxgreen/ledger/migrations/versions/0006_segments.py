"""Segments of chains, and closed periods line by line: what was closed in one pack for all lines is closed again."""

import sqlalchemy as sa
from alembic import op

revision = "0006_segments"
down_revision = "0005_replaced"
_PERIODS = ("periods", "replaced_periods")


def upgrade() -> None:
    for name in _PERIODS:
        op.drop_table(name)
    op.create_table(
        "segments",
        sa.Column("device", sa.LargeBinary, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("next_seq", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("first_ms", sa.BigInteger),
        sa.Column("last_ms", sa.BigInteger),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "periods",
        sa.Column("until_s", sa.BigInteger, primary_key=True),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("run", sa.LargeBinary, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("claims", sa.Text, nullable=False),
        sa.Column("closed_ms", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "replaced_periods",
        sa.Column("run", sa.LargeBinary, primary_key=True),
        sa.Column("until_s", sa.BigInteger, nullable=False),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("closed_ms", sa.BigInteger, nullable=False),
        sa.Column("replaced_ms", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for name in ("segments", *_PERIODS):
        op.drop_table(name)
    op.create_table(
        "periods",
        sa.Column("until_s", sa.BigInteger, primary_key=True),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("statement", sa.Text, nullable=False),
        sa.Column("pack", sa.LargeBinary, nullable=False),
        sa.Column("closed_ms", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "replaced_periods",
        sa.Column("manifest", sa.LargeBinary, primary_key=True),
        sa.Column("until_s", sa.BigInteger, nullable=False),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("pack", sa.LargeBinary, nullable=False),
        sa.Column("closed_ms", sa.BigInteger, nullable=False),
        sa.Column("replaced_ms", sa.BigInteger, nullable=False),
    )
