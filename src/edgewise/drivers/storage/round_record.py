"""Rows of ``run.db`` that record released models, and the blobs of released totals (``engine.released``).

A total's mean is stored as d float32. Where it is shorter, it is stored as a bitmap of the k coordinates that are not
+0, followed by their values: ceil(d / 8) + 4 k bytes. Both forms give back the same bits. The length of a blob tells
which form it has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from edgewise.core import vector
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Buffer, Vector
from edgewise.drivers.storage.dialects import OptionalText
from edgewise.drivers.storage.schema import MODELS, ROUNDS, RUNS
from edgewise.engine import released
from edgewise.engine.released import RoundRecord
from edgewise.plan.retention import RetentionWindow, oldest_retained_round

ROWS = sa.select(ROUNDS).order_by(ROUNDS.c.round)


def dump_total(x: Vector) -> Buffer:
    """Encode a total's vector, float32[d], as the bytes of its blob."""
    bits = x.view(np.uint32)
    nonzero = bits != 0
    count = int(np.count_nonzero(nonzero))
    if (x.size + 7) // 8 + 4 * count >= 4 * x.size:
        return vector.to_bytes(x)
    return np.packbits(nonzero).tobytes() + bytes(vector.to_bytes(np.ascontiguousarray(x[nonzero])))


def load_total(raw: bytes, dim: int) -> Vector:
    """Decode a blob of ``dim`` coordinates. It is the inverse of ``dump_total``.

    Raises:
        ValueError: where ``dump_total`` gives no such bytes.
    """
    if len(raw) == 4 * dim:
        return vector.from_bytes(raw, dim)
    size = (dim + 7) // 8
    flags = np.unpackbits(np.frombuffer(raw[:size].ljust(size), np.uint8), count=dim).astype(bool)
    if not size <= len(raw) < 4 * dim or len(raw) != size + 4 * int(np.count_nonzero(flags)):
        raise ValueError(f"{len(raw)} bytes are no total of {dim} coordinates")
    x = np.zeros(dim, np.float32)
    x[flags] = np.frombuffer(raw[size:], "<f4")
    return x


def store_total_blobs(total: Aggregate | None, put: Callable[[Buffer], str]) -> tuple[str | None, dict[str, str]]:
    """Store a total, if there is one. Return the digest of its mean, and the digests of its other vectors by name."""
    if total is None:
        return None, {}
    return put(dump_total(total.mean)), {name: put(dump_total(x)) for name, x in total.beside.items()}


def round_line(
    round: int, model: Mapping[str, Any], ledger: tuple[int, str], total: Aggregate | None,
    stored: tuple[str | None, dict[str, str]],
) -> RoundRecord:  # fmt: skip
    """Make the line of a round for the run's record.

    Args:
        model: the round's row of ``MODELS``.
        ledger: the number of rows of the privacy ledger, and the digest of the last one.
        stored: the result of ``store_total_blobs``.
    """
    line = RoundRecord(round, model["params"], json.loads(model["slots"]), model["step"], *ledger)
    if total is None:
        return line
    head = {name: float(value) for name, value in total.head.items()}
    digest, beside = stored
    return replace(line, n=int(total.n), weight=float(total.weight), head=head, total=digest, beside=beside)


def end_of_record(c: sa.Connection, start: str) -> str:
    """Return the digest of the last line, or ``start`` where there is no line."""
    found = c.execute(sa.select(ROUNDS.c.digest).order_by(ROUNDS.c.round.desc()).limit(1)).scalar_one_or_none()
    return start if found is None else str(found)


def add_round_line(c: sa.Connection, start: str, new: RoundRecord) -> None:
    """Add the line of a round. A second line for the same round changes nothing."""
    row = {
        "round": new.round, "model": new.model, "slots": json.dumps(dict(new.slots)), "step": new.step,
        "charges": new.charges, "ledger": new.ledger, "n": new.n, "weight": new.weight,
        "head": json.dumps(dict(new.head)), "total": new.total, "beside": json.dumps(dict(new.beside)),
        "digest": released.link(end_of_record(c, start), new),
    }  # fmt: skip
    c.execute(upsert(ROUNDS).values(**row).on_conflict_do_nothing())


def read_round_line(row: Any) -> RoundRecord:
    """Read one of ``ROWS``. Raises whatever parsing raises."""
    slots, head, beside = (dict(json.loads(text)) for text in (row.slots, row.head, row.beside))
    return RoundRecord(
        row.round, row.model, slots, row.step, row.charges, row.ledger, row.n, row.weight, head, row.total, beside
    )


def record_digests(c: sa.Connection, next_round: int) -> set[str]:
    """List the digests that a replay of the kept totals needs: the totals, and the model and optimizer state before
    each stretch.
    """
    run = c.execute(sa.select(RUNS.c.window)).one_or_none()
    if run is None:
        return set()
    first, stride = oldest_retained_round(next_round, run.window), RetentionWindow(run.window, 0).stride
    rows = c.execute(sa.select(ROUNDS.c.total, ROUNDS.c.beside).where(ROUNDS.c.round >= first)).all()
    found = {
        total for total, _ in rows if total is not None
    }  # a round of a long run: rows without vectors beside their total cost no call
    for text in {beside for _, beside in rows} - {"{}"}:
        found.update(json.loads(text).values())
    anchors = sa.select(MODELS).where(MODELS.c.next_round >= first)
    for row in c.execute(anchors.where(MODELS.c.next_round % stride == 0)) if stride else ():
        found |= {row.params, *json.loads(row.slots).values()}
    return found


def newest_checkpoint_digest(c: sa.Connection, run: str, instance: str, next_round: int) -> str:
    """Return the digest of the newest checkpoint, over run, instance, round, all blobs that it names, and the end of
    the record.
    """
    rows = c.execute(sa.select(MODELS).where(MODELS.c.next_round == next_round))
    models = ([OptionalText.STORED if field is None else field for field in row] for row in rows)
    fields = [run, instance, next_round, *models, end_of_record(c, "")]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()
