"""Commands to devices."""

from alembic import op

from maxgreen.ledger.schema import commands

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    commands.create(op.get_bind(), checkfirst=True)  # a new ledger has every table already


def downgrade() -> None:
    commands.drop(op.get_bind())
