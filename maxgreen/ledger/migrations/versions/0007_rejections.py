"""What the DAO said no to, which receipts tell the device."""

import sqlalchemy as sa
from alembic import op

revision = "0007_rejections"
down_revision = "0006_segments"


def upgrade() -> None:
    op.add_column("chains", sa.Column("rejection", sa.LargeBinary))


def downgrade() -> None:
    with op.batch_alter_table("chains") as chains:
        chains.drop_column("rejection")
