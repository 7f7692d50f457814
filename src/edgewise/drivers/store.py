"""The run directory: a SQLite database (SQLAlchemy Core), content-addressed blobs, and the round journal.

    OUT/run.db      the tables of ``drivers.tables``; WAL, full sync
    OUT/recipe.toml the resolved recipe
    OUT/blobs/      parameter vectors and optimizer slots, raw float32, the codec's memory on the server, safetensors,
                    and the deltas of the downlink as they travel; named by SHA-256, written before they are named
    OUT/journal/    the write-ahead log of the round in progress
    OUT/devices/    codec memory of simulated devices
    OUT/lock        held while a process works here

Database, blobs, journal and codec memory are made readable by their owner only, their folders too: they hold losses of
single devices, plain updates where those are visible, residuals, and the buffers of correlated noise. Recipe, summary
and report are as the umask has it.

A commit is one transaction. Blobs that no row names any more are swept after it; what a killed process left half-done
(temporary files, journals of rounds that are committed) is removed when the directory is opened. A damaged blob or
database is E-CHECKPOINT, a full disk E-DISK; neither leaves anything half-written that is named.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from edgewise.core import events, vector
from edgewise.core.errors import StoreError
from edgewise.drivers.files import FOLDER, for_owner, lock, sync_folder, write_durably
from edgewise.drivers.journal import FileJournal
from edgewise.drivers.tables import (
    CHARGES,
    CONTRIBUTIONS,
    DELTAS,
    EVENTS,
    HELD,
    MEASURES,
    META,
    MODELS,
    RUNS,
    SCHEMA_VERSION,
    VECTORS,
)
from edgewise.engine.ports import Checkpoint, Delta, DeviceId, Downlink
from edgewise.privacy.ledger import Charge
from edgewise.privacy.spend import Event
from edgewise.strategies.base import State

KEEP_MODELS = 3  # model versions whose vectors stay on disk
DISK = ("readonly", "unable to open", "full", "disk I/O")  # in SQLite's messages


class RunStore:
    """One run's durable state; a Store port. Use as a context manager: it holds the directory's lock.

    ``now_s`` stamps events that carry no time yet: those of a round have the time of its commit.
    """

    def __init__(self, out: Path, now_s: Callable[[], float] = time.time) -> None:
        self.out, self._now_s = out, now_s
        self._journal: FileJournal | None = None
        try:
            for sub in ("blobs", "journal"):
                (out / sub).mkdir(FOLDER, parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError("E-DISK", f"cannot create {out}: {e.strerror}.", "choose another --out.") from None
        self._lock = lock(out / "lock")
        _create(out / "run.db")
        self._engine = sa.create_engine(f"sqlite:///{out / 'run.db'}")
        sa.event.listen(self._engine, "connect", _pragmas)
        try:
            with self._guard():
                META.create_all(self._engine)
            self._clean()
        except StoreError:
            self.close()
            raise

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the database, the journal and the lock."""
        if self._journal is not None:
            self._journal.close()
        self._engine.dispose()
        self._lock()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DatabaseError as e:
            what, said = f"{self.out / 'run.db'}: {e.orig}.", str(e.orig)
            if "locked" in said:
                raise StoreError("E-RUN-EXISTS", what, "another program reads or writes it: wait for it.") from None
            if any(words in said for words in DISK):
                raise StoreError("E-DISK", what, "free space or give write permission, then --resume.") from None
            raise StoreError("E-CHECKPOINT", what, "use another --out.") from None

    def _clean(self) -> None:
        """Remove what a killed process left behind. The caller holds the lock, so nobody is writing."""
        rows = self._rows(sa.select(RUNS.c.next_round))
        current = _journal_name(rows[0].next_round if rows else 0)
        left = [path for path in self.out.glob("journal/*.log") if path.name < current]
        for pattern in (".*.tmp", "blobs/*.tmp", "devices/*.tmp"):
            left += self.out.glob(pattern)
        for path in left:
            with suppress(OSError):  # harmless where it stays
                path.unlink()

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._guard(), self._engine.begin() as connection:
            yield connection

    def _rows(self, query: sa.Select[Any]) -> list[Any]:
        with self._guard(), self._engine.connect() as connection:
            return list(connection.execute(query))

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> Mapping[str, Any] | None:
        """The run in this directory (id, name, recipe, facts, next_round, finished), or None."""
        rows = self._rows(sa.select(RUNS))
        if not rows:
            return None
        row = rows[0]._asdict()
        if row["schema_version"] != SCHEMA_VERSION:
            raise StoreError(
                "E-CHECKPOINT", f"{self.out} was written by another version of edgewise.", "use another --out."
            )
        return {**row, "recipe": json.loads(row["recipe"]), "facts": json.loads(row["facts"])}

    def create(self, run: str, name: str, recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Register the run that lives in this directory."""
        with self._write() as c:
            values = {"id": run, "schema_version": SCHEMA_VERSION, "name": name, "recipe": json.dumps(recipe)}
            c.execute(RUNS.insert().values(**values, facts=json.dumps(facts), next_round=-1, unmet=0, finished=False))

    def finish(self) -> None:
        """Mark the run as finished."""
        with self._write() as c:
            c.execute(RUNS.update().values(finished=True))

    # -- checkpoints --------------------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        """See Store. Raises StoreError(E-CHECKPOINT) where a blob is missing or not what it was."""
        run = self.run()
        if run is None or run["next_round"] < 0:
            return None
        rows = self._rows(sa.select(MODELS).where(MODELS.c.next_round == run["next_round"]))
        accepted = {r.device: r.last_round for r in self._rows(sa.select(CONTRIBUTIONS))}
        slots = {name: self.blob(digest) for name, digest in json.loads(rows[0].slots).items()}
        state = State(self.blob(rows[0].params), slots, rows[0].step)
        memory = safetensors.numpy.load(self._read(rows[0].memory)) if rows[0].memory else {}
        held = {r.device: r.round for r in self._rows(sa.select(HELD))}
        down = self._downlink(rows[0]) if rows[0].shadow else None
        return Checkpoint(run["next_round"], state, accepted, run["unmet"], memory, down, held)

    def _downlink(self, model: Any) -> Downlink:
        rows = self._rows(sa.select(DELTAS).order_by(DELTAS.c.round))
        ring = tuple(Delta(r.round, r.digest, r.base, self._read(r.digest)) for r in rows)
        return Downlink(model.next_round, self.blob(model.shadow), model.shadow, ring, self.blob(model.anchor))

    def journal(self, round: int) -> FileJournal:
        """See Store."""
        self._journal = FileJournal(self.out / "journal" / _journal_name(round))
        return self._journal

    def commit(self, checkpoint: Checkpoint, told: Sequence[events.AnyEvent], contributed: Sequence[DeviceId]) -> None:
        """See Store."""
        state = checkpoint.state
        slots = json.dumps({name: self.put(x) for name, x in state.slots.items()})
        memory = ""
        if checkpoint.memory:
            memory = self._put(
                safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in checkpoint.memory.items()})
            )
        model = {"params": self.put(state.params), "slots": slots, "step": state.round, "memory": memory}
        if (down := checkpoint.down) is not None:
            model |= {"shadow": self.put(down.shadow), "anchor": self.put(down.anchor)}
            for delta in down.ring:
                self._put(delta.blob)
        sync_folder(self.out / "blobs")
        with self._write() as c:
            c.execute(upsert(MODELS).values(next_round=checkpoint.next_round, **model).on_conflict_do_nothing())
            c.execute(RUNS.update().values(next_round=checkpoint.next_round, unmet=checkpoint.unmet))
            _write_down(c, checkpoint)
            if contributed:
                row = upsert(CONTRIBUTIONS)
                update = {"last_round": row.excluded.last_round, "times": CONTRIBUTIONS.c.times + 1}
                row = row.on_conflict_do_update(index_elements=["device"], set_=update)
                played = checkpoint.next_round - 1
                c.execute(row, [{"device": d, "last_round": played, "times": 1} for d in contributed])
            if told:
                c.execute(EVENTS.insert(), [self._event_row(e) for e in told])
        if self._journal is not None:
            self._journal.discard()
            self._journal = None
        self._sweep(checkpoint.next_round)

    def put(self, x: vector.Vector) -> str:
        """Store a float32 vector; returns its digest. Sync the folder before anything durable names it."""
        return self._put(vector.to_bytes(x))

    def _put(self, raw: bytes) -> str:
        digest = vector.digest(raw)
        path = self.out / "blobs" / digest
        if not path.exists():
            write_durably(path, raw, private=True)
        return digest

    def blob(self, digest: str) -> vector.Vector:
        """A stored vector, its digest checked."""
        raw = self._read(digest)
        return vector.from_bytes(raw, len(raw) // 4)

    def _read(self, digest: str) -> bytes:
        path = self.out / "blobs" / digest
        try:
            raw = path.read_bytes()
        except OSError as e:
            raise StoreError(
                "E-CHECKPOINT", f"cannot read {path}: {e.strerror}.", "start again with another --out."
            ) from None
        if vector.digest(raw) != digest:
            raise StoreError("E-CHECKPOINT", f"{path} is not what was written.", "start again with another --out.")
        return raw

    def _named(self, next_round: int) -> set[str]:
        """Digests that a row still needs: the newest models, the first one, and the vectors kept by name."""
        kept = self._rows(sa.select(MODELS).where(MODELS.c.next_round > next_round - KEEP_MODELS))
        named = {d for r in kept for d in (r.params, r.memory, r.shadow, r.anchor, *json.loads(r.slots).values())}
        named |= {r.digest for r in self._rows(sa.select(DELTAS))}
        named |= {r.digest for r in self._rows(sa.select(VECTORS))}
        first = self._rows(sa.select(MODELS.c.params).where(MODELS.c.next_round == 0))
        return named | {r.params for r in first}

    def _sweep(self, next_round: int) -> None:
        named = self._named(next_round)
        for path in (self.out / "blobs").iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)

    def models(self) -> dict[int, str]:
        """Rounds played -> digest of the parameters then (vectors of old versions are swept)."""
        return {r.next_round: r.params for r in self._rows(sa.select(MODELS).order_by(MODELS.c.next_round))}

    def keep(self, name: str, x: vector.Vector, note: int = 0) -> None:
        """Keep a vector under a name beside the model versions (progress of a comparison); ``note`` is a counter."""
        digest = self.put(x)
        sync_folder(self.out / "blobs")
        with self._write() as c:
            row = upsert(VECTORS).values(name=name, digest=digest, note=note)
            c.execute(row.on_conflict_do_update(index_elements=["name"], set_={"digest": digest, "note": note}))
        rows = self._rows(sa.select(RUNS.c.next_round))
        self._sweep(rows[0].next_round if rows else 0)

    def kept(self, name: str) -> tuple[vector.Vector, int] | None:
        """The vector and note kept under a name."""
        rows = self._rows(sa.select(VECTORS).where(VECTORS.c.name == name))
        return (self.blob(rows[0].digest), rows[0].note) if rows else None

    # -- the privacy ledger -------------------------------------------------------------------------------------

    def charge(self, charge: Charge) -> None:
        """See Store."""
        row = {"round": charge.round, "attempt": charge.attempt, "cohort": charge.cohort}
        with self._write() as c:
            values = upsert(CHARGES).values(**row, event=json.dumps(charge.event.to_plain()))
            c.execute(values.on_conflict_do_nothing())

    def charges(self) -> tuple[Charge, ...]:
        """See Store."""
        rows = self._rows(sa.select(CHARGES).order_by(CHARGES.c.number))
        return tuple(Charge(r.round, r.attempt, r.cohort, Event.from_plain(json.loads(r.event))) for r in rows)

    # -- events and measures ------------------------------------------------------------------------------------

    def append(self, event: events.AnyEvent) -> None:
        """See Store."""
        with self._write() as c:
            c.execute(EVENTS.insert(), [self._event_row(event)])
            if isinstance(event, events.Evaluated):
                self._measure(c, event)

    def measure(self, model: str, round: int, device: DeviceId, nll: float, tokens: int) -> None:
        """Store one device's held-out loss before the whole evaluation is there."""
        row = {"model": model, "round": round, "device": device, "nll": nll, "tokens": tokens}
        with self._write() as c:
            c.execute(upsert(MEASURES).values(**row).on_conflict_do_nothing())

    def _measure(self, c: sa.Connection, e: events.Evaluated) -> None:
        rows = [
            {"model": e.model, "round": e.round, "device": d, "nll": e.nll[d], "tokens": e.tokens[d]} for d in e.nll
        ]
        if rows:
            c.execute(upsert(MEASURES).on_conflict_do_nothing(), rows)

    def evaluated(self, model: str, round: int) -> bool:
        """See Store."""
        query = sa.select(EVENTS.c.body).where(EVENTS.c.kind == "evaluated", EVENTS.c.round == round)
        found = (events.from_json(r.body) for r in self._rows(query))
        return any(isinstance(e, events.Evaluated) and e.model == model for e in found)

    def measures(self, model: str, round: int | None = None) -> dict[DeviceId, tuple[float, int]]:
        """Device -> (nll, tokens) of a model; of its latest round where ``round`` is None."""
        query = sa.select(MEASURES).where(MEASURES.c.model == model).order_by(MEASURES.c.round)
        rows = self._rows(query if round is None else query.where(MEASURES.c.round == round))
        latest = rows[-1].round if rows else 0
        return {r.device: (r.nll, r.tokens) for r in rows if r.round == latest}

    def _event_row(self, event: events.AnyEvent) -> dict[str, Any]:
        stamped = msgspec.structs.replace(event, at_s=event.at_s or self._now_s())
        kind = event.__struct_config__.tag
        return {"kind": kind, "round": getattr(event, "round", -1), "body": events.to_json(stamped)}

    def events(self, kind: str = "") -> list[events.AnyEvent]:
        """Stored events in order, of one kind (tag) or all."""
        query = sa.select(EVENTS.c.body).order_by(EVENTS.c.number)
        rows = self._rows(query.where(EVENTS.c.kind == kind) if kind else query)
        return [events.from_json(r.body) for r in rows]


def _write_down(c: sa.Connection, checkpoint: Checkpoint) -> None:
    """The ring and who holds what, in place of those of the checkpoint before."""
    if checkpoint.down is None:
        return
    c.execute(DELTAS.delete())
    c.execute(HELD.delete())
    if ring := checkpoint.down.ring:
        c.execute(DELTAS.insert(), [{"round": d.round, "digest": d.digest, "base": d.base} for d in ring])
    if held := checkpoint.held:
        c.execute(HELD.insert(), [{"device": device, "round": n} for device, n in held.items()])


def _create(database: Path) -> None:
    """An empty database where there is none; SQLite gives its journal and log files the mode of the database."""
    if not database.exists():
        with suppress(OSError), open(database, "ab", opener=for_owner):  # SQLite says why it cannot be
            pass


def _journal_name(round: int) -> str:
    return f"round-{max(0, round):06d}.log"


def _pragmas(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
