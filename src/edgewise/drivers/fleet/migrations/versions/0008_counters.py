"""Make the table of frame counters."""

import sqlalchemy as sa
from alembic import op

from edgewise.drivers.storage.dialects import BIG

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the table of frame counters."""
    op.create_table(
        "counters",
        sa.Column("device", sa.String, primary_key=True),
        sa.Column("number", BIG, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
    )
