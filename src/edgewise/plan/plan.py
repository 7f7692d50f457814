"""The plan of a run: one value with everything that server and devices need of a recipe.

Nothing outside ``plan/`` reads the recipe. Server, devices, simulation and reports ask the plan.

    plan = compile(recipe, spec, population, BUILT_IN)
    plan.at(3).encode(...)          # the update pipeline of round 3
    plan.rule(3)                    # the local training of round 3
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec

from edgewise.codecs.ladder import pick_rung, rung_bytes
from edgewise.codecs.wire import pack
from edgewise.core import keys
from edgewise.core.frame import Invite, LocalRule
from edgewise.core.memory import Memory
from edgewise.core.metric import Metrics
from edgewise.core.pipeline import Pipeline
from edgewise.core.space import Hiding
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Array, Segment, Spec
from edgewise.plan.broadcast import planned_delta_bytes
from edgewise.plan.evaluations import PlannedEvaluations, planned_evaluations
from edgewise.plan.facts import PlanFacts
from edgewise.plan.layout import VectorLayout
from edgewise.plan.noise import PlannedSpend
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.plan.turns import PlannedTurns
from edgewise.plan.upload_budget import upload_budget
from edgewise.privacy.adaptive import reachable_clips
from edgewise.secagg import messages
from edgewise.secagg.merge import session_params
from edgewise.secagg.params import Params, TrustPolicy
from edgewise.strategies.base import Strategy
from edgewise.strategies.client import LocalWork
from edgewise.strategies.depths import trained

# Sizes of messages of secure aggregation, for device names of 16 characters: a device's keys, its sealed shares for one
# other device, a signed answer with its frame, and one revealed share. The last size is that of one device's part of a
# message to others, for a name of 256 bytes.
KEYS_BYTES, BOX_BYTES, SIGNED_BYTES, REVEALED_BYTES, PART_BYTES = 300, 166, 200, 54, 640
MESSAGE_LIMIT_BYTES = 2**32 - 2**20  # MessagePack's largest binary field, less room for the rest


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know, checked to compose.

    Attributes:
        recipe: the recipe that the plan was compiled from. Nothing outside this package reads it.
        facts: the identity of the run. Their digest is ``run``.
        layout: layout of the model, and of the vectors that devices send and receive.
        metrics: the metrics that travel with updates.
        pipelines: the update pipeline of each phase. There is one phase, unless a stage has a schedule (``turns``).
        strategy: the server algorithm and its client half.
        sampling: the rule that draws cohorts.
        promise: the privacy that the run promises, and the means.
        claims: sentences about the privacy of the run, the most important first.
        groups: for each phase the segments that it trains and moves. Empty with one phase, which trains all.
        rungs: names of the rungs that a device may choose from, by number. Empty where the codec is fixed.
        rung_pipelines: the update pipeline of each rung where a sum hides single updates. ``pipelines`` then holds the
            first. Otherwise empty, and one pipeline holds all rungs.
        policy: the assumptions of devices about each other and the server in secure aggregation. None where nothing is
            hidden.
        contributors: number of devices whose random values draw the cohorts. 0 where the server draws alone.
        downlink: the pipeline of the model's change on its way to devices, with one contribution, the same in all
            rounds. None where devices download the model itself.
        spend: the privacy cost of a round and the budget of the run. None without differential privacy.
    """

    recipe: Recipe
    facts: PlanFacts
    layout: VectorLayout
    metrics: Metrics
    pipelines: tuple[Pipeline, ...]
    strategy: Strategy
    sampling: Sampling
    promise: Promise
    claims: tuple[str, ...]
    groups: tuple[tuple[Segment, ...], ...] = ()
    rungs: tuple[str, ...] = ()
    downlink: Pipeline | None = None
    spend: PlannedSpend | None = None
    rung_pipelines: tuple[Pipeline, ...] = ()
    policy: TrustPolicy | None = None
    contributors: int = 0

    @property
    def spec(self) -> Spec:
        """The layout of the model's trained parameters."""
        return self.layout.model

    @cached_property
    def run(self) -> str:
        """The run's identity: the digest of ``facts``."""
        return self.facts.digest()

    def phase(self, round: int) -> int:
        """Return the number of the pipeline that a round uses."""
        return self.turns.at(round)

    @property
    def turns(self) -> PlannedTurns:
        """The schedule of the pipelines."""
        in_order, split = self.recipe.trainable.turns == "folds", self.recipe.split
        until = split.first_rounds(self.rounds) if split.local else 0
        return PlannedTurns(len(self.pipelines), self.sampling.groups, self.rounds if in_order else 0, until)

    def at(self, round: int, rung: int | None = None) -> Pipeline:
        """Return the update pipeline of a round, or that of a ``rung`` of ``rung_pipelines``."""
        return self.pipelines[self.phase(round)] if rung is None else self.rung_pipelines[rung]

    @property
    def hides(self) -> Hiding | None:
        """The means that hide contributions from the server. None where it sees each of them."""
        return self.pipelines[0].merge.hides

    @property
    def interactive(self) -> bool:
        """True where devices agree on keys before an update leaves (masks)."""
        return self.hides is not None and self.hides.interactive

    @property
    def shared(self) -> bool:
        """True where each of two servers holds one share of every contribution."""
        return self.hides is not None and not self.hides.interactive

    def secagg(self, round: int, rung: int | None = None) -> Params:
        """Return the fixed parameters of the round's secure aggregation, for a group that sends by ``rung``."""
        assert self.policy is not None
        return session_params(self.at(round, rung).encoded, self.policy, rung)

    @property
    def sessions(self) -> tuple[Params, ...]:
        """The fixed parameters of every session of secure aggregation that the run can have."""
        if self.policy is None:
            return ()
        policy, by_rung = self.policy, self.rung_pipelines
        if by_rung:
            return tuple(session_params(pipe.encoded, policy, rung) for rung, pipe in enumerate(by_rung))
        return tuple(session_params(pipe.encoded, policy, None) for pipe in self.pipelines)

    @property
    def sizes(self) -> tuple[float, ...]:
        """Bytes of a contribution by each rung. Empty where the codec is fixed."""
        if self.rung_pipelines:
            return tuple(pack.size_bytes(pipe.encoded) for pipe in self.rung_pipelines)
        return rung_bytes(self.at(0).encoded)

    def session(self, invite: Invite) -> bytes:
        """Return the id of the session that an invitation opens, from run, round, model, configuration and nonce."""
        rule = msgspec.msgpack.encode(invite.rule)
        config = messages.secagg_configuration(self.spec.digest(), rule, invite.public, invite.clip, invite.support)
        if invite.draw is not None:
            config = messages.drawn_secagg_configuration(config, invite.draw.beacon, invite.draw.key)
        assert invite.nonce is not None, "an invitation without one is refused where contributions are hidden"
        return messages.secagg_session_id(self.run, invite.round, invite.model, config.hex(), invite.nonce)

    def initial_memory(self, start: Callable[[Pipeline], Memory]) -> Memory:
        """Return the codec memory before the first round, of all phases together.

        Each phase moves other coordinates, so each has a memory of its own.

        Args:
            start: ``Pipeline.init`` for a device, ``Pipeline.start_memory`` for the server.
        """
        memory = Memory()
        for i, pipe in enumerate(self.pipelines):
            memory = memory.put("phase", i, start(pipe))
        return memory

    def phase_memory(self, memory: Memory, round: int) -> Memory:
        """Return the part of a codec memory that belongs to the round's phase."""
        return memory.child("phase", self.phase(round))

    def with_phase_memory(self, memory: Memory, round: int, part: Memory) -> Memory:
        """Return ``memory`` with ``part`` as that of the round's phase. Other phases keep theirs."""
        return memory.put("phase", self.phase(round), part)

    def frozen(self, round: int) -> tuple[Segment, ...]:
        """Return the segments that are neither trained nor moved in this round. There are none with one phase."""
        if not self.groups:
            return ()
        travels = set(self.groups[self.phase(round)])
        return tuple(s for s in self.spec.segments if s not in travels)

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.recipe.round.rounds

    def rounds_alone(self, played: int) -> tuple[int, ...]:
        """Return the rounds that a device trains in the local-only comparison.

        Their number is that of the rounds in which a device takes part on average. They are spread evenly over the
        rounds ``played``.
        """
        n = max(1, round(played * self.sampling.expected / self.sampling.population))
        return tuple(i * played // n for i in range(n))

    @property
    def evaluations(self) -> PlannedEvaluations:
        """The evaluations of the run, and the decisions that follow from them."""
        return planned_evaluations(self.recipe)

    def distils(self, round: int) -> bool:
        """Tell whether the server distils the model again after this round."""
        return self.recipe.distill.due(round)

    @property
    def batch(self) -> int:
        """The number of blocks in an optimizer step."""
        return self.recipe.training.batch

    @property
    def most_rung_groups(self) -> int:
        """The largest number of groups of one rung in a cohort, where a sum hides single updates."""
        return self.recipe.adaptive.groups

    @property
    def stage_tables(self) -> tuple[Mapping[str, Any], ...]:
        """The tables of the recipe's own stages, with kind and parameters. Stages of the mechanism are not in it."""
        return tuple(self.recipe.stage)

    @property
    def key(self) -> keys.Key:
        """The root of the run's public randomness. Everyone with the recipe has it, so no secret may come from it."""
        return keys.root(self.recipe.seed)

    def batch_key(self, device: str, round: int) -> keys.Key:
        """Return the public seed of a device's batch order and dropout in a round."""
        return keys.derive(self.key, "fit", device, round)

    def rule(self, round: int) -> LocalRule:
        """Return the local training of a round. The learning-rate schedule runs over rounds.

        cosine, round r of R:  lr (0.1 + 0.9 (1 + cos(pi r / R)) / 2)

        The rate is the full one in round 0 and near a tenth of it at the end.
        """
        t = self.recipe.training
        factor = 1.0
        if t.schedule == "cosine":
            factor = 0.1 + 0.45 * (1.0 + math.cos(math.pi * round / self.rounds))
        trained = self.groups[self.phase(round)] if self.groups else self.recipe.trainable.trained(self.spec)
        return LocalRule(
            steps=t.local_steps or t.max_local_steps,
            lr=t.lr * factor,
            segments=tuple(s.name for s in trained),
            epochs=t.local_epochs,
        )

    def device_rule(self, round: int, device: str) -> LocalRule:
        """Return the local training of one device, which may train fewer blocks than others."""
        rule, blocks = self.rule(round), self.recipe.trainable.depth_of(device, self.key)
        return msgspec.structs.replace(rule, segments=trained(self.spec, blocks)) if blocks else rule

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """The segments that a device may train, the fewest first, where its memory decides. Empty where it does not."""
        section = self.recipe.trainable
        return tuple(trained(self.spec, k) for k in section.depths) if section.blocks_by == "memory" else ()

    def work(self, round: int, steps: int, device: str, choice: int | None = None) -> LocalWork:
        """Describe to the strategy's client half the work of ``device``, which takes ``steps`` steps in this round.

        ``choice`` is that of its update (``Update.choice``).
        """
        rule, t = self.rule(round), self.recipe.training
        momentum = t.momentum if t.optimizer == "sgd" else 0.0
        section = self.recipe.trainable
        rank, blocks = section.rank_of(device, self.key), section.depth_of(device, self.key)
        if section.blocks_by == "memory":
            blocks = section.depths[-1] if choice is None else section.depths[choice]
        return LocalWork(steps, rule.steps, lr=rule.lr, base_lr=t.lr, momentum=momentum, rank=rank, blocks=blocks)

    def clips(self, round: int) -> tuple[float, float] | None:
        """Return the smallest and largest clip that an invitation can name. None where the recipe fixes the clip."""
        if self.promise.who_noises is not Noiser.SERVER or not self.recipe.dp.adaptive_clip:
            return None
        return reachable_clips(self.recipe.dp.clip_l2, round)

    def measured(self, aggregate: Aggregate) -> Aggregate:
        """Return an aggregate with its metrics in their own units.

        Noised metrics are means over the contributions that came, not over the expected number. Participation is public
        in that case.
        """
        share = aggregate.weight / aggregate.n if self.spend is not None and aggregate.n else 1.0
        return replace(aggregate, head=self.metrics.decoded(aggregate.head, share))

    def metric_noise(self, name: str) -> float:
        """Return the standard deviation of the noise on a metric's mean over a whole cohort. 0.0 without noise."""
        metric = next(metric for metric in self.metrics if metric.name == name)
        pipe, n = self.pipelines[0], max(1.0, self.sampling.expected)
        std = pipe.encoded.noise.std * math.sqrt(n) or pipe.total.noise_std  # Shares of all devices add up.
        return std / (self.metrics.factor(metric) * n)

    def turn(self, round: int, private: keys.Key | None = None, support: Array | None = None) -> keys.Turn:
        """Return the codec's view of a round."""
        return keys.Turn(round, self.public(round), private, support)

    def turn_down(self, round: int) -> keys.Turn:
        """Return the downlink's view of the delta that leads to a round's model. The delta carries its public key."""
        public = keys.derive(self.public(round), "downlink")
        return keys.Turn(round, public, keys.derive(self.key, "downlink", round))

    def public(self, round: int) -> keys.Key:
        """Return the round's public key, which the invitation announces."""
        return keys.derive(self.key, "public", round)

    def answer_bytes(self, round: int, body: bytes, rung: int | None = None) -> float:
        """Return the expected bytes of a device's answer to a message of secure aggregation, by its group's rung."""
        secagg, message = self.secagg(round, rung), messages.load_secagg_message(body)
        match message:
            case messages.RosterMessage():
                k, _ = secagg.policy.shape(len(message.keys))
                return BOX_BYTES * k
            case messages.BoxesMessage():
                return self.upload_bytes(round) if rung is None else self.sizes[rung]
            case messages.ProofsMessage():
                return REVEALED_BYTES * min(len(message.signatures), 1 + secagg.policy.shape(secagg.n_min)[0])
        return SIGNED_BYTES

    @property
    def frame_limit_bytes(self) -> int:
        """The largest size of an honest answer of any phase or rung: the worst packed payload, and its frame."""
        spaces = [
            space for pipe in self.rung_pipelines or self.pipelines for space in pipe.encoded.rungs or (pipe.encoded,)
        ]
        letters = PART_BYTES * max(self.sampling.invite, self.contributors) if self.hides else 0
        worst = max(16 * space.dim + space.universe + 16 * len(space.head) + 65536 for space in spaces) + letters
        return min(worst, MESSAGE_LIMIT_BYTES)

    def upload_bytes(self, round: int) -> float:
        """Return the expected payload bytes of one contribution, by the largest rung where devices choose."""
        return pack.size_bytes(self.at(round).encoded)

    def budget_bytes(self, elapsed_s: float | None, up_mbit: float) -> float:
        """Return the bytes that a device may upload (``plan.upload_budget``).

        Where training is not counted (``counts_training``), the deadline is that of the upload alone.

        Args:
            elapsed_s: seconds of the round that the device has spent. None: not measured, so the deadline alone counts.
            up_mbit: its uplink, megabit a second.
        Returns:
            Bytes; inf where the codec, and so the size, is fixed.
        """
        if not self.rungs:
            return math.inf
        a, spent_s = self.recipe.adaptive, elapsed_s if self.counts_training else None
        until_s = (a.deadline_s or self.recipe.round.deadline_s) * (1.0 - a.slack)
        if a.patience and spent_s is not None:
            until_s = min(until_s, spent_s * (1.0 + a.patience))
        return upload_budget(a.max_upload_mb * 1e6, until_s, spent_s or 0.0, up_mbit)

    @property
    def counts_training(self) -> bool:
        """True where a device's choice of a rung depends on the time that it trained.

        Behind masks it does not, because the update waits for the keys of all devices. With noise in the steps it must
        not: the time of a step reveals the number and length of the blocks that it drew.
        """
        return not self.rung_pipelines and not self.promise.noises_steps

    def expected_bytes(self, round: int, elapsed_s: float | None, up_mbit: float) -> float:
        """Return the expected bytes of a device's answer to an invitation: its payload, or its keys.

        The arguments are those of ``budget_bytes``. A device announces the answer before it trains.
        """
        if self.interactive:
            return KEYS_BYTES
        if not self.rungs:
            return self.upload_bytes(round)
        return self.sizes[self.best(elapsed_s, up_mbit)]

    def best(self, elapsed_s: float | None, up_mbit: float) -> int:
        """Return the rung that a device picks, or asks for where a sum hides single updates. See ``budget_bytes``."""
        return pick_rung(self.budget_bytes(elapsed_s, up_mbit), self.sizes)

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of the first download of a device: the model and the strategy's vectors beside it, in float32."""
        return 4 * self.layout.given.dim

    @property
    def delta_bytes(self) -> float | None:
        """Expected bytes of one round's delta, with its frame. None where there are no deltas."""
        return None if self.downlink is None else planned_delta_bytes(self.downlink)
