"""Recipe to plan: cohort arithmetic, limits, claims."""

from __future__ import annotations

import msgspec
import pytest
from toy_recipe import make_recipe

from edgewise.core import events, frame
from edgewise.core.errors import EdgewiseError, RecipeError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.sampling import Sampling
from edgewise.secagg import messages

SPEC = Spec.of([("w", (40,), "float32")])


def plan(population=1000, spec=SPEC, **overrides):
    return compile_plan(
        make_recipe({k.replace("__", "."): v for k, v in overrides.items()}), spec, population, BUILT_IN
    )


def test_cohort_arithmetic_is_exact():
    s = plan(round__sampling="fixed", round__cohort=100, round__overselect=1.1, round__minimum=0.55).sampling
    assert (s.goal, s.expected, s.invite, s.minimum) == (100, 100, 110, 55)
    s = plan(round__sampling="poisson", round__cohort=100).sampling
    assert (s.goal, s.expected, s.minimum, s.rate) == (1000, 100, 50, 0.1)
    s = plan(population=17).sampling
    assert (s.goal, s.expected, s.invite, s.minimum) == (17, 17, 17, 9)


def test_the_frame_limit_grows_with_the_model():
    small, large = plan(), plan(spec=Spec.of([("w", (50_000_000,), "float32")]), stage=[])
    assert small.frame_limit_bytes < 100_000
    assert large.frame_limit_bytes > 200_000_000


def test_letters_to_a_large_cohort_fit_the_frame_limit():
    """A roster and a device's boxes grow with the cohort, not with the model."""
    hidden = plan(
        population=400, privacy="hidden", merge={"kind": "secure_sum"}, trust__malicious_fraction=0.02,
        stage=[{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 4, "grid": "shared"}, {"kind": "wrap"}],
    )  # fmt: skip
    names = [f"{i:0256d}" for i in range(400)]
    word, signature = bytes(32), bytes(64)
    keys = messages.SessionKeys(seal=word, mask=word, commitment=word, signature=signature)
    dealt = messages.DealtBox(box=bytes(messages.BOX_BYTES), all=word, signature=signature)
    for letter in (
        messages.RosterMessage(keys=dict.fromkeys(names, keys)),
        messages.BoxesMessage(boxes=dict.fromkeys(names, dealt)),
    ):
        assert len(messages.dump(letter)) + 1000 < hidden.frame_limit_bytes


def test_what_no_message_can_hold_is_refused_before_training():
    with pytest.raises(RecipeError, match="E-FRAME-SIZE"):
        plan(spec=Spec.of([("w", (2_000_000_000,), "float32")]), stage=[])


