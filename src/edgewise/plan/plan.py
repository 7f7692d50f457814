"""The plan: the only thing that runs. A value that knows all that server and devices need of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import msgspec

from edgewise.codecs.ladder import pick, rung_bytes
from edgewise.codecs.wire import pack
from edgewise.core import keys
from edgewise.core.frame import Invite, LocalRule
from edgewise.core.memory import Memory
from edgewise.core.metric import Metrics
from edgewise.core.pipeline import Pipeline
from edgewise.core.space import Hiding
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Array, Segment, Spec
from edgewise.plan.broadcast import delta_bytes
from edgewise.plan.facts import PlanFacts
from edgewise.plan.layout import VectorLayout
from edgewise.plan.noise import Spend
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.plan.upload_budget import upload_budget
from edgewise.privacy.adaptive import reachable
from edgewise.secagg import messages
from edgewise.secagg.merge import params
from edgewise.secagg.params import Params, TrustPolicy
from edgewise.strategies.base import Strategy
from edgewise.strategies.client import LocalWork

# Of messages of secure aggregation, names of 16 characters: one device's sealed shares for another, a signed answer
# with its frame, one revealed share. And one device's part of a letter to others, with a name of 256 bytes.
KEYS_BYTES, BOX_BYTES, SIGNED_BYTES, REVEALED_BYTES, PART_BYTES = 300, 166, 200, 54, 640
MESSAGE_LIMIT_BYTES = 2**32 - 2**20  # MessagePack's largest binary field, less room for the rest


@dataclass(frozen=True, slots=True)
class Evaluations:
    """How a run's models are measured on held-out text, and what the losses decide.

    Attributes:
        every: rounds between evaluations; the last round always; 0 = only the last.
        devices: evaluate on at most so many devices; 0 = all.
        patience: evaluations in a row without a lower loss that end the run; 0 = none do.
        keep: the model that counts: of the last round, or of the evaluation with the lowest loss.
        on_devices: the devices of a round measure its model, and the mean comes with the sum.
    """

    every: int = 5
    devices: int = 0
    patience: int = 0
    keep: Literal["last", "best"] = "last"
    on_devices: bool = False

    @property
    def choose(self) -> bool:
        """Whether losses decide when the run ends, or which of its models counts."""
        return bool(self.patience) or self.keep == "best"


def evaluations(recipe: Recipe) -> Evaluations:
    """A recipe's evaluations."""
    asked, round = recipe.eval, recipe.round
    return Evaluations(asked.every, asked.devices, round.patience, round.keep, asked.on_devices)


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know, checked to compose.

    Attributes:
        recipe: what the plan was compiled from. Nothing outside of this package reads it: the plan says what it means.
        facts: what identifies the run; their digest is ``run``.
        layout: of the model, and of the vectors that go up and down.
        metrics: numbers of devices that travel with updates.
        pipelines: the update pipeline, one per phase; round r is of phase r mod their number. One phase, unless a
            stage has a schedule.
        groups: for each phase the segments that it moves and trains; empty with one phase (all are trained).
        rungs: names of the rungs that a device may choose from, by number; empty where the codec is fixed.
        ways: the way up of each rung where a sum hides its parts, ``pipelines`` being the first; else empty: one
            pipeline then holds all rungs.
        policy: what devices assume of each other and of the server in secure aggregation; None where nothing is hidden.
        contributors: devices whose random values cohorts are drawn from; 0 where the server draws alone.
        downlink: the way of the model's change down, a pipeline of one contribution, the same in all rounds; None where
            devices download the model itself.
        promise: what is promised about privacy, and by what means.
        spend: what a round gives away and what may be given away in all; None without differential privacy.
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
    spend: Spend | None = None
    ways: tuple[Pipeline, ...] = ()
    policy: TrustPolicy | None = None
    contributors: int = 0

    @property
    def spec(self) -> Spec:
        """Layout of the model's trained parameters."""
        return self.layout.model

    @cached_property
    def run(self) -> str:
        """The run's identity: the digest of ``facts``."""
        return self.facts.digest()

    def phase(self, round: int) -> int:
        """Which of the pipelines a round uses: they take turns, and where cohorts do too, a turn lasts until each has
        had one, so that every device trains every part."""
        return round // self.sampling.groups % len(self.pipelines)

    def at(self, round: int, rung: int | None = None) -> Pipeline:
        """The update pipeline in this round, by a rung of ``ways`` where there are any."""
        return self.pipelines[self.phase(round)] if rung is None else self.ways[rung]

    @property
    def hides(self) -> Hiding | None:
        """How contributions are hidden from the server; None: it sees each."""
        return self.pipelines[0].merge.hides

    @property
    def interactive(self) -> bool:
        """Whether devices agree on keys before an update leaves (masks)."""
        return self.hides is not None and self.hides.interactive

    @property
    def shared(self) -> bool:
        """Whether each of two servers holds one share of every contribution."""
        return self.hides is not None and not self.hides.interactive

    def secagg(self, round: int, rung: int | None = None) -> Params:
        """The fixed part of the round's secure aggregation, in a group that sends by ``rung`` of ``ways``."""
        assert self.policy is not None
        return params(self.at(round, rung).encoded, self.policy, rung)

    @property
    def sessions(self) -> tuple[Params, ...]:
        """The fixed part of every session of secure aggregation that the run can have."""
        if self.policy is None:
            return ()
        policy, ways = self.policy, self.ways
        rungs = range(len(ways)) if ways else [None] * len(self.pipelines)
        return tuple(
            params(pipe.encoded, policy, rung) for pipe, rung in zip(ways or self.pipelines, rungs, strict=True)
        )

    @property
    def sizes(self) -> tuple[float, ...]:
        """Bytes of a contribution by each rung; empty where the codec is fixed."""
        if self.ways:
            return tuple(pack.size_bytes(way.encoded) for way in self.ways)
        return rung_bytes(self.at(0).encoded)

    def session(self, invite: Invite) -> bytes:
        """The id of the session that an invitation opens: run, round, model, configuration and nonce."""
        rule = msgspec.msgpack.encode(invite.rule)
        config = messages.configuration(self.spec.digest(), rule, invite.public, invite.clip, invite.support)
        if invite.draw is not None:
            config = messages.drawn(config, invite.draw.beacon, invite.draw.key)
        assert invite.nonce is not None, "an invitation without one is refused where contributions are hidden"
        return messages.session_id(self.run, invite.round, invite.model, config.hex(), invite.nonce)

    def each(self, start: Callable[[Pipeline], Memory]) -> Memory:
        """Codec memory before the first round, of all phases together; each phase moves other coordinates, so each has
        its own."""
        memory = Memory()
        for i, pipe in enumerate(self.pipelines):
            memory = memory.put("phase", i, start(pipe))
        return memory

    def mine(self, memory: Memory, round: int) -> Memory:
        """The part of a codec memory that belongs to the round's phase."""
        return memory.child("phase", self.phase(round))

    def kept(self, memory: Memory, round: int, mine: Memory) -> Memory:
        """``memory`` after a round that left ``mine``; that of other phases as it was."""
        return memory.put("phase", self.phase(round), mine)

    def frozen(self, round: int) -> tuple[Segment, ...]:
        """Segments that are neither trained nor moved in this round; none with one phase."""
        if not self.groups:
            return ()
        travels = set(self.groups[self.phase(round)])
        return tuple(s for s in self.spec.segments if s not in travels)

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.recipe.round.rounds

    def rounds_alone(self, played: int) -> tuple[int, ...]:
        """The rounds that a device trains in the local-only comparison: of so many as were ``played``, as many as it
        takes part in on average, spread evenly over them."""
        n = max(1, round(played * self.sampling.expected / self.sampling.population))
        return tuple(i * played // n for i in range(n))

    @property
    def evaluations(self) -> Evaluations:
        """How models are measured, and what that decides."""
        return evaluations(self.recipe)

    @property
    def batch(self) -> int:
        """Blocks of an optimizer step."""
        return self.recipe.training.batch

    @property
    def most_rung_groups(self) -> int:
        """Into how many groups of one rung a cohort is sorted at most, where a sum hides its parts."""
        return self.recipe.adaptive.groups

    @property
    def stage_tables(self) -> tuple[Mapping[str, Any], ...]:
        """The tables of the recipe's own stages: kind and parameters. What the privacy word adds is not among them."""
        return tuple(self.recipe.stage)

    @property
    def key(self) -> keys.Key:
        """Root of the run's public randomness. Everyone who has the recipe has it: no secret may come from it."""
        return keys.root(self.recipe.seed)

    def batch_key(self, device: str, round: int) -> keys.Key:
        """Public seed of a device's batch order and dropout in a round."""
        return keys.derive(self.key, "fit", device, round)

    def rule(self, round: int) -> LocalRule:
        """What devices do in this round; the learning-rate schedule runs over rounds.

        cosine: lr (0.1 + 0.9 (1 + cos(pi r / R)) / 2): the full rate in round 0, a tenth at the end.
        """
        t = self.recipe.training
        factor = 1.0
        if t.schedule == "cosine":
            factor = 0.1 + 0.45 * (1.0 + math.cos(math.pi * round / self.rounds))
        trained = tuple(s.name for s in self.groups[self.phase(round)]) if self.groups else ()
        return LocalRule(
            steps=t.local_steps or t.max_local_steps,
            lr=t.lr * factor,
            segments=trained,
            epochs=t.local_epochs,
        )

    def work(self, round: int, steps: int) -> LocalWork:
        """What a device that takes so many steps does in this round, for the strategy's client half."""
        rule, t = self.rule(round), self.recipe.training
        momentum = t.momentum if t.optimizer == "sgd" else 0.0
        return LocalWork(steps=steps, most=rule.steps, lr=rule.lr, base_lr=t.lr, momentum=momentum)

    def clips(self, round: int) -> tuple[float, float] | None:
        """Least and largest clip that an invitation to a round can name; None where the recipe fixes it."""
        if self.promise.who_noises is not Noiser.SERVER or not self.recipe.dp.adaptive_clip:
            return None
        return reachable(self.recipe.dp.clip_l2, round)

    def measured(self, aggregate: Aggregate) -> Aggregate:
        """An aggregate with its metrics in their own units. Where noise is on them, they are means over those that came
        and not over those that were expected: who takes part is public then."""
        share = aggregate.weight / aggregate.n if self.spend is not None and aggregate.n else 1.0
        return replace(aggregate, head=self.metrics.decoded(aggregate.head, share))

    def metric_noise(self, name: str) -> float:
        """Standard deviation of the noise on a metric's mean over a whole cohort; 0.0 where there is none."""
        metric = next(metric for metric in self.metrics if metric.name == name)
        return self.pipelines[0].total.noise_std / (self.metrics.factor(metric) * max(1.0, self.sampling.expected))

    def turn(self, round: int, private: keys.Key | None = None, support: Array | None = None) -> keys.Turn:
        """The codec's view of a round."""
        return keys.Turn(round, self.public(round), private, support)

    def turn_down(self, round: int) -> keys.Turn:
        """The downlink's view of the delta that leads to the model of a round. Its public key travels in the delta."""
        public = keys.derive(self.public(round), "downlink")
        return keys.Turn(round, public, keys.derive(self.key, "downlink", round))

    def public(self, round: int) -> keys.Key:
        """The round's public key, announced in the invitation."""
        return keys.derive(self.key, "public", round)

    def answer_bytes(self, round: int, body: bytes, rung: int | None = None) -> float:
        """Expected bytes of a device's answer to a message of secure aggregation, in a group that sends by ``rung``."""
        secagg, message = self.secagg(round, rung), messages.load(body)
        match message:
            case messages.Roster():
                k, _ = secagg.policy.shape(len(message.keys))
                return BOX_BYTES * k
            case messages.Boxes():
                return self.upload_bytes(round) if rung is None else self.sizes[rung]
            case messages.Proofs():
                return REVEALED_BYTES * min(len(message.signatures), 1 + secagg.policy.shape(secagg.n_min)[0])
        return SIGNED_BYTES

    @property
    def frame_limit_bytes(self) -> int:
        """No honest answer of any phase or rung is larger: the packed payload at its worst, and room for the frame."""
        spaces = [space for pipe in self.ways or self.pipelines for space in pipe.encoded.rungs or (pipe.encoded,)]
        letters = PART_BYTES * max(self.sampling.invite, self.contributors) if self.hides else 0
        worst = max(16 * space.dim + space.universe + 16 * len(space.head) + 65536 for space in spaces) + letters
        return min(worst, MESSAGE_LIMIT_BYTES)

    def upload_bytes(self, round: int) -> float:
        """Expected payload bytes of one contribution to this round; of the largest rung where devices choose."""
        return pack.size_bytes(self.at(round).encoded)

    def budget_bytes(self, elapsed_s: float, up_mbit: float) -> float:
        """What a device may upload that has spent ``elapsed_s`` of the round and has a link of ``up_mbit``
        (``plan.upload_budget``); inf where the codec is fixed and the size with it. Where training is not counted
        (``counts_training``) the deadline is that of the upload alone."""
        if not self.rungs:
            return math.inf
        a, elapsed_s = self.recipe.adaptive, elapsed_s if self.counts_training else 0.0
        until_s = (a.deadline_s or self.recipe.round.deadline_s) * (1.0 - a.slack)
        if a.patience and elapsed_s > 0.0:  # where nothing is measured, the deadline alone counts
            until_s = min(until_s, elapsed_s * (1.0 + a.patience))
        return upload_budget(a.max_upload_mb * 1e6, until_s, elapsed_s, up_mbit)

    @property
    def counts_training(self) -> bool:
        """Whether a device's choice of a rung depends on how long it trained. Not behind masks, where the update is
        sent when the keys of all are in. Not with noise on records either: the time of a step follows from how many
        blocks it drew and how long they are, and no answer may tell that."""
        return not self.ways and not self.promise.noises_steps

    def expected_bytes(self, round: int, elapsed_s: float, up_mbit: float) -> float:
        """Bytes of such a device's answer to an invitation, announced before anyone trains: the payload, or keys."""
        if self.interactive:
            return KEYS_BYTES
        if not self.rungs:
            return self.upload_bytes(round)
        return self.sizes[self.best(elapsed_s, up_mbit)]

    def best(self, elapsed_s: float, up_mbit: float) -> int:
        """The rung that such a device picks; where a sum hides its parts, the one that it asks for."""
        return pick(self.budget_bytes(elapsed_s, up_mbit), self.sizes)

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of the model, and of what the strategy gives beside it, in float32: what a device downloads that has
        nothing to start from."""
        return 4 * self.layout.given.dim

    @property
    def delta_bytes(self) -> float | None:
        """Expected bytes of one round's delta, its frame included; None where there are no deltas."""
        return None if self.downlink is None else delta_bytes(self.downlink)
