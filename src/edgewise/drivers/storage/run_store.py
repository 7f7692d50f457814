"""The run directory: a SQLite database (SQLAlchemy Core), content-addressed blobs, and the round journal.

    OUT/edgewise.json the marker of a folder that edgewise made (``drivers.storage.folder``)
    OUT/run.db      the tables of ``drivers.storage.schema``; WAL, full sync
    OUT/recipe.toml the resolved recipe
    OUT/blobs/      parameter vectors and optimizer slots (raw float32), released totals (``round_record``), the codec's
                    memory on the server (safetensors), broadcast deltas; named by SHA-256, written before use
    OUT/journal/    the write-ahead log of the round in progress, sealed under a key that run.db has until its commit
    OUT/devices/    codec memory of simulated devices, in a folder whose name changes at every opening
    OUT/witness.json the progress of run.db (``drivers.storage.witness``)
    OUT/lock        held while a process works here. OUT/split/: sessions of a split model (``split_sessions``)

Only the owner can read database, blobs, journal, codec memory and their folders. They hold losses of single devices,
plain updates where those are visible, residuals, and the buffers of correlated noise. Recipe, summary and report have
the mode of the umask.

A commit is one transaction. Blobs that no row names any more are swept after it and when a run continues. Opening
removes what a killed process left: temporary files, and journals of committed rounds. Only files with names that
edgewise gives are ever removed. A damaged blob or database is E-CHECKPOINT and a full disk is E-DISK. Neither leaves a
named file incomplete.

Database, device memory, journal, ledger and witness name the same random ``instance``, made when the run begins, and
the round that they belong to. Where they disagree, the run does not continue: E-CHECKPOINT.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from edgewise.core import events, vector
from edgewise.core.errors import StoreError
from edgewise.core.foreign import foreign
from edgewise.core.memory import Memory, flat, tree
from edgewise.core.stage import Aggregate
from edgewise.core.training import DeviceId
from edgewise.drivers.storage import charges, event_log, fencing, folder, opening, round_record, standings, witness
from edgewise.drivers.storage.beacon_file import BeaconFile
from edgewise.drivers.storage.blobs import Blobs
from edgewise.drivers.storage.device_store import RESTORE
from edgewise.drivers.storage.files import FOLDER, lock, sync_folder
from edgewise.drivers.storage.journal import FileJournal
from edgewise.drivers.storage.schema import DELTAS, MEASURES, META, MODELS, RUNS, SCHEMA_VERSION, VECTORS
from edgewise.drivers.storage.witness import Witness
from edgewise.engine import released
from edgewise.engine.checkpoint import Change, Checkpoint, DeltaBlob, Downlink, Standing
from edgewise.privacy import ledger
from edgewise.privacy.ledger import LedgerEntry
from edgewise.strategies.base import State


class RunStore:
    """The durable state of one run (a Store port). Use as a context manager: it holds the directory's lock.

    ``now_s`` stamps events that carry no time yet. The events of a round have the time of its commit. ``fence``: the
    number of a lease with which servers open the directory one after the other (``fencing``); 0: there is none.
    Raises StoreError(E-FOLDER) where ``out`` holds files and edgewise did not make it. Nothing is touched then.

    Attributes:
        instance: random identity of this run directory, or of the run that would begin in it.
        memory_dir: folder for the codec memory of devices, for this opening only.
    """

    def __init__(self, out: Path, now_s: Callable[[], float] = time.time, fence: int = 0) -> None:
        self.out, self._now_s, self._fence = out, now_s, fence
        self._journal: FileJournal | None = None
        self._blobs = Blobs(out / "blobs", fencing.GRACE_S if fence else 0.0)
        self.beacon = BeaconFile(out / "journal" / opening.BEACON, self._check_fence)
        folder.claim(out)
        try:
            for sub in ("blobs", "journal", "devices"):
                (out / sub).mkdir(FOLDER, parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError("E-DISK", f"cannot create {out}: {e.strerror}.", "choose another --out.") from None
        self._lock = lock(out / "lock", shared=bool(fence))
        self._engine = opening.open_run_database(out)
        try:
            with self._named_database_errors():
                opening.check_schema(self._engine, out)
                META.create_all(self._engine)
                fencing.fence_run(self._engine, out / "journal", fence)
            run = self.run()
            self.instance: str = run["instance"] if run else opening.run_token()
            with self._transaction():  # No server that was overtaken since ``take`` renames the folder of the next.
                self.memory_dir = opening.take_over_run(out, run["next_round"] if run else None)
        except StoreError:
            self.close()
            raise

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release all files."""
        if self._journal is not None:
            self._journal.close()
        self._engine.dispose()
        self._lock()

    def _named_database_errors(self) -> AbstractContextManager[None]:
        return opening.database_errors(self.out)

    def _named_damage(self, what: str) -> foreign:
        """Turn any error of parsing a damaged row into StoreError(E-CHECKPOINT)."""
        return foreign(StoreError, "E-CHECKPOINT", f"{what} in {self.out / 'run.db'} is damaged", "use another --out.")

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Open a transaction. It is committed at its end. Raises StoreError(E-LEASE) as ``fencing.check_fence``."""
        with self._named_database_errors(), self._engine.begin() as connection:
            fencing.check_fence(connection, self._fence)
            yield connection

    def _check_fence(self) -> None:
        """Raise StoreError(E-LEASE) where another server has taken over the run."""
        with self._transaction():
            pass

    def _read_rows(self, query: sa.Select[Any]) -> list[Any]:
        """Read all rows of a query."""
        with self._named_damage("a row"), self._named_database_errors(), self._engine.connect() as connection:
            return list(connection.execute(query))

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> Mapping[str, Any] | None:
        """Return the run in this directory (id, name, recipe, facts, next_round, finished), or None."""
        if not (rows := self._read_rows(sa.select(*(column for column in RUNS.c if column is not RUNS.c.journal_key)))):
            return None
        with self._named_damage("the run"):
            row = rows[0]._asdict()
            numbers = {name: int(row[name]) for name in ("next_round", "unmet")}
            return {**row, **numbers, "recipe": json.loads(row["recipe"]), "facts": json.loads(row["facts"])}

    def create(
        self, run: str, name: str, recipe: Mapping[str, Any], facts: Mapping[str, Any], window: int | None = 0
    ) -> None:
        """Register a run in this directory. Device memory and journals of another run are removed.
        ``window``: number of rounds whose released totals are kept (``plan.retention``); None: all."""
        opening.empty_run(self.out, self.memory_dir)
        start = ledger.first_ledger_link(run, self.instance)
        witness.write_witness(self.out, self._witness_of({"id": run, "next_round": -1}, 0, start))
        sync_folder(self.out)
        with self._transaction() as c:
            tables = {"recipe": json.dumps(recipe), "facts": json.dumps(facts), "schema_version": SCHEMA_VERSION}
            values = {"id": run, "name": name, "instance": self.instance, "ledger": start, **tables}
            first = {"next_round": -1, "unmet": 0, "finished": False, "window": window}
            c.execute(RUNS.insert().values(**values, **first, journal_key=opening.journal_key()))

    def renew(self, facts: Mapping[str, Any]) -> None:
        """Replace the run's facts. Some may change between sessions, such as the path of a folder."""
        with self._transaction() as c:
            c.execute(RUNS.update().values(facts=json.dumps(facts)))

    def finish(self) -> None:
        """Mark the run as finished. Remove files that an earlier removal left because the disk refused."""
        with self._transaction() as c:
            c.execute(RUNS.update().values(finished=True, journal_key=opening.journal_key()))
        opening.clean_run(self.out, number := self._created_run()["next_round"])
        self._blobs.sweep(lambda: self._named_models(number))

    # -- checkpoints --------------------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        """See Store. Raises StoreError: E-CHECKPOINT where a blob is missing or damaged, and where database, ledger,
        journal and witness disagree. E-RESTORED for a run of a restored server."""
        if (run := self.run()) is None:
            return None
        opening.check_goes_on(self.out)
        self._in_step(run)
        self._blobs.sweep(lambda: self._named_models(run["next_round"]))  # a killed process may have left some
        if run["next_round"] < 0:
            return None
        with self._named_damage("the newest checkpoint"):
            (model,) = self._read_rows(sa.select(MODELS).where(MODELS.c.next_round == run["next_round"]))
            slots = {name: self.blob(digest) for name, digest in json.loads(model.slots).items()}
            state = State(self.blob(model.params), slots, model.step)
            memory = tree(safetensors.numpy.load(self._blobs.get(model.memory))) if model.memory else Memory()
            down = self._broadcast_ring(model) if model.shadow is not None else None
            return Checkpoint(run["next_round"], state, run["unmet"], memory, down, run["epsilon"])

    def _in_step(self, run: Mapping[str, Any]) -> None:
        """Refuse files that do not belong together. Raises StoreError(E-CHECKPOINT)."""
        _, chain = self._read_ledger(run)
        if run["ledger"] not in chain:
            raise StoreError("E-CHECKPOINT", f"{self.out / 'run.db'} lost rows of the privacy ledger.", RESTORE)
        witness.check(self.out, witness.read_witness(self.out), self._witness_of(run, len(chain) - 1, chain[-1]), chain)
        for number, path in opening.journals(self.out):
            if number > max(0, run["next_round"]):
                what = f"{path} is of a later round than run.db has reached ({run['next_round']})."
                raise StoreError("E-CHECKPOINT", what, RESTORE)

    def _witness_of(self, run: Mapping[str, Any], count: int, last: str) -> Witness:
        """Make the witness of how far a run has come."""
        return Witness(self.instance, run["next_round"], self._checkpoint_of(run), count, last)

    def _checkpoint_of(self, run: Mapping[str, Any]) -> str:
        """See ``round_record.newest_checkpoint_digest``."""
        with self._named_database_errors(), self._engine.connect() as c:
            return round_record.newest_checkpoint_digest(c, run["id"], self.instance, run["next_round"])

    def _write_witness(self) -> None:
        """Bring the witness up to date."""
        run = self._created_run()
        with self._named_database_errors(), self._engine.connect() as c:
            count, last = charges.end_of_charges(c, self._ledger_start(run))
        witness.write_witness(self.out, self._witness_of(run, count, last))

    def _created_run(self) -> Mapping[str, Any]:
        """Return the run's row. Raises ValueError before ``create``."""
        if (run := self.run()) is None:
            raise ValueError("no run was created here")
        return run

    def _ledger_start(self, run: Mapping[str, Any]) -> str:
        return ledger.first_ledger_link(run["id"], self.instance)

    def _read_ledger(self, run: Mapping[str, Any]) -> tuple[tuple[LedgerEntry, ...], tuple[str, ...]]:
        """Read the charges and the last link of their chain."""
        with self._named_damage("the privacy ledger"):
            return charges.read_stored_charges(self._read_rows(charges.ROWS), self._ledger_start(run))

    def _broadcast_ring(self, model: Any) -> Downlink:
        """Load the deltas that are still sent to devices."""
        rows = self._read_rows(sa.select(DELTAS).order_by(DELTAS.c.round))
        ring = tuple(DeltaBlob(r.round, r.digest, r.base, self._blobs.get(r.digest)) for r in rows)
        return Downlink(model.next_round, self.blob(model.shadow), model.shadow, ring, self.blob(model.anchor))

    def journal(self, round: int) -> FileJournal:
        """See Store."""
        at = self._checkpoint_of(self._created_run())
        (row,) = self._read_rows(sa.select(RUNS.c.journal_key))
        self._journal = FileJournal(self.journal_path(round), at, bytes(row.journal_key))
        return self._journal

    def journal_path(self, round: int) -> Path:
        """Return the file of a round's journal. It exists while the round is open."""
        return self.out / "journal" / fencing.journal_name(round, self._fence)

    def standing(self, devices: Sequence[DeviceId]) -> dict[DeviceId, Standing]:
        """See Store."""
        with self._named_damage("the standing of a device"), self._named_database_errors(), self._engine.connect() as c:
            return standings.read_standings(c, devices)

    def commit(
        self,
        checkpoint: Checkpoint,
        new_events: Sequence[events.AnyEvent],
        change: Change = Change(),  # noqa: B008 (immutable)
        total: Aggregate | None = None,
    ) -> None:
        """See Store."""
        self._check_fence()  # before anything is written
        state = checkpoint.state
        slots = json.dumps({name: self.put(x) for name, x in state.slots.items()})
        model: dict[str, Any] = {"params": self.put(state.params), "slots": slots, "step": state.round}
        model |= {"memory": None, "shadow": None, "anchor": None}
        if checkpoint.memory:
            arrays = {k: np.ascontiguousarray(v) for k, v in flat(checkpoint.memory).items()}
            model["memory"] = self._blobs.put(safetensors.numpy.save(arrays))
        if (down := checkpoint.down) is not None:
            model |= {"shadow": self.put(down.shadow), "anchor": self.put(down.anchor)}
            written = {r.round for r in self._read_rows(sa.select(DELTAS.c.round))}
            for delta in (one for one in down.ring if one.round not in written):
                self._blobs.put(delta.blob)
        known = self._created_run()
        stored = round_record.store_total_blobs(total, vector.digest if known["window"] == 0 else self._blobs.put)
        self._blobs.sync()
        sync_folder(self.memory_dir)
        with self._transaction() as c:
            c.execute(upsert(MODELS).values(next_round=checkpoint.next_round, **model).on_conflict_do_nothing())
            reached = {"next_round": checkpoint.next_round, "unmet": checkpoint.unmet, "epsilon": checkpoint.epsilon}
            ended = charges.end_of_charges(c, self._ledger_start(known))
            c.execute(RUNS.update().values(**reached, ledger=ended[1], journal_key=opening.journal_key()))
            line = round_record.round_line(checkpoint.next_round - 1, model, ended, total, stored)
            round_record.add_round_line(c, released.start(known["id"], self.instance), line)
            if down is not None:
                standings.write_delta_ring(c, down)
            standings.write(c, checkpoint.next_round - 1, change, down.anchor_round if down is not None else None)
            event_log.add_events(c, new_events, self._now_s)
        self._write_witness()
        if self._journal is not None:
            self._journal.discard()
            if self._journal.synced:  # the round hides its updates
                self._scrub_journal_key()
            self._journal = None
        self._blobs.sweep(lambda: self._named_models(checkpoint.next_round))

    def _scrub_journal_key(self) -> None:
        """Remove the key of the last round's journal from the database's log. The database overwrites its own copy
        (``secure_delete``). While another process reads the database, the removal waits for the next round."""
        with self._named_database_errors(), self._engine.connect() as c:
            c.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()

    def put(self, x: vector.Vector) -> str:
        """Store a float32 vector and return its digest. Sync the folder before anything durable names the digest."""
        return self._blobs.put(vector.to_bytes(x))

    def blob(self, digest: str) -> vector.Vector:
        """Return a stored vector after checking its digest."""
        raw = self._blobs.get(digest)
        return vector.from_bytes(raw, len(raw) // 4)

    def _named_models(self, next_round: int) -> set[str]:
        with self._named_damage("a model"), self._named_database_errors(), self._engine.connect() as c:
            return opening.digests_in_row(c, next_round)

    def models(self) -> dict[int, str]:
        """Return rounds played -> digest of the parameters. The vectors of old versions are swept."""
        return {r.next_round: r.params for r in self._read_rows(sa.select(MODELS).order_by(MODELS.c.next_round))}

    def memory(self, next_round: int) -> Memory:
        """Return the server's memory beside a stored model. Empty where none is stored any more."""
        rows = self._read_rows(sa.select(MODELS.c.memory).where(MODELS.c.next_round == next_round))
        if not rows or not rows[0].memory or not self._blobs.path(rows[0].memory).is_file():
            return Memory()
        with self._named_damage("the server's memory"):
            return tree(safetensors.numpy.load(self._blobs.get(rows[0].memory)))

    def keep(self, name: str, x: vector.Vector, note: int = 0) -> None:
        """See Store."""
        digest = self.put(x)
        self._blobs.sync()
        with self._transaction() as c:
            row = upsert(VECTORS).values(name=name, digest=digest, note=note)
            c.execute(row.on_conflict_do_update(index_elements=["name"], set_={"digest": digest, "note": note}))
        rows = self._read_rows(sa.select(RUNS.c.next_round))
        self._blobs.sweep(lambda: self._named_models(rows[0].next_round if rows else 0))

    def keep_model(self, name: str, played: int) -> None:
        """See Store. Raises StoreError(E-CHECKPOINT) where the model's vector is gone."""
        notes = self._read_rows(sa.select(VECTORS.c.note).where(VECTORS.c.name == name))
        if [r.note for r in notes] != [played]:
            self.keep(name, self.blob(self.models()[played]), played)

    def kept(self, name: str) -> tuple[vector.Vector, int] | None:
        """Return the vector and note kept under a name."""
        rows = self._read_rows(sa.select(VECTORS).where(VECTORS.c.name == name))
        return (self.blob(rows[0].digest), rows[0].note) if rows else None

    # -- the privacy ledger -------------------------------------------------------------------------------------

    def charge(self, charge: LedgerEntry) -> None:
        """See Store."""
        start = self._ledger_start(self._created_run())
        with self._transaction() as c:
            charges.add_stored_charge(c, start, charge)
        self._write_witness()

    def charges(self) -> tuple[LedgerEntry, ...]:
        """See Store. Raises StoreError(E-CHECKPOINT) where a row was changed, removed or moved."""
        return self._read_ledger(run)[0] if (run := self.run()) else ()

    # -- events and measures ------------------------------------------------------------------------------------

    def append(self, event: events.AnyEvent) -> None:
        """See Store."""
        with self._transaction() as c:
            event_log.add_events(c, [event], self._now_s)

    def measure(self, model: str, round: int, device: DeviceId, nll: float, tokens: int) -> None:
        """Store one device's held-out loss before the evaluation is complete."""
        row = {"model": model, "round": round, "device": device, "nll": nll, "tokens": tokens}
        with self._transaction() as c:
            c.execute(upsert(MEASURES).values(**row).on_conflict_do_nothing())

    def evaluated(self, model: str, round: int) -> bool:
        """See Store."""
        found = self._read_events(event_log.event_bodies("evaluated", round))
        return any(isinstance(e, events.Evaluated) and e.model == model for e in found)

    def evaluations(self) -> list[events.Evaluated]:
        """See Store."""
        return [e for e in self.events("evaluated") if isinstance(e, events.Evaluated)]

    def measures(self, model: str, round: int | None = None) -> dict[DeviceId, tuple[float, int]]:
        """Return device -> (nll, tokens) of a model, of its latest round where ``round`` is None."""
        return event_log.latest_logged_losses(self._read_rows(event_log.logged_losses(model, round)))

    def _read_events(self, query: sa.Select[Any]) -> list[events.AnyEvent]:
        """Read events by a query."""
        rows = self._read_rows(query)
        with self._named_damage("an event"):
            return event_log.read_events(rows)

    def events(self, kind: str | None = None) -> list[events.AnyEvent]:
        """Return the stored events in order, of one kind (tag) or all."""
        return self._read_events(event_log.event_bodies(kind))
