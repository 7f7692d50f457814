"""Promote a released model for inference, and roll back to the previous one.

Both verify the model's run first, so a model whose totals do not lead to it is never promoted. The model's files are on
the disk before the row that names them. Row and publication are one transaction, so a killed server has one model or
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edgewise.apps.models import verification
from edgewise.apps.server import submission
from edgewise.core import vector
from edgewise.core.errors import StoreError, TransportError
from edgewise.core.vector import Spec
from edgewise.drivers.fleet import promotions, served
from edgewise.drivers.fleet.promotions import Promotion
from edgewise.drivers.http import package
from edgewise.drivers.http.service import Service
from edgewise.drivers.storage import run_record
from edgewise.drivers.storage.run_record import RunRecord
from edgewise.plan.facts import parse

Allowed = Callable[[submission.Connection], object]


def _anyone(c: submission.Connection) -> None:
    """Allow what is not done for a member."""


def promote(service: Service, run: str, played: int | None, by: str, allowed: Allowed = _anyone) -> Promotion:
    """Promote the model of a run after ``played`` rounds. None: the model that counts.

    ``allowed``: raises where the caller may not do it. It is asked in the transaction of the change, after the replay.

    Raises:
        TransportError(E-UNKNOWN-ID): for an unknown run or model.
        StoreError: E-VERIFY if the run does not verify, or no total of it is stored. E-DISK.
    """
    with service.database.read() as c:
        name = served.find(c, run).name
    out = submission.folder(service, run)
    record, chain = _verified(out, played)
    if "statistics" in record.run["recipe"]:
        what = f"run {run:.12} has statistics of its devices, and no model."
        raise TransportError("E-UNKNOWN-ID", what, "read them with `edgewise run statistics`.")
    number = record.counts if played is None else played
    line = next(row for row in record.rounds if row.round == number - 1)
    raws = _blobs(record, out, line.model)
    new = Promotion(
        run=run, name=name, played=number, model=line.model, total=line.total, chain=chain,
        layout=record.run["facts"]["spec_sha256"], base=_base(record),
        blobs={digest: len(raw) for digest, raw in raws.items()}, by=by, at_s=service.now_s(),
    )  # fmt: skip

    def add(c: submission.Connection) -> None:
        allowed(c)
        promotions.add_promotion(c, new)

    with service.blobs.kept() as put:
        for raw in raws.values():
            put(raw)
        service.blobs.sync()
        service.database.write(add)
    return new


def rollback(service: Service, by: str, allowed: Allowed = _anyone) -> Promotion:
    """Return to the previously promoted model. ``allowed``: as ``promote``.

    Raises TransportError(E-CONFLICT) if there is none, and StoreError as ``promote``.
    """
    with service.database.read() as c:
        old = promotions.former_promotion(c)
    record, chain = _verified(submission.folder(service, old.run), old.played)
    found = record.models[old.played].params
    if found != old.model:
        raise StoreError("E-VERIFY", f"run {old.run:.12} has another model than the one that was promoted.", _FIX)
    for digest in old.blobs:
        try:
            service.blobs.get(digest)
        except StoreError as e:
            if e.code != "E-CHECKPOINT":
                raise
            raise StoreError("E-VERIFY", f"the former model is damaged: {e.what}", _FIX) from None
    new = Promotion(
        run=old.run, name=old.name, played=old.played, model=old.model, total=old.total, chain=chain,
        layout=old.layout, base=old.base, blobs=old.blobs, by=by, at_s=service.now_s(), verb=promotions.ROLLBACK,
    )  # fmt: skip

    def change(c: submission.Connection) -> None:
        allowed(c)
        if promotions.former_promotion(c) != old:
            what = "another model was promoted or taken back meanwhile."
            raise TransportError("E-CONFLICT", what, "look with `edgewise models ls`, then decide again.")
        promotions.add_promotion(c, new)

    service.database.write(change)
    return new


_FIX = "promote a model of a run that `edgewise run verify` finds in order."


def _verified(out: Path, played: int | None) -> tuple[RunRecord, str]:
    """Replay a run up to its model after ``played`` rounds.

    Returns the run's record and the digest in which its verification ended.
    """
    found, record = verification.verify_run(out), run_record.read_run_record(out)
    number = record.counts if played is None else played
    if not 1 <= number <= found.rounds:
        what = f"run {found.run:.12} has played {found.rounds} rounds, so it released no model after {number}."
        raise TransportError("E-UNKNOWN-ID", what, "name a round that it has played with --round.")
    if not found.ok or number <= found.first:
        what = f"the model after {number} rounds cannot be replayed. The totals that led to it are not stored."
        raise StoreError("E-VERIFY", what, "promote a later model, or raise store.totals_mb in the recipe.")
    return record, found.chain


def _base(record: RunRecord) -> str:
    facts = parse(record.run["facts"]["plan_facts"].encode())
    return str(facts.settings()["model"]["base"])


def _blobs(record: RunRecord, out: Path, model: str) -> Mapping[str, bytes]:
    """Map the digests of the blobs that a device needs for the model to their contents: facts of the run, parameters,
    layout, base files. The digest of its facts is the run's id.

    Raises TransportError(E-UNKNOWN-ID) if the parameters are no longer on the disk.
    """
    layout = Spec.of(record.run["facts"]["spec"])
    if not record.blobs.path(model).is_file():
        what = (
            "the parameters of this model are not kept: the last three of a run are, and the best where it is chosen."
        )
        raise TransportError("E-UNKNOWN-ID", what, "promote a later one, without --round the one that counts.")
    found = {model: record.blobs.get(model), layout.digest(): layout.written()}
    found[str(record.run["id"])] = record.run["facts"]["plan_facts"].encode()
    if (manifest := package.package_digest_in(_base(record))) is not None:
        files = {path.name: path.read_bytes() for path in sorted((out / submission.MODEL).iterdir())}
        named = {vector.digest(raw): raw for raw in files.values()}
        raw = package.dump_package({name: vector.digest(raw) for name, raw in files.items()})
        if vector.digest(raw) != manifest:
            raise StoreError("E-VERIFY", f"the files of the base in {out / submission.MODEL} were changed.", _FIX)
        found |= {manifest: raw, **named}
    return found
