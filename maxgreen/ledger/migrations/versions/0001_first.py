"""The first ledger."""

from alembic import op

from maxgreen.ledger.schema import REVISION, RULES, counters, metadata

_TABLES = (
    "devices", "chains", "batches", "verdicts", "evidence", "beacons", "receipts", "commands", "decisions", "limits",
    "counters", "leases", "aside", "positions", "periods",
)  # fmt: skip

revision = "0001_ledger"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind(), [metadata.tables[name] for name in _TABLES])
    op.bulk_insert(counters, [{"name": REVISION, "value": 0}, {"name": RULES, "value": 0}])


def downgrade() -> None:
    metadata.drop_all(op.get_bind(), [metadata.tables[name] for name in _TABLES])
