"""Make the tables of a gateway."""

import sqlalchemy as sa
from alembic import op

from edgewise.drivers.storage.dialects import BIG

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables of a gateway."""
    op.create_table(
        "helped",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("facts", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("layout", sa.Text, nullable=False),
        sa.Column("roster", sa.LargeBinary, nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("made_s", sa.Float, nullable=False),
        sa.Column("attempt", BIG, nullable=False),
        sa.Column("invite", sa.LargeBinary, nullable=False),
        sa.Column("opened", sa.Integer, nullable=False),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("share", sa.String, nullable=False),
    )
    op.create_table(
        "tickets",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("attempt", BIG, nullable=False),
        sa.Column("id", sa.LargeBinary, nullable=False),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("ticket", sa.LargeBinary, nullable=False),
    )
