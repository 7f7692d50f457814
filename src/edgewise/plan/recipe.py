"""The recipe: one TOML file that describes a run completely. Unknown keys are errors with a suggestion.

Depth at most two, units in names, the safe choice is the default, and the unsafe one needs its word
(``privacy = "none"``). The *resolved* recipe has all defaults filled in; ``plan.facts`` makes a run's identity of it.
Parts with their own parameters (``[[stage]]``, ``[[downlink]]``, ``[[post]]``, ``[strategy]``, ``[merge]``) keep them
as plain tables here; ``plan.catalogue`` validates them against the part's own model.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgewise.core.errors import RecipeError
from edgewise.core.foreign import foreign
from edgewise.plan import toml
from edgewise.plan.data import DataSection
from edgewise.plan.section import (
    DP_WORDS,
    MOVED,
    DpSection,
    Privacy,
    RoundSection,
    Section,
    SimulationSection,
    TrainingSection,
    TrustSection,
)

LONGEST_NAME = 64  # of a key that is looked for among the known ones
UNION = ("str", "list[str]")  # pydantic names the type that it tried, which is no key


class ModelSection(Section):
    """Which model is federated."""

    base: str = Field("bundled", description='"bundled", a local directory, or "hub:owner/name"; safetensors only')
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic of training and evaluation; auto = bfloat16 where the CPU has it in hardware"
    )


class TrainableSection(Section):
    """Which parameters are trained and travel."""

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, and nothing of the model itself."""
        return "lora" in self.kind

    kind: Literal["full", "lora", "ffa_lora", "rolora", "layers"] = Field(
        "full",
        description="all; named layers; adapters of low rank, of which ffa_lora trains B only (A is fixed; the default "
        "with differential privacy) and rolora B and A in turn",
    )
    rank: int = Field(8, ge=1, le=1024, description="LoRA rank")
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    targets: list[str] = Field(["all-linear"], description="LoRA target modules, by name suffix")
    layers: list[str] = Field([], description='parameter name patterns for kind = "layers", e.g. "model.layers.3.*"')

    @model_validator(mode="after")
    def _layers_named(self) -> TrainableSection:
        if (self.kind == "layers") != bool(self.layers):
            raise ValueError('E-COMBO: trainable.layers goes with trainable.kind = "layers", and only with it')
        return self


class AdaptiveSection(Section):
    """For ``codec = "adaptive"``: which codecs a device may choose from, and how much it may send."""

    max_upload_mb: float = Field(5.0, gt=0, description="largest upload of one device and round, 10^6 bytes")
    deadline_s: float = Field(0.0, ge=0, description="when an upload has to be complete; 0 = round.deadline_s")
    slack: float = Field(0.1, ge=0, lt=1, description="share of the deadline that devices keep free")
    patience: float = Field(
        0.1,
        ge=0,
        description="visible updates without record noise: upload time / time until then, at most; 0 = no limit",
    )
    ladder: list[str] = Field([], description="names of the rungs, see `edgewise check`; empty = all that fit")
    groups: int = Field(
        3, ge=1, le=16, description="behind a hidden sum: into how many groups of one rung a cohort is sorted at most"
    )


class EvalSection(Section):
    """Measuring held-out text (a simulator can; a server cannot)."""

    every: int = Field(5, ge=0, description="rounds between evaluations; the last round always; 0 = only the last")
    devices: int = Field(0, ge=0, description="evaluate on at most so many devices; 0 = all")
    max_tokens: int = Field(16384, ge=64, description="held-out tokens per device at most")


class CompareSection(Section):
    """What the federated model is compared with; each costs about as much compute as the federation."""

    local_only: bool = Field(True, description="each device alone, same steps")
    centralised: bool = Field(True, description="all text in one place, same number of steps in total")


