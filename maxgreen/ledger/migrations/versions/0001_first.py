"""The first ledger."""

from alembic import op

from maxgreen.ledger.schema import REVISION, RULES, counters, metadata

revision = "0001_ledger"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
    op.bulk_insert(counters, [{"name": REVISION, "value": 0}, {"name": RULES, "value": 0}])


def downgrade() -> None:
    metadata.drop_all(op.get_bind())
