"""A read-only snapshot of a run's database, taken without the lock, also while the run is in progress.

    record = read_run_record(Path("out"))
    record.run["id"], len(record.rounds)

Nothing is changed. The witness is read before the database, so an honest witness is never ahead of it.
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
from edgewise.engine.measured_models import BEST

WAIT_S = 30.0  # the longest wait for a commit in progress


@dataclass(frozen=True)
class RunRecord:
    """The rows of a run as they are stored. Nothing in them is checked.

    Attributes:
        out: the folder.
        run: its row of ``RUNS``, with ``recipe`` and ``facts`` as tables.
        rounds: rows of ``ROUNDS`` in order.
        models: rows of ``MODELS`` by rounds played.
        charges: rows of ``CHARGES`` in order.
        reported_models: round -> digest of the model in the event ``round_finished``.
        checkpoint: digest of the newest checkpoint.
        witness: the file ``witness.json``.
        best: number of rounds after which the model had the lowest held-out loss; None where no such model was kept.
    """

    out: Path
    run: Mapping[str, Any]
    rounds: Sequence[Any]
    models: Mapping[int, Any]
    charges: Sequence[Any]
    reported_models: Mapping[int, str]
    checkpoint: str
    witness: Witness
    best: int | None = None

    @property
    def counts(self) -> int:
        """The number of rounds played of the model to use (``round.keep``)."""
        return int(self.run["next_round"]) if self.best is None else self.best

    @property
    def blobs(self) -> Blobs:
        """The blobs of the folder."""
        return Blobs(self.out / "blobs")


def read_run_record(out: Path) -> RunRecord:
    """Read the record of the run in a folder.

    Raises:
        StoreError: E-RESUME where there is no run. E-CHECKPOINT where the database cannot be read or is of another
            version of edgewise, and where the witness is missing.
    """
    if not (out / "run.db").is_file():
        raise StoreError("E-RESUME", f"there is no run in {out}.", "give the folder that holds run.db.")
    recorded = witness.read_witness(out)
    engine = sa.create_engine("sqlite://", creator=lambda: _opened_snapshot(out / "run.db"), poolclass=sa.NullPool)
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
            reported_models=dict(_round_and_model(end.body) for end in ends),
            checkpoint=rounds.newest_checkpoint_digest(c, run["id"], run["instance"], run["next_round"]),
            witness=recorded,
            best=c.execute(sa.select(VECTORS.c.note).where(VECTORS.c.name == BEST)).scalar_one_or_none(),
        )


def _opened_snapshot(path: Path) -> sqlite3.Connection:
    """Open a database read-only, as of one moment."""
    place = path.resolve().as_uri()
    still = not path.with_name(
        f"{path.name}-wal"
    ).exists()  # without a log nobody has the database open, and its folder may be read-only
    c = sqlite3.connect(f"{place}?mode=ro{'&immutable=1' if still else ''}", uri=True, timeout=WAIT_S)
    c.isolation_level = None
    c.execute("BEGIN")
    return c


def _round_and_model(body: str) -> tuple[int, str]:
    """Return the round and the model that an event names."""
    finished = events.from_json(body)
    assert isinstance(finished, events.RoundFinished)
    return finished.round, finished.model
