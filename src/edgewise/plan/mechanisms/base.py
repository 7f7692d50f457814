"""A noise mechanism as a value: the word that asks for it, its stages, its privacy events, and its card.

    MECHANISM = Mechanism(name="local", word="local_dp", who=Noiser.DEVICE, ..., build=build)

    def build(setting: Setting, *, clip_l2: float, tensor_l2: float) -> Built:
        ...
        return BuiltMechanism(ending, events, card)

The arguments of ``build`` are the keys of [dp] that the mechanism reads. ``keys`` lists them. A recipe's word and the
keys in ``chosen`` select the mechanism.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgewise.core.errors import CompositionError
from edgewise.core.space import Adjacency, Space
from edgewise.core.stage import WEIGHT, Post, Stage
from edgewise.core.vector import Spec
from edgewise.plan.promise import Noiser
from edgewise.plan.recipe.privacy import Privacy
from edgewise.plan.sampling import Sampling
from edgewise.privacy import rules
from edgewise.privacy.clip import clip, clip_tensors
from edgewise.privacy.joined import noised_metrics
from edgewise.privacy.spend import PrivacyEvent

UNIT = "device: all its text, in all rounds"
ADJACENT = {
    "zero_out": "one device's updates are all zero or not, while participation is public",
    "add_remove": "one device is in the population or not",
    "replace_one": "one device has other text",
}


class MechanismSetting(NamedTuple):
    """The facts of a plan that a mechanism may use.

    Attributes:
        spec: layout of the vector that travels.
        before: the space before the noise, by phase.
        sampling: the run's sampling of cohorts.
        rounds: number of rounds of the run.
        steps: largest number of local steps in a round.
        hidden: True where secure aggregation hides single updates.
        delta: the delta of all epsilons.
    """

    spec: Spec
    before: Sequence[Space]
    sampling: Sampling
    rounds: int
    steps: int
    hidden: bool
    delta: float

    @property
    def rounds_each(self) -> int:
        """The largest number of rounds that one device takes part in."""
        return self.sampling.rounds_each(self.rounds)


@dataclass(frozen=True)
class MechanismSentences:
    """A mechanism's part of a privacy card. The fields are those of ``privacy.card.PrivacyCard``.

    Attributes:
        noise: the party that adds noise, and the amount.
        unit: the data that the epsilon protects.
        adjacency, sampling: sentences on neighbours and sampling. None takes the plan's own.
        against_server: True where the epsilon holds against the operator of the server.
        blocks: a further number that delta was compared with.
        honest, fewer, continuous: facts of distributed noise. Defaults for the other mechanisms.
    """

    noise: str
    unit: str = UNIT
    adjacency: str | None = None
    sampling: str | None = None
    against_server: bool = True
    blocks: str = ""
    honest: int = 0
    fewer: tuple[tuple[int, float], ...] = ()
    continuous: float = 0.0


class BuiltMechanism(NamedTuple):
    """A mechanism in its setting. z is the noise multiplier.

    Attributes:
        ending: z -> the stages and the posts that the mechanism adds.
        events: z -> the privacy events of one release, by phase.
        card: (z, the space after its stages) -> its part of the card.
    """

    ending: Callable[[float], tuple[list[Stage], list[Post]]]
    events: Callable[[float], tuple[PrivacyEvent, ...]]
    card: Callable[[float, Space], MechanismSentences]


@dataclass(frozen=True)
class Mechanism:
    """One way to add noise.

    Attributes:
        name: name of the mechanism.
        word: the word of ``privacy`` that asks for it.
        who: the party that adds the noise.
        summary: one sentence for claims and card.
        build: (setting, keys of [dp]) -> ``BuiltMechanism``. It raises CompositionError or RecipeError for a setting
            that does not compose.
        adjacency: kind of sampling -> relation of neighbouring data sets. The fold's ``sensitivity`` and the
            accountant's events both follow from it.
        chosen: the keys of [dp] that tell it from other mechanisms of the word.
        expected: True divides the sum by the expected number of contributions, because the true one is not public.
        before_quantizers: True puts its stages before the recipe's quantizers, which then work on noised values.
        values_only: True where it hides values, but not positions that a device chooses.
        required: keys of [dp] that have no default for it.
    """

    name: str
    word: Privacy
    who: Noiser
    summary: str
    build: Callable[..., BuiltMechanism]
    adjacency: Callable[[str], Adjacency] = lambda kind: "zero_out"
    chosen: Mapping[str, str] = field(default_factory=dict)
    expected: bool = False
    before_quantizers: bool = False
    values_only: bool = False
    required: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """The keys of a recipe that ask for this mechanism."""
        return " with ".join([f'privacy = "{self.word}"', *(f'dp.{k} = "{v}"' for k, v in self.chosen.items())])

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of [dp] that it reads in addition to unit, budget and delta, in order."""
        return tuple(name for name in inspect.signature(self.build).parameters if name != "setting")

    def check_values(self, before: Sequence[Space]) -> None:
        """Check that no device chooses positions, which the noise would not hide.

        Raises:
            CompositionError: E-TOPK-SECAGG where one does.
        """
        if self.values_only and any(space.sparse for space in before):
            raise CompositionError(
                "E-TOPK-SECAGG",
                f'privacy = "{self.word}": each device would choose its own positions. They reveal its data, because '
                "noise hides values only.",
                "use random_k, or shared_top_k, which chooses positions from the last release.",
            )


def mechanism_clip(spec: Spec, clip_l2: float, tensor_l2: float) -> Stage:
    """Return the stage that clips an update to ``clip_l2``, or each of its tensors to a given ``tensor_l2``.

    Raises:
        CompositionError: E-PERTENSOR where the clipped tensors could be longer than ``clip_l2`` together.
    """
    if not tensor_l2:
        return clip(clip_l2)
    rules.refuse_short_per_tensor(len(spec.segments), tensor_l2, clip_l2)
    return clip_tensors(spec, tensor_l2)


def mechanism_covered_stages(setting: MechanismSetting, clip_l2: float, tensor_l2: float) -> list[Stage]:
    """Return the stages before noise that a device adds: those of ``mechanism_clip``, then metrics as coordinates.

    Raises:
        CompositionError: as ``mechanism_clip`` and ``joined_metrics``.
    """
    metrics = [noised_metrics()] if any(set(space.head) - {WEIGHT} for space in setting.before) else []
    return [mechanism_clip(setting.spec, clip_l2, tensor_l2), *metrics]


def mechanism_clip_words(clip_l2: float, tensor_l2: float) -> str:
    """Describe the bound of ``mechanism_clip`` in words."""
    if tensor_l2:
        return f"what tensors clipped to {tensor_l2:g} can have together"
    return f"the clip of {clip_l2:g}"
