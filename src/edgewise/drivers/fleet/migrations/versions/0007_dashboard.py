"""Make the tables of sessions and of the audit log."""

import sqlalchemy as sa
from alembic import op

from edgewise.drivers.storage.dialects import BIG

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the tables of sessions and of the audit log."""
    op.create_table(
        "sessions",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("member", sa.String, nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", BIG, primary_key=True, autoincrement=True),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("verb", sa.String, nullable=False),
        sa.Column("what", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
    )
