"""Types of ``summary.json``, for type checkers and other programs. ``apps.report.summary`` defines each figure."""

from __future__ import annotations

from typing import Any, TypedDict

Figure = float | None  # null means not measured, or not finite.


class Quality(TypedDict):
    """Held-out perplexity of one model over devices."""

    weighted_mean: Figure
    median: Figure
    worst_decile: Figure
    best: Figure
    worst: Figure
    low: Figure
    high: Figure
    devices: int
    tokens: int


class Perplexities(TypedDict):
    """Held-out perplexity by model. null for a model that was not measured."""

    base: Quality | None
    local_only: Quality | None
    local_personal: Quality | None
    federated: Quality | None
    personal: Quality | None
    centralised: Quality | None


class RoundRow(TypedDict):
    """Figures of one round."""

    round: int
    met: bool
    accepted: int
    lost: int
    late: int
    loss_first: Figure
    loss_last: Figure
    update_l2: Figure
    bytes_up: int
    bytes_down: int
    lag_l2: Figure
    code: str | None
    epsilon: Figure
    train_s: float
    seconds: float
    summed_metrics: dict[str, Figure]


class SplitTraffic(TypedDict):
    """Bytes that crossed the cut of a split model, in its sessions."""

    cut: int
    shape: str
    once: bool
    sessions: int
    up_per_session: Figure
    down_per_session: Figure
    up_total: int
    down_total: int
    token_bytes: dict[str, float]


class Bytes(TypedDict):
    """Sizes of uploads, downloads, models and text."""

    up_per_device_round: Figure
    down_per_device_round: Figure
    up_total: int
    down_total: int
    float32_model: Figure
    float32_update: Figure
    up_ratio: Figure
    up_ratio_update: Figure
    down_ratio: Figure
    text_total: Figure
    text_per_device: Figure
    up_per_device: Figure
    split: SplitTraffic | None


class Rounds(TypedDict):
    """Numbers of rounds, defined in ``apps.report.summary``."""

    planned: int
    played: int
    met: int
    abandoned: int
    kept: int
    waited: int
    stopped: bool


class DistillationRow(TypedDict):
    """One distillation between two rounds (``core.events.Redistilled``). Perplexities are on held-out public text."""

    round: int
    kept: bool
    reason: str | None
    perplexity_before: Figure
    perplexity: Figure
    diversity_before: Figure
    diversity: Figure
    teacher_before: Figure
    teacher: Figure
    seconds: float


class SimulatorMetric(TypedDict):
    """A simulator metric (``metrics=`` of ``Federation``) of one model after one round.

    The simulator measured it exactly, over the devices that were measured. It travelled in no frame, and no epsilon
    covers it. ``devices`` has each device's figure, and is empty with differential privacy.
    """

    name: str
    model: str
    round: int
    mean: float
    lowest: float
    highest: float
    measured: int
    devices: dict[str, float]


class SummedMetric(TypedDict):
    """A metric that the recipe declares as ``[[metric]]``: devices send it within bounds, and its mean travels with the
    sum of updates.

    ``noise_std`` is the standard deviation of the noise on its mean over a whole cohort.
    """

    name: str
    lower: float
    upper: float
    noise_std: float


class PersonalFigures(TypedDict):
    """Figures of personal models, defined in ``apps.report.personal``."""

    method: str
    devices: int
    share_improved: dict[str, Figure]
    elsewhere: dict[str, Figure] | None


class Summary(TypedDict):
    """The whole file ``summary.json``."""

    schema: int
    name: str
    complete: bool
    no_pooled_data: bool
    run: str
    recipe_sha256: str
    model_sha256: str | None
    initial_sha256: str | None
    recipe_folder: str
    seed: int | None
    parameters: float | None
    trainable: float | None
    rounds: Rounds
    perplexity: Perplexities
    change_percent: dict[str, Figure]
    share_improved: dict[str, Figure]
    against_alone: dict[str, Any] | None
    personal: PersonalFigures | None
    unseen: dict[str, Quality | None] | None
    longer: dict[str, Any] | None
    bytes: Bytes
    participation: dict[str, Any]
    rungs: list[dict[str, Any]]
    seconds: dict[str, float]
    memory: dict[str, Figure]
    per_round: list[RoundRow]
    curve: list[dict[str, Any]]
    simulator_metrics: list[SimulatorMetric]
    distillations: list[DistillationRow]
    pruning: dict[str, float] | None
    summed_metrics: list[SummedMetric]
    quality_for_bytes: list[dict[str, Any]]
    per_device: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    population: int | None
    plan: dict[str, Any]
    reading: dict[str, Any] | None
    versions: dict[str, Any]
    facts: dict[str, Any]
    not_covered: str
    recipe: dict[str, Any]


def summary_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of ``summary.json``."""
    import msgspec

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Summary)}
