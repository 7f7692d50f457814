"""A noise mechanism as a value: who adds the noise, by what word, at what price, and what a card says of it.

    MECHANISM = Mechanism(name="local", word="local_dp", who=Noiser.DEVICE, ..., build=build)

    def build(setting: Setting, *, clip_l2: float, tensor_l2: float) -> Built:
        ...
        return Built(ending, events, card)

The keys of [dp] that a mechanism reads are the arguments of ``build``; ``keys`` lists them. A recipe's word, and the
keys in ``chosen``, say which mechanism it has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgewise.core.errors import CompositionError
from edgewise.core.space import Adjacency, Space
from edgewise.core.stage import Post, Stage
from edgewise.core.vector import Spec
from edgewise.plan.promise import Noiser
from edgewise.plan.recipe.privacy import Privacy
from edgewise.plan.sampling import Sampling
from edgewise.privacy import rules
from edgewise.privacy.clip import clip, clip_tensors
from edgewise.privacy.spend import PrivacyEvent

UNIT = "device: all its text, in all rounds"
ADJACENT = {
    "zero_out": "one device's updates are all zero or not; who takes part is public",
    "add_remove": "one device is in the population or not",
    "replace_one": "one device has other text",
}


class Setting(NamedTuple):
    """What a mechanism knows of the plan that it is for.

    Attributes:
        spec: layout of what travels. before: the space before the noise, by phase. sampling, rounds: of the run.
        steps: of a device in a round, at most. hidden: whether secure aggregation hides single updates. delta: of all
            epsilons.
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
        """Rounds that one device is in, at most."""
        return self.sampling.rounds_each(self.rounds)


@dataclass(frozen=True)
class Sentences:
    """What a privacy card says of a mechanism, in the words and numbers of ``privacy.card.Card``.

    Attributes:
        noise: who adds how much. unit, adjacency, sampling: None where those of all devices hold.
        against_server: whether the epsilon holds against who runs the server.
        blocks: what else delta was compared with. honest, fewer, continuous: of shares.
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


class Built(NamedTuple):
    """A mechanism in its setting; z is the noise multiplier.

    Attributes:
        ending: z -> the stages and the posts that it adds.
        events: z -> what one release gives away, by phase.
        card: (z, the space behind the ending) -> what the card says.
    """

    ending: Callable[[float], tuple[list[Stage], list[Post]]]
    events: Callable[[float], tuple[PrivacyEvent, ...]]
    card: Callable[[float, Space], Sentences]


@dataclass(frozen=True)
class Mechanism:
    """One way to add noise.

    Attributes:
        word, chosen: the word of ``privacy`` that asks for it, and the keys of [dp] that tell it from others of the
            word.
        who: who adds the noise.
        summary: one sentence for claims and card.
        build: (setting, keys of [dp]) -> ``Built``. Raises CompositionError and RecipeError: what does not compose.
        adjacency: kind of sampling -> what a device sends in the neighbouring data set. The fold's ``sensitivity`` and
            the accountant's events rest on this one answer.
        expected: whether the sum is divided by the expected number of contributions, since the true one is not public.
        before_quantizers: whether its stages stand before the recipe's quantizers, which then are given noised values.
        values_only: whether it hides values, and positions that a device chooses would show beside it.
        required: keys of [dp] that have no default for it.
    """

    name: str
    word: Privacy
    who: Noiser
    summary: str
    build: Callable[..., Built]
    adjacency: Callable[[str], Adjacency] = lambda kind: "zero_out"
    chosen: Mapping[str, str] = field(default_factory=dict)
    expected: bool = False
    before_quantizers: bool = False
    values_only: bool = False
    required: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """What a recipe says that asks for it."""
        return " with ".join([f'privacy = "{self.word}"', *(f'dp.{k} = "{v}"' for k, v in self.chosen.items())])

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of [dp] that it reads beside unit, budget and delta, in order."""
        return tuple(name for name in inspect.signature(self.build).parameters if name != "setting")

    def check_values(self, before: Sequence[Space]) -> None:
        """Raises CompositionError(E-TOPK-SECAGG) where devices choose positions, and the noise would not hide them."""
        if self.values_only and any(space.sparse for space in before):
            raise CompositionError(
                "E-TOPK-SECAGG",
                f'privacy = "{self.word}": positions chosen per device say what it holds, and noise hides values only.',
                "use random_k, or shared_top_k, which chooses from what was released.",
            )


def bounded(spec: Spec, clip_l2: float, tensor_l2: float) -> Stage:
    """What bounds an update: it is as long as ``clip_l2`` at most; by its tensors where ``tensor_l2`` bounds each.

    Raises CompositionError(E-PERTENSOR).
    """
    if not tensor_l2:
        return clip(clip_l2)
    rules.per_tensor(len(spec.segments), tensor_l2, clip_l2)
    return clip_tensors(spec, tensor_l2)


def bound_words(clip_l2: float, tensor_l2: float) -> str:
    """The bound of ``bounded`` in words."""
    if tensor_l2:
        return f"what tensors clipped to {tensor_l2:g} can have together"
    return f"the clip of {clip_l2:g}"
