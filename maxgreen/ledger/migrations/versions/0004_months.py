"""On PostgreSQL, batches in a partition for each month of arrival; what was there before is the first of them."""

import calendar
import time

from alembic import op

revision = "0004_months"
down_revision = "0003_fates"
_INDEXES = {
    "batches_by_revision": "(revision)",
    "batches_by_time": "(device, t0_ms)",
    "batches_waiting": "(device, seq) WHERE NOT in_chain",
}


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    now = time.gmtime()
    year, month = (now.tm_year, now.tm_mon + 1) if now.tm_mon < 12 else (now.tm_year + 1, 1)
    next_month_ms = calendar.timegm((year, month, 1, 0, 0, 0)) * 1000
    statements = [
        "ALTER TABLE batches RENAME TO batches_first",
        "CREATE TABLE batches (LIKE batches_first INCLUDING DEFAULTS) PARTITION BY RANGE (received_ms)",
        "ALTER SEQUENCE batches_id_seq OWNED BY batches.id",
    ]
    for name, columns in _INDEXES.items():
        first = name.replace("batches_", "batches_first_")
        statements += [f"ALTER INDEX {name} RENAME TO {first}", f"CREATE INDEX {name} ON batches {columns}"]
    statements += [
        f"ALTER TABLE batches ATTACH PARTITION batches_first FOR VALUES FROM (MINVALUE) TO ({next_month_ms})",
        "CREATE TABLE batches_other PARTITION OF batches DEFAULT",
        "ALTER TABLE batches_other ADD UNIQUE (device, seq)",
    ]
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    statements = [
        "CREATE TABLE flat (LIKE batches INCLUDING DEFAULTS)",
        "INSERT INTO flat SELECT * FROM batches",
        "ALTER SEQUENCE batches_id_seq OWNED BY flat.id",
        "DROP TABLE batches",
        "ALTER TABLE flat RENAME TO batches",
        "ALTER TABLE batches ADD PRIMARY KEY (id), ADD UNIQUE (device, seq)",
        *(f"CREATE INDEX {name} ON batches {columns}" for name, columns in _INDEXES.items()),
    ]
    for statement in statements:
        op.execute(statement)
