"""The catalogue of the parts that a recipe can name. An extension module adds parts to it.

    EDGEWISE = Extension(parts=(my_codec,))                           # in the module my_parts
    edgewise sim recipe.toml --extension my_parts                     # on the command line
    edgewise.simulate(recipe, extensions=["my_parts"])                # in Python

A part is a function (``core.part``). Its signature gives its keys, their limits and their descriptions in ``edgewise
schema``. An extension is an importable module with ``EDGEWISE = Extension(...)`` at module level. Worker processes
import it too, so nothing is pickled.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic import Field as KeyField

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.project.low_rank import low_rank
from edgewise.codecs.project.products import products
from edgewise.codecs.project.rotate import rotate
from edgewise.codecs.project.sketch import sketch
from edgewise.codecs.quantize.mixed import mixed
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.cut_parts import cut_parts
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.segments import factors, folds, segments
from edgewise.codecs.select.shared_top_k import shared_top_k
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.weigh import weigh
from edgewise.core.errors import RecipeError
from edgewise.core.own_code import line_of
from edgewise.core.part import Doc, Part
from edgewise.core.stage import Merge, Post, Stage
from edgewise.core.vector import Spec
from edgewise.merges.centred_clip import centred_clip
from edgewise.merges.fltrust import fltrust
from edgewise.merges.plain import plain_sum
from edgewise.merges.robust_mean import robust_mean
from edgewise.merges.screened import screened
from edgewise.plan.facts import ExtensionPackage
from edgewise.plan.recipe import findings
from edgewise.plan.recipe.findings import Finding
from edgewise.plan.recipe.places import Origin
from edgewise.privacy.clip import clamp, clip
from edgewise.privacy.noise import noise
from edgewise.secagg.merge import grouped, secure_sum, shared_sum
from edgewise.strategies.base import Strategy
from edgewise.strategies.feddyn import feddyn
from edgewise.strategies.fednova import fednova
from edgewise.strategies.fedopt import fedadagrad, fedadam, fedavg, fedavgm, fedyogi
from edgewise.strategies.fedprox import fedprox
from edgewise.strategies.momentum import momentum
from edgewise.strategies.moon import moon
from edgewise.strategies.scaffold import scaffold
from edgewise.strategies.zeroth_order import zeroth_order

AnyPart = Part[Any, Any]
KINDS = {"stages": Stage, "merges": Merge, "posts": Post, "strategies": Strategy}  # The return type tells the kind.


@dataclass(frozen=True)
class Extension:
    """The additions of a module: parts of any kind, and optionally a trainer factory ``trainer(recipe) -> Trainer``."""

    parts: Sequence[AnyPart] = ()
    trainer: Callable[[Any], Any] | None = None


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The parts of each kind, by name.

    Attributes:
        trainer: factory of the trainer that an extension brings. None takes the built-in trainer.
        packages: installed packages that a served run names as the source of its parts.
    """

    stages: Mapping[str, AnyPart] = field(default_factory=dict)
    merges: Mapping[str, AnyPart] = field(default_factory=dict)
    posts: Mapping[str, AnyPart] = field(default_factory=dict)
    strategies: Mapping[str, AnyPart] = field(default_factory=dict)
    trainer: Callable[[Any], Any] | None = None
    packages: tuple[ExtensionPackage, ...] = ()

    def extended(self, extension: Extension) -> Catalogue:
        """Return this catalogue with an extension's parts.

        Raises:
            RecipeError: E-EXTENSION for a name that exists already, for an object that is not a part, and for a second
                trainer.
        """
        kinds: dict[str, dict[str, AnyPart]] = {kind: dict(getattr(self, kind)) for kind in KINDS}
        for part in extension.parts:
            kind = _part_kind(part)
            if part.name in kinds[kind]:
                raise RecipeError("E-EXTENSION", f"the extension redefines {kind} {part.name}.", "rename it.")
            kinds[kind][part.name] = part
        if self.trainer and extension.trainer and extension.trainer is not self.trainer:
            what = "two extensions bring a trainer, and a run has one."
            raise RecipeError("E-EXTENSION", what, "leave one of them out.")
        return Catalogue(**kinds, trainer=extension.trainer or self.trainer, packages=self.packages)


def _part_kind(part: AnyPart) -> str:
    """Find the kind of a part by the return annotation of its function. Raises RecipeError(E-EXTENSION)."""
    try:
        made = part.makes
        part.fields  # noqa: B018 (reading it checks the signature)
    except (AttributeError, NameError, TypeError) as e:
        what = f"{getattr(part, 'name', part)!r} is not a part: {type(e).__name__}: {e}."
        raise RecipeError("E-EXTENSION", what, "write @part above the function and annotate its arguments.") from e
    for kind, cls in KINDS.items():
        if made is cls:
            return kind
    raise RecipeError(
        "E-EXTENSION",
        f"{part.name} does not say what it returns.",
        "annotate it: -> Stage, -> Merge, -> Post or -> Strategy.",
    )


BUILT_IN = Catalogue().extended(
    Extension(
        parts=(
            *(
                clip,
                clamp,
                weigh,
                segments,
                factors,
                folds,
                cut_parts,
                products,
                rotate,
                random_k,
                shared_top_k,
                top_k,
                low_rank,
                sketch,
            ),
            *(quantize, mixed, feedback, wrap),
            *(plain_sum, robust_mean, centred_clip, screened, fltrust, secure_sum, grouped, shared_sum),
            noise,
            *(fedavg, fedavgm, fedadam, fedyogi, fedadagrad, fedprox, momentum, moon, scaffold, feddyn, fednova),
            zeroth_order,
        )
    )
)


