"""The recipe: one TOML file that describes a run completely. Unknown keys are errors with a suggestion.

    parse('privacy = "none"', "my.toml", {"training.lr": 0.01}).training.lr      # 0.01

Tables are at most two deep, and units stand in names. The safe choice is the default, and the unsafe one needs its
word (``privacy = "none"``). The *resolved* recipe has all defaults filled in. ``plan.facts`` makes a run's identity of
it. Parts with their own keys (``[[stage]]``, ``[[downlink]]``, ``[[post]]``, ``[strategy]``, ``[merge]``) stay plain
tables here. ``plan.catalogue`` validates them against the part's own model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from edgewise.core.errors import RecipeError
from edgewise.core.foreign import foreign
from edgewise.plan.mechanisms.known import refused
from edgewise.plan.recipe import findings, toml
from edgewise.plan.recipe.adaptive import AdaptiveSection
from edgewise.plan.recipe.buffer import BufferSection, buffer_faults
from edgewise.plan.recipe.data import DataSection
from edgewise.plan.recipe.distill import DistillSection, distill_faults
from edgewise.plan.recipe.drift import DriftSection, drift_faults
from edgewise.plan.recipe.engine import EngineSection
from edgewise.plan.recipe.findings import Examined, Finding
from edgewise.plan.recipe.keywords import KeywordsSection, keyword_faults
from edgewise.plan.recipe.later import without_unused
from edgewise.plan.recipe.model import ModelSection
from edgewise.plan.recipe.outcome import CompareSection, ReportSection, StoreSection
from edgewise.plan.recipe.personal import PersonalSection, private_faults
from edgewise.plan.recipe.places import Origin
from edgewise.plan.recipe.privacy import DP_WORDS, Privacy, chosen, filled
from edgewise.plan.recipe.prune import PruneSection, prune_faults
from edgewise.plan.recipe.retriever import RetrieverSection, retriever_faults
from edgewise.plan.recipe.rules import Section, SettingError, rule
from edgewise.plan.recipe.sections import (
    PLACES,
    DpSection,
    RoundSection,
    SimulationSection,
    TrainingSection,
    TrustSection,
)
from edgewise.plan.recipe.split import SplitSection, split_faults
from edgewise.plan.recipe.statistics import StatisticsSection, statistics_faults
from edgewise.plan.recipe.stream import stream_faults
from edgewise.plan.recipe.trainable import TrainableSection
from edgewise.plan.recipe.vibration import VibrationSection, vibration_faults


class EvalSection(Section):
    """Evaluation on held-out text. A simulator can measure it. A server cannot."""

    on_devices: bool = Field(
        False,
        description="each device of a round measures the round's model on its held-out text; the mean of the losses "
        "comes with the sum of updates",
    )
    every: int = Field(5, ge=0, description="rounds between evaluations; the last round always; 0 = only the last")
    devices: int = Field(0, ge=0, description="evaluate on at most so many devices; 0 = all")
    max_tokens: int = Field(16384, ge=64, description="held-out tokens per device at most")


class MetricSection(Section):
    """A number of each device that travels with its update. It is summed and hidden as the update is."""

    name: str = Field(..., pattern=r"^[a-z][a-z0-9_]{0,31}$", description="as trainers and scripts call it")
    lower: float = Field(0.0, ge=-1e12, le=1e12, description="a smaller value counts as this")
    upper: float = Field(1.0, ge=-1e12, le=1e12, description="a larger value counts as this")

    @rule
    def _metric_bounds_ordered(self) -> Iterator[SettingError]:
        if not self.lower < self.upper:
            what = f"metric.lower = {self.lower:g} is not below metric.upper = {self.upper:g}"
            yield SettingError("E-VALUE", what, "give the least and the largest value that is worth telling apart")


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
        'with noise: "central_dp" (by the server), "distributed_dp" (by devices, under secure aggregation), "local_dp" '
        '(by each device for itself; dp.unit = "example": in its steps, for single blocks of text)',
    )
    metrics: Literal["sum", "none"] = Field(
        "sum", description="train losses travel beside the update, to be summed; or not at all"
    )
    model: ModelSection = ModelSection()
    trainable: TrainableSection = TrainableSection()
    data: DataSection = DataSection()
    keywords: KeywordsSection = KeywordsSection()
    vibration: VibrationSection = VibrationSection()
    dp: DpSection = DpSection()
    trust: TrustSection = TrustSection()
    round: RoundSection = RoundSection()
    buffer: BufferSection = BufferSection()
    training: TrainingSection = TrainingSection()
    strategy: dict[str, Any] = Field({"kind": "fedavg"}, description="server algorithm and its parameters")
    codec: Literal["stages", "adaptive"] = Field(
        "stages", description="the stages are the codec, or each device picks a rung of a ladder that follows them"
    )
    adaptive: AdaptiveSection = AdaptiveSection()
    stage: list[dict[str, Any]] = Field(
        [{"kind": "weigh"}], description="the update pipeline, in order; see `edgewise schema`"
    )
    downlink: list[dict[str, Any]] = Field(
        [], description="stages that compress what devices download each round; none = the model in float32"
    )
    merge: dict[str, Any] = Field({"kind": "sum"}, description="how contributions become one total")
    post: list[dict[str, Any]] = Field([], description="steps on the total, before the division")
    metric: list[MetricSection] = Field(
        [], max_length=32, description="further numbers of devices that travel with updates, each within its bounds"
    )
    drift: DriftSection = DriftSection()
    distill: DistillSection = DistillSection()
    prune: PruneSection = PruneSection()
    personal: PersonalSection = PersonalSection()
    split: SplitSection = SplitSection()
    retriever: RetrieverSection = RetrieverSection()
    statistics: StatisticsSection = StatisticsSection()
    eval: EvalSection = EvalSection()
    compare: CompareSection = CompareSection()
    report: ReportSection = ReportSection()
    store: StoreSection = StoreSection()
    engine: EngineSection = EngineSection()
    simulation: SimulationSection = SimulationSection()

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @rule
    def _factors_seen(self) -> Iterator[SettingError]:
        if self.trainable.moves_base and self.privacy != "none":
            what = (
                f'trainable.rule = "{self.trainable.rule}" multiplies the factors of each device, and privacy = '
                f'"{self.privacy}" hides or noises them before the server could'
            )
            yield SettingError("E-COMBO", what, 'write rule = "reffa", "ffa", "rolora" or "fedit", which only add')
        elif self.trainable.moves_base and self.codec == "adaptive":
            what = (
                f'trainable.rule = "{self.trainable.rule}" multiplies factors, and no rung of codec = "adaptive" does'
            )
            yield SettingError("E-COMBO", what, 'write codec = "stages", or rule = "reffa"')

    @rule
    def _folds_have_rounds(self) -> Iterator[SettingError]:
        if self.trainable.rule == "reffa" and self.round.rounds < self.trainable.folds:
            what = f"trainable.folds = {self.trainable.folds} adapters need a round each, and round.rounds = "
            yield SettingError("E-COMBO", f"{what}{self.round.rounds}", "play more rounds, or write fewer folds")

    @rule
    def _ladder_used(self) -> Iterator[SettingError]:
        if self.codec == "stages" and self.adaptive != AdaptiveSection():
            what = 'the section [adaptive] is for codec = "adaptive"'
            yield SettingError("E-COMBO", what, 'leave it out, or write codec = "adaptive" at the top')
        elif self.adaptive.deadline_s > self.round.deadline_s:
            what = "adaptive.deadline_s is after round.deadline_s, when the round closes"
            yield SettingError("E-COMBO", what, "lower adaptive.deadline_s, or raise round.deadline_s")

    @rule
    def _rungs_grouped(self) -> Iterator[SettingError]:
        if self.codec == "adaptive" and self.privacy != "hidden" and self.adaptive.groups != AdaptiveSection().groups:
            what = 'adaptive.groups is for privacy = "hidden"; here each device chooses by itself'
            yield SettingError("E-COMBO", what, "leave out adaptive.groups")

    @rule
    def _patience_read(self) -> Iterator[SettingError]:
        untimed = self.privacy == "hidden" or self.dp.example
        if self.codec == "adaptive" and untimed and self.adaptive.patience != AdaptiveSection().patience:
            what = "adaptive.patience compares with training time, which no choice depends on behind masks or with"
            fix = "leave it out; adaptive.deadline_s is the time of the upload there"
            yield SettingError("E-COMBO", f'{what} dp.unit = "example"', fix)

    _chosen: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def chosen(self) -> dict[str, Any]:
        """Values that the word of ``privacy`` chose, by dotted key. Values that the recipe gives are not among them."""
        return self._chosen

    @model_validator(mode="wrap")
    @classmethod
    def _choices_of_the_word(cls, plain: Any, build: ModelWrapValidatorHandler[Recipe]) -> Recipe:
        """Remember the values that the word chooses."""
        recipe = build(plain)
        recipe._chosen = chosen(plain) if isinstance(plain, dict) else {}
        return recipe

    @classmethod
    def completed(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Fill in the values that the word of ``privacy`` chooses."""
        return filled(plain, chosen(plain))

    @rule
    def _base_frozen(self) -> Iterator[SettingError]:
        if self.model.quantized and not self.trainable.keeps_base:
            moving = "rule" if self.trainable.moves_base else "kind"
            moving = "modules_to_save" if self.trainable.modules_to_save else moving
            what = (
                f'model.quantize = "{self.model.quantize}" with trainable.{moving} = '
                f'"{getattr(self.trainable, moving)}": rounded weights cannot take the small steps of training'
            )
            fix = 'train adapters that leave the base as it is, as kind = "lora" and rule = "fedit"'
            yield SettingError("E-COMBO", what, f"{fix}, or leave out model.quantize")

    @rule
    def _records_apart(self) -> Iterator[SettingError]:
        if self.dp.example and self.data.packing == "isolated":
            what = 'data.packing = "isolated" with dp.unit = "example": a block is a record, and holds one document'
            yield SettingError("E-COMBO", what, "leave out data.packing")

    @rule
    def _minimum_given(self) -> Iterator[SettingError]:
        always = self.privacy == "central_dp" and self.round.sampling == "poisson"
        if not self.round.minimum and not always:
            what = 'round.minimum = 0 is for privacy = "central_dp" with round.sampling = "poisson"'
            yield SettingError("E-COMBO", what, "leave it out (0.5), or choose another share above 0")
        if self.round.minimum and always:
            what = (
                'privacy = "central_dp" with round.sampling = "poisson" hides whether a device is there, and an '
                "abandoned round would tell how many came"
            )
            yield SettingError("E-COMBO", what, "leave out round.minimum: every round is then released, with noise")

    @rule
    def _time_counted(self) -> Iterator[SettingError]:
        """Refuse a training time that depends on text. No epsilon counts it."""
        if self.privacy in DP_WORDS and self.training.local_epochs:
            what = (
                f'training.local_epochs with privacy = "{self.privacy}": how long a device trains would tell how much '
                "text it holds, and no epsilon counts when a device answers"
            )
            yield SettingError("E-COMBO", what, "give training.local_steps")

    @rule
    def _choice_counted(self) -> Iterator[SettingError]:
        """Refuse a model that held-out text chooses. No epsilon counts the choice."""
        if self.privacy in DP_WORDS and self.round.chooses:
            what = (
                f'round.patience and round.keep = "best" with privacy = "{self.privacy}": held-out text would decide '
                "which model is released, and no epsilon counts that choice"
            )
            yield SettingError("E-COMBO", what, "leave both out")

    @rule
    def _samples_counted(self) -> Iterator[SettingError]:
        """Refuse a report that prints text. No epsilon counts it."""
        if self.privacy in DP_WORDS and self.report.samples:
            what = (
                f'report.samples with privacy = "{self.privacy}": the report would print text of devices as it is, and '
                "no epsilon counts that"
            )
            yield SettingError("E-COMBO", what, "leave it out")

    @rule
    def _choice_among_several(self) -> Iterator[SettingError]:
        if self.round.chooses and not self.eval.every:
            what = 'round.patience and round.keep = "best" compare evaluations, and with eval.every = 0 there is one'
            yield SettingError("E-COMBO", what, "write eval.every = 1 or more")

    @rule
    def _mechanism_and_private_part(self) -> Iterator[SettingError]:
        yield from refused(self.privacy, self.dp)
        yield from private_faults(
            self.personal, self.codec, self.privacy, self.strategy, self.trainable,
            of_records=self.dp.example, chooses=self.round.chooses, together=self.engine.batch_devices,
        )  # fmt: skip
        for faults in (
            split_faults, buffer_faults, stream_faults, drift_faults,
            retriever_faults, keyword_faults, statistics_faults, vibration_faults,
        ):  # fmt: skip
            yield from faults(self)
        yield from distill_faults(
            self.distill, self.strategy, self.trainable, self.personal, self.round.rounds, self.split.used
        )
        others = {
            "[distill]": self.distill.active,
            "[personal]": self.personal.method != "none",
            "[split]": self.split.used,
            'round.patience or round.keep = "best"': self.round.chooses,
        }
        yield from prune_faults(
            self.prune, self.round.rounds, self.strategy, self.trainable.kind, self.downlink, others
        )

    def resolved(self) -> dict[str, Any]:
        """Return all keys with their values and defaults, in plain JSON types, without unused later keys (``later``).

        Keys of adapters are left out where there are none, for the same reason.
        """
        defaults = Recipe(privacy="none").model_dump(mode="json", by_alias=True)
        plain = without_unused(self.model_dump(mode="json", by_alias=True), defaults)
        plain["trainable"] = self.trainable.resolved()
        return plain

    @property
    def world(self) -> str:
        """Digest of the simulated world. The noise of a simulation depends on it. No identity does."""
        return digest(simulated_world(self.resolved()))

    def sha256(self) -> str:
        """Return the ``simulation_digest`` of the resolved recipe."""
        return simulation_digest(self.resolved())


