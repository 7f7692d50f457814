"""Make the first tables."""

import sqlalchemy as sa
from alembic import op

from edgewise.drivers.storage.dialects import BIG

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "leases",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("until_s", sa.Float, nullable=False),
    )
    op.create_table(
        "members",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("public", sa.LargeBinary, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("token", sa.String, nullable=False),
        sa.Column("joined_s", sa.Float, nullable=False),
        sa.Column("changed_s", sa.Float, nullable=False),
    )
    op.create_index("ix_members_status", "members", ["status"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("uses", sa.Integer, nullable=False),
        sa.Column("used", sa.Integer, nullable=False),
        sa.Column("approved", sa.Boolean, nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
        sa.Column("made_by", sa.String, nullable=False),
        sa.Column("made_s", sa.Float, nullable=False),
    )
    op.create_table(
        "nonces",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("created_s", BIG, nullable=False),
    )
    op.create_index("ix_nonces_created_s", "nonces", ["created_s"])
    op.create_table(
        "rounds",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("key", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "mail",
        sa.Column("number", BIG, primary_key=True, autoincrement=True),
        sa.Column("inbound", sa.Boolean, nullable=False),
        sa.Column("run", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("upload", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.UniqueConstraint("inbound", "run", "round", "device", "phase"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_mail_device", "mail", ["device"])
    op.create_table(
        "uploads",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("run", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("chunk", sa.Integer, nullable=False),
        sa.Column("received", BIG, nullable=False),
        sa.Column("made_s", sa.Float, nullable=False),
        sa.UniqueConstraint("device", "run", "round", "digest"),
    )
    op.create_table(
        "publications",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("size", BIG, nullable=False),
    )
