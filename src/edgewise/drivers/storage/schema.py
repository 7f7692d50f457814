"""The tables of a run directory's database."""

from __future__ import annotations

import sqlalchemy as sa

from edgewise.drivers.storage.dialects import OptionalNumber, OptionalText

SCHEMA_VERSION = 8

META = sa.MetaData()
RUNS = sa.Table(
    "runs",
    META,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("instance", sa.String, nullable=False),  # random identity of the run directory
    sa.Column("name", sa.String, nullable=False),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column(
        "next_round", sa.Integer, nullable=False
    ),  # the rounds that the newest checkpoint has; -1 before the first
    sa.Column("unmet", sa.Integer, nullable=False, default=0),
    sa.Column("ledger", sa.String, nullable=False),  # digest of the ledger's last row at the newest checkpoint
    sa.Column("epsilon", sa.Float, nullable=False, default=0.0),  # spent up to the newest checkpoint
    sa.Column("finished", sa.Boolean, nullable=False, default=False),
    sa.Column("journal_key", sa.LargeBinary, nullable=False),  # the next round's key, replaced by its commit
    sa.Column("window", OptionalNumber, nullable=False),  # rounds whose totals are kept (plan.retention); None: all
)
MODELS = sa.Table(
    "models",
    META,
    sa.Column("next_round", sa.Integer, primary_key=True),
    sa.Column("params", sa.String, nullable=False),
    sa.Column("slots", sa.Text, nullable=False),
    sa.Column("memory", OptionalText, nullable=False),  # blob of the codec's memory on the server
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("shadow", OptionalText, nullable=False),  # the devices' model; None: params
    sa.Column("anchor", OptionalText, nullable=False),  # the model that the deltas start from
)
ROUNDS = sa.Table(  # the record of released models (engine.released); rows are only ever added
    "rounds",
    META,
    sa.Column("round", sa.Integer, primary_key=True),  # -1: the model before the first round
    sa.Column("model", sa.String, nullable=False),
    sa.Column("slots", sa.Text, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("charges", sa.Integer, nullable=False),  # the number of ledger rows at that time
    sa.Column("ledger", sa.String, nullable=False),  # the digest of the last of these rows
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("head", sa.Text, nullable=False),
    sa.Column("total", OptionalText, nullable=False),  # blob of the mean (round_record); None: none was released
    sa.Column("beside", sa.Text, nullable=False),
    sa.Column("digest", sa.String, nullable=False),  # over this row and the one before (engine.released.link)
)
DELTAS = sa.Table(  # the ring of the newest checkpoint
    "deltas",
    META,
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("base", sa.String, nullable=False),
)
HELD = sa.Table(  # the round of each device's model, where the deltas of the newest checkpoint still start from it
    "held",
    META,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False, index=True),
)
CONTRIBUTIONS = sa.Table(
    "contributions",
    META,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("last_round", sa.Integer, nullable=False),
    sa.Column("times", sa.Integer, nullable=False),
)
EVENTS = sa.Table(
    "events",
    META,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String, nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)
MEASURES = sa.Table(
    "measures",
    META,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("nll", sa.Float, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
)
CHARGES = sa.Table(  # the privacy ledger; rows are only ever added
    "charges",
    META,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("attempt", sa.String, nullable=False),
    sa.Column("cohort", sa.Integer, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("digest", sa.String, nullable=False),  # over this row and the one before (privacy.ledger.ledger_link)
    sa.UniqueConstraint("round", "attempt"),
)
FENCES = sa.Table(  # one row where servers share a run: the number of the lease that opened it last
    "fences",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
VECTORS = sa.Table(
    "vectors",
    META,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("note", sa.Integer, nullable=False),
)
