"""Section of a recipe on split learning: devices train the first blocks of a model, and a server or a gateway the rest.

    [split]
    cut = 2            # the first two blocks are on the device
    shape = "U"        # final norm, head and labels too

The run's vector is the device's part, which ordinary rounds average. The rest is trained in sessions beside them
(``drivers.workers.split_trainer``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.privacy import DP_WORDS
from edgewise.plan.recipe.rules import Section, SettingError, rule

Rounding = Literal["float32", "bf16", "int8", "int4"]
SUMS = ("sum", "secure_sum", "shared_sum")  # merges that are a weighted mean of all contributions
OPTIMIZERS = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")  # strategies without a client half
MOST_WINDOW = 64  # micro-batches of a device that may be on their way at once
ADDED = ("fedit", "ffa")  # rules of adapters by which updates are added, each device with the whole adapter


class SplitSection(Section):
    """Split learning. A device trains the first blocks of the model, and somebody else trains the rest.

    In each round each device of the cohort trains with the rest in a session. Activations go up for each micro-batch,
    and gradients come down. What the round then merges is the device's part of the model.
    """

    cut: int = Field(0, ge=0, le=4096, description="blocks on the device, after the embedding; 0 = the model is whole")
    shape: Literal["U", "head"] = Field(
        "U",
        description="U: final norm, head and labels stay on the device, and each token crosses four times; head: the "
        "server has them, sees the labels, and each token crosses twice",
    )
    activations: Rounding = Field("int8", description="format of activations: rounded to the nearest value, per token")
    gradients: Rounding = Field("int8", description="format of gradients: rounded at random without bias, per token")
    held_by: Literal["server", "gateway"] = Field(
        "server", description="who has the rest of the model and sees activations and gradients"
    )
    server_parts: Literal["each", "in_turn", "frozen"] = Field(
        "each",
        description="each: a copy of the rest for each device of a round, averaged with the weights of the updates "
        "(SplitFed v1); in_turn: one rest that the devices of a round train one after the other (SplitFed v2); frozen: "
        "the rest stays as it is",
    )
    device_part: Literal["trained", "frozen"] = Field(
        "trained",
        description="frozen: the device's part stays as it is, each activation goes up once and is kept by the "
        "gateway, and the rounds train the rest on them",
    )
    loss: Literal["end", "local"] = Field(
        "end",
        description="end: the loss at the model's end trains both parts; local: the device trains its part by a small "
        "head of its own for some rounds, then activations go up once, and the other rounds train the rest on them",
    )
    local_rounds: int = Field(0, ge=0, description="loss = local: rounds of the device's part; 0 = half of all")
    token_noise: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Gaussian noise on each vector that a device sends up, over its clip; 0 = none; U only",
    )
    clip_activations: float = Field(0.0, ge=0, le=1e30, description="longest activation of a token, with token_noise")
    clip_gradients: float = Field(0.0, ge=0, le=1e30, description="longest output gradient, with token_noise")
    window: int = Field(2, ge=1, le=MOST_WINDOW, description="micro-batches of a device that are on their way at once")

    @property
    def used(self) -> bool:
        """Tell whether the model is split."""
        return self.cut > 0

    @property
    def trains_rest(self) -> bool:
        """Tell whether sessions change the rest of the model."""
        return self.used and not self.cached and self.server_parts != "frozen"

    @property
    def local(self) -> bool:
        """Tell whether devices train their part by a head of their own."""
        return self.used and self.loss == "local"

    @property
    def cached(self) -> bool:
        """Tell whether activations go up once, and rounds train the rest on them."""
        return self.local or (self.used and self.device_part == "frozen")

    def first_rounds(self, rounds: int) -> int:
        """Return the number of rounds in which devices train their part by a head of their own."""
        return self.local_rounds or rounds // 2

    @property
    def shows_labels(self) -> bool:
        """Tell whether the next tokens of the text go to the rest of the model."""
        return self.used and self.shape == "head"

    @property
    def holder(self) -> str:
        """Name who has the rest, for sentences."""
        return f"the {self.held_by}"

    @rule
    def _cut_given(self) -> Iterator[SettingError]:
        if not self.cut and any(getattr(self, k) != f.default for k, f in type(self).model_fields.items()):
            what = "the section [split] splits nothing with split.cut = 0"
            yield SettingError("E-COMBO", what, "write cut = 1 or more, or leave the section out")

    @rule
    def _cache_kept(self) -> Iterator[SettingError]:
        if not self.cached:
            if self.local_rounds:
                what = 'split.local_rounds is of split.loss = "local", and here the loss at the end trains both parts'
                yield SettingError("E-COMBO", what, "leave it out")
            return
        given = 'split.loss = "local"' if self.local else 'split.device_part = "frozen"'
        if self.shape != "head":
            what = f'{given} with split.shape = "U": the head on the device would ask for outputs in every pass, and '
            yield SettingError("E-COMBO", what + "activations would not go up once", 'write shape = "head"')
        if self.held_by != "gateway":
            what = (
                f'{given} with split.held_by = "server": the gateway of each device keeps its activations, and sends '
            )
            what += "updates of the rest to the server, which merges them"
            yield SettingError("E-COMBO", what, 'write held_by = "gateway"')
        if self.local and self.device_part == "frozen":
            what = 'split.loss = "local" with split.device_part = "frozen": the first rounds would train nothing'
            yield SettingError("E-COMBO", what, "give one of them")
        fields = type(self).model_fields
        unread = [key for key in ("server_parts", "gradients", "window") if getattr(self, key) != fields[key].default]
        if unread:
            what = (
                f"{given} with {', '.join(f'split.{key}' for key in unread)}: no gradient crosses, and the rest is in "
            )
            yield SettingError("E-COMBO", what + "the updates", f"leave out {', '.join(unread)}")

    @rule
    def _noise_with_clips(self) -> Iterator[SettingError]:
        clips = (self.clip_activations, self.clip_gradients)
        if self.token_noise and self.shape == "head":
            what = (
                'split.token_noise with split.shape = "head": the labels go to the rest as they are, and they are the '
                "text itself, so noise on activations hides nothing"
            )
            yield SettingError("E-COMBO", what, 'write split.shape = "U", or leave out split.token_noise')
        elif self.token_noise and not all(clips):
            what = "split.token_noise without split.clip_activations and split.clip_gradients: nothing bounds what the "
            fix = "write both clips. `edgewise audit` measures what they hide, and a trial run what they cost"
            yield SettingError("E-NOISE-NOCLIP", what + "noise has to hide", fix)
        elif any(clips) and not self.token_noise:
            what = (
                "split.clip_activations and split.clip_gradients without split.token_noise: a clip alone hides little"
            )
            yield SettingError("E-COMBO", what, "write split.token_noise, or leave out both clips")


def split_faults(recipe: Any) -> Iterator[SettingError]:
    """Find settings of a recipe (``plan.recipe.recipe.Recipe``) that do not go with split learning."""
    split = recipe.split
    if not split.used:
        return
    given = f"split.cut = {split.cut}"
    yield from _privacy_faults(recipe, given)
    if split.local and not 0 < split.first_rounds(recipe.round.rounds) < recipe.round.rounds:
        what = f'split.loss = "local" with round.rounds = {recipe.round.rounds} and split.local_rounds = '
        what += f"{split.local_rounds}: both parts need rounds"
        yield SettingError("E-COMBO", what, "play more rounds, or write fewer local_rounds")
    if split.local and recipe.downlink:
        what = 'split.loss = "local" with [[downlink]]: what devices hold of their part moves a little in every round, '
        yield SettingError("E-COMBO", what + "and activations would go up in each of them", "leave out [[downlink]]")
    if recipe.personal.method != "none":
        what = f'{given} with personal.method = "{recipe.personal.method}": a device never holds the whole model that '
        yield SettingError("E-COMBO", what + "it would make its own", "leave out [personal]")
    if recipe.eval.on_devices:
        what = f"{given} with eval.on_devices: a device has a part of the model, and cannot compute its loss by itself"
        yield SettingError("E-COMBO", what, "leave it out: a simulation measures the joined model")
    if recipe.codec == "adaptive":
        what = f'{given} with codec = "adaptive": a device chooses its rung by the time of an upload, and the bytes of '
        yield SettingError("E-COMBO", what + "the session share the same link", 'write codec = "stages"')
    if recipe.round.chooses:
        what = f'{given} with round.patience or round.keep = "best": an earlier device part would need the rest of its '
        yield SettingError("E-COMBO", what + "own round, and only the newest is kept", "leave both out")
    if recipe.trainable.block_shares:
        what = (
            f"{given} with trainable.block_shares: devices would train other blocks each, and a session trains all of "
        )
        yield SettingError("E-COMBO", what + "both parts", "leave out block_shares")
    if recipe.engine.batch_devices > 1:
        what = (
            f"{given} with engine.batch_devices = {recipe.engine.batch_devices}: each device has a session of its own"
        )
        yield SettingError("E-COMBO", what, "write engine.batch_devices = 1")
    if recipe.trainable.unequal or (recipe.trainable.adapts and recipe.trainable.rule not in ADDED):
        what = f'{given} with trainable.rule = "{recipe.trainable.rule}" and its ranks: the rule treats all factors as '
        fix = 'write rule = "fedit" or "ffa", and one rank for all devices'
        yield SettingError("E-COMBO", what + "one adapter, and a part of them stays with the rest", fix)
    if (kind := recipe.strategy.get("kind")) not in OPTIMIZERS:
        what = (
            f'{given} with [strategy] "{kind}": its terms on devices are of whole models, and a session has two parts'
        )
        yield SettingError("E-COMBO", what, f"write one of {', '.join(OPTIMIZERS)}")
    elif split.trains_rest and (kind != "fedavg" or recipe.strategy.get("lr", 1.0) != 1.0):
        what = (
            f'{given} with server_parts = "{split.server_parts}" and [strategy] "{kind}" with its steps: the rest is '
        )
        fix = 'write strategy.kind = "fedavg" with lr = 1, or split.server_parts = "frozen"'
        yield SettingError("E-COMBO", what + "a mean, and both parts would leave the round at different points", fix)
    if split.trains_rest and recipe.merge.get("kind") not in SUMS:
        what = f'{given} with merge.kind = "{recipe.merge.get("kind")}": the rule would choose among device parts, and '
        fix = f'write one of {", ".join(SUMS)}, or split.server_parts = "frozen"'
        yield SettingError("E-COMBO", what + "the rest of each device is in the mean all the same", fix)
    if recipe.simulation.engine == "ray":
        what = f'{given} with simulation.engine = "ray": sessions are files of one machine'
        yield SettingError("E-COMBO", what, 'write engine = "pool" or "inproc"')
    if split.server_parts == "in_turn" and recipe.simulation.engine == "pool":
        what = (
            f'{given} with split.server_parts = "in_turn" and simulation.engine = "pool": devices in turn cannot train '
        )
        yield SettingError("E-COMBO", what + "at the same time", 'write engine = "inproc", or server_parts = "each"')


def _privacy_faults(recipe: Any, given: str) -> Iterator[SettingError]:
    """Find promises that the rest of the model would break."""
    split = recipe.split
    if recipe.privacy not in DP_WORDS:
        return
    given = f'{given} with privacy = "{recipe.privacy}"'
    if split.trains_rest:
        what = (
            f'{given} and split.server_parts = "{split.server_parts}": the rest learns from activations and gradients '
        )
        what += (
            "without noise. The model holds it, and later updates of all devices depend on it, so no epsilon is true"
        )
        fix = 'write split.server_parts = "frozen", which leaves noised updates as the only way out of a round, or '
        yield SettingError("E-COMBO", what, fix + 'privacy = "hidden" or "none"')
    elif recipe.dp.example:
        what = f'{given} and dp.unit = "example": gradients that come back are of whole micro-batches, and cannot be '
        yield SettingError(
            "E-COMBO", what + "clipped record by record", 'write dp.unit = "device", or leave out [split]'
        )
    elif recipe.privacy != "central_dp" and split.held_by == "server":
        what = f'{given} and split.held_by = "server": the word promises something against the server itself, which '
        fix = 'write split.held_by = "gateway", which then sees them, or privacy = "central_dp"'
        yield SettingError("E-COMBO", what + "sees activations and gradients as they are", fix)