class Recipe(Section):
    """A whole recipe."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of the recipe format")
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the run directory")
    seed: int = Field(
        0,
        ge=0,
        description="all simulated randomness derives from it; noise from the rest of the recipe and the data too",
    )
    privacy: Privacy = Field(
        ...,
        description='required word. "none": nothing is promised; "hidden": secure aggregation hides single updates; '
        'with noise: "central" (by the server), "distributed" (by devices, under secure aggregation), "local" (each '
        'device by itself), "record" (DP-SGD on devices, for single blocks of text)',
    )
    metrics: Literal["sum", "none"] = Field(
        "sum", description="train losses travel beside the update, to be summed; or not at all"
    )
    model: ModelSection = ModelSection()
    trainable: TrainableSection = TrainableSection()
    data: DataSection = DataSection()
    dp: DpSection = DpSection()
    trust: TrustSection = TrustSection()
    round: RoundSection = RoundSection()
    training: TrainingSection = TrainingSection()
    strategy: dict[str, Any] = Field({"kind": "fedavg"}, description="server algorithm and its parameters")
    codec: Literal["stages", "adaptive"] = Field(
        "stages", description="the stages are the codec, or each device picks a rung of a ladder that follows them"
    )
    adaptive: AdaptiveSection = AdaptiveSection()
    stage: list[dict[str, Any]] = Field(
        [{"kind": "weigh"}], description="the way of an update, in order; see `edgewise schema`"
    )
    downlink: list[dict[str, Any]] = Field(
        [], description="stages that compress what devices download each round; none = the model in float32"
    )
    merge: dict[str, Any] = Field({"kind": "sum"}, description="how contributions become one total")
    post: list[dict[str, Any]] = Field([], description="steps on the total, before the division")
    eval: EvalSection = EvalSection()
    compare: CompareSection = CompareSection()
    simulation: SimulationSection = SimulationSection()

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ladder_used(self) -> Recipe:
        if self.codec == "stages" and self.adaptive != AdaptiveSection():
            raise ValueError('E-COMBO: the section [adaptive] is for codec = "adaptive"')
        if self.privacy != "hidden" and self.adaptive.groups != AdaptiveSection().groups:
            raise ValueError('E-COMBO: adaptive.groups is for privacy = "hidden"; here each device chooses by itself')
        if self.privacy in ("hidden", "record") and self.adaptive.patience != AdaptiveSection().patience:
            what = "adaptive.patience compares with training time, which no choice depends on behind masks or with"
            raise ValueError(f'E-COMBO: {what} privacy = "record"; there adaptive.deadline_s is the time of the upload')
        if self.adaptive.deadline_s > self.round.deadline_s:
            raise ValueError("E-COMBO: adaptive.deadline_s is after round.deadline_s, when the round closes")
        return self

    @model_validator(mode="before")
    @classmethod
    def _quiet(cls, plain: Any) -> Any:
        """With differential privacy nothing is weighed, no metrics travel and FFA-LoRA is trained, unless the recipe
        says so; rounds of Poisson cohorts that a trusted server noises have no minimum."""
        if not isinstance(plain, dict) or plain.get("privacy") not in DP_WORDS:
            return plain
        plain = {"metrics": "none", "stage": [], "trainable": {}, **plain}
        drawn = plain.get("round")
        if plain["privacy"] == "central" and isinstance(drawn, dict) and drawn.get("sampling") == "poisson":
            plain["round"] = {"minimum": 0.0, **drawn}
        if isinstance(plain["trainable"], dict) and "layers" not in plain["trainable"]:
            plain["trainable"] = {"kind": "ffa_lora", **plain["trainable"]}
        return plain

    @model_validator(mode="after")
    def _minimum_given(self) -> Recipe:
        always = self.privacy == "central" and self.round.sampling == "poisson"
        if not self.round.minimum and not always:
            raise ValueError('E-COMBO: round.minimum = 0 is for privacy = "central" with round.sampling = "poisson"')
        if self.round.minimum and always:
            raise ValueError(
                'E-COMBO: privacy = "central" with round.sampling = "poisson" hides whether a device is there, and an '
                "abandoned round would tell how many came: leave out round.minimum, and every round is released, with "
                "noise"
            )
        return self

    @model_validator(mode="after")
    def _counted(self) -> Recipe:
        """What depends on a device's own text is refused where an epsilon counts everything that does."""
        noisy = self.privacy in DP_WORDS
        if noisy and self.training.local_epochs:
            raise ValueError(
                f'E-COMBO: training.local_epochs with privacy = "{self.privacy}": how long a device trains would tell '
                "how much text it holds, and no epsilon counts when a device answers: give training.local_steps"
            )
        if noisy and self.round.chooses:
            raise ValueError(
                f'E-COMBO: round.patience and round.keep = "best" with privacy = "{self.privacy}": held-out text would '
                "decide which model is released, and no epsilon counts that choice: leave both out"
            )
        if self.round.chooses and not self.eval.every:
            raise ValueError('E-COMBO: round.patience and round.keep = "best" compare evaluations: set eval.every')
        return self

    @model_validator(mode="after")
    def _budget_given(self) -> Recipe:
        self.dp.check(self.privacy)
        return self

    def resolved(self) -> dict[str, Any]:
        """All keys with their values, defaults filled in; plain JSON types."""
        return self.model_dump(mode="json", by_alias=True)

    def sha256(self) -> str:
        """``simulation_digest`` of the resolved recipe."""
        return simulation_digest(self.resolved())


