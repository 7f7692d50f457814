"""Split models of a server's runs: refusals, the rest that a submission brings, and the keeper of a run's rest.

splitting.check(service, recipe, measured)                        # when a recipe is submitted
rest = splitting.submitted(service, digest, facts, recipe, spec)
rest = splitting.rest_of(service, plan, store, keys, links)       # when the run is played: the coordinator's port
splitting.port(service, run, facts)                               # what devices get
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from edgewise.core import events, vector
from edgewise.core.errors import EdgewiseError, RecipeError, StoreError, TransportError
from edgewise.core.training import DeviceId
from edgewise.core.vector import Spec, Vector
from edgewise.drivers.fleet import members
from edgewise.drivers.fleet.members import Member
from edgewise.drivers.http.service import Service
from edgewise.drivers.http.split_address import SplitPort, made_split_address
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers.split_jobs import HoldRestJob
from edgewise.drivers.workers.split_process import SplitProcess
from edgewise.plan.facts import parse
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe, from_plain
from edgewise.plan.split_part import PART, REST, is_split, split_part

CACHE = "cache"  # folder of a run for copies of its model's base


def check(service: Service, recipe: Recipe, measured: bool) -> None:
    """Refuse a recipe with [split] that this server cannot play. Raises RecipeError(E-COMBO)."""
    split = recipe.split
    if not split.used:
        return
    given = f"split.cut = {split.cut}"
    fix = "simulate the recipe, or leave out [split]."
    if split.cached or split.held_by == "gateway":
        what = f'{given} with split.held_by = "gateway": sessions of enrolled devices are with the server itself.'
        raise RecipeError("E-COMBO", what, 'write held_by = "server" and device_part = "trained", or simulate it.')
    if split.trains_rest:
        what = f'{given} with split.server_parts = "{split.server_parts}": a server trains no rest of a model. It '
        what += "answers sessions with a rest that stays as it is."
        raise RecipeError("E-COMBO", what, 'write split.server_parts = "frozen", or simulate the recipe.')
    if recipe.model.quantize == "int8":
        what = f'{given} with model.quantize = "int8": a device reads its own part in NF4 or as it is stored.'
        raise RecipeError("E-COMBO", what, f'write model.quantize = "nf4", or {fix}')
    if measured:
        what = (
            f"{given}, and this server measures the models of its runs on text of its own, which asks for whole ones."
        )
        raise RecipeError("E-COMBO", what, fix)
    if service.database.shared:
        what = f"{given}, and several servers share this database: devices would not find the one that has the rest."
        raise RecipeError("E-COMBO", what, f"submit to a server with a database of its own, or {fix}")
    if service.rests is None:
        what = f"{given}, and this server does not listen for sessions of split learning."
        raise RecipeError("E-COMBO", what, f"start it with `edgewise serve --split-listen HOST:PORT`, or {fix}")


def submitted(
    service: Service, digest: str | None, facts: Mapping[str, Any], recipe: Recipe, spec: Spec
) -> Vector | None:
    """Take the rest of a split model from a submission. None where the model is whole.

    Args:
        digest: of the rest, raw float32, which is staged. None where there is none.
        facts: of the submission, with ``whole_spec``.
        spec: layout of the device's part.
    Raises:
        TransportError: E-REQUEST for layouts that do not belong together. E-BLOB.
    """
    if not recipe.split.used:
        return None
    try:
        whole = Spec.of([(str(n), tuple(map(int, shape)), str(dtype)) for n, shape, dtype in facts["whole_spec"]])
        parts = split_part(recipe, whole)
    except (KeyError, TypeError, ValueError, EdgewiseError) as e:
        parts, why = None, f"{type(e).__name__}"
    else:
        why = "it is not that of the submitted layout"
    if parts is None or parts.shared.digest() != spec.digest():
        what = f"the layout of the whole model is missing or malformed: {why}."
        raise TransportError("E-REQUEST", what, "submit with `edgewise run`.")
    if digest is None and parts.own.dim:
        what = "the first values of the rest of the split model are missing."
        raise TransportError("E-REQUEST", what, "submit with `edgewise run`.")
    raw = service.staging.take(digest) if digest is not None and parts.own.dim else b""
    return vector.from_bytes(raw, parts.own.dim)


class ServedRest:
    """The rest of a served run's model, which stays as it is (``engine.split_rest.RestOfModel``)."""

    def __init__(self, rests: SplitProcess, run: str, initial: Vector) -> None:
        self._rests, self._run, self._initial = rests, run, initial

    def start(self) -> Vector:
        """Return the rest before round 0."""
        return self._initial

    def use(self, round: int, rest: Vector) -> None:
        """Open the sessions of this round."""
        self._rests.open_round(self._run, round)

    def closed(
        self, round: int, rest: Vector, accepted: Collection[DeviceId], met: bool
    ) -> tuple[Vector, Sequence[events.SplitSession]]:
        """End the sessions of a round, and return their events. The rest stays."""
        return rest, [
            events.SplitSession(
                round=round, device=s.device, steps=s.steps, bytes_up=s.up_bytes, bytes_down=s.down_bytes
            )
            for s in self._rests.end_round(self._run)
        ]


def rest_of(
    service: Service, plan: Plan, store: RunStore, keys: Mapping[DeviceId, bytes], links: ExitStack
) -> ServedRest | None:
    """Load the rest of a run's model into the server's process, and open the next round. None where it is whole.

    Args:
        keys: of the run's devices.
        links: forgets the rest at its end.
    Raises:
        TransportError: E-CONNECT where this server was started without a listener.
        StoreError: E-CHECKPOINT, E-WORKER. EdgewiseError: of the process.
    """
    if not is_split(plan):
        return None
    if service.rests is None:
        what = "the model of this run is split, and this server was started without a listener for sessions."
        raise TransportError("E-CONNECT", what, "start it with `--split-listen HOST:PORT`, then resume the run.")
    checkpoint, known = store.load(), store.run()
    if checkpoint is None or known is None or checkpoint.memory.child(REST).get(PART) is None:
        raise StoreError("E-CHECKPOINT", f"{store.out} lacks the rest of its model.", "restore it from a backup.")
    rest = checkpoint.memory.child(REST)[PART]
    recipe = from_plain(dict(known["recipe"]), "the stored recipe")
    service.rests.hold(
        HoldRestJob(
            run=plan.run, recipe=json.dumps(recipe.resolved()), recipe_dir=str(store.out), devices=dict(keys),
            cache=str(store.out / CACHE), values=memoryview(vector.to_bytes(rest)),
        )
    )  # fmt: skip
    links.callback(service.rests.drop, plan.run)
    made_rest = ServedRest(service.rests, plan.run, rest)
    made_rest.use(checkpoint.next_round, rest)
    return made_rest


def served_split_port(service: Service, run: str, facts: bytes) -> SplitPort | None:
    """Return the signed port for a run's sessions. None where the model is whole, or nothing listens.

    Raises DecodeError(E-FACTS) for facts that a server with a listener cannot read.
    """
    if service.rests is None or not parse(facts).settings().get("split", {}).get("cut"):
        return None
    return made_split_address(service.identity, run, service.rests.port)


def served_revoked_members(service: Service) -> frozenset[str]:
    """Collect the names of all revoked members. Raises StoreError as the database."""
    found: list[Member] = []
    with service.database.read() as c:
        while page := members.listed(c, members.REVOKED, found[-1].id if found else ""):
            found += page
    return frozenset(member.id for member in found)
