"""Make a submitted recipe a run that devices can join: signed facts, and a folder on the server's disk.

No path of the submitter's machine reaches a device. Each device reads the text that its owner names. The model is named
by the digest of its files.

A run's folder is made before its row. While it is made, the file ``RUN.submitting`` stands beside it. A server that was
killed in between removes the folder at its next start (``clean``).
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec.structs import force_setattr

from edgewise.apps.runs.joined import REST_START
from edgewise.apps.runs.planned import planned
from edgewise.apps.runs.toml_text import toml
from edgewise.apps.server import distilling, sharing, splitting
from edgewise.core import vector
from edgewise.core.errors import EdgewiseError, RecipeError, TransportError
from edgewise.core.vector import Spec
from edgewise.drivers import extension_packages
from edgewise.drivers.fleet import audit, mailboxes, members, roster, served
from edgewise.drivers.fleet.members import Member
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http import package, presence
from edgewise.drivers.http.service import Service
from edgewise.drivers.storage.files import FOLDER, discard, sync_folder, write_durably, write_new
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.coordinator import first
from edgewise.plan.compile import compile
from edgewise.plan.facts import ExtensionPackage, Instance, canonical, sign
from edgewise.plan.plan import Plan
from edgewise.plan.recipe import keywords, vibration
from edgewise.plan.recipe.recipe import Recipe, from_plain
from edgewise.plan.retention import window_of

LOG = logging.getLogger("edgewise")
Connection = sa.Connection
ABANDONED_S = 3600.0  # age of a mark after which no server is at the submission any more
SAMPLING_KEY = "sampling.key"
SUBMITTING = ".submitting"
OWN = "module"
MODEL = "model"  # folder of the model's files, in a run's folder


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A submitted recipe with its model and its conditions.

    Attributes:
        recipe: its tables.
        spec: layout of the trained parameters (``Spec.to_list``).
        initial: digest of their first values, raw float32.
        rest: with a split model, digest of the first values behind the cut, raw float32. ``facts`` then has the layout
            of the whole model, ``whole_spec``. None: there are none.
        model: digest of the manifest of the model's files (``drivers.http.package``). None: the bundled model.
            ``OWN``: a module whose code devices have.
        packages: installed packages that bring parts of the recipe, with the digests that the submitter has.
        facts: further facts about the model.
        tags: only devices with all these tags take part.

    Earlier versions send empty text where ``rest`` and ``model`` are None. A field with its default is left out.
    """

    recipe: dict[str, Any]
    spec: list[Any]
    initial: str
    rest: str | None = None
    model: str | None = None
    facts: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    packages: tuple[ExtensionPackage, ...] = ()

    def __post_init__(self) -> None:
        force_setattr(self, "rest", self.rest or None)
        force_setattr(self, "model", self.model or None)


def served_recipe(recipe: Recipe, model: str | None, spec: Spec, measured: bool) -> Recipe:
    """Make the recipe that devices get from a submitted one.

    Args:
        model: as in a submission.
        measured: the server measures models itself.
    Raises:
        RecipeError(E-COMBO): for a setting that enrolled devices cannot carry out.
    """
    if not (measured or recipe.eval.on_devices) and (recipe.round.patience or recipe.round.keep == "best"):
        what = "round.patience and round.keep choose a model by held-out losses, which this server does not measure."
        fix = "let the devices measure (eval.on_devices = true), leave them out, or simulate the recipe."
        raise RecipeError("E-COMBO", what, fix)
    distilling.check_names(recipe)
    if recipe.data.source == keywords.SOURCE and not recipe.keywords.words:
        what = "keywords.words is empty, and devices have to number keywords alike."
        raise RecipeError("E-COMBO", what, "submit with `edgewise run submit`, which writes them.")
    if recipe.data.source == vibration.SOURCE:
        what = f'data.source = "{vibration.SOURCE}": agents read no recordings. The simulator plays it.'
        raise RecipeError("E-COMBO", what, "play it with `edgewise sim`.")
    base = "bundled" if model is None else f"{package.PREFIX}{model}"
    if model == OWN:
        base = f"{package.OWN}{spec.digest()}"
    tables = recipe.resolved()
    tables["model"]["base"] = base
    if not measured:
        tables["compare"] = {**tables["compare"], "local_only": False, "centralised": False, "longer": 0, "unseen": 0.0}
    tables["data"] = recipe.data.served().model_dump(mode="json", by_alias=True)
    return from_plain(tables, "the submitted recipe")


