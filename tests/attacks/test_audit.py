"""The audit finds what it must find: noise that is too small, a clip that is missing; and nothing where all is well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import edgewise.plan.compile as compiling
import edgewise.plan.private as private
from edgewise.apps import record_trials, round_trials, trials
from edgewise.core.keys import generator, root
from edgewise.core.space import Quorum
from edgewise.core.vector import Spec
from edgewise.drivers import identities
from edgewise.learn import dp_sgd, train
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import Plan, compile
from edgewise.plan.recipe import parse
from edgewise.privacy import audit as bounds
from edgewise.privacy import distributed, grid, matrix, noise
from edgewise.privacy.accountant import gaussian
from edgewise.privacy.audit import gaussian_mu, upper_rate
from edgewise.privacy.noise import normals
from edgewise.privacy.spend import Event

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
    overrides = {"dp.unit": "example", "dp.sample_rate": 0.1} if word == "example" else {}
    overrides |= {"dp.epsilon": 0.0} if "dp__noise_multiplier" in more else {}
    overrides |= {key.replace("__", "."): value for key, value in more.items()}
    return compile(parse(text, overrides=overrides), SPEC, population, BUILT_IN)


def passing(true):
    """A maker of clips whose clips only claim to be some."""

    def lazy(*args):
        return replace(true(*args), encode=lambda payload, memory, space, turn: (payload, memory))

    return lazy


def keyed(monkeypatch, module, label):
    """Noise comes from a key that everybody knows."""
    true = module.derive
    monkeypatch.setattr(module, "derive", lambda key, *of: true(bytes(32) if of[0] == label else key, *of))


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize(("word", "module", "label"), [
    ("central_dp", noise, "noise"), ("local_dp", noise, "local noise"), ("example", train, "dp"),
])  # fmt: skip
def test_noise_from_a_known_key_is_caught(monkeypatch, word, module, label):
    try_it = record_trials.mechanism if word == "example" else lambda *of: (trials.mechanism(*of),)
    assert try_it(plan(word), 4096, quiet)[0].holds
    keyed(monkeypatch, module, label)
    found = try_it(plan(word), 4096, quiet)[0]
    assert not found.holds
    assert found.lower == bounds.REPEATED


@pytest.mark.slow
def test_corrupt_devices_counted_as_honest_are_caught(monkeypatch):
    """Every device then adds too little noise for those who are left."""
    of = {"merge__kind": "shared_sum", "trust__malicious_fraction": 0.45, "round__minimum": 1.0}
    assert trials.mechanism(plan("distributed_dp", **of), RUNS, quiet).holds
    monkeypatch.setattr(Quorum, "honest", property(lambda quorum: quorum.n_min))
    assert not trials.mechanism(plan("distributed_dp", **of), RUNS, quiet).holds


def quiet(*_: object) -> None:
    """No progress."""


@pytest.mark.parametrize("sent", ["replace_one", "zero_out"])
def test_local_noise_that_counts_a_device_of_other_text_as_a_silent_one_is_caught(monkeypatch, sent):
    """Its epsilon is then told for half of how far its neighbour is, in the accountant alone or in the fold as well."""
    true = private._local
    monkeypatch.setattr(private, "adjacency", lambda *_: sent)
    monkeypatch.setattr(compiling, "adjacency", lambda *_: sent)
    monkeypatch.setattr(private, "_local", lambda *of: (true(*of)[0], lambda z: (Event("gaussian", sent, z=z),)))
    found = trials.examine(plan("local_dp"), True, quiet)[0]
    assert not found.holds
    assert found.lower == pytest.approx(2.0 * found.claimed, rel=1e-3)


def forgetful(monkeypatch, *modules):
    """Keys no longer name the round."""
    for module in modules:
        true = module.derive
        monkeypatch.setattr(
            module, "derive", lambda key, *of, _true=true: _true(key, *(x for x in of if type(x) is not int))
        )


@pytest.mark.parametrize(("word", "modules"), [
    ("central_dp", (identities,)), ("local_dp", (identities, noise)), ("distributed_dp", (identities, distributed)),
])  # fmt: skip
def test_noise_that_comes_again_in_the_next_round_is_caught(monkeypatch, word, modules):
    """Each release is noised as it should be; the difference of two is not."""
    found = round_trials.rounds(plan(word), 1 << 13, quiet)
    assert found.holds, found
    assert found.lower > 0.6 * found.claimed
    forgetful(monkeypatch, *modules)
    found = round_trials.rounds(plan(word), 1 << 13, quiet)
    assert not found.holds
    assert found.lower > 2.0 * found.claimed


@pytest.mark.parametrize("by", [1, -1])
def test_noise_that_comes_again_in_the_next_step_is_caught(monkeypatch, by):
    """By a difference, or by a sum where it comes back with the other sign."""
    key_of, noise_of, last = train.derive, grid.noise, [0]

    def derive(key, label, *of):
        last[0] = of[0]
        return key_of(key, label, 0)

    monkeypatch.setattr(train, "derive", derive)
    monkeypatch.setattr(grid, "noise", lambda *of: by ** last[0] * noise_of(*of))
    found = record_trials.steps(plan("example"), 2048, quiet)
    assert not found.holds
    assert found.lower > 2.0 * found.claimed


def test_noise_of_steps_that_comes_again_in_the_next_round_is_caught(monkeypatch):
    forgetful(monkeypatch, identities)
    assert not record_trials.steps(plan("example"), 2048, quiet).holds


def test_rates_have_their_coverage():
    assert upper_rate(0, 100, 0.95) == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-3)
    assert upper_rate(100, 100, 0.95) == 1.0
    assert upper_rate(10, 100, 0.95) == pytest.approx(0.1637, abs=5e-4)


@pytest.mark.slow
def test_bounds_of_known_gaussians_are_below_and_near():
    rng = generator(root(5))
    found = [gaussian_mu(rng.normal(0, 1, 4000), rng.normal(1, 1, 4000)) for _ in range(12)]
    assert np.mean(found) > 0.75
    assert sum(f > 1.0 for f in found) <= 2  # 95 % confidence
    assert gaussian_mu(rng.normal(0, 1, 2000), rng.normal(0, 1, 2000)) < 0.2


@pytest.mark.parametrize("word", WORDS)
def test_honest_code_passes_and_is_found_tight(word):
    found = trials.mechanism(plan(word), RUNS, quiet)
    assert found.holds, found
    assert found.tight, found
    assert found.claimed == pytest.approx(1.0, abs=0.05)
    assert found.epsilon_lower < found.epsilon_claimed


@pytest.mark.long(sample=4)
@pytest.mark.parametrize("by", [np.sqrt(2.0), 2.0])
@pytest.mark.parametrize("word", WORDS)
def test_too_little_noise_is_caught(monkeypatch, word, by):
    true = grid.discrete_gaussian
    for module in (distributed, grid):
        monkeypatch.setattr(module, "discrete_gaussian", lambda s, n, key: true(max(1, round(s / by)), n, key))
    assert not trials.mechanism(plan(word), RUNS, quiet).holds


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_a_missing_clip_is_caught_before_the_code_refuses_what_is_too_long(monkeypatch, word):
    """The rounding and the visible sum refuse it: the audit measures, and does not end in their errors."""
    (honest, *_) = trials.examine(plan(word), True, quiet)
    assert (honest.name, honest.holds, honest.tight, honest.confidence) == ("length", True, True, 1.0)
    monkeypatch.setattr(private, "clip", passing(private.clip))
    (found,) = trials.examine(plan(word), True, quiet)
    assert not found.holds
    assert found.lower > 4 * found.claimed
    assert found.epsilon_lower > found.epsilon_claimed == pytest.approx(honest.epsilon_claimed)
    assert found.left_out == ("mechanism, rounds and one run: not tried where lengths do not hold",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_tensors", "adaptive_clip"])
def test_other_clips_are_tried_too(monkeypatch, name):
    more = {"dp__tensor_l2": 0.2} if name == "clip_tensors" else {"dp__adaptive_clip": True}
    for found in trials.examine(plan("central_dp", **more), True, quiet):
        assert found.holds, found
    monkeypatch.setattr(private, name, passing(getattr(private, name)))
    assert not trials.length(plan("central_dp", **more)).holds


@pytest.mark.parametrize("name", ["clip_tensors", "adaptive_clip"])
def test_a_clip_of_twice_the_length_is_caught(monkeypatch, name):
    true, more = (
        getattr(private, name),
        {"dp__tensor_l2": 0.2} if name == "clip_tensors" else {"dp__adaptive_clip": True},
    )

    def loose(*args):
        honest = true(*args)

        def encode(payload, memory, space, turn):
            payload, memory = honest.encode(payload, memory, space, turn)
            return payload.but(body=2 * payload.body), memory

        return replace(honest, encode=encode)

    monkeypatch.setattr(private, name, loose)
    assert not trials.length(plan("central_dp", **more)).holds


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


def test_a_bit_that_is_counted_by_half_is_caught(monkeypatch):
    """A zeroed device sends a whole bit more than one whose update is above the clip."""
    honest = trials.length(plan("central_dp", dp__adaptive_clip=True, round__rounds=40))
    assert honest.lower == pytest.approx(honest.claimed, rel=1e-4)
    monkeypatch.setattr(private, "adaptive_clip", half_counted(private.adaptive_clip))
    it = plan("central_dp", dp__adaptive_clip=True, round__rounds=40)
    found = trials.length(it)
    assert not found.holds
    assert found.lower == pytest.approx(1.2 * found.claimed, rel=0.05)


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_releases_with_a_bit_beside_the_update_are_scored_with_it(monkeypatch, broken):
    if broken:
        monkeypatch.setattr(private, "adaptive_clip", half_counted(private.adaptive_clip))
    found = trials.mechanism(plan("central_dp", dp__adaptive_clip=True), RUNS * 4, quiet)
    assert found.of.startswith("one release, body and head")
    assert found.holds is not broken, found
    assert found.tight


@pytest.mark.slow
def test_a_bit_is_right_by_half_where_a_device_is_there_or_not():
    it = plan("central_dp", 400, dp__adaptive_clip=True, **POISSON)
    for found in trials.examine(it, True, quiet):
        assert found.holds, found
    assert trials.length(it).tight


def test_an_encoding_of_zeros_that_is_not_zero_is_caught(monkeypatch):
    """A clip that makes something of nothing: all lengths are as they are said to be, distances are not."""
    true = private.clip

    def shifted(l2):
        stage = true(l2)

        def encode(payload, memory, space, turn):
            away = np.full_like(payload.body, -l2 / np.sqrt(payload.body.size))
            return (payload if payload.body.any() else payload.but(body=away)), memory

        return replace(stage, encode=lambda p, m, s, t: encode(*stage.encode(p, m, s, t), s, t))

    monkeypatch.setattr(private, "clip", shifted)
    found = trials.length(plan("central_dp"))
    assert found.lower > 1.4 * found.claimed
    assert not found.holds


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_one_run_of_honest_code_holds_and_sees_something(word):
    found = trials.one_run(plan(word), 512, quiet)
    assert found.holds, found
    assert 0.25 * found.claimed < found.lower, found
    assert found.runs == 512


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_one_run_catches_noise_of_half_the_size(monkeypatch, word):
    assert trials.one_run(plan(word), 4096, quiet).holds
    true = grid.discrete_gaussian
    for module in (distributed, grid):
        monkeypatch.setattr(module, "discrete_gaussian", lambda s, n, key: true(max(1, s // 2), n, key))
    assert not trials.one_run(plan(word), 4096, quiet).holds


def test_one_run_catches_missing_noise(monkeypatch):
    monkeypatch.setattr(grid, "noise", lambda on, n, key: np.zeros(n, np.int64))
    for word in ("central_dp", "local_dp"):
        found = trials.one_run(plan(word), 512, quiet)
        assert not found.holds, found
        assert found.guessed == bounds.Guessed(114, 114, pytest.approx(3.6, abs=0.1))


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "population", "more"),
    [
        ("central_dp", 400, POISSON),
        ("central_dp", 100, {"round__rounds": 20, "round__sampling": "cyclic", "round__cohort": 25}),
        (
            "distributed_dp",
            100,
            {"round__rounds": 20, "round__sampling": "cyclic", "round__cohort": 25, "trust__malicious_fraction": 0.03},
        ),
        ("central_dp", 100, {"dp__noise_multiplier": 2.5}),
    ],
)
def test_one_run_is_at_the_plans_own_noise(monkeypatch, word, population, more):
    """What is claimed is of that one release, and what is added has the size that the plan has for its population."""
    it = plan(word, population, **more)
    sizes, true = [], grid.noise
    monkeypatch.setattr(grid, "noise", lambda on, n, key: sizes.append(n) or true(on, n, key))
    found = trials.one_run(it, 512, quiet)
    assert found.claimed == pytest.approx(1 / it.spend.z, rel=0.02)
    assert found.epsilon_claimed == pytest.approx(gaussian(1 / found.claimed, 1e-5))
    assert found.of == f"one release at noise multiplier {it.spend.z:.4g}"
    assert found.epsilon_claimed < it.spend.card.of_release or it.sampling.kind != "all"
    if word == "central_dp":
        assert set(sizes) == {SPEC.dim}  # real vectors of the model's own layout
    assert ("sampling" in " ".join(found.left_out)) == (it.sampling.kind == "poisson")


@pytest.mark.slow
def test_the_share_of_corrupt_devices_is_counted(monkeypatch):
    """The sum has the noise of as few honest devices as are promised, and not that of all."""
    sent = []
    true = bounds.released
    monkeypatch.setattr(bounds, "released", lambda pipe, x, *a: true(pipe, sent.append(x) or x, *a))
    found = trials.mechanism(plan("distributed_dp", trust__malicious_fraction=0.2), RUNS, quiet)
    assert found.holds
    assert found.tight
    assert [len(x) for x in sent] == [16, 16]  # of 20
    assert "corrupt" in " ".join(
        trials.mechanism(plan("distributed_dp", trust__malicious_fraction=0.02), RUNS, quiet).left_out
    )


@pytest.mark.slow
def test_the_recipes_stages_are_played():
    """Those that keep coordinates apart in both trials, the others in one run, and they are named."""
    stages = [{"kind": "random_k", "fraction": 0.25}, {"kind": "clip", "l2": 0.5}, {"kind": "quantize", "bits": 8}]
    it = plan("central_dp", stage=stages)
    mechanism = trials.mechanism(it, RUNS, quiet)
    assert mechanism.runs == RUNS // 4
    assert mechanism.holds
    assert mechanism.tight
    rounds = "how a device's rounds add up"
    assert mechanism.left_out == ("quantize: behind it coordinates are not runs of their own", rounds)
    found = trials.one_run(it, 512, quiet)
    assert found.holds
    assert 0.25 * found.claimed < found.lower, found  # scored along what the stages leave of a canary
    assert found.left_out == (rounds,)


@pytest.mark.slow
def test_correlated_noise_is_tried_as_a_run():
    it = plan("central_dp", round__rounds=20, dp__noise="correlated", round__sampling="cyclic", round__cohort=25)
    found = trials.one_run(it, 1024, quiet)
    assert found.claimed == pytest.approx(1 / it.spend.z)  # of all its rounds together
    assert found.epsilon_claimed == pytest.approx(it.spend.card.of_release, rel=1e-6)
    assert found.holds
    assert 0.4 * found.claimed < found.lower
    assert found.of == f"20 of 20 rounds of correlated noise at multiplier {it.spend.z:.4g}, a device in 5"
    short = trials.one_run(it, 64, quiet, work=4 * 6 * SPEC.dim)
    assert short.of.startswith("6 of 20 rounds")
    assert short.claimed < found.claimed
    assert "how noise correlates over the rounds" in trials.mechanism(it, RUNS, quiet).left_out


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("broken", ["normals", "sensitivity"])
def test_broken_correlated_noise_is_caught(monkeypatch, broken):
    true = getattr(matrix, broken)
    monkeypatch.setattr(matrix, broken, lambda *args: true(*args) / 2.0)
    it = plan("central_dp", round__rounds=20, dp__noise="correlated", round__sampling="cyclic", round__cohort=25)
    assert not trials.one_run(it, 4096, quiet).holds


def test_what_too_few_canaries_cannot_show_is_said():
    found = trials.one_run(plan("central_dp", dp__noise_multiplier=0.3), 512, quiet)
    assert found.left_out[1:] == ("breaches: 512 canaries show a mu of 1.8 at most, 3.33 is claimed",)


@pytest.mark.slow
def test_noise_that_takes_back_too_much_is_caught(monkeypatch):
    """Every round is noised as it should be, and the sum of them is not."""
    true = matrix.step

    def greedy(blt, state, z):
        after, y = true(blt, state, z)
        if state.round % 5 == 0:  # the next rounds take all of it back
            return matrix.Stream(after.round, after.buffers), y
        return after, np.zeros_like(y)

    monkeypatch.setattr(matrix, "step", greedy)
    it = plan("central_dp", round__rounds=20, dp__noise="correlated", round__sampling="cyclic", round__cohort=25)
    assert not trials.one_run(it, 1024, quiet).holds


@pytest.mark.slow
def test_steps_of_dp_sgd_hold_at_the_recipes_noise():
    it = plan("example")
    mechanism, grain, run = (*record_trials.mechanism(it, 4096, quiet), record_trials.one_run(it, 4096, quiet))
    for found in (mechanism, grain, run):
        assert found.holds, found
        assert found.claimed == pytest.approx(1 / it.spend.z)
        assert f"noise multiplier {it.spend.z:.4g} and clip 0.5" in found.of
        assert len(found.left_out) == 2
    assert mechanism.tight
    two = record_trials.steps(it, 4096, quiet)
    assert two.holds, two
    assert two.claimed == pytest.approx(2.0**0.5 / it.spend.z)
    assert two.lower > 0.6 * two.claimed
    assert 0.5 * run.claimed < run.lower
    assert grain.lower < 0.2 * grain.claimed  # one grid in both worlds


def in_floats(model, loss, records, flat, dp, expected, key):
    """DP-SGD's step as it is often written: float32 noise on a float32 sum."""
    total = torch.zeros_like(flat.g_D)
    for _, record in records:
        flat.zero_grad()
        loss(model, record)[0].backward()
        norm = float(torch.linalg.vector_norm(flat.g_D, dtype=torch.float64))
        total.add_(flat.g_D, alpha=min(1.0, dp.clip * (1.0 - 2.0**-20) / max(norm, 1e-30)))
    drawn = (dp.z * dp.clip * normals(key, total.numel())).astype(np.float32)
    flat.zero_grad()
    flat.g_D.copy_((total + torch.from_numpy(drawn)) / expected)
    return 0.0, 1.0


