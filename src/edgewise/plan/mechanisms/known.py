"""List all noise mechanisms, choose the one that a recipe asks for, and refuse keys of [dp] that it does not read."""

from __future__ import annotations

from edgewise.plan.mechanisms import central, correlated, distributed, example, local
from edgewise.plan.mechanisms.base import Mechanism
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe.privacy import DP_WORDS, Privacy
from edgewise.plan.recipe.sections import DpSection, SettingError

MECHANISMS: tuple[Mechanism, ...] = tuple(
    module.MECHANISM for module in (central, correlated, distributed, local, example)
)


def mechanism_of(word: Privacy, dp: DpSection) -> Mechanism | None:
    """Return the mechanism that a recipe's word and [dp] select. None without noise.

    Of several, it is the one that names most keys of [dp].
    """
    fitting = [
        mechanism
        for mechanism in MECHANISMS
        if mechanism.word == word and all(getattr(dp, key) == value for key, value in mechanism.chosen.items())
    ]
    return max(fitting, key=lambda mechanism: len(mechanism.chosen), default=None)


def promised(word: Privacy, dp: DpSection, hidden: bool) -> Promise:
    """Return a recipe's promise. ``hidden``: True where its merge hides single updates."""
    mechanism = mechanism_of(word, dp)
    if mechanism is None:
        return Promise(word, hidden, Noiser.NOBODY, None)
    return Promise(word, hidden, mechanism.who, dp.unit)


def check(word: Privacy, dp: DpSection) -> None:
    """Check that [dp] fits the recipe's word. Raises SettingError (E-COMBO, E-MISSING)."""
    mechanism = mechanism_of(word, dp)
    if mechanism is None:
        if dp != DpSection():
            what = f'[dp] is for privacy = {", ".join(DP_WORDS)}; here it is "{word}"'
            raise SettingError("E-COMBO", what, "leave out [dp], or name one of these words")
        return
    _check_numbers(word, dp)
    if dp.example and not mechanism.chosen.get("unit"):
        what = f'dp.unit = "example" is for privacy = "local_dp"; here it is "{word}", whose noise is on updates'
        raise SettingError("E-COMBO", what, 'write privacy = "local_dp", or leave out dp.unit')
    if dp.tensor_l2 and dp.adaptive_clip:
        what = "dp.tensor_l2 is for a clip that stays"
        raise SettingError("E-COMBO", what, "leave it out, or dp.adaptive_clip")
    for key in dict.fromkeys(key for one in MECHANISMS for key in one.keys):
        given = getattr(dp, key) != DpSection.model_fields[key].default
        if key in mechanism.keys and not given and not getattr(dp, key) and key in mechanism.required:
            raise SettingError("E-MISSING", f"{mechanism.asked} needs dp.{key}", f"write {key} = 0.1 or the like")
        if given and key not in mechanism.keys:
            by = " or ".join(one.asked for one in MECHANISMS if key in one.keys)
            raise SettingError("E-COMBO", f"dp.{key} is for {by}; nothing reads it here", f"leave out dp.{key}")


def _check_numbers(word: Privacy, dp: DpSection) -> None:
    """Check that [dp] has each number that only a person can decide. Raises SettingError (E-MISSING, E-COMBO)."""
    if dp.epsilon and dp.noise_multiplier:
        what = f"dp.epsilon = {dp.epsilon:g} and dp.noise_multiplier = {dp.noise_multiplier:g}: each follows from "
        raise SettingError("E-COMBO", what + "the other", "give one, and leave out the other")
    longest = "the largest L2 norm of a block's gradient" if dp.example else "the largest L2 norm of an update"
    begins = "; with adaptive_clip = true the clip begins there and follows the updates" if word == "central_dp" else ""
    additions = {
        "epsilon": ("dp.epsilon (or dp.noise_multiplier)", "epsilon = 8.0 (of the whole run; smaller is stricter)"),
        "delta": ("dp.delta", "delta = 1e-5 (it must be below 1 / devices^1.1)"),
        "clip_l2": ("dp.clip_l2", f"clip_l2 = 1.0 ({longest}; try values on text that is not private{begins})"),
    }
    if dp.noise_multiplier:
        del additions["epsilon"]
    missing = [addition for key, addition in additions.items() if not getattr(dp, key)]
    if missing:
        keys, lines = zip(*missing, strict=True)
        what = f'privacy = "{word}" needs {" and ".join(keys)}'
        raise SettingError("E-MISSING", what, f"add to [dp]: {', '.join(lines)}. No default fits every model")