def population(found: Sequence[Member], tags: Sequence[str]) -> dict[str, bytes]:
    """Select the approved devices that have all these tags: name -> key."""
    asked = set(tags)
    return {m.id: m.public for m in found if m.role == "device" and asked <= set(m.tags)}


def begin(
    service: Service,
    wanted: Submission,
    made_by: str,
    measured: bool = False,
    gateway: sharing.Address | None = None,
) -> ServedRun:
    """Make a run of a submission: its folder, then its row. A refused submission leaves nothing behind.

    Args:
        gateway: the second server of runs with shared sums.
    Raises:
        EdgewiseError: as ``from_plain``, ``compile`` and ``extension_packages.catalogue``.
        TransportError: E-REQUEST, E-BLOB.
        StoreError(E-DISK).
    """
    spec, catalogue = _spec(wanted.spec), extension_packages.catalogue(sorted(wanted.packages))
    recipe = served_recipe(from_plain(wanted.recipe, "the submitted recipe"), wanted.model, spec, measured)
    splitting.check(service, recipe, measured)
    with service.database.read() as c:
        devices = population(_everybody(c), wanted.tags)
    if not devices:
        tagged = f" with the tags {', '.join(wanted.tags)}" if wanted.tags else ""
        raise RecipeError("E-QUORUM", f"no approved device{tagged}.", "enrol devices first: `edgewise fleet ls`.")
    listing = roster.dump(list(devices.values()))
    instance = Instance(
        server=service.identity.public.hex(), nonce=secrets.token_hex(32), roster=vector.digest(listing)
    )
    plan = compile(recipe, spec, len(devices), catalogue, None, instance)
    shares = sharing.arranged(service, gateway, plan, listing)
    packed = None if wanted.model == OWN else wanted.model
    files = _files(service, packed)
    initial = vector.from_bytes(service.staging.take(wanted.initial), spec.dim)
    rest = splitting.submitted(service, wanted.rest, wanted.facts, recipe, spec)
    run, told = plan.run, warnings(service, recipe.round.deadline_s)
    with _submitting(service, run) as out:
        _store(out, plan, recipe, wanted, files, service, initial, shares, rest)
        facts = canonical(plan.facts)
        with service.blobs.kept() as put:
            blobs = {put(raw): len(raw) for raw in _published(service, packed, files, listing, spec)}
            service.blobs.sync()
            row = ServedRun(
                run=run, name=recipe.name, state=served.RUNNING, why=None, rounds=plan.rounds, facts=facts,
                signature=sign(service.identity.secret, facts), kept=blobs, made_by=made_by, made_s=service.now_s(),
            )  # fmt: skip

            def change(c: sa.Connection) -> None:
                served.add(c, row)
                audit.note(c, made_by, "submit", run, row.made_s)
                mailboxes.admit(c, run, devices)
                mailboxes.publish(c, run, dict(blobs))

            service.database.write(change)
    for sentence in told:
        LOG.warning("run %.12s: %s", run, sentence)
    for digest in (wanted.initial, wanted.rest, packed, *files.values()):
        if digest is not None:
            service.staging.drop(digest)
    return row


def warnings(service: Service, deadline_s: float) -> list[str]:
    """Return sentences about what will go badly in this fleet with a run whose rounds last so long."""
    with service.database.read() as c:
        fleet = members.count(c)
    found = presence.short_deadline(deadline_s, fleet, service.limits)
    return [] if found is None else [found]


def folder(service: Service, run: str) -> Path:
    """Return the folder of a run on the server."""
    return service.folder / "runs" / run[:32]