def test_the_schedule_runs_from_the_full_rate_to_a_tenth():
    p = plan(round__rounds=10)
    rates = [p.rule(r).lr for r in range(10)]
    assert rates[0] == pytest.approx(0.3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0.03
    assert len({plan(training__schedule="constant").rule(r).lr for r in range(4)}) == 1


def test_the_simulated_world_is_no_part_of_a_runs_identity():
    same = {
        "simulation.engine": "pool",
        "engine.device": "cpu",
        "simulation.dropout": 0.2,
        "eval.every": 2,
        "compare.local_only": False,
    }
    assert plan().run == plan(**same).run
    others = ({"training.lr": 0.1}, {"name": "other"}, {"seed": 8}, {"round.minimum": 0.75})
    assert len({plan(**changed).run for changed in others} | {plan().run}) == 1 + len(others)


MASKED = {
    "privacy": "hidden", "merge": {"kind": "secure_sum"},
    "stage": [{"kind": "clip", "l2": 1.0}, {"kind": "quantize", "grid": "shared"}, {"kind": "wrap"}],
}  # fmt: skip
NOISED = {
    "privacy": "distributed_dp", "merge": {"kind": "secure_sum"}, "stage": [], "metrics": "none", "dp.epsilon": 8.0,
    "dp.delta": 1e-5, "dp.clip_l2": 1.0,
}  # fmt: skip


def test_events_refuse_what_json_would_swallow():
    with pytest.raises(ValueError, match="nll"):
        events.to_json(events.Evaluated(round=0, model="m", nll={"a": float("inf")}, tokens={"a": 1}, seconds=0.0))


def test_claims_tell_the_truth_about_metrics():
    assert "each device's train losses and weight are visible to the server beside its update" in plan().claims
    assert not any("train losses and weight" in c for c in plan(metrics="none").claims)


@pytest.mark.parametrize("word", ["central_dp", "distributed_dp", "local_dp", "example"])
def test_with_noise_factors_are_trained_unless_the_recipe_says_so(word):
    dp = {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}
    dp |= {"unit": "example", "sample_rate": 0.1} if word == "example" else {}
    plain = {"schema": 1, "privacy": "local_dp" if word == "example" else word, "dp": dp}
    assert from_plain(plain).trainable.rule == "ffa"
    assert (
        from_plain({**plain, "trainable": {"rank": 2}}).trainable
        == from_plain({**plain, "trainable": {"kind": "lora", "rule": "ffa", "rank": 2}}).trainable
    )
    assert from_plain({**plain, "trainable": {"kind": "full"}}).trainable.kind == "full"
    named = {"kind": "layers", "layers": ["w"]}
    assert from_plain({**plain, "trainable": named}).trainable.kind == "layers"
    assert from_plain({"schema": 1, "privacy": "hidden"}).trainable.kind == "full"


def test_groups_carry_the_noise_of_a_cohort_whose_corrupt_devices_are_all_in_one():
    plain = {
        "schema": 1,
        "privacy": "distributed_dp",
        "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0},
        "trust": {"malicious_fraction": 0.05},
        "round": {"rounds": 4, "minimum": 0.9},
        "trainable": {"kind": "full"},
    }
    for merge, n_min in (({"kind": "secure_sum"}, 54), ({"kind": "grouped", "groups": 3}, 18)):
        made = compile_plan(from_plain({**plain, "merge": merge}), SPEC, 60, BUILT_IN)
        assert made.at(0).encoded.quorum.n_min == n_min
        assert made.at(0).encoded.noise.honest == n_min - 3


SECURE, GROUPED = {"kind": "secure_sum"}, {"kind": "grouped", "groups": 3}


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({**NOISED, "dp.corrupt": 0.1}, "E-KEY", "write `trust.malicious_fraction`"),
        ({**MASKED, "merge": {**SECURE, "corrupt": 0.1}}, "E-KEY", "write `trust.malicious_fraction`"),
        ({**MASKED, "merge": {**GROUPED, "dropout": 0.1}}, "E-KEY", "write `trust.dropout_fraction`"),
        ({**MASKED, "merge": {**SECURE, "server": "curious"}}, "E-KEY", "write `trust.server`"),
        ({**MASKED, "trust.malicious_fractoin": 0.1}, "E-KEY", "did you mean `malicious_fraction`"),
        ({**MASKED, "merge": {"kind": "shared_sum"}, "trust.dropout_fraction": 0.2}, "E-COMBO", "trust.dropout_frac"),
        ({"trust.server": "curious"}, "E-COMBO", "trust.server"),
    ],
)
def test_one_figure_says_how_many_devices_are_corrupt(given, code, said):
    with pytest.raises(EdgewiseError, match=said) as caught:
        plan(**given)
    assert caught.value.code == code


def test_sessions_without_a_graph_are_refused_before_anyone_trains():
    """300 are more than 3 x 60 + 2 x 45, which would do if all were neighbours; each of so many has some only."""
    given = {**MASKED, "trust.malicious_fraction": 0.2, "trust.dropout_fraction": 0.15, "round.minimum": 1.0}
    with pytest.raises(EdgewiseError, match="300 devices, of whom 60 may be corrupt and 45 more drop out") as caught:
        plan(300, **given)
    assert caught.value.code == "E-NMIN"
    with pytest.raises(EdgewiseError, match=r"60 may be corrupt and 38 more drop out.* it needs 259") as caught:
        plan(300, **{**given, "round.minimum": 0.85})
    assert plan(600, **{**given, "trust.malicious_fraction": 0.1}).secagg(0).policy.shape(600)


