"""The [buffer] section of a recipe: asynchronous rounds (``round.sampling = "buffered"``), and what they go with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError, rule

KIND = "buffered"  # word of ``round.sampling``
_HIDDEN = (
    "a masked or shared sum is of devices that train from one model and name one session, and the server could not "
    "weigh a contribution by its age"
)


class BufferSection(Section):
    """Asynchronous rounds. The server waits for ``round.cohort`` contributions, whichever model they start from."""

    concurrency: int = Field(0, ge=0, le=1_000_000, description="devices that train at any time; required")
    max_staleness: int = Field(
        10, ge=0, le=1000, description="rounds that a contribution may lag behind; older ones are refused"
    )
    damping: float = Field(
        0.5, ge=0, le=10, description="a in the weight (1 + s)^-a of a contribution that lags s rounds; 0 = all alike"
    )
    rest: int = Field(
        1, ge=1, le=1_000_000, description="rounds between two contributions of a device, at least; epsilon counts it"
    )

    @property
    def given(self) -> bool:
        """True if a key differs from its default."""
        return any(getattr(self, name) != field.default for name, field in type(self).model_fields.items())

    @rule
    def _concurrency_given(self) -> Iterator[SettingError]:
        if self.given and not self.concurrency:
            what = "the section [buffer] needs buffer.concurrency, the number of devices that train at any time"
            yield SettingError("E-COMBO", what, "write concurrency = 100, some times round.cohort")


def buffer_faults(recipe: Any) -> Iterator[SettingError]:
    """Find the settings of a recipe (``plan.recipe.recipe.Recipe``) that asynchronous rounds do not go with."""
    buffer, drawn = recipe.buffer, recipe.round
    if drawn.sampling != KIND:
        if buffer.given:
            what = f'the section [buffer] is for round.sampling = "{KIND}"'
            yield SettingError("E-COMBO", what, f'leave it out, or write sampling = "{KIND}"')
        return
    if not buffer.concurrency:
        what = f'round.sampling = "{KIND}" needs buffer.concurrency, the number of devices that train at any time'
        yield SettingError("E-COMBO", what, "write [buffer] and concurrency = 100, some times round.cohort")
    elif buffer.concurrency < drawn.cohort:
        what = (
            f"buffer.concurrency = {buffer.concurrency} devices cannot fill a buffer of round.cohort = {drawn.cohort}"
        )
        yield SettingError("E-COMBO", what, "raise buffer.concurrency, or lower round.cohort")
    if drawn.overselect != type(drawn).model_fields["overselect"].default:
        what = f'round.overselect is not read with round.sampling = "{KIND}"'
        yield SettingError("E-COMBO", what, "leave it out, and raise buffer.concurrency")
    for name, (used, why) in _refused(recipe).items():
        if used:
            what = f'round.sampling = "{KIND}" with {name}: {why}'
            yield SettingError("E-COMBO", what, f'leave out {name}, or write sampling = "fixed"')


def _refused(recipe: Any) -> dict[str, tuple[bool, str]]:
    """List what asynchronous rounds do not go with: its name, whether the recipe asks for it, and the reason."""
    merge = str(recipe.merge.get("kind"))
    between = "it changes the model between rounds, and contributions to the model before would undo it"
    return {
        f'privacy = "{recipe.privacy}"': (recipe.privacy in ("hidden", "distributed_dp"), _HIDDEN),
        f'[merge] kind = "{merge}"': (
            merge not in ("sum", "secure_sum", "shared_sum"),
            "a rule that compares contributions needs all of them to start from one model",
        ),
        'trust.cohorts = "verified"': (
            recipe.trust.cohorts == "verified",
            "the beacon fixes all cohorts before the run, and here the next devices depend on who has answered",
        ),
        "[[downlink]]": (bool(recipe.downlink), "a delta leads to the newest model, and devices lag by several"),
        "dp.adaptive_clip": (
            recipe.dp.adaptive_clip,
            "the clip follows the devices of one round, and these have the clips of several",
        ),
        "eval.on_devices": (
            recipe.eval.on_devices,
            "the devices of a round measure several models, and their mean loss is that of none",
        ),
        "engine.batch_devices": (
            recipe.engine.batch_devices > 1,
            "devices that train in one pass start from one model",
        ),
        "[split]": (recipe.split.used, "the server's part of the model is of one round"),
        "[distill]": (recipe.distill.active, between),
        "[prune]": (recipe.prune.active, between),
    }