def clean(service: Service, older_s: float = 0.0) -> None:
    """Remove the folders of submissions that ended before the run's row was written: of a server that was killed.

    ``older_s``: only those with a mark of this age.

    A folder without its mark stays, whatever the database says. It may be newer than a restored database.
    """
    for mark in sorted((service.folder / "runs").glob(f"*{SUBMITTING}")):
        with suppress(FileNotFoundError):  # Another server has settled it.
            if time.time() - mark.stat().st_mtime >= older_s:
                _settle(service, mark)


@contextmanager
def _submitting(service: Service, run: str) -> Iterator[Path]:
    """Mark the folder of a new run until its row is written. On an error the folder is removed at once."""
    out = folder(service, run)
    out.parent.mkdir(FOLDER, exist_ok=True)
    mark = out.with_suffix(SUBMITTING)
    try:
        write_new(mark, b"")
        sync_folder(out.parent)
        yield out
    except Exception:  # Whatever stops the submission must remove its folder; after a kill the next start does it.
        _settle(service, mark)
        raise
    discard(mark)


def _settle(service: Service, mark: Path) -> None:
    """Remove a mark, and its folder where no run of the database has it. A folder that cannot go keeps its mark."""
    out = mark.with_suffix("")
    with service.database.read() as c:
        known = any(folder(service, row.run) == out for row in served.listed(c))
    if not known:
        shutil.rmtree(out, ignore_errors=True)
    if known or not out.exists():
        discard(mark)


def _spec(plain: list[Any]) -> Spec:
    try:
        return Spec.of([(str(name), tuple(map(int, shape)), str(dtype)) for name, shape, dtype in plain])
    except (TypeError, ValueError, EdgewiseError) as e:
        raise TransportError("E-REQUEST", f"the layout is malformed: {e}.", "submit with `edgewise run`.") from None


def _everybody(c: sa.Connection) -> list[Member]:
    found: list[Member] = []
    while page := members.listed(c, members.APPROVED, found[-1].id if found else ""):
        found += page
    return found


def _files(service: Service, model: str | None) -> Mapping[str, str]:
    return {} if model is None else package.parse(service.staging.take(model))


def _published(
    service: Service, model: str | None, files: Mapping[str, str], listing: bytes, spec: Spec
) -> Iterator[bytes]:
    """Yield the blobs that devices need beside those of rounds: list of keys, layout, files of the model.

    One is in memory at a time.
    """
    yield listing
    yield spec.written()
    for digest in () if model is None else (model, *files.values()):
        yield service.staging.take(digest)


def _store(
    out: Path,
    plan: Plan,
    recipe: Recipe,
    wanted: Submission,
    files: Mapping[str, str],
    service: Service,
    initial: vector.Vector,
    shares: sharing.Arranged | None,
    rest: vector.Vector | None,
) -> None:
    """Make the run's folder with the first checkpoint, as a simulation would."""
    tables = recipe.resolved()
    with RunStore(out) as store:
        if files:
            (out / MODEL).mkdir(FOLDER, exist_ok=True)
            for name, digest in files.items():
                write_durably(out / MODEL / name, service.staging.take(digest))
            tables["model"]["base"] = MODEL
        write_durably(out / SAMPLING_KEY, secrets.token_bytes(32), owner_only=True)
        if shares is not None:
            shares.write(out)
        write_durably(out / "recipe.toml", toml(tables).encode())
        facts = {
            **wanted.facts,
            "spec": wanted.spec,
            "spec_sha256": plan.spec.digest(),
            "initial_sha256": wanted.initial,
            "plan_facts": canonical(plan.facts).decode("ascii"),
            "recipe_dir": str(out.resolve()),
            "recipe_from_run": ".",
            "engine": "devices",
            "extensions": extension_packages.modules(plan.facts.packages),
            "started_at": service.now_s(),
            "plan": planned(plan),
        }
        if (distiller := distilling.distiller_of(service, store, tables)) is not None:
            facts |= distiller.facts()
        store.create(plan.run, recipe.name, tables, facts, window_of(plan).rounds)
        if rest is not None:
            store.keep(REST_START, rest)
        store.commit(first(plan, initial, rest), ())
