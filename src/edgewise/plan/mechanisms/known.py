"""List all noise mechanisms, choose the one that a recipe asks for, and refuse keys of [dp] that it does not read."""

from __future__ import annotations

from collections.abc import Iterator

from edgewise.plan.mechanisms import central, correlated, distributed, example, local, records
from edgewise.plan.mechanisms.base import Mechanism
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe.privacy import DP_WORDS, Privacy
from edgewise.plan.recipe.rules import UNKNOWN, SettingError, judged_rules
from edgewise.plan.recipe.sections import DpSection

MECHANISMS: tuple[Mechanism, ...] = tuple(
    module.MECHANISM for module in (central, correlated, distributed, local, example, records)
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


def recipe_promise(word: Privacy, dp: DpSection, hidden: bool) -> Promise:
    """Return a recipe's promise. ``hidden``: True where its merge hides single updates."""
    mechanism = mechanism_of(word, dp)
    if mechanism is None:
        return Promise(word, hidden, Noiser.NOBODY, None)
    return Promise(word, hidden, mechanism.who, dp.unit)


def refused(word: Privacy, dp: DpSection) -> Iterator[SettingError]:
    """Yield the faults (E-COMBO, E-MISSING) of a [dp] that does not fit the recipe's word."""
    mechanism = mechanism_of(word, dp)
    if mechanism is None:
        if dp != DpSection():
            what = f'[dp] is for privacy = {", ".join(DP_WORDS)}; here it is "{word}"'
            yield SettingError("E-COMBO", what, "leave out [dp], or name one of these words")
        return
    for faults in (
        _missing_numbers(word, dp),
        _wrong_unit(word, dp, mechanism),
        _wrong_clip(dp),
        _keys_of_other_mechanisms(dp, mechanism),
    ):
        yield from judged_rules(faults)


def _wrong_unit(word: Privacy, dp: DpSection, mechanism: Mechanism) -> Iterator[SettingError]:
    """Yield the fault of a unit of privacy that the word does not have."""
    if dp.example and not mechanism.chosen.get("unit"):
        words = '"local_dp" or "distributed_dp"'
        what = f'dp.unit = "example" is for privacy = {words}; here it is "{word}", whose noise is on updates'
        yield SettingError("E-COMBO", what, f"write privacy = {words}, or leave out dp.unit")


def _wrong_clip(dp: DpSection) -> Iterator[SettingError]:
    """Yield the fault of two kinds of clips at once."""
    if dp.tensor_l2 and dp.adaptive_clip:
        what = "dp.tensor_l2 is for a clip that stays"
        yield SettingError("E-COMBO", what, "leave it out, or dp.adaptive_clip")


def _keys_of_other_mechanisms(dp: DpSection, mechanism: Mechanism) -> Iterator[SettingError]:
    """Yield the faults of keys that the mechanism needs and of keys that it does not read."""
    for key in dict.fromkeys(key for one in MECHANISMS for key in one.keys):
        value = getattr(dp, key)
        if value is UNKNOWN:
            continue
        given = value != DpSection.model_fields[key].default
        if key in mechanism.keys and not given and not value and key in mechanism.required:
            value = "100" if DpSection.model_fields[key].annotation is int else "0.1"
            yield SettingError("E-MISSING", f"{mechanism.asked} needs dp.{key}", f"write {key} = {value} or the like")
        if given and key not in mechanism.keys:
            by = " or ".join(one.asked for one in MECHANISMS if key in one.keys)
            yield SettingError("E-COMBO", f"dp.{key} is for {by}; nothing reads it here", f"leave out dp.{key}")


def _missing_numbers(word: Privacy, dp: DpSection) -> Iterator[SettingError]:
    """Yield E-MISSING for a number that only a person can decide, E-COMBO for one too many."""
    unit: object = dp.unit
    by_record = unit is not UNKNOWN and dp.example
    longest = "the largest L2 norm of a record's gradient" if by_record else "the largest L2 norm of an update"
    begins = "; with adaptive_clip = true the clip begins there and follows the updates" if word == "central_dp" else ""
    additions = {
        "epsilon": ("dp.epsilon (or dp.noise_multiplier)", "epsilon = 8.0 (of the whole run; smaller is stricter)"),
        "delta": ("dp.delta", "delta = 1e-5 (it must be below 1 / devices^1.1)"),
        "clip_l2": ("dp.clip_l2", f"clip_l2 = 1.0 ({longest}; try values on text that is not private{begins})"),
    }
    if not _is_absent(dp, "noise_multiplier"):
        del additions["epsilon"]
    missing = [addition for key, addition in additions.items() if _is_absent(dp, key)]
    if missing:
        keys, lines = zip(*missing, strict=True)
        what = f'privacy = "{word}" needs {" and ".join(keys)}'
        yield SettingError("E-MISSING", what, f"add to [dp]: {', '.join(lines)}. No default fits every model")
    if dp.epsilon and dp.noise_multiplier:
        what = f"dp.epsilon = {dp.epsilon:g} and dp.noise_multiplier = {dp.noise_multiplier:g}: each follows from "
        yield SettingError("E-COMBO", what + "the other", "give one, and leave out the other")


def _is_absent(dp: DpSection, key: str) -> bool:
    """Tell whether a number is not given. One that is given and wrong is not absent."""
    value = getattr(dp, key)
    return value is not UNKNOWN and not value
