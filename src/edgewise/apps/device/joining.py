"""Join a run that a server plays: check the facts, fetch the model, read the owner's text.

    parts = Parts(link, home, owner)
    attend(link, parts, until)                 # parts(run) is this device's part in a run

The order of checks avoids work for a run that will be refused: the server's signature on the facts, the owner's choice
of packages and models, the model, the owner's floor, the owner's text.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from edgewise.apps.device import personal, room
from edgewise.apps.device.room import MODELS, RUNS
from edgewise.core.errors import DecodeError, EdgewiseError, ModelError, RecipeError
from edgewise.core.keys import Secrets
from edgewise.core.training import DeviceId
from edgewise.core.vector import Spec
from edgewise.crypto.attest.accept import Reference
from edgewise.crypto.attest.evidence import refused
from edgewise.drivers import extension_packages
from edgewise.drivers.fleet import roster
from edgewise.drivers.http import package, share_keys, split_address
from edgewise.drivers.http.attend import RunPart
from edgewise.drivers.http.identity import key_fingerprint
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.split_address import RemoteSessions
from edgewise.drivers.storage.device_store import FileDevices
from edgewise.drivers.storage.files import FOLDER, is_blob, write_durably
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.drivers.workers.records import protect_records
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.owner_budget import OwnerBudget
from edgewise.engine.ports import Trust
from edgewise.engine.trainer import Registered
from edgewise.plan import facts
from edgewise.plan.acceptance import OwnerFloor, accept_facts, check_stated_facts
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.facts import PlanFacts
from edgewise.plan.personal import keeps_part, keeps_private, personal_training
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.keywords import SOURCE
from edgewise.plan.recipe.recipe import Recipe, from_plain
from edgewise.plan.recipe.split import SplitSection

LOG = logging.getLogger("edgewise")
WEIGHTS = ".safetensors"  # end of the names of files with weights
LIST_BYTES, MODEL_BYTES = 2**24, 2**36  # limits of a layout and of a model's file
Make = Callable[[Recipe, Path, DeviceId, Spec], Registered]


@dataclass(frozen=True)
class Owner:
    """The decisions of a device's owner.

    Attributes:
        data: the keys of [data] that say where the text lies and how it is read.
        folder: the folder that relative paths start from.
        floor: the promises that every run has to make.
        budget: the epsilon over all runs. None: no cap.
        packages: name -> digest of the installed packages that runs may use.
        always: names of the packages whose trainer trains in runs without a trainer of their own.
        gateway: fingerprint of the second server that shares may be sealed to. None: the owner trusts none.
        attested: programs of which one must hold the second server's key. Empty: any may.
        engine: the keys of [engine] of this device, such as its limit of memory.
        evaluates: whether a loss on held-out text may leave, as a part of an update.
        room_bytes, room_s: most bytes of models, blobs and caches on the disk, and seconds that unused ones stay.
    """

    data: Mapping[str, Any]
    folder: Path
    floor: OwnerFloor = OwnerFloor()  # noqa: RUF009 (immutable)
    budget: OwnerBudget | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    always: tuple[str, ...] = ()
    gateway: str | None = None
    attested: tuple[Reference, ...] = ()
    engine: Mapping[str, Any] = field(default_factory=dict)
    evaluates: bool = True
    room_bytes: float = inf
    room_s: float = inf


class Parts:
    """A device's parts in runs. A part is made when the first mail of its run comes. The latest one stays ready.

    Args:
        home: folder of the enrolment.
        make: (recipe, folder of the run, device, layout of the trained parameters) -> trainer, for a model that the
            device has. None: the recipe's trainer, on the owner's text.
        personal: note which runs ask for a personal model, so that the agent makes it.
        crosses: called with run, round and bytes of each message of a session of split learning, before it leaves.
    """

    def __init__(
        self,
        link: Link,
        home: Path,
        owner: Owner,
        make: Make | None = None,
        personal: bool = True,
        crosses: Callable[[str, int, int], None] = lambda run, round, size: None,
    ) -> None:
        self._link, self._home, self._owner, self._make = link, home, owner, make
        self._personal, self._crosses = personal, crosses
        self._run: str | None = None
        self._part: RunPart | None = None  # this device's part in the latest run
        self._store: FileDevices | None = None
        self._refused: dict[str, EdgewiseError] = {}

    def __call__(self, run: str) -> RunPart:
        """Return this device's part in a run.

        Raises EdgewiseError if the device takes no part. A later call for that run raises the same error.
        """
        if run in self._refused:
            raise self._refused[run]
        if run != self._run or self._part is None:
            self.close()  # This frees its model's memory first.
            try:
                part, self._run = self._join(run), run
            except (DecodeError, EdgewiseError) as e:
                if not e.code.startswith(("E-CONNECT", "E-DISK", "E-BLOB")):
                    self._refused[run] = e
                raise
            self._part = part
            self.tidy()
            return part
        return self._part

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the part that stays ready."""
        if self._store is not None:
            self._store.close()
        self._part, self._store = None, None

    def tidy(self) -> None:
        """Remove models, blobs and caches of other runs, as the owner's limits ask (``room.sweep_device_folders``)."""
        own = self._owner
        in_use = {self._run[:32]} if self._run is not None and self._part is not None else set[str]()
        room.sweep_device_folders(self._home, in_use, own.room_bytes, own.room_s, time.time())

    def _join(self, run: str) -> RunPart:
        raw, signature, shares, sessions = self._published(run)
        stated = facts.parse(raw)
        if stated.digest() != run or stated.instance is None:
            raise facts.refused("they are those of another run")
        server = bytes.fromhex(stated.instance.server)
        if key_fingerprint(server) != self._link.home.server or not facts.signed(server, signature, raw):
            raise facts.refused("they are not signed by the server that this device was enrolled with")
        catalogue = extension_packages.catalogue(stated.packages, self._owner.packages, self._owner.always)
        folder = self._home / RUNS / run[:32]
        folder.mkdir(FOLDER, parents=True, exist_ok=True)
        room.note_folders_used(folder / room.BLOBS, folder / room.CACHE)
        trainer = self._trainer(stated, folder, catalogue, sessions)
        plan = accept_facts(raw, signature, server, trainer.trainer.spec, self._owner.floor, catalogue)
        protect_records(plan, trainer)
        if not self._personal and keeps_private(plan):
            what = "the run keeps a private part on its devices, and a script trains nothing beside its tasks."
            raise RecipeError("E-PERSONAL", what, 'take part with `edgewise device run`, or ask for "interpolate".')
        if keeps_part(plan) and trainer.keeps is None:
            what = "the run keeps a part of the model on its devices, and the trainer of this one cannot."
            raise RecipeError("E-PERSONAL", what, "take part with the recipe's own trainer.")
        if self._personal and personal_training(plan, self._link.name) is not None:
            personal.want_personal_model(folder, run)
        downloads = Downloads(plan.layout.given.dim, plan.downlink)
        self._store = FileDevices(folder, run)
        devices = Devices(
            plan=plan, trainer=trainer, store=self._store, downloads=downloads,
            trust=self._trust(plan, folder, shares), secrets=fresh_device_secrets, budget=self._owner.budget,
            evaluates=self._owner.evaluates,
        )  # fmt: skip
        return RunPart(devices, downloads, folder / "blobs")

    def _published(self, run: str) -> tuple[bytes, bytes, Mapping[str, Any], Any]:
        found = self._link.call("GET", f"/v1/runs/{run}")
        try:
            raw, signature = str(found["facts"]).encode("ascii"), bytes.fromhex(found["signature"])
            return raw, signature, dict(found["shares"] or {}), found.get("sessions")
        except (KeyError, TypeError, ValueError):
            raise facts.refused("the server sent something else") from None

    def _trainer(self, stated: PlanFacts, folder: Path, catalogue: Catalogue, sessions: Any) -> Registered:
        """Make the recipe's trainer on this device's text and model."""
        check_stated_facts(self._owner.floor, stated)  # The check comes before the download.
        tables = stated.settings()
        tables = {**tables, "engine": dict(self._owner.engine), "data": self._data(tables)}
        split = from_plain(tables, "the run's facts").split  # Whoever has one part downloads no other.
        if tables.get("statistics", {}).get("of") == "loss" and not self._owner.evaluates:
            what = "the run measures a model on held-out text, and the owner of this device keeps such losses."
            raise RecipeError("E-FLOOR", what, "allow it in the policy: privacy.evaluation = true.")
        if self._make is not None and split.used:
            what = "the run splits its model, and a script trains whole ones."
            raise RecipeError("E-COMBO", what, "take part with `edgewise device run`.")
        own = from_plain({**tables, "model": self._model(tables, folder, split)}, "the run's facts")
        if self._make is not None:
            return self._make(own, folder, self._link.name, self._layout(stated, folder))
        remote = None
        if own.split.used:
            run = stated.digest()
            port = split_address.checked_split_address(sessions, run, self._link.home.server)
            remote = RemoteSessions(self._link, run, port, folder, partial(self._crosses, run))
        return make_trainer(own, self._owner.folder, folder, catalogue, self._link.name, remote=remote)

    def _layout(self, stated: PlanFacts, folder: Path) -> Spec:
        """Download the layout that the facts name by its digest."""
        raw = self._link.download(stated.spec, folder / "blobs", LIST_BYTES).read_bytes()
        try:
            spec = Spec.of(json.loads(raw))
        except (ValueError, TypeError, RecursionError):
            raise facts.refused("their layout is malformed") from None
        if spec.digest() != stated.spec:
            raise facts.refused("their layout is not in its canonical form")
        return spec

    def _data(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        """Make [data]: the recipe says how text is cut, the owner where it lies. A script reads its own."""
        if self._make is not None:
            return dict(tables["data"])
        clips, owner = bool(tables.get("keywords", {}).get("words")), self._owner.data
        if clips != (owner.get("source") == SOURCE):
            kinds = ("spoken keywords", "text") if clips else ("text", "spoken keywords")
            what = f"the run trains on {kinds[0]}, and this device's policy names {kinds[1]}."
            raise RecipeError("E-COMBO", what, f"name {kinds[0]} in [data], or take part in other runs.")
        if clips:
            return dict(owner)
        return {**tables["data"], **self._owner.data, "partition": "whole"}

    def _model(self, tables: Mapping[str, Any], folder: Path, split: SplitSection) -> dict[str, Any]:
        """Make [model], with a folder of this device if the facts name a package."""
        model = dict(tables["model"])
        manifest = package.package_digest_in(model["base"])
        if manifest is not None:
            model["base"] = str(self._unpacked(manifest, folder, split).resolve())
        elif model["base"].startswith(package.OWN):
            if self._make is None:
                what = "the run trains a module whose files do not travel. Only a script with its code can train it."
                raise ModelError("E-MODEL", what, "join it by edgewise.Device, from Python.")
        elif model["base"] != "bundled":
            raise facts.refused(f"their model {model['base']!r:.80} has no digest")
        return model

    def _unpacked(self, manifest: str, folder: Path, split: SplitSection) -> Path:
        """Download a model's files into a folder. Each file, also an old one, is compared with its digest.

        A damaged file would be another model, and nothing else would show damage of frozen weights. Of the weights of a
        split model, only files with a tensor of the device's part are downloaded.
        """
        blobs, out = folder / "blobs", self._home / MODELS / manifest
        files = package.parse(self._link.download(manifest, blobs, package.MANIFEST_BYTES).read_bytes())
        out.mkdir(FOLDER, parents=True, exist_ok=True)
        room.note_folders_used(out)
        room.note_model_use(folder, manifest)
        self._fetch({name: digest for name, digest in files.items() if not name.endswith(WEIGHTS)}, out)
        weights = {name: digest for name, digest in files.items() if name.endswith(WEIGHTS)}
        if split.used:
            from edgewise.learn.models.shards import part_files

            wanted = part_files(out, split.cut, split.shape)
            if wanted is not None and (lacks := sorted(wanted - weights.keys())):
                raise facts.refused(f"their model has no file {lacks[0]!r:.80}")
            weights = {name: digest for name, digest in weights.items() if wanted is None or name in wanted}
        self._fetch(weights, out)
        return out

    def _fetch(self, files: Mapping[str, str], out: Path) -> None:
        for name, digest in files.items():
            if not is_blob(out / name, digest):
                os.replace(self._link.download(digest, self._home / MODELS, MODEL_BYTES), out / name)

    def _trust(self, plan: Plan, folder: Path, shares: Mapping[str, Any]) -> Trust:
        """Collect the keys that this device trusts in a run: its own, and those of other devices or of two servers."""
        instance, me = plan.facts.instance, self._link.identity
        assert instance is not None  # ``accept`` refuses facts without an instance.
        keys: Mapping[str, bytes] = {me.name: me.public}
        if plan.hides is not None:
            path = folder / "roster"
            if not is_blob(path, instance.roster):
                raw = self._link.download(instance.roster, folder / "blobs", 32 * plan.facts.population)
                write_durably(path, raw.read_bytes())
            keys = roster.parse_roster(path.read_bytes(), plan.facts.population)
        if me.name not in keys:
            raise facts.refused("this device is not among their devices")
        trust = Trust(registry=keys.get, identity=lambda device: me.secret, roster=tuple(sorted(keys)))
        if self._owner.attested and not plan.shared:
            raise refused("the run encrypts nothing to a key that a program could attest, for it has one server")
        return self._sealing(trust, plan, shares) if plan.shared else trust

    def _sealing(self, trust: Trust, plan: Plan, shares: Mapping[str, Any]) -> Trust:
        """Add the keys that the server and the owner's gateway have signed for this run."""
        gateway, server = self._owner.gateway, self._link.home.server
        if gateway is None or gateway == server:
            what = "the run has a second server, and the owner of this device has named none to trust."
            raise RecipeError("E-FLOOR", what, "write its fingerprint into the policy: privacy.gateway.")
        leader = share_keys.checked_share_key(shares.get(share_keys.LEADER), share_keys.LEADER, plan.run, server)
        signed, role = shares.get(share_keys.HELPER), share_keys.HELPER
        helper = share_keys.checked_share_key(signed, role, plan.run, gateway)
        if self._owner.attested:
            known = share_keys.attested(signed, role, plan.run, helper, self._owner.attested, datetime.now(UTC))
            LOG.info("attestation of the gateway's key verified: %s, %s", known.platform, dict(known.registers))
        return replace(trust, leader=leader, helper=helper)


def fresh_device_secrets(device: DeviceId, round: int, nonce: bytes | None) -> Secrets:
    """Draw secrets from the system's generator. No two attempts at a round have the same."""
    return Secrets.of(secrets.token_bytes(32))
