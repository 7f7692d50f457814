"""Make the table with the time up to which nonces are forgotten."""

import sqlalchemy as sa
from alembic import op

from edgewise.drivers.storage.dialects import BIG

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table with the time up to which nonces are forgotten."""
    op.create_table(
        "forgotten_nonces",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("created_s", BIG, nullable=False),
    )