@pytest.mark.slow
def test_noise_in_floating_point_is_caught_by_its_last_bits(monkeypatch):
    """Of the right size, so that nothing else sees it."""
    monkeypatch.setattr(dp_sgd, "gradient", in_floats)
    mechanism, grain = record_trials.mechanism(plan("example", dp__epsilon=1.0), 1 << 16, quiet)
    assert mechanism.holds
    assert not grain.holds, grain
    assert grain.lower > 1.5 * grain.claimed


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("by", [np.sqrt(2.0), 2.0])
def test_too_little_noise_of_dp_sgd_is_caught(monkeypatch, by):
    true = grid.discrete_gaussian
    monkeypatch.setattr(grid, "discrete_gaussian", lambda s, n, key: true(round(s / by), n, key))
    mechanism, _, _, run = trials.examine(plan("example"), True, quiet)
    assert not mechanism.holds
    assert mechanism.lower == pytest.approx(by * mechanism.claimed, rel=0.1)
    assert run.lower > 0


@pytest.mark.long(sample=0)
@pytest.mark.slow
def test_a_missing_clip_of_dp_sgd_is_caught(monkeypatch):
    monkeypatch.setattr(dp_sgd, "min", lambda *_: 1.0, raising=False)  # of 1 and C / norm
    mechanism, _, _, run = trials.examine(plan("example"), True, quiet)
    assert not mechanism.holds
    assert mechanism.lower > 3 * mechanism.claimed
    assert not run.holds


def test_without_an_epsilon_nothing_is_tried():
    it = compile(parse('privacy = "none"'), SPEC, 10, BUILT_IN)
    assert trials.examine(it, True, quiet) == []
