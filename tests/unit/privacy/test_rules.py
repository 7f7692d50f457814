"""Each refusal of the design is met where a user meets it: a recipe, a pipeline, a model, a round."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest
from invited import invited
from torch import nn
from toy_recipe import make_recipe

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.wire import pack
from edgewise.core.errors import REGISTRY, CompositionError, EdgewiseError, RecipeError
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.learn import dp_sgd
from edgewise.merges.plain import plain_sum
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.privacy import rules
from edgewise.privacy.accountant import epsilon
from edgewise.privacy.card import card_assumptions, card_promises
from edgewise.privacy.clip import clip, clip_tensors
from edgewise.privacy.ledger import Ledger, LedgerEntry, OverBudget, charge_ledger, spent_epsilon
from edgewise.privacy.noise import noise
from edgewise.privacy.spend import fixed_size_event, poisson, record_level

SPEC = Spec.of([("a", (30, 10), "float32"), ("b", (100,), "float32"), ("c", (100,), "float32"), ("d", (4,), "float32")])
SPACE = Space(SPEC.dim, Quorum(3, 8))
DP = {"metrics": "none", "stage": [], "dp.epsilon": 20.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0, "round.minimum": 0.75}
CENTRAL = {"privacy": "central_dp", **DP}
POISSON = {"round.sampling": "poisson", "round.cohort": 4, "round.minimum": 0.0}
DISTRIBUTED = {"privacy": "distributed_dp", "merge": {"kind": "secure_sum"}, **DP}
HONEST = {"trust.malicious_fraction": 0.0, "round.minimum": 1.0}
LOCAL = {"privacy": "local_dp", **DP}
EXAMPLE = {"privacy": "local_dp", "dp.unit": "example", "dp.sample_rate": 0.1, **DP, "dp.epsilon": 1.0}
CYCLIC = {"round.sampling": "cyclic", "round.cohort": 4, "round.rounds": 10}
CORRELATED = {**CENTRAL, **CYCLIC, "dp.noise": "correlated"}
TOP = {"kind": "top_k", "fraction": 0.1}
WORDS = (CENTRAL, DISTRIBUTED, LOCAL, EXAMPLE, CORRELATED)
TURNS = {"kind": "segments", "cycle": 2}


def plan(*settings: dict[str, Any]) -> Plan:
    merged = {k: v for some in settings for k, v in some.items()}
    return compile(make_recipe(merged), SPEC, 8, BUILT_IN)


def chain(*stages: Stage) -> object:
    return pipeline(SPACE, stages, plain_sum(), [noise(1.0)])


def dp_sgd_plan(z: float) -> Plan:
    """Devices that noise their steps more than a grid has room for."""
    return plan(EXAMPLE, {"dp.epsilon": 0.0, "dp.noise_multiplier": z})


def nan() -> object:
    bare = pipeline(SPACE, [], plain_sum())
    return bare.encode(np.full(SPEC.dim, np.nan, np.float32), {}, 1.0, Memory(), Turn(0, root(1), root(2)))


REFUSED: list[tuple[str, str, Callable[[], object]]] = [
    ("E-TOPK-SECAGG", "random_k", lambda: plan(DISTRIBUTED, {"stage": [TOP]})),
    ("E-TOPK-SECAGG", "random_k", lambda: plan(LOCAL, {"stage": [TOP]})),
    ("E-NOISE-NOCLIP", "put clip", lambda: chain()),
    ("E-NOISE-NOCLIP", "put clip", lambda: plan(CENTRAL, {"stage": [{"kind": "quantize", "bits": 8}]})),
    ("E-PERTENSOR", "dp.tensor_l2 = 2", lambda: plan(CENTRAL, {"dp.tensor_l2": 2.001})),
    ("E-PERTENSOR", "dp.clip_l2 = 6", lambda: plan(DISTRIBUTED, {"dp.tensor_l2": 3.0})),
    ("E-PERTENSOR", "one vector", lambda: plan(LOCAL, {"dp.tensor_l2": 4.0})),
    ("E-NORM-AFTER", "put clip after", lambda: chain(clip(1.0), feedback([top_k(0.1)]))),
    ("E-WEIGHT", "leave out weigh", lambda: plan(CENTRAL, {"stage": [{"kind": "weigh", "cap": 160}]})),
    ("E-WEIGHT", "leave out weigh", lambda: plan(EXAMPLE, {"stage": [{"kind": "weigh", "cap": 160}]})),
    ("E-AMP-VISIBLE", "readers of the models", lambda: plan(DISTRIBUTED, {"dp.amplification": "poisson"})),
    ("E-AMP-VISIBLE", "readers of the models", lambda: plan(LOCAL, {"dp.amplification": "poisson"})),
    ("E-AMP-VISIBLE", 'sampling = "poisson"', lambda: plan(CENTRAL, {"dp.amplification": "poisson"})),
    ("E-AMP-VISIBLE", 'sampling = "poisson"', lambda: plan(CENTRAL, CYCLIC, {"dp.amplification": "poisson"})),
    ("E-AMP-VISIBLE", "without sampling", lambda: epsilon({poisson(1.0, 0.1): 1}, 1e-5, against="server")),
    ("E-ADJ-MIX", "same neighbours", lambda: epsilon({poisson(1.0, 0.1): 1, fixed_size_event(1.0, 100, 10): 1}, 1e-5)),
    ("E-ADJ-MIX", "same neighbours", lambda: epsilon({poisson(1.0, 0.1): 1, record_level(1.0, 0.1, 1): 1}, 1e-5)),
    ("E-MF-LOCAL", 'privacy = "central_dp"', lambda: plan(DISTRIBUTED, CYCLIC, {"dp.noise": "correlated"})),
    ("E-MF-LOCAL", 'privacy = "central_dp"', lambda: plan(LOCAL, CYCLIC, {"dp.noise": "correlated"})),
    ("E-MF-GAP", '"cyclic"', lambda: plan(CENTRAL, {"dp.noise": "correlated"})),
    ("E-MF-GAP", "half the devices", lambda: plan(CORRELATED, {"round.cohort": 5})),
    (
        "E-MF-GAP",
        '"cyclic"',
        lambda: plan(CENTRAL, {"dp.noise": "correlated", **POISSON}),
    ),
    (
        "E-DIV-N",
        "expected number",
        lambda: rules.refuse_noised_divisor(True, "add_remove", noised_before_leaving=False),
    ),
    (
        "E-DIV-N",
        "expected number",
        lambda: rules.refuse_noised_divisor(True, "replace_one", noised_before_leaving=False),
    ),
    ("E-WRAP", "wrap(11)", lambda: pipeline(SPACE, [clip(1.0), quantize(8, "shared"), wrap(10)], plain_sum())),
    ("E-NMIN", "raise", lambda: plan(DISTRIBUTED, {"round.minimum": 0.1})),
    (
        "E-ROBUST-SECAGG",
        "fewer groups",
        lambda: plan(DISTRIBUTED, {**HONEST, "merge": {"kind": "grouped", "groups": 3}}),
    ),
    ("E-STATS", 'metrics = "none"', lambda: plan(CENTRAL, POISSON, {"metrics": "sum"})),
    ("E-STATS", 'metrics = "none"', lambda: plan(EXAMPLE, {"metrics": "sum"})),
    (
        "E-BN",
        "normalisation",
        lambda: dp_sgd.check_example_gradients(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))),
    ),
    ("E-NAN", "lower training.lr", nan),
    ("E-PRECISION", "raise the clip", lambda: plan(CENTRAL, {"dp.clip_l2": 1e-12})),
    ("E-PRECISION", "fewer coordinates", lambda: dp_sgd_plan(1e5)),
    ("E-VALUE", "lower dp.clip_l2", lambda: plan(CENTRAL, {"dp.clip_l2": 1e20})),
    *[("E-VALUE", "dp.delta = 0.1:", lambda word=word: plan(word, {"dp.delta": 0.11})) for word in WORDS],
]


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_a_delta_just_below_is_accepted(word: dict[str, Any]) -> None:
    """Of 8 devices: 8^-1.1 = 0.1015."""
    assert plan(word, {"dp.delta": 0.1}).spend is not None


@pytest.mark.parametrize(("code", "fix", "make"), REFUSED)
def test_refused(code: str, fix: str, make: Callable[[], object]) -> None:
    with pytest.raises(EdgewiseError) as caught:
        make()
    assert caught.value.code == code
    assert fix in caught.value.fix
    assert str(caught.value).count(".") >= 1


def test_every_refusal_of_the_design_is_met_above() -> None:
    named = """E-TOPK-SECAGG E-NOISE-NOCLIP E-PERTENSOR E-NORM-AFTER E-WEIGHT E-AMP-VISIBLE E-ADJ-MIX
    E-MF-LOCAL E-DIV-N E-WRAP E-NMIN E-ROBUST-SECAGG E-STATS E-BN E-NAN""".split()
    assert len(named) == 15
    assert set(named) <= REGISTRY.keys()
    assert set(named) <= {code for code, *_ in REFUSED}


@pytest.mark.parametrize(
    ("code", "said", "settings"),
    [
        ("E-COMBO", "trust.malicious_fraction", {**CENTRAL, "trust.malicious_fraction": 0.2}),
        ("E-COMBO", "dp.bits", {**LOCAL, "dp.bits": 12}),
        ("E-COMBO", "dp.buffers", {**CENTRAL, "dp.buffers": 2}),
        ("E-BUDGET", "promises nothing", {**CENTRAL, "dp.epsilon": 0.0, "dp.noise_multiplier": 1e-4}),
        ("E-COMBO", "each follows from the other", {**CENTRAL, "dp.noise_multiplier": 1.0}),
        (
            "E-MISSING",
            "dp.epsilon .or dp.noise_multiplier. and dp.delta",
            {**CENTRAL, "dp.epsilon": 0.0, "dp.delta": 0.0},
        ),
        ("E-COMBO", "whose noise is on updates", {**CENTRAL, "dp.unit": "example", "dp.sample_rate": 0.1}),
        ("E-COMBO", "trained by all", {**CENTRAL, **CYCLIC, "round.rounds": 3, "stage": [TURNS]}),
    ],
)
def test_what_nothing_reads_and_what_cannot_begin_is_refused(code: str, said: str, settings: dict[str, Any]) -> None:
    with pytest.raises(EdgewiseError, match=said) as caught:
        plan(settings)
    assert caught.value.code == code
    assert caught.value.fix or code == "E-COMBO"


def test_devices_of_cohorts_in_turn_train_every_part_and_the_card_is_the_ledger() -> None:
    """Two cohorts and two parts of the model, of different size and so of different noise: every device has both, and
    what the ledger sums up to over the run is what the card says."""
    made = plan({**DISTRIBUTED, **CYCLIC, "round.rounds": 8, "stage": [TURNS]})
    assert made.sampling.groups == len(made.pipelines) == 2
    assert [made.phase(r) for r in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert made.spend is not None
    books = Ledger(made.spend.budget)
    for r in range(8):
        after = charge_ledger(books, LedgerEntry(r, "", r % 2, made.spend.events[made.phase(r)]))
        assert isinstance(after, Ledger)
        books = after
    assert spent_epsilon(books.charges, 1e-5) == pytest.approx(made.spend.card.of_release, rel=1e-3)


def played(made: Plan) -> Ledger:
    """The ledger of a run, up to the round that it refuses."""
    assert made.spend is not None
    books = Ledger(made.spend.budget)
    for r in range(made.rounds):
        event = made.spend.events[made.phase(r)]
        after = charge_ledger(books, LedgerEntry(r, "", r % made.sampling.groups, event))
        if not isinstance(after, Ledger):
            break
        books = after
    return books


@pytest.mark.long(sample=4)
@pytest.mark.slow
@pytest.mark.parametrize("given", ["epsilon", "noise_multiplier"])
@pytest.mark.parametrize(
    "settings",
    [
        {**CENTRAL, "round.rounds": 5},
        {**CENTRAL, **CYCLIC, "round.rounds": 8},
        {**CENTRAL, **POISSON, "round.rounds": 12},
        {**EXAMPLE, "round.rounds": 6},
        {**DISTRIBUTED, "round.rounds": 5},
    ],
    ids=lambda s: f"{s['privacy']}-{s.get('round.sampling', 'all')}",
)
def test_whichever_number_is_given_the_other_follows_and_lasts_for_all_rounds(
    settings: dict[str, Any], given: str
) -> None:
    by_epsilon = plan(settings).spend
    assert by_epsilon is not None
    z = by_epsilon.z * 0.9
    made = plan(settings) if given == "epsilon" else plan(settings, {"dp.epsilon": 0.0, "dp.noise_multiplier": z})
    assert made.spend is not None
    books, card = played(made), made.spend.card
    assert len(books.charges) == made.rounds
    assert made.spend.budget.holds(books.spent)
    assert books.spent == pytest.approx(card.of_release, rel=1e-2)
    assert (card.derived == "epsilon") == (given == "noise_multiplier")
    assert card.z == made.spend.z == (by_epsilon.z if given == "epsilon" else z)
    assert (card.budget == by_epsilon.budget.epsilon) == (given == "epsilon")
    told = dict([*card_promises(card.to_plain()), *card_assumptions(card.to_plain())])
    assert ("derived from dp.noise_multiplier" in told["budget"]) == (given == "noise_multiplier")
    assert ("derived from dp.epsilon" in told["noise multiplier"]) == (given == "epsilon")
    after = charge_ledger(books, LedgerEntry(made.rounds, "once more", 0, made.spend.events[0]))
    assert isinstance(after, OverBudget)


@pytest.mark.slow
def test_sound_settings_pass() -> None:
    plan(CENTRAL, {"dp.amplification": "poisson", **POISSON})
    plan(CORRELATED)
    plan(CORRELATED, {"round.cohort": 2, "dp.buffers": 1})
    plan(EXAMPLE, {"stage": [TOP]})
    plan(LOCAL)
    rules.refuse_noised_divisor(True, "zero_out", noised_before_leaving=False)
    rules.refuse_noised_divisor(False, "add_remove", noised_before_leaving=False)
    rules.refuse_noised_divisor(True, "replace_one", noised_before_leaving=True)
    rules.refuse_noised_divisor(True, "add_remove", noised_before_leaving=True)


@pytest.mark.parametrize(("word", "bound"), [(CENTRAL, 1.5), (DISTRIBUTED, 1.5), (LOCAL, 2.0)])
def test_tensors_clipped_one_by_one_are_noised_by_their_joint_length(word: dict[str, Any], bound: float) -> None:
    made = plan(word, {"dp.tensor_l2": bound})
    pipe, joint = made.at(0), bound * sqrt(len(SPEC.segments))
    assert pipe.spaces[1].l2 == pytest.approx(joint)
    assert made.spend is not None
    assert f"{bound:g}" in made.spend.card.noise or word is DISTRIBUTED
    if word is CENTRAL:
        assert pipe.total.noise_std == pytest.approx(made.spend.z * joint, rel=2e-5)


def test_clip_tensors_bounds_each_and_leaves_short_ones_alone() -> None:
    x = np.random.default_rng(1).standard_normal(SPEC.dim).astype(np.float32)
    x[-4:] = [0.1, 0.0, 0.0, 0.0]
    y = clip_tensors(SPEC, 0.5).encode(Payload(x, np.zeros(0)), Memory(), SPACE, Turn(0, root(1), root(2)))[0].body
    for s in SPEC.segments:
        before, after = x[s.start : s.stop], y[s.start : s.stop]
        norm = float(np.linalg.norm(before.astype(np.float64)))
        np.testing.assert_allclose(after, before * min(1.0, 0.5 / norm), rtol=1e-6)
        assert float(np.linalg.norm(after.astype(np.float64))) <= 0.5
    space = clip_tensors(SPEC, 0.5).infer(SPACE)
    assert (space.l2, space.linf, space.clipped, space.unbiased) == (1.0, 0.5, True, False)


@pytest.mark.parametrize("stage", [{"kind": "random_k", "fraction": 0.5}, TOP, {"kind": "rotate"}])
def test_tensors_are_clipped_while_they_are_tensors(stage: dict[str, Any]) -> None:
    with pytest.raises(CompositionError) as caught:
        plan(CENTRAL, {"stage": [stage], "dp.tensor_l2": 1.0})
    assert caught.value.code == "E-ORDER"


@pytest.mark.parametrize(
    "settings",
    [
        {**CENTRAL, "dp.tensor_l2": 1.0, "dp.adaptive_clip": True},
        {**EXAMPLE, "dp.tensor_l2": 1.0},
        {**CORRELATED, "dp.adaptive_clip": True},
        {**CORRELATED, "stage": [{"kind": "segments", "cycle": 2}]},
    ],
)
def test_what_cannot_go_together(settings: dict[str, Any]) -> None:
    with pytest.raises(EdgewiseError) as caught:
        plan(settings)
    assert caught.value.code == "E-COMBO"


@pytest.mark.slow
def test_what_a_device_sends_of_noised_steps_is_theirs_alone_feedback_and_all() -> None:
    """With privacy of records the noise is in the steps. What leaves a device follows from its noised updates and from
    public values, over all rounds: not from how much text it has, nor from anything else that its trainer tells."""
    it = plan(EXAMPLE, {"stage": [{"kind": "feedback"}, TOP, {"kind": "quantize", "bits": 4}], "round.rounds": 4})
    drawn = np.random.default_rng(3).normal(size=(4, SPEC.dim)).astype(np.float32)

    def sent(count: float, told: dict[str, float]) -> list[bytes]:
        state, frames = states.join(it, "d"), []
        for round, x in enumerate(drawn):
            state, _ = machine.step(it, state, invited(it, round, accepted=round - 1 if round else None))
            state, effects = machine.step(it, state, device_events.Trained(Update(x, told, count)))
            frames += [e.frame for e in effects if isinstance(e, device_events.SendFrame)]
        return frames

    little = sent(1.0, {"loss_first": 0.0})
    assert little == sent(1e6, {"loss_first": 9.0})
    assert len(little) == len(set(little)) == 4


@pytest.mark.parametrize("before", [[], [{"kind": "rotate", "block": 64}]])
def test_a_quantizer_stands_behind_a_devices_own_noise(before: list[dict[str, Any]]) -> None:
    """The rounded update is noised already, so its wire is as small and its epsilon as it was."""
    grid = {"kind": "quantize", "bits": 4, **({"grid": "eden"} if before else {})}
    plain, small = plan(LOCAL, {"stage": before}), plan(LOCAL, {"stage": [*before, grid]})
    assert small.spend == plain.spend
    assert [s.name.split("(")[0] for s in small.at(0).stages[-3:]] == ["clip", "local_noise", "quantize"]
    sizes = [len(pack.pack(_sent(p), p.at(0).encoded)) for p in (plain, small)]
    assert sizes[1] < sizes[0] / 4
    noised = small.at(0).decode(_sent(small), small.turn(0)).body
    assert noised.std() == pytest.approx(small.at(0).encoded.noise.std, rel=0.15)


def _sent(plan: Plan) -> Payload:
    return plan.at(0).encode(np.zeros(SPEC.dim, np.float32), {}, 1.0, Memory(), plan.turn(0, root(3)))[0]


def test_feedback_is_not_put_behind_a_devices_own_noise() -> None:
    with pytest.raises(EdgewiseError, match="E-NOT-REAL"):
        plan(LOCAL, {"stage": [{"kind": "feedback"}, {"kind": "quantize", "bits": 4}]})


@pytest.mark.slow
def test_claims_of_one_device_name_the_unit_and_the_honest() -> None:
    """Of what is hidden nothing is enforced, and an adaptive clip's bounds are in clips."""
    fixed, moving = plan(CENTRAL), plan(CENTRAL, {"dp.adaptive_clip": True, "dp.epsilon": 500.0})
    assert "one device moves the summed update by at most 4 (L2)" in fixed.claims
    assert any("clips (L2)" in c for c in moving.claims)
    assert any("below the clip" in c for c in moving.claims)
    hidden = plan(DISTRIBUTED).claims
    assert any(
        c.startswith("an honest device moves") and c.endswith("and a corrupt one sends anything") for c in hidden
    )
    assert not any(c.startswith("one device moves") for c in hidden)
    for settings in (CENTRAL, DISTRIBUTED, LOCAL, EXAMPLE):
        assert any("knows or guesses them" in c for c in plan(settings).claims)


def test_hidden_sums_without_noise_say_what_a_server_that_lies_can_do() -> None:
    grid = [{"kind": "clip", "l2": 1.0}, {"kind": "quantize", "grid": "shared"}, {"kind": "wrap"}]
    it = plan({"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": grid, **HONEST})
    assert any("cohorts that differ by one device" in c for c in it.claims)


@pytest.mark.parametrize("n", [2, 8, 600, 35_112, 10**6])
@pytest.mark.parametrize("unit", ["device", "example"])
def test_the_delta_that_a_refusal_names_is_accepted(n: int, unit: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        rules.refuse_delta(0.5, n, unit)
    rules.refuse_delta(float(caught.value.fix.split(":")[0].removeprefix("dp.delta = ")), n, unit)
