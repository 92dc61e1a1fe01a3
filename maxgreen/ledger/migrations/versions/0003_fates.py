"""What became of commands."""

import sqlalchemy as sa
from alembic import op

revision = "0003_fates"
down_revision = "0002_sums"
_COLUMNS = {"sent_ms": sa.BigInteger, "obeyed": sa.Boolean, "refusal": sa.Integer, "told_ms": sa.BigInteger}


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("commands", sa.Column(name, kind))


def downgrade() -> None:
    with op.batch_alter_table("commands") as table:
        for name in _COLUMNS:
            table.drop_column(name)
