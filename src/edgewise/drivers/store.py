"""The run directory: a SQLite database (SQLAlchemy Core), content-addressed blobs, and the round journal.

    OUT/run.db      runs, rounds, models, contributions, events, measures; WAL, full sync
    OUT/blobs/      parameter vectors and optimizer slots, raw float32, named by SHA-256; written before they are named
    OUT/journal/    the write-ahead log of the round in progress
    OUT/devices/    codec memory of simulated devices
    OUT/lock        held while a process works here

A commit is one transaction. Blobs that no row names any more are swept after it. A damaged blob or database is
E-CHECKPOINT, a full disk E-DISK; neither leaves anything half-written that is named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from edgewise.core import events, vector
from edgewise.core.errors import StoreError
from edgewise.drivers.journal import FileJournal
from edgewise.engine.ports import Checkpoint, DeviceId
from edgewise.strategies.base import State

SCHEMA_VERSION = 1
KEEP_MODELS = 3  # model versions whose vectors stay on disk

_meta = sa.MetaData()
_runs = sa.Table(
    "runs",
    _meta,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("next_round", sa.Integer, nullable=False, default=-1),
    sa.Column("unmet", sa.Integer, nullable=False, default=0),
    sa.Column("finished", sa.Boolean, nullable=False, default=False),
)
_models = sa.Table(
    "models",
    _meta,
    sa.Column("next_round", sa.Integer, primary_key=True),
    sa.Column("params", sa.String, nullable=False),
    sa.Column("slots", sa.Text, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
)
_contributions = sa.Table(
    "contributions",
    _meta,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("last_round", sa.Integer, nullable=False),
    sa.Column("times", sa.Integer, nullable=False),
)
_events = sa.Table(
    "events",
    _meta,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String, nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)
_measures = sa.Table(
    "measures",
    _meta,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("nll", sa.Float, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
)
_vectors = sa.Table(
    "vectors",
    _meta,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("note", sa.Integer, nullable=False),
)


class RunStore:
    """One run's durable state; a Store port. Use as a context manager: it holds the directory's lock."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._journal: FileJournal | None = None
        try:
            for sub in ("blobs", "journal"):
                (out / sub).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError("E-DISK", f"cannot create {out}: {e.strerror}.", "choose another --out.") from None
        self._lock = _lock(out / "lock")
        self._engine = sa.create_engine(f"sqlite:///{out / 'run.db'}")
        sa.event.listen(self._engine, "connect", _pragmas)
        try:
            with self._guard():
                _meta.create_all(self._engine)
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
        except sa.exc.OperationalError as e:
            if "full" in str(e.orig) or "disk I/O" in str(e.orig):
                raise StoreError("E-DISK", f"{self.out / 'run.db'}: {e.orig}.", "free space, then --resume.") from None
            raise StoreError("E-CHECKPOINT", f"{self.out / 'run.db'}: {e.orig}.", "use another --out.") from None
        except sa.exc.DatabaseError as e:
            raise StoreError("E-CHECKPOINT", f"{self.out / 'run.db'}: {e.orig}.", "use another --out.") from None

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
        rows = self._rows(sa.select(_runs))
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
            c.execute(_runs.insert().values(**values, facts=json.dumps(facts), next_round=-1, unmet=0, finished=False))

    def finish(self) -> None:
        """Mark the run as finished."""
        with self._write() as c:
            c.execute(_runs.update().values(finished=True))

    # -- checkpoints --------------------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        """See Store. Raises StoreError(E-CHECKPOINT) where a blob is missing or not what it was."""
        run = self.run()
        if run is None or run["next_round"] < 0:
            return None
        rows = self._rows(sa.select(_models).where(_models.c.next_round == run["next_round"]))
        accepted = {r.device: r.last_round for r in self._rows(sa.select(_contributions))}
        slots = {name: self.blob(digest) for name, digest in json.loads(rows[0].slots).items()}
        return Checkpoint(
            run["next_round"], State(self.blob(rows[0].params), slots, rows[0].step), accepted, run["unmet"]
        )

    def journal(self, round: int) -> FileJournal:
        """See Store."""
        self._journal = FileJournal(self.out / "journal" / f"round-{round:06d}.log")
        return self._journal

    def commit(self, checkpoint: Checkpoint, told: Sequence[events.AnyEvent], contributed: Sequence[DeviceId]) -> None:
        """See Store."""
        state = checkpoint.state
        slots = json.dumps({name: self.put(x) for name, x in state.slots.items()})
        model = {"params": self.put(state.params), "slots": slots, "step": state.round}
        with self._write() as c:
            c.execute(upsert(_models).values(next_round=checkpoint.next_round, **model).on_conflict_do_nothing())
            c.execute(_runs.update().values(next_round=checkpoint.next_round, unmet=checkpoint.unmet))
            if contributed:
                row = upsert(_contributions)
                update = {"last_round": row.excluded.last_round, "times": _contributions.c.times + 1}
                row = row.on_conflict_do_update(index_elements=["device"], set_=update)
                played = checkpoint.next_round - 1
                c.execute(row, [{"device": d, "last_round": played, "times": 1} for d in contributed])
            if told:
                c.execute(_events.insert(), [_event_row(e) for e in told])
        if self._journal is not None:
            self._journal.discard()
            self._journal = None
        self._sweep(checkpoint.next_round)

    def put(self, x: vector.Vector) -> str:
        """Store a float32 vector; returns its digest. Durable when it returns."""
        raw = vector.to_bytes(x)
        digest = vector.digest(raw)
        path = self.out / "blobs" / digest
        if not path.exists():
            write_durably(path, raw)
        return digest

    def blob(self, digest: str) -> vector.Vector:
        """A stored vector, its digest checked."""
        path = self.out / "blobs" / digest
        try:
            raw = path.read_bytes()
        except OSError as e:
            raise StoreError(
                "E-CHECKPOINT", f"cannot read {path}: {e.strerror}.", "start again with another --out."
            ) from None
        if vector.digest(raw) != digest:
            raise StoreError("E-CHECKPOINT", f"{path} is not what was written.", "start again with another --out.")
        return vector.from_bytes(raw, len(raw) // 4)

    def _sweep(self, next_round: int) -> None:
        kept = self._rows(sa.select(_models).where(_models.c.next_round > next_round - KEEP_MODELS))
        named = {d for r in kept for d in (r.params, *json.loads(r.slots).values())}
        named |= {r.digest for r in self._rows(sa.select(_vectors))}
        first = self._rows(sa.select(_models.c.params).where(_models.c.next_round == 0))
        named |= {r.params for r in first}
        for path in (self.out / "blobs").iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)

    def models(self) -> dict[int, str]:
        """Rounds played -> digest of the parameters then (vectors of old versions are swept)."""
        return {r.next_round: r.params for r in self._rows(sa.select(_models).order_by(_models.c.next_round))}

    def keep(self, name: str, x: vector.Vector, note: int = 0) -> None:
        """Keep a vector under a name beside the model versions (progress of a comparison); ``note`` is a counter."""
        digest = self.put(x)
        with self._write() as c:
            row = upsert(_vectors).values(name=name, digest=digest, note=note)
            c.execute(row.on_conflict_do_update(index_elements=["name"], set_={"digest": digest, "note": note}))

    def kept(self, name: str) -> tuple[vector.Vector, int] | None:
        """The vector and note kept under a name."""
        rows = self._rows(sa.select(_vectors).where(_vectors.c.name == name))
        return (self.blob(rows[0].digest), rows[0].note) if rows else None

    # -- events and measures ------------------------------------------------------------------------------------

    def append(self, event: events.AnyEvent) -> None:
        """See Store."""
        with self._write() as c:
            c.execute(_events.insert(), [_event_row(event)])
            if isinstance(event, events.Evaluated):
                self._measure(c, event)

    def measure(self, model: str, round: int, device: DeviceId, nll: float, tokens: int) -> None:
        """Store one device's held-out loss before the whole evaluation is there."""
        row = {"model": model, "round": round, "device": device, "nll": nll, "tokens": tokens}
        with self._write() as c:
            c.execute(upsert(_measures).values(**row).on_conflict_do_nothing())

    def _measure(self, c: sa.Connection, e: events.Evaluated) -> None:
        rows = [
            {"model": e.model, "round": e.round, "device": d, "nll": e.nll[d], "tokens": e.tokens[d]} for d in e.nll
        ]
        if rows:
            c.execute(upsert(_measures).on_conflict_do_nothing(), rows)

    def evaluated(self, model: str, round: int) -> bool:
        """See Store."""
        return (model, round) in {
            (e.model, e.round) for e in self.events("evaluated") if isinstance(e, events.Evaluated)
        }

    def measures(self, model: str, round: int | None = None) -> dict[DeviceId, tuple[float, int]]:
        """Device -> (nll, tokens) of a model; of its latest round where ``round`` is None."""
        query = sa.select(_measures).where(_measures.c.model == model).order_by(_measures.c.round)
        rows = self._rows(query if round is None else query.where(_measures.c.round == round))
        latest = rows[-1].round if rows else 0
        return {r.device: (r.nll, r.tokens) for r in rows if r.round == latest}

    def events(self, kind: str = "") -> list[events.AnyEvent]:
        """Stored events in order, of one kind (tag) or all."""
        query = sa.select(_events.c.body).order_by(_events.c.number)
        rows = self._rows(query.where(_events.c.kind == kind) if kind else query)
        return [events.from_json(r.body) for r in rows]


def _event_row(event: events.AnyEvent) -> dict[str, Any]:
    tag = event.__struct_config__.tag
    return {"kind": tag, "round": getattr(event, "round", -1), "body": events.to_json(event)}


def _pragmas(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def write_durably(path: Path, raw: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all. Raises StoreError(E-DISK)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise StoreError("E-DISK", f"cannot write {path}: {e.strerror}.", "free some space, then --resume.") from None


def _lock(path: Path) -> Callable[[], None]:
    """Take the directory's advisory lock; returns its release. Raises StoreError(E-RUN-EXISTS) if another holds it."""
    handle = open(path, "a+b")  # noqa: SIM115 (held as long as the store)
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise StoreError(
            "E-RUN-EXISTS", f"another process is working in {path.parent}.", "wait for it, or choose another --out."
        ) from None
    return handle.close
