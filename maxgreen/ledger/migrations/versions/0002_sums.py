"""Sums by proof window. Of batches that are there already `maxgreen ingest check --repair` makes them."""

from alembic import op

from maxgreen.ledger.schema import metadata

revision = "0002_sums"
down_revision = "0001_ledger"
_TABLES = ("windows", "sums")


def upgrade() -> None:
    metadata.create_all(op.get_bind(), [metadata.tables[name] for name in _TABLES])


def downgrade() -> None:
    metadata.drop_all(op.get_bind(), [metadata.tables[name] for name in _TABLES])
