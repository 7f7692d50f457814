"""Make the table of each run's devices, and fill it from the rosters of the known runs."""

import json
from pathlib import Path

import sqlalchemy as sa
from alembic import op

from edgewise.drivers.http.identity import key_fingerprint

revision = "0004"
down_revision = "0003"
KEY_BYTES = 32  # the size of a device's key in a roster


def upgrade() -> None:
    """Make the table. A run without its roster gets no devices, because nobody needs such a run any more."""
    made = op.create_table(
        "participants",
        sa.Column("device", sa.String, primary_key=True),
        sa.Column("run", sa.String, primary_key=True),
        sqlite_with_rowid=False,
    )
    c = op.get_bind()
    config = op.get_context().config
    assert config is not None
    folder: Path = config.attributes["folder"]  # that of the server
    for run, facts in c.execute(sa.text("SELECT run, facts FROM served")).all():
        roster = folder / "blobs" / str((json.loads(facts).get("instance") or {}).get("roster", ""))
        if roster.is_file():
            raw = roster.read_bytes()
            names = {key_fingerprint(raw[at : at + KEY_BYTES]) for at in range(0, len(raw), KEY_BYTES)}
            op.bulk_insert(made, [{"device": name, "run": run} for name in names])
