"""Plans to audit, and mechanisms that are broken on purpose."""

from __future__ import annotations

from dataclasses import replace

from edgewise.core.space import Adjacency
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.mechanisms import local
from edgewise.plan.mechanisms.base import BuiltMechanism, Mechanism, MechanismSetting
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import parse
from edgewise.privacy.spend import PrivacyEvent

WORDS = {"distributed_dp": "secure_sum", "central_dp": "sum", "local_dp": "sum"}
RUNS = 1 << 14
SPEC = Spec.of([(f"model.layers.{i}.w", (20 + 8 * i, 30), "float32") for i in range(4)])
POISSON = {"round__sampling": "poisson", "round__cohort": 50, "round__minimum": 0.0}


def plan(word: str, population: int = 100, **more: object) -> Plan:
    """A plan by a word; "example" is local_dp for examples. ``more``: keys of the recipe with __ for dots."""
    text = f"""
privacy = "{"local_dp" if word == "example" else word}"
[merge]
kind = "{WORDS.get(word, "sum")}"
[dp]
epsilon = 8.0
delta = 1e-5
clip_l2 = 0.5
[round]
rounds = 4
minimum = 0.9
"""
    overrides: dict[str, object] = {"dp.unit": "example", "dp.sample_rate": 0.1} if word == "example" else {}
    if word == "example" and "dp__epsilon" not in more:
        more = {"dp__noise_multiplier": 0.77, **more}  # of epsilon 8, which takes seconds to find
    overrides |= {"dp.epsilon": 0.0} if "dp__noise_multiplier" in more else {}
    overrides |= {key.replace("__", "."): value for key, value in more.items()}
    return compile(parse(text, overrides=overrides), SPEC, population, BUILT_IN)


def quiet(*_: object) -> None:
    """No progress."""


def passing(true):
    """A maker of clips whose clips only claim to be some."""

    def lazy(*args):
        return replace(true(*args), encode=lambda payload, memory, space, turn: (payload, memory))

    return lazy


def keyed(monkeypatch, module, label):
    """Noise comes from a key that everybody knows."""
    true = module.derive
    monkeypatch.setattr(module, "derive", lambda key, *of: true(bytes(32) if of[0] == label else key, *of))


def forgetful(monkeypatch, *modules):
    """Keys no longer name the round."""
    for module in modules:
        true = module.derive
        monkeypatch.setattr(
            module, "derive", lambda key, *of, _true=true: _true(key, *(x for x in of if type(x) is not int))
        )


def half_counted(true):
    """A maker of adaptive clips that send b - 1/2 and count s / 2, whatever their neighbours send."""

    def old(start, z, cohort):
        stage = true(start, z, cohort)

        def infer(space):
            return stage.infer(space.but(adjacency="add_remove")).but(adjacency=space.adjacency, keeps_zero=True)

        def encode(payload, memory, space, turn):
            return stage.encode(payload, memory, space.but(adjacency="add_remove"), turn)

        return replace(stage, infer=infer, encode=encode)

    return old


def lying_local(sent: Adjacency) -> Mechanism:
    """Local noise whose epsilon is told for neighbours as near as those of ``sent``, as wide as its noise is."""

    def build(setting: MechanismSetting, *, clip_l2: float, tensor_l2: float) -> BuiltMechanism:
        true = local.build_local_mechanism(setting, clip_l2=clip_l2, tensor_l2=tensor_l2)
        return true._replace(events=lambda z: (PrivacyEvent("gaussian", sent, z=z),))

    return replace(local.MECHANISM, adjacency=lambda kind: sent, build=build)
