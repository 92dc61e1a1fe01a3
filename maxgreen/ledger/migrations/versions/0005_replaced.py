"""Closed periods that a revision took the place of."""

import sqlalchemy as sa
from alembic import op

revision = "0005_replaced"
down_revision = "0004_months"


def upgrade() -> None:
    op.create_table(
        "replaced_periods",
        sa.Column("manifest", sa.LargeBinary, primary_key=True),
        sa.Column("until_s", sa.BigInteger, nullable=False),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("pack", sa.LargeBinary, nullable=False),
        sa.Column("closed_ms", sa.BigInteger, nullable=False),
        sa.Column("replaced_ms", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("replaced_periods")
