"""Line-days, and devices by their system's token: line-days are derived again where they are not there."""

import sqlalchemy as sa
from alembic import op

revision = "0008_line_days"
down_revision = "0007_rejections"


def upgrade() -> None:
    op.create_table(
        "line_days",
        sa.Column("line", sa.LargeBinary, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("inputs", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Index("line_days_by_day", "day"),
    )
    op.create_table(
        "line_notes",
        sa.Column("line", sa.LargeBinary, primary_key=True),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.create_index("devices_by_token", "devices", ["token"])


def downgrade() -> None:
    op.drop_index("devices_by_token", "devices")
    op.drop_table("line_notes")
    op.drop_table("line_days")