def digest(plain: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of plain tables, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def simulation_digest(resolved: Mapping[str, Any]) -> str:
    """Digest of everything in a resolved recipe that decides the results of a simulation.

    ``simulation.engine`` and ``simulation.workers`` are left out: they decide how fast, never what. Resuming a run
    directory and its name go by this digest. A run's identity on the wire is ``plan.facts``.
    """
    return digest({**resolved, "simulation": simulated_world(resolved)})


def simulated_world(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The [simulation] section of a resolved recipe without ``engine`` and ``workers``."""
    return {k: v for k, v in resolved["simulation"].items() if k not in ("engine", "workers")}


def parse(text: str, where: str = "recipe", overrides: dict[str, Any] | None = None) -> Recipe:
    """Recipe from TOML text.

    Args:
        text: TOML. where: file name for messages. overrides: ``{"training.lr": 0.01}``, applied before validation.
    Raises:
        RecipeError: E-RECIPE-SYNTAX, E-KEY (with the nearest known key), E-TYPE, E-VALUE, E-MISSING, E-COMBO.
    """
    plain = toml.read(text, where)
    for dotted, value in (overrides or {}).items():
        _set(plain, dotted, value)
    return from_plain(plain, where, text)


def load(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Recipe from a TOML file. Raises RecipeError; E-RECIPE-READ where the file cannot be read."""
    with foreign(RecipeError, "E-RECIPE-READ", str(path), "check the path."), open(path, encoding="utf-8") as f:
        text = f.read(toml.LONGEST + 1)
    return parse(text, str(path), overrides)


def from_plain(plain: dict[str, Any], where: str = "recipe", text: str = "") -> Recipe:
    """Recipe from plain tables (the Python API). Raises RecipeError as ``parse``."""
    toml.bounded(plain, where)
    try:
        return Recipe.model_validate(plain, strict=True)
    except ValidationError as e:
        raise _explain(e, where, text) from None


def _set(plain: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value at ``section.key`` or ``list.number.key``. Raises RecipeError(E-KEY) where there is no such place."""
    *path, last = dotted.split(".")
    if len(path) >= toml.DEEPEST:
        raise RecipeError("E-KEY", f"--set {dotted}: no key has {len(path) + 1} parts.", "see `edgewise schema`.")
    at: Any = plain
    for i, part in enumerate(path):
        if isinstance(at, list):
            at = at[_number(at, part, dotted)]
        else:
            at = at.setdefault(part, [] if not i and part in ("stage", "downlink", "post") else {})
        if not isinstance(at, dict | list):
            raise RecipeError("E-KEY", f"--set {dotted}: {part} is not a table.", "see `edgewise schema`.")
    at[_number(at, last, dotted) if isinstance(at, list) else last] = value


def _number(at: list[Any], part: str, dotted: str) -> int:
    numbers = [str(i) for i in range(len(at))]
    if part not in numbers:
        fix = f"they are numbered from 0 to {len(at) - 1}." if at else "write them into the recipe first."
        raise RecipeError("E-KEY", f"--set {dotted}: the recipe lists no number {part!r:.40} there.", fix)
    return int(part)


def _known(path: tuple[str | int, ...]) -> list[str]:
    at: Any = Recipe
    for part in path:
        info = at.model_fields.get(part) if isinstance(part, str) else None
        at = info.annotation if info is not None else None
        if not (isinstance(at, type) and issubclass(at, BaseModel)):
            return []
    return [f.alias or k for k, f in at.model_fields.items()]


def _line(text: str, loc: tuple[str | int, ...]) -> str:
    """``":14"`` where the key's line can be found in the text, else nothing."""
    names = [str(p) for p in loc if isinstance(p, str)]
    table, key = ".".join(names[:-1]), names[-1] if names else ""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            current = stripped.strip("[] ").split("#")[0].strip("[] ")
        elif current == table and stripped.split("=")[0].strip().strip('"') == key:
            return f":{number}"
    return ""


def _explain(error: ValidationError, where: str, text: str) -> RecipeError:
    # A misspelt key is also a missing one: the misspelling is the cause.
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    loc, kind = tuple(part for part in first["loc"] if part not in UNION), first["type"]
    dotted = ".".join(map(str, loc))
    at = f"{where}{_line(text, loc)}"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1])[:LONGEST_NAME], _known(loc[:-1]), n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(_known(loc[:-1]))}."
        hint = f"write `{MOVED[dotted]}`." if dotted in MOVED else hint
        return RecipeError("E-KEY", f"{at}: unknown key `{dotted}`{more}.", hint)
    if kind == "missing":
        hint = 'write `privacy = "none"` at the top.' if loc == ("privacy",) else "add it."
        return RecipeError("E-MISSING", f"{at}: `{dotted}` is required{more}.", hint)
    if kind == "value_error":
        code, _, reason = str(first["ctx"]["error"]).partition(": ")
        return RecipeError(code, f"{at}: {reason}{more}.")
    got = repr(first["input"])[:80]
    code = "E-TYPE" if kind.endswith(("_type", "_parsing")) else "E-VALUE"
    return RecipeError(code, f"{at}: `{dotted}` = {got}: {first['msg']}{more}.", "see `edgewise schema`.")