def digest(plain: Mapping[str, Any]) -> str:
    """Hash plain tables: SHA-256 of their canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def simulation_digest(resolved: Mapping[str, Any]) -> str:
    """Hash everything in a resolved recipe that decides the results of a simulation.

    The keys that place a run (``PLACES``, [engine]) are left out: they decide where and how fast it computes. The name
    of a run directory and its resumption go by this digest. A run's identity on the wire is ``plan.facts``.
    """
    hashed = {key: value for key, value in resolved.items() if key != "engine"}
    return digest({**hashed, "simulation": simulated_world(resolved)})


def simulated_world(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the [simulation] section of a resolved recipe without the keys that place it (``PLACES``)."""
    return {k: v for k, v in resolved["simulation"].items() if k not in PLACES}


def parse(text: str, where: str = "recipe", overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Make a recipe of TOML text. Parts are not looked up. ``loading`` looks them up too.

    Args:
        text: TOML. where: file name for messages. overrides: ``{"training.lr": 0.01}``, applied before validation.
    Raises:
        RecipeError: E-RECIPE-SYNTAX, E-KEY (with the nearest known key), E-TYPE, E-VALUE, E-MISSING, E-COMBO.
    """
    plain, found = tables(text, where, overrides or {})
    return build(plain, Origin(where, text, tuple(overrides or ())), found)


def tables(text: str, where: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Read the tables of TOML text and put values over them. Adds a finding for each value that has no place.

    Raises RecipeError(E-RECIPE-SYNTAX).
    """
    plain, found = toml.read(text, where), list[Finding]()
    for dotted, value in overrides.items():
        try:
            findings.put(plain, dotted, value)
        except RecipeError as e:
            found.append(Finding(e.code, e.what, e.fix, (tuple(dotted.split(".")),)))
    return plain, found


def read(path: str | Path) -> str:
    """Read the text of a recipe's file. Raises RecipeError(E-RECIPE-READ) if that fails."""
    with foreign(RecipeError, "E-RECIPE-READ", str(path), "check the path."), open(path, encoding="utf-8") as f:
        return f.read(toml.LONGEST + 1)


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe from a TOML file. Raises RecipeError as ``read`` and ``parse``."""
    return parse(read(path), str(path), overrides)


def from_plain(plain: dict[str, Any], where: str = "recipe") -> Recipe:
    """Make a recipe of plain tables. Raises RecipeError as ``parse``."""
    return build(plain, Origin(where))


def build(
    plain: dict[str, Any],
    origin: Origin,
    found: Sequence[Finding] = (),
    further: Callable[[Examined[Recipe]], Iterable[Finding]] | None = None,
) -> Recipe:
    """Make a recipe of plain tables.

    Args:
        origin: Source of the tables, for messages. found: Faults that are known already. further: Finds more faults.
    Raises:
        RecipeError: As ``parse``. It lists every fault, in the order of lines.
    """
    toml.bounded(plain, origin.where)
    result = findings.examined(Recipe, plain)
    faults = [*found, *result.findings, *(further(result) if further is not None else ())]
    if faults or result.value is None:
        raise findings.error(faults, origin)
    return result.value
