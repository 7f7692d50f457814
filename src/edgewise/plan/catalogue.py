"""The catalogue: every part that a recipe can name, in explicit dicts. An extension module adds to it, in one file.

An extension is an importable module with a module-level ``EDGEWISE = Extension(...)``; give its name to
``edgewise sim --extension my.module`` or ``edgewise.simulate(recipe, extensions=["my.module"])``. Worker processes
import it too, so nothing is pickled.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from pydantic import BaseModel, ValidationError

from edgewise.codecs.feedback import feedback
from edgewise.codecs.low_rank import low_rank
from edgewise.codecs.mixed import mixed
from edgewise.codecs.quantize import quantize
from edgewise.codecs.random_k import random_k
from edgewise.codecs.rotate import rotate
from edgewise.codecs.segments import factor_groups, factors, groups, segments
from edgewise.codecs.shared_top_k import shared_top_k
from edgewise.codecs.sketch import sketch
from edgewise.codecs.top_k import top_k
from edgewise.codecs.weigh import weigh
from edgewise.codecs.wrap import wrap
from edgewise.core.errors import RecipeError
from edgewise.core.stage import Stage
from edgewise.core.vector import Segment, Spec
from edgewise.merges.plain import plain_sum
from edgewise.plan.params import (
    AdagradParams,
    AdaptiveParams,
    ClampParams,
    ClipParams,
    FeedbackParams,
    GroupedParams,
    LowRankParams,
    MixedParams,
    MomentumParams,
    NoiseParams,
    NoParams,
    ProxParams,
    QuantizeParams,
    RandomKParams,
    RotateParams,
    SegmentsParams,
    ServerLr,
    SharedTopKParams,
    SketchParams,
    TopKParams,
    WeighParams,
    WrapParams,
    ZerothOrderParams,
)
from edgewise.plan.section import MOVED
from edgewise.privacy.clip import clamp, clip
from edgewise.privacy.noise import noise
from edgewise.secagg.merge import grouped, secure_sum, shared_sum
from edgewise.strategies import fedopt
from edgewise.strategies.fedprox import fedprox
from edgewise.strategies.zeroth_order import zeroth_order


@dataclass(frozen=True)
class Entry:
    """One part: its parameters (validated) and how to make it.

    ``make(params, spec)`` for plain parts; with ``combinator=True`` ``make(params, spec, inner)`` gets the stages that
    stand after it in the recipe and puts them inside itself. A stage with ``groups(params, spec)`` may move another
    group of segments in each round: ``groups`` gives them in turn, and ``make(params, spec, phase)`` makes the stage of
    the rounds that move ``groups(params, spec)[phase]``.
    """

    params: type[BaseModel]
    make: Callable[..., Any]
    combinator: bool = False
    groups: Callable[[Any, Spec], Sequence[Sequence[Segment]]] | None = None


@dataclass(frozen=True)
class Extension:
    """What a module adds: parts by name, and optionally a trainer factory ``trainer(recipe) -> Trainer``."""

    stages: Mapping[str, Entry] = field(default_factory=dict)
    merges: Mapping[str, Entry] = field(default_factory=dict)
    posts: Mapping[str, Entry] = field(default_factory=dict)
    strategies: Mapping[str, Entry] = field(default_factory=dict)
    trainer: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Catalogue:
    """Name -> Entry for each kind of part."""

    stages: Mapping[str, Entry]
    merges: Mapping[str, Entry]
    posts: Mapping[str, Entry]
    strategies: Mapping[str, Entry]
    trainer: Callable[[Any], Any] | None = None

    def extended(self, extension: Extension) -> Catalogue:
        """This catalogue with an extension's parts; a name that exists already is refused (E-EXTENSION)."""
        merged: dict[str, Mapping[str, Entry]] = {}
        for kind in ("stages", "merges", "posts", "strategies"):
            mine, theirs = getattr(self, kind), getattr(extension, kind)
            if clash := sorted(mine.keys() & theirs.keys()):
                raise RecipeError("E-EXTENSION", f"the extension redefines {kind} {', '.join(clash)}.", "rename it.")
            merged[kind] = {**mine, **theirs}
        return replace(self, **merged, trainer=extension.trainer or self.trainer)