@pytest.mark.slow
def test_masks_and_noise_are_sized_by_the_same_figure():
    for share in (0.0, 0.01, 0.05):
        masked, noised = (plan(**word, trust__malicious_fraction=share) for word in (MASKED, NOISED))
        for made in (masked, noised):
            assert made.at(0).encoded.quorum.corrupt == round(1000 * share)
            assert made.secagg(0).policy.corrupt == pytest.approx(1000 * share / 500)
        assert noised.at(0).encoded.noise.honest == 500 - round(1000 * share)


def test_infinite_numbers_are_refused():
    with pytest.raises(RecipeError, match="E-VALUE"):
        plan(round__deadline_s=float("inf"))


def test_poisson_cohorts_have_a_size_that_they_hardly_ever_pass() -> None:
    from scipy.stats import binom

    for n, cohort in ((1000, 50), (100_000, 100), (30, 3), (20, 19)):
        sampling = Sampling("poisson", n, n, cohort, cohort, 1, 1.0, cohort / n)
        assert binom.sf(sampling.largest, n, cohort / n) <= 1e-9
        assert sampling.largest <= binom.isf(1e-13, n, cohort / n)
    assert Sampling("poisson", 8, 8, 8, 8, 1, 1.0, 1.0).largest == 8
    assert Sampling("fixed", 1000, 50, 50, 65, 25, 1.0, 0.065).largest == 65


def test_a_session_hangs_on_all_that_its_devices_are_told_alike() -> None:
    plan = compile_plan(make_recipe({}), SPEC, 8, BUILT_IN)
    one = frame.Invite(
        run=plan.run, round=1, model="m", spec=SPEC.digest(), rule=plan.rule(1), public=plan.public(1), accepted=None,
        deadline_s=9.0, nonce=bytes(32),
    )  # fmt: skip
    other = {
        "round": 2, "model": "n", "rule": plan.rule(2), "public": plan.public(2), "support": "s", "clip": 0.5,
        "nonce": b"n" * 32,
    }  # fmt: skip
    ids = {plan.session(msgspec.structs.replace(one, **{name: value})) for name, value in other.items()}
    assert len(ids | {plan.session(one)}) == 1 + len(other)
    own = {"accepted": 0, "deadline_s": 1.0, "base": "b", "deltas": ("d",)}
    assert {plan.session(msgspec.structs.replace(one, **{name: value})) for name, value in own.items()} == {
        plan.session(one)
    }


@pytest.mark.parametrize(("word", "rule"), [("none", "fedit"), ("hidden", "fedit"), ("central_dp", "ffa")])
def test_the_word_of_privacy_chooses_the_rule_of_adapters(word, rule):
    plain = {"privacy": word, "trainable": {"kind": "lora"}, "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}}
    plain |= {} if word == "central_dp" else {"dp": {}}
    for section in ({"kind": "lora"}, {"kind": "lora", "rule": "auto"}):
        made = from_plain({**plain, "trainable": section})
        assert (made.trainable.rule, made.chosen["trainable.rule"]) == (rule, rule)
        assert made.resolved()["trainable"]["rule"] == rule
    given = from_plain({**plain, "trainable": {"kind": "lora", "rule": "rolora"}})
    assert given.trainable.rule == "rolora"
    assert "trainable.rule" not in given.chosen


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "ffa_lora"}, 'write kind = "lora" and rule = "ffa" in [trainable].'),
        ({"kind": "rolora"}, 'write kind = "lora" and rule = "rolora" in [trainable].'),
        ({"kind": "full", "rule": "ffa"}, 'write kind = "lora", or leave out trainable.rule.'),
    ],
)
def test_a_rule_without_adapters_and_old_kinds_are_refused(section, words):
    with pytest.raises(RecipeError) as caught:
        from_plain({"privacy": "none", "trainable": section})
    assert words in caught.value.fix
