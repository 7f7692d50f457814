"""Sections of a recipe: rounds, local training, trust, the simulated world and differential privacy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError, rule

LARGEST_EPSILON = 1e6  # A larger epsilon promises nothing to anybody.


class RoundSection(Section):
    """The cohort of a round, and the end of a round."""

    rounds: int = Field(20, ge=1, le=1_000_000, description="rounds")
    sampling: Literal["all", "fixed", "poisson", "cyclic", "buffered"] = Field(
        "all",
        description="how a cohort is drawn; cyclic: groups of at least ``cohort`` that take turns; buffered: rounds do "
        "not wait for slow devices, see [buffer]",
    )
    cohort: int = Field(
        0,
        ge=0,
        description="contributions wanted per round (fixed), expected (poisson), that close it (buffered); all: unused",
    )
    overselect: float = Field(1.3, ge=1.0, le=10.0, description="invited / wanted, for fixed sampling")
    minimum: float = Field(0.5, ge=0, le=1.0, description="share of the wanted contributions below which a round fails")
    deadline_s: float = Field(
        600.0, gt=0, description="seconds after which a round or evaluation closes with what it has"
    )
    patience: int = Field(
        0, ge=0, description="evaluations in a row without a lower held-out loss that end the run; 0 = play all rounds"
    )
    keep: Literal["last", "best"] = Field(
        "last", description="the model that counts: of the last round, or of the evaluation with the lowest loss"
    )

    @rule
    def _cohort_given(self) -> Iterator[SettingError]:
        if self.sampling == "all" and self.cohort:
            what = (
                f'round.cohort = {self.cohort} is not read with round.sampling = "all": all devices are in every round'
            )
            yield SettingError("E-COMBO", what, 'leave out round.cohort, or write sampling = "fixed"')
        if self.sampling != "all" and not self.cohort:
            what = f'round.sampling = "{self.sampling}" needs round.cohort, the number of devices in a round'
            yield SettingError("E-COMBO", what, 'write cohort = 10 or the like, or sampling = "all"')

    @property
    def chooses(self) -> bool:
        """True if held-out losses decide when the run ends, or which of its models counts."""
        return bool(self.patience) or self.keep == "best"


class TrainingSection(Section):
    """Local training. Optimizer state starts fresh in every round."""

    optimizer: Literal["adamw", "muon", "sgd"] = Field(
        "adamw", description="muon: for the matrices of numbered layers, adamw for the rest; same lr as adamw"
    )
    lr: float = Field(1e-3, gt=0, description="learning rate in round 0")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="over rounds, down to a tenth")
    local_steps: int = Field(
        10, ge=0, description="optimizer steps per device and round; 0 where local_epochs are given"
    )
    local_epochs: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="passes of a device over its own blocks in a round, in place of local_steps; 0 = steps are given",
    )
    max_local_steps: int = Field(1000, ge=1, description="steps per device and round at most, with local_epochs")
    batch: int = Field(8, ge=1, description="blocks per optimizer step")
    accumulate: int = Field(1, ge=1, description="micro-batches per step: same gradient, less memory")
    checkpointing: bool = Field(
        False,
        description="keep the inputs of layers only, and compute the rest again for the gradient: same gradient, less "
        "memory, one more forward pass",
    )
    clip_grad: float = Field(1.0, ge=0, description="largest gradient norm; 0 = off")
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="for sgd")

    @classmethod
    def completed(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Set the steps to 0 where epochs are given, since steps have a default."""
        if plain.get("local_epochs") and "local_steps" not in plain:
            return {**plain, "local_steps": 0}
        return plain

    @rule
    def _one_length(self) -> Iterator[SettingError]:
        if bool(self.local_steps) == bool(self.local_epochs):
            what = "training.local_steps and training.local_epochs: exactly one of them says how long a device trains"
            yield SettingError("E-COMBO", what, "give one, and leave out the other")
        elif not self.local_epochs and self.max_local_steps != type(self).model_fields["max_local_steps"].default:
            what = "training.max_local_steps bounds the steps of training.local_epochs, which is not given"
            yield SettingError("E-COMBO", what, "leave it out, or write local_epochs = 1")

    @rule
    def _accumulate_divides_batch(self) -> Iterator[SettingError]:
        if self.batch % self.accumulate:
            what = f"training.accumulate = {self.accumulate} does not divide training.batch = {self.batch}"
            yield SettingError("E-COMBO", what, "choose a divisor of training.batch")

    @rule
    def _momentum_read(self) -> Iterator[SettingError]:
        if self.momentum and self.optimizer != "sgd":
            what = f'training.momentum is not read with training.optimizer = "{self.optimizer}"'
            yield SettingError("E-COMBO", what, 'leave it out, or write optimizer = "sgd"')


class TrustSection(Section):
    """Assumptions about devices and servers. Masks and noise are both sized by them."""

    malicious_fraction: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="share of the population that may work with the server, tell it their secrets, or leave out noise",
    )
    dropout_fraction: float = Field(
        0.1, ge=0, lt=0.33, description="share of a cohort that may vanish after its keys are known"
    )
    server: Literal["malicious", "curious"] = Field(
        "malicious",
        description="may lie, also about who is in a cohort and who dropped out, or follows the protocol and reads all",
    )
    cohorts: Literal["server", "verified"] = Field(
        "server",
        description="who draws cohorts: the server alone, or devices with it, who verify every cohort that they are in",
    )


# Keys of [simulation] that decide where and how fast a run computes, and never its result.
PLACES = ("engine", "workers", "ray_address", "worker_cpus", "worker_gpus")


