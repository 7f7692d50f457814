"""Make the table of promoted models."""

import sqlalchemy as sa
from alembic import op

from edgewise.drivers.storage.dialects import BIG

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table of promoted models."""
    op.create_table(
        "promotions",
        sa.Column("number", BIG, primary_key=True, autoincrement=True),
        sa.Column("verb", sa.String, nullable=False),
        sa.Column("run", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("played", BIG, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("total", sa.String, nullable=False),
        sa.Column("chain", sa.String, nullable=False),
        sa.Column("layout", sa.String, nullable=False),
        sa.Column("base", sa.String, nullable=False),
        sa.Column("blobs", sa.Text, nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
    )