def _feedback(p: FeedbackParams, _: Spec, inner: Sequence[Stage]) -> Stage:
    return feedback(inner, p.decay, p.forget_after, p.residual, p.form, p.eta)


BUILT_IN = Catalogue(
    stages={
        "clip": Entry(ClipParams, lambda p, _: clip(p.l2)),
        "clamp": Entry(ClampParams, lambda p, _: clamp(p.linf)),
        "weigh": Entry(WeighParams, lambda p, _: weigh(p.cap)),
        "segments": Entry(
            SegmentsParams,
            lambda p, spec, phase: segments(spec, p.names, p.cycle, phase),
            groups=lambda p, spec: groups(spec, p.names, p.cycle),
        ),
        "factors": Entry(
            NoParams, lambda p, spec, phase: factors(spec, phase), groups=lambda p, spec: factor_groups(spec)
        ),
        "rotate": Entry(RotateParams, lambda p, _: rotate(p.block)),
        "random_k": Entry(RandomKParams, lambda p, _: random_k(p.fraction, p.unbiased, p.most or inf, p.each)),
        "shared_top_k": Entry(SharedTopKParams, lambda p, spec: shared_top_k(spec, p.fraction, p.explore)),
        "top_k": Entry(TopKParams, lambda p, _: top_k(p.fraction, p.chunk)),
        "low_rank": Entry(LowRankParams, lambda p, spec: low_rank(spec, p.rank, p.method)),
        "sketch": Entry(SketchParams, lambda p, _: sketch(p.ratio, p.rows, p.keep, p.momentum, p.floor)),
        "quantize": Entry(QuantizeParams, lambda p, _: quantize(p.bits, p.grid, p.block)),
        "mixed": Entry(MixedParams, lambda p, spec: mixed(spec, p.bits)),
        "feedback": Entry(FeedbackParams, _feedback, True),
        "wrap": Entry(WrapParams, lambda p, _: wrap(p.bits)),
    },
    merges={
        "sum": Entry(NoParams, lambda p, _: plain_sum()),
        "secure_sum": Entry(NoParams, lambda p, _: secure_sum()),
        "grouped": Entry(GroupedParams, lambda p, _: grouped(p.groups, p.byzantine, p.rule)),
        "shared_sum": Entry(NoParams, lambda p, _: shared_sum()),
    },
    posts={"noise": Entry(NoiseParams, lambda p, _: noise(p.z))},
    strategies={
        "fedavg": Entry(ServerLr, lambda p, _: fedopt.fedavg(p.lr)),
        "fedavgm": Entry(MomentumParams, lambda p, _: fedopt.fedavgm(p.lr, p.momentum, p.nesterov)),
        "fedadam": Entry(AdaptiveParams, lambda p, _: fedopt.fedadam(p.lr, p.beta1, p.beta2, p.tau)),
        "fedyogi": Entry(AdaptiveParams, lambda p, _: fedopt.fedyogi(p.lr, p.beta1, p.beta2, p.tau)),
        "fedadagrad": Entry(AdagradParams, lambda p, _: fedopt.fedadagrad(p.lr, p.tau)),
        "fedprox": Entry(ProxParams, lambda p, _: fedprox(p.mu, p.lr)),
        "zeroth_order": Entry(ZerothOrderParams, lambda p, _: zeroth_order(p.seeds, p.eps, p.lr)),
    },
)


def with_extensions(modules: Iterable[str]) -> Catalogue:
    """The built-in catalogue plus the ``EDGEWISE`` of each importable module.

    Raises RecipeError(E-EXTENSION) where a module cannot be imported or has no ``EDGEWISE``.
    """
    catalogue = BUILT_IN
    for name in modules:
        try:
            extension = importlib.import_module(name).EDGEWISE
        except Exception as e:  # boundary: an extension is foreign code, and its import may raise anything
            raise RecipeError(
                "E-EXTENSION",
                f"{name}: {type(e).__name__}: {e}.",
                "give its file (parts.py) or a name that Python can import; it defines EDGEWISE = Extension().",
            ) from e
        if not isinstance(extension, Extension):
            raise RecipeError("E-EXTENSION", f"{name}.EDGEWISE is not an Extension.", "see `edgewise explain extend`.")
        catalogue = catalogue.extended(extension)
    return catalogue