class SimulationSection(Section):
    """The simulated world. Times are virtual seconds and decide which devices are late."""

    engine: Literal["inproc", "pool", "ray"] = Field(
        "inproc", description="one process, worker processes here, or workers on a Ray cluster"
    )
    workers: int = Field(2, ge=1, le=256, description="worker processes of the pool or on the cluster")
    ray_address: str = Field(
        "",
        pattern=r"^(auto|[A-Za-z0-9.\-]+:[0-9]{1,5})?$",
        description='Ray cluster, HOST:PORT, or "auto" for the one of this machine; empty = a Ray is started here',
    )
    worker_cpus: float = Field(1.0, gt=0, le=1024, description="processors that a worker on a Ray cluster reserves")
    worker_gpus: float = Field(
        0.0, ge=0, le=64, description="GPUs that a worker on a Ray cluster reserves; a fraction shares one GPU"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that an invited device is lost")
    step_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that a device is lost at each later message of secure aggregation"
    )
    step_s: float = Field(0.1, gt=0, description="virtual seconds per local step of a median device")
    speed_spread: float = Field(0.5, ge=0, le=4, description="sigma of the log-normal spread of device speeds")
    link_mbit: float = Field(10.0, gt=0, description="uplink of a median device")
    link_spread: float = Field(0.5, ge=0, le=4, description="sigma of the log-normal spread of uplinks")
    link_low_mbit: float = Field(0.1, gt=0, description="no uplink is slower")
    link_high_mbit: float = Field(20.0, gt=0, description="no uplink is faster")
    link_down: float = Field(1.0, gt=0, le=1000, description="downlink / uplink")
    link_trace: str = Field(
        "", description="CSV file with columns trace,mbit: measured uplinks, one sample a round, instead of a spread"
    )

    @property
    def processes(self) -> int:
        """Number of processes that train devices."""
        return 1 if self.engine == "inproc" else self.workers

    @rule
    def _cluster_used(self) -> Iterator[SettingError]:
        fields = type(self).model_fields
        given = [k for k in ("ray_address", "worker_cpus", "worker_gpus") if getattr(self, k) != fields[k].default]
        if given and self.engine != "ray":
            what = f'simulation.{given[0]} is for simulation.engine = "ray", and the engine is "{self.engine}"'
            yield SettingError("E-COMBO", what, f'write engine = "ray", or leave out {", ".join(given)}')
        if self.worker_gpus > 1 and self.worker_gpus % 1:
            what = f"simulation.worker_gpus = {self.worker_gpus:g} is no share of one GPU and no number of whole ones"
            yield SettingError("E-VALUE", what, "give a fraction of 1, or a whole number")

    @rule
    def _links_from_one_source(self) -> Iterator[SettingError]:
        drawn = ("link_mbit", "link_spread", "link_low_mbit", "link_high_mbit")
        fields = type(self).model_fields
        if self.link_trace and any(getattr(self, name) != fields[name].default for name in drawn):
            what = "with simulation.link_trace links are not drawn"
            yield SettingError("E-COMBO", what, f"leave out {', '.join(drawn)}")

    @rule
    def _links_ordered(self) -> Iterator[SettingError]:
        if not self.link_low_mbit <= self.link_mbit <= self.link_high_mbit:
            what = f"simulation.link_mbit = {self.link_mbit:g} lies outside of link_low_mbit to link_high_mbit"
            yield SettingError("E-COMBO", what, "set link_low_mbit and link_high_mbit too")


class DpSection(Section):
    """Differential privacy: the unit that is protected, its budget, and the bound of one contribution."""

    unit: Literal["device", "example"] = Field(
        "device",
        description="whose data epsilon is about: all text of a device, or one record (block) of it, with local_dp "
        "(DP-SGD) or distributed_dp (sums of records)",
    )
    epsilon: float = Field(
        0.0,
        ge=0,
        le=LARGEST_EPSILON,
        description="budget of the whole run, from which the noise is derived; this or noise_multiplier",
    )
    noise_multiplier: float = Field(
        0.0, ge=0, description="noise on the sum / clip_l2, from which epsilon is derived; this or epsilon"
    )
    delta: float = Field(0.0, ge=0, lt=1, description="required; below 1 / (number of devices)^1.1")
    clip_l2: float = Field(
        0.0, ge=0, description="bound of one update's L2 norm, or of one record's gradient by unit; required"
    )
    tensor_l2: float = Field(
        0.0, ge=0, description="bound of every tensor's L2 norm by itself, in place of the whole's; 0 = off"
    )
    adaptive_clip: bool = Field(
        False, description="central_dp: clip_l2 is where the clip begins; it follows the median"
    )
    sample_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description='unit = "example" with local_dp: probability with which a step takes each block; required',
    )
    records: int = Field(
        0,
        ge=0,
        le=1 << 20,
        description='unit = "example" with distributed_dp: records of a device that count in a round at most, by which '
        "its sum is divided; required",
    )
    noise: Literal["independent", "correlated"] = Field(
        "independent",
        description="correlated (central_dp, cyclic cohorts): a round takes back part of the noise of those before it",
    )
    buffers: int = Field(3, ge=1, le=4, description="correlated: memory of the noise, in models; more is better")
    amplification: Literal["auto", "poisson"] = Field(
        "auto", description="poisson: refuse where amplification by Poisson sampling cannot be counted"
    )
    bits: int = Field(0, ge=0, le=32, description="distributed_dp: of the ring; 0 = the smallest that will do")

    @property
    def example(self) -> bool:
        """True if single records (blocks of text) are protected."""
        return self.unit == "example"