def with_extensions(modules: Iterable[str]) -> Catalogue:
    """Return the built-in catalogue with the ``EDGEWISE`` of each importable module.

    Raises:
        RecipeError: E-EXTENSION where a module cannot be imported or has no ``EDGEWISE``.
    """
    catalogue = BUILT_IN
    for name in modules:
        try:
            extension = importlib.import_module(name).EDGEWISE
        except Exception as e:  # boundary: an extension is foreign code, and its import may raise anything
            raise RecipeError(
                "E-EXTENSION",
                f"{name}: {type(e).__name__}: {e}" + (f" ({at})." if (at := line_of(e)) else "."),
                "give its file (parts.py) or a name that Python can import; it defines EDGEWISE = Extension().",
            ) from e
        if not isinstance(extension, Extension):
            raise RecipeError("E-EXTENSION", f"{name}.EDGEWISE is not an Extension.", "see `edgewise explain extend`.")
        catalogue = catalogue.extended(extension)
    return catalogue


def make(
    parts: Mapping[str, AnyPart],
    where: str,
    table: Mapping[str, Any],
    spec: Spec,
    inner: Any = None,
    phase: int = 0,
    population: int = 0,
) -> Any:
    """Build one part from its recipe table ``{"kind": name, **keys}``.

    Args:
        parts: the parts of one kind, by name.
        where: the table's place in the recipe, for messages.
        spec, inner, phase, population: values of the plan for parts that ask for them (``core.part.GIVEN``).
    Raises:
        RecipeError: E-MISSING without ``kind``, E-NAME for an unknown one, and E-KEY, E-TYPE, E-VALUE or E-MISSING for
            its keys.
    """
    part, keys = look_up(parts, where, table)
    given = {"spec": spec, "inner": inner, "phase": phase, "population": population}
    return part(**keys, **{name: given[name] for name in part.given})


def look_up(parts: Mapping[str, AnyPart], where: str, table: Mapping[str, Any]) -> tuple[AnyPart, dict[str, Any]]:
    """Return the part that a table names, and its validated keys with their defaults. Raises as ``make``."""
    found = judge(parts, where, table)
    if found.part is None or found.faults:
        raise findings.error(found.faults, Origin())
    return found.part, found.keys


class Judged(NamedTuple):
    """A table's part, its validated keys with their defaults, and its faults. The part is None if none has its name."""

    part: AnyPart | None
    keys: dict[str, Any]
    faults: list[Finding]


def judge(
    parts: Mapping[str, AnyPart], where: str, table: Mapping[str, Any], elsewhere: Mapping[str, str] | None = None
) -> Judged:
    """Look up the part that a table names, and find everything that is wrong with the table.

    Args:
        elsewhere: the parts of other tables, each with the table that it belongs to.
    Returns:
        Findings with the codes of ``look_up``, whose places begin in the table.
    """
    kind, place = table.get("kind"), (("kind",),)
    known = f"one of: {', '.join(parts)}."
    if kind is None:
        return Judged(None, {}, [Finding("E-MISSING", f"{where}: `kind` is required.", known, (*place, ()))])
    if not isinstance(kind, str):
        return Judged(None, {}, [Finding("E-TYPE", f"{where}: `kind` = {kind!r:.80} is not text.", known, place)])
    if kind not in parts:
        other, near = (elsewhere or {}).get(kind), findings.nearest(kind, parts)
        fix = f"it belongs into {other}." if other else f"did you mean `{near}`?" if near else known
        return Judged(None, {}, [Finding("E-NAME", f"{where}: no part is called `{kind}`.", fix, place)])
    part = parts[kind]
    model, given = keys_of(part), {k: v for k, v in table.items() if k != "kind"}
    try:
        keys = model.model_validate(given, strict=True)
    except ValidationError as e:
        path = f"{where.split()[0].strip('[]')}.{kind}"
        return Judged(part, {}, findings.faults_of(e.errors(), model, given, f"{where} ({kind}): ", path)[0])
    return Judged(part, {name: getattr(keys, name) for name in part.fields}, [])


@cache
def keys_of(part: AnyPart) -> type[BaseModel]:
    """Make a pydantic model of a part's keys from its signature. It refuses unknown keys and infinities."""
    fields: dict[str, Any] = {}
    for name, key in part.fields.items():
        notes = get_args(key.hint)[1:] if get_origin(key.hint) is Annotated else ()
        text = next((note.text for note in notes if isinstance(note, Doc)), None)
        default = ... if key.default is inspect.Parameter.empty else key.default
        fields[name] = (key.hint, KeyField(default, description=text))
    config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    return create_model(part.name, __config__=config, __doc__=part.summary, **fields)


def schema(catalogue: Catalogue, recipe_schema: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's JSON schema with each part's keys in place of free tables, for editors."""

    def alternatives(parts: Mapping[str, AnyPart]) -> dict[str, Any]:
        options: list[dict[str, Any]] = []
        for name, part in parts.items():
            one = keys_of(part).model_json_schema()
            one["properties"] = {"kind": {"const": name}, **one.get("properties", {})}
            one["required"] = ["kind", *one.get("required", [])]
            options.append(one)
        return {"oneOf": options}

    out = {"$schema": "https://json-schema.org/draft/2020-12/schema", **recipe_schema}
    properties = dict(out["properties"])
    for key, parts, many in (
        ("strategy", catalogue.strategies, False),
        ("merge", catalogue.merges, False),
        ("stage", catalogue.stages, True),
        ("downlink", catalogue.stages, True),
        ("post", catalogue.posts, True),
    ):
        common = {k: properties[key][k] for k in ("default", "description") if k in properties[key]}
        one = alternatives(parts)
        properties[key] = {**common, "type": "array", "items": one} if many else {**common, **one}
    out["properties"] = properties
    return out