def make(
    entries: Mapping[str, Entry], where: str, table: Mapping[str, Any], spec: Spec, inner: Any = None, phase: int = 0
) -> Any:
    """Build one part from its recipe table ``{"kind": name, **parameters}``; ``phase`` for one with groups.

    Raises RecipeError: E-MISSING without ``kind``, E-NAME for an unknown one, E-KEY / E-TYPE / E-VALUE / E-MISSING for
    its parameters; ``where`` is the table's place in the recipe, for the message.
    """
    entry, params = look_up(entries, where, table)
    if entry.groups is not None:
        return entry.make(params, spec, phase)
    return entry.make(params, spec, inner) if entry.combinator else entry.make(params, spec)


def look_up(entries: Mapping[str, Entry], where: str, table: Mapping[str, Any]) -> tuple[Entry, BaseModel]:
    """The entry that a table names, and its validated parameters. Raises as ``make``."""
    kind = table.get("kind")
    if kind is None:
        raise RecipeError("E-MISSING", f"{where}: `kind` is required.", f"one of: {', '.join(entries)}.")
    if not isinstance(kind, str):
        raise RecipeError("E-TYPE", f"{where}: `kind` = {kind!r} is not text.", f"one of: {', '.join(entries)}.")
    if kind not in entries:
        near = difflib.get_close_matches(kind, entries, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(entries)}."
        raise RecipeError("E-NAME", f"{where}: no part is called `{kind}`.", hint)
    entry = entries[kind]
    try:
        return entry, entry.params.model_validate({k: v for k, v in table.items() if k != "kind"}, strict=True)
    except ValidationError as e:
        raise _explain(e, where, kind, entry.params) from None


def _explain(error: ValidationError, where: str, kind: str, model: type[BaseModel]) -> RecipeError:
    # A misspelt key is also a missing one: the misspelling is the cause.
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    name = ".".join(map(str, first["loc"]))
    known = list(model.model_fields)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"{kind} knows: {', '.join(known) or 'no parameters'}."
        moved = MOVED.get(f"{where.strip('[]')}.{name}")
        hint = f"write `{moved}`." if moved else hint
        return RecipeError("E-KEY", f"{where} ({kind}): unknown key `{name}`.", hint)
    if first["type"] == "missing":
        return RecipeError("E-MISSING", f"{where} ({kind}): `{name}` is required.", "add it.")
    code = "E-TYPE" if first["type"].endswith(("_type", "_parsing")) else "E-VALUE"
    return RecipeError(
        code, f"{where} ({kind}): `{name}` = {first['input']!r}: {first['msg']}.", "see `edgewise schema`."
    )


def schema(catalogue: Catalogue, recipe_schema: dict[str, Any]) -> dict[str, Any]:
    """The recipe's JSON schema with each part's parameters in place of free tables, for editors."""

    def alternatives(entries: Mapping[str, Entry]) -> dict[str, Any]:
        options: Sequence[dict[str, Any]] = []
        for name, entry in entries.items():
            one = entry.params.model_json_schema()
            one["properties"] = {"kind": {"const": name}, **one.get("properties", {})}
            one["required"] = ["kind", *one.get("required", [])]
            one["title"] = name
            options = [*options, one]
        return {"oneOf": list(options)}

    out = {"$schema": "https://json-schema.org/draft/2020-12/schema", **recipe_schema}
    properties = dict(out["properties"])
    for key, entries, many in (
        ("strategy", catalogue.strategies, False),
        ("merge", catalogue.merges, False),
        ("stage", catalogue.stages, True),
        ("downlink", catalogue.stages, True),
        ("post", catalogue.posts, True),
    ):
        kept = {k: properties[key][k] for k in ("default", "description") if k in properties[key]}
        one = alternatives(entries)
        properties[key] = {**kept, "type": "array", "items": one} if many else {**kept, **one}
    out["properties"] = properties
    return out
