"""The tables of a server's database. A change here needs a migration (``migrations/versions``); a test compares
both.
"""

from __future__ import annotations

import sqlalchemy as sa

from edgewise.drivers.storage.dialects import BIG, OptionalBytes, OptionalDocument, OptionalNumber, OptionalText

META = sa.MetaData()
LEASES = sa.Table(  # the server that may write; ``number`` grows with every holder
    "leases",
    META,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("number", BIG, nullable=False),
    sa.Column("until_s", sa.Float, nullable=False),
)
MEMBERS = sa.Table(  # devices, and the people who run the fleet
    "members",
    META,
    sa.Column("id", sa.String, primary_key=True),  # fingerprint of the key
    sa.Column("public", sa.LargeBinary, nullable=False),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("tags", sa.Text, nullable=False),  # JSON list, sorted
    sa.Column("label", sa.String, nullable=False),  # the owner's name for it
    sa.Column("token", sa.String, nullable=False),
    sa.Column("joined_s", sa.Float, nullable=False),
    sa.Column("changed_s", sa.Float, nullable=False),
)
TOKENS = sa.Table(
    "tokens",
    META,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),  # hash of the secret
    sa.Column("role", sa.String, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),  # the number of times that it may be used
    sa.Column("used", sa.Integer, nullable=False),
    sa.Column("approved", sa.Boolean, nullable=False),  # its users need no approval
    sa.Column("expires_s", sa.Float, nullable=False),
    sa.Column("revoked", sa.Boolean, nullable=False),
    sa.Column("made_by", sa.String, nullable=False),
    sa.Column("made_s", sa.Float, nullable=False),
)
SESSIONS = sa.Table(  # login tokens, and sessions of people in a browser
    "sessions",
    META,
    sa.Column("digest", sa.LargeBinary, primary_key=True),  # hash of the secret
    sa.Column("member", sa.String, nullable=False),
    sa.Column("expires_s", sa.Float, nullable=False),
)
AUDIT = sa.Table(  # who changed what; rows are only added
    "audit",
    META,
    sa.Column("number", BIG, primary_key=True, autoincrement=True),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("verb", sa.String, nullable=False),
    sa.Column("what", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),  # over this row and the one before (fleet.audit)
)
NONCES = sa.Table(  # nonces of requests that changed something, while they could be replayed
    "nonces",
    META,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("created_s", BIG, nullable=False, index=True),
)
FORGOTTEN_NONCES = sa.Table(  # one row: the latest time of a nonce that was deleted
    "forgotten_nonces",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("created_s", BIG, nullable=False),
)
COUNTERS = sa.Table(  # the last frame that each device has counted (fleet.counters)
    "counters",
    META,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("number", BIG, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),  # of that frame
)
ROUNDS = sa.Table(  # rounds that accept frames; ``key`` opens the frames received and is deleted with the row
    "rounds",
    META,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
)
MAIL = sa.Table(
    "mail",
    META,
    sa.Column("number", BIG, primary_key=True, autoincrement=True),
    sa.Column("inbound", sa.Boolean, nullable=False),  # the frame comes from a device
    sa.Column("run", sa.String, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("device", sa.String, nullable=False, index=True),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("size", BIG, nullable=False),
    sa.Column("upload", OptionalText, nullable=False),  # the upload that holds the frame; None: ``body`` holds it
    sa.Column("body", sa.LargeBinary, nullable=False),  # sealed under the round's key where inbound
    sa.Column("at_s", sa.Float, nullable=False),
    sa.UniqueConstraint("inbound", "run", "round", "device", "phase"),
    sqlite_autoincrement=True,  # numbers are never given twice, because devices count by them
)
UPLOADS = sa.Table(
    "uploads",
    META,
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
PUBLICATIONS = sa.Table(  # blobs that devices may download
    "publications",
    META,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("size", BIG, nullable=False),
)
SERVED = sa.Table(  # runs that devices of this server take part in
    "served",
    META,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("why", OptionalDocument, nullable=False),  # the error of a run that waits or failed
    sa.Column("rounds", sa.Integer, nullable=False),
    sa.Column("facts", sa.LargeBinary, nullable=False),  # canonical (plan.facts)
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("kept", sa.Text, nullable=False),  # blobs that devices need in all rounds: JSON, digest -> bytes
    sa.Column("made_by", sa.String, nullable=False),
    sa.Column("made_s", sa.Float, nullable=False),
)
PARTICIPANTS = sa.Table(  # devices of a run; only they may see it and download its blobs
    "participants",
    META,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("run", sa.String, primary_key=True),
    sqlite_with_rowid=False,
)
PROMOTIONS = sa.Table(  # promotions and rollbacks of models; rows are only added
    "promotions",
    META,
    sa.Column("number", BIG, primary_key=True, autoincrement=True),
    sa.Column(
        "verb", sa.String, nullable=False
    ),  # promote or rollback; the other columns describe the model that is then promoted
    sa.Column("run", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("played", BIG, nullable=False),  # rounds of the run that led to it
    sa.Column("model", sa.String, nullable=False),  # digest of its parameters
    sa.Column("total", OptionalText, nullable=False),  # digest of the total of the model's round
    sa.Column("chain", sa.String, nullable=False),  # end of the chain that the verification of its run computed
    sa.Column("layout", sa.String, nullable=False),  # digest of the layout of the parameters
    sa.Column("base", sa.String, nullable=False),  # the model that the run began with, as named in its facts
    sa.Column("blobs", sa.Text, nullable=False),  # JSON, digest -> bytes: parameters, layout, files of the base
    sa.Column("by", sa.String, nullable=False),
    sa.Column("at_s", sa.Float, nullable=False),
)
HELPED = sa.Table(  # runs that a gateway helps as second server, each with its round in progress
    "helped",
    META,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("facts", sa.LargeBinary, nullable=False),  # as signed by the server
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("layout", sa.Text, nullable=False),  # JSON
    sa.Column("roster", sa.LargeBinary, nullable=False),  # the devices' keys
    sa.Column("secret", sa.LargeBinary, nullable=False),  # HPKE key, of this run alone
    sa.Column("made_s", sa.Float, nullable=False),
    sa.Column("attempt", BIG, nullable=False),  # grows with every invitation that begins a round
    sa.Column("invite", OptionalBytes, nullable=False),  # frame of the round in progress; None before the first
    sa.Column("opened", OptionalNumber, nullable=False),  # the last round whose batch was opened
    sa.Column(
        "batch", OptionalDocument, nullable=False
    ),  # this round's opened devices as a JSON list; None: not opened
    sa.Column("share", OptionalText, nullable=False),  # digest of the blob that opens it
)
TICKETS = sa.Table(  # tickets that a gateway answered; counted ones stay for ever, so that none counts twice
    "tickets",
    META,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("attempt", BIG, nullable=False),
    sa.Column("id", OptionalBytes, nullable=False),  # id of the report; None: it could not be read
    sa.Column("code", OptionalText, nullable=False),  # code of the refusal; None: it counts
    sa.Column("ticket", OptionalBytes, nullable=False),  # None once the batch is opened, or another round begins
)
