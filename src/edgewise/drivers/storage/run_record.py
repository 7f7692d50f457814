"""What a run's folder says of its past, read as of one moment, without the lock: also while somebody plays the run.

Nothing is changed. The witness is read before the database, so that an honest one is never ahead of it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.core.foreign import foreign
from edgewise.drivers.storage import charges, witness
from edgewise.drivers.storage import round_record as rounds
from edgewise.drivers.storage.blobs import Blobs
from edgewise.drivers.storage.schema import EVENTS, MODELS, RUNS, SCHEMA_VERSION, VECTORS
from edgewise.drivers.storage.witness import Witness
from edgewise.engine.coordinator import BEST

WAIT_S = 30.0  # for a commit that is under way


@dataclass(frozen=True)
class RunRecord:
    """The rows of a run, as they stand there: nothing of them is checked.

    Attributes:
        out: the folder. run: its row of ``RUNS``, with ``recipe`` and ``facts`` as tables.
        rounds: rows of ``ROUNDS`` in order. models: rows of ``MODELS`` by rounds played. charges: rows of ``CHARGES``
            in order. told: round -> digest of the model as the event of the round's end has it.
        checkpoint: digest of the newest checkpoint. seen: the witness. best: the model with the lowest held-out loss is
            the one after so many rounds; None where none was kept.
    """

    out: Path
    run: Mapping[str, Any]
    rounds: Sequence[Any]
    models: Mapping[int, Any]
    charges: Sequence[Any]
    told: Mapping[int, str]
    checkpoint: str
    seen: Witness
    best: int | None = None

    @property
    def counts(self) -> int:
        """The model that counts is the one after so many rounds (``round.keep``)."""
        return int(self.run["next_round"]) if self.best is None else self.best

    @property
    def blobs(self) -> Blobs:
        """The blobs of the folder."""
        return Blobs(self.out / "blobs")


def read(out: Path) -> RunRecord:
    """The record of the run in a folder.

    Raises StoreError: E-RESUME where there is no run; E-CHECKPOINT where the database cannot be read, is of another
        version of edgewise, or the witness is not there.
    """
    if not (out / "run.db").is_file():
        raise StoreError("E-RESUME", f"there is no run in {out}.", "give the folder that holds run.db.")
    seen = witness.read(out)
    engine = sa.create_engine("sqlite://", creator=lambda: _opened(out / "run.db"), poolclass=sa.NullPool)
    fix = "put a whole copy of the folder in its place."
    with foreign(StoreError, "E-CHECKPOINT", f"{out / 'run.db'} cannot be read", fix), engine.connect() as c:
        found = c.execute(sa.text("SELECT schema_version FROM runs")).scalar_one_or_none()
        if found is None:
            raise StoreError("E-RESUME", f"the run in {out} never began.", "start it again.")
        if found != SCHEMA_VERSION:
            what = f"{out} was written by another version of edgewise."
            raise StoreError("E-CHECKPOINT", what, "read it with the version that wrote it.")
        row = c.execute(sa.select(*(column for column in RUNS.c if column is not RUNS.c.journal_key))).one()._asdict()
        run = {**row, "recipe": json.loads(row["recipe"]), "facts": json.loads(row["facts"])}
        ends = c.execute(sa.select(EVENTS.c.body).where(EVENTS.c.kind == "round_finished"))
        return RunRecord(
            out=out,
            run=run,
            rounds=c.execute(rounds.ROWS).all(),
            models={model.next_round: model for model in c.execute(sa.select(MODELS))},
            charges=c.execute(charges.ROWS).all(),
            told=dict(_model(end.body) for end in ends),
            checkpoint=rounds.checkpoint(c, run["id"], run["instance"], run["next_round"]),
            seen=seen,
            best=c.execute(sa.select(VECTORS.c.note).where(VECTORS.c.name == BEST)).scalar_one_or_none(),
        )


def _opened(path: Path) -> sqlite3.Connection:
    """A connection that sees one moment of a database and cannot write."""
    place = path.resolve().as_uri()
    still = not path.with_name(f"{path.name}-wal").exists()  # nobody has it open, so it may lie where nobody writes
    c = sqlite3.connect(f"{place}?mode=ro{'&immutable=1' if still else ''}", uri=True, timeout=WAIT_S)
    c.isolation_level = None
    c.execute("BEGIN")
    return c


def _model(body: str) -> tuple[int, str]:
    told = events.from_json(body)
    assert isinstance(told, events.RoundFinished)
    return told.round, told.model
