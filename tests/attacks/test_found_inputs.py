"""The inputs with which reviewers broke a promise, each with its outcome now.

One function an input, in the numbers in which it was found. The laws of the same faults stand in ``laws`` and beside
the parts; whoever changes one sees here what it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from invited import invited
from liars import Lies
from session import IDENTITIES, Session
from torch.nn.functional import huber_loss

from edgewise.core import frame
from edgewise.core.errors import RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Turn, derive, root
from edgewise.core.training import FitRequest, StepNoise, Update
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.keys import simulated_trust
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.learn.shards import TensorShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.privacy.noise import noised_neighbour_distance
from edgewise.secagg import server

GRID = [{"kind": "clip", "l2": 1.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
MASKS, SHARES = {"kind": "secure_sum"}, {"kind": "shared_sum"}
DP = {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}
EXAMPLE = {"noise_multiplier": 8.0, "delta": 1e-5, "clip_l2": 1.0, "unit": "example", "sample_rate": 0.01}
HIDDEN = {"privacy": "hidden", "stage": GRID, "metrics": "none"}
IN_TURN = {"rounds": 16, "sampling": "cyclic", "cohort": 125, "minimum": 0.9}


def plan(dim: int, population: int, **recipe: Any) -> Plan:
    plain = {"trainable": {"kind": "full"}, "round": {"rounds": 2}, **recipe}
    return compile(from_plain(plain), Spec.of([("w", (dim,), "float32")]), population, BUILT_IN)


def refused(population: int, dim: int = 256, **recipe: Any) -> str:
    """The code with which a recipe is refused."""
    with pytest.raises(RecipeError) as caught:
        plan(dim, population, **recipe)
    return caught.value.code


def merged(plan: Plan, x: np.ndarray, turn: Turn) -> np.ndarray:
    """Body and head of a contribution as the server adds it, before noise."""
    pipe = plan.at(0)
    decoded = pipe.decode(pipe.encode(x, {}, 1.0, pipe.init(), turn)[0], turn, pipe.level)
    return np.concatenate([decoded.body.astype(np.float64), decoded.head])


def answer(plan: Plan, trained: np.ndarray, **invitation: Any) -> frame.Frame:
    """Messages of a device that is invited and trains ``trained``."""
    state, effects = machine.step(plan, machine.join(plan, "dev0"), invited(plan, **invitation))
    if isinstance(effects[0], device_events.Train):
        event = device_events.Trained(Update(trained, {}, 1.0))
        _, effects = machine.step(plan, state, event, simulated_trust(plan.key))
    (out,) = (frame.load(e.frame) for e in effects if isinstance(e, device_events.SendFrame))
    return out


def adaptive_clip_zero_out() -> None:
    """A zero update's bit was as far from a long one's as twice what was counted."""
    x = np.eye(1, 64, dtype=np.float32)[0] * 50.0
    for rounds in (20, 40):
        of = plan(64, 100, privacy="central_dp", round={"rounds": rounds}, dp={**DP, "adaptive_clip": True})
        turn = Turn(0, of.public(0), root(2), device="d")
        apart = np.linalg.norm(merged(of, x, turn) - merged(of, np.zeros_like(x), turn))
        assert 0.5 < apart <= of.at(0).totals[0].sensitivity * (1 + 1e-6)


def compile_gaps() -> None:
    """A delta that says nothing was taken, two numbers of corrupt devices were not compared, sound feedback refused."""
    central = {"privacy": "central_dp", "round": IN_TURN}
    assert refused(1000, **central, dp={**DP, "delta": 0.5}) == "E-VALUE"
    assert refused(1000, **central, dp={**DP, "delta": 1e-3}) == "E-VALUE"
    noised = {"privacy": "distributed_dp", "merge": MASKS, "round": IN_TURN, "dp": DP}
    assert refused(1000, **noised, trust={"malicious_fraction": 0.25, "server": "curious"}) == "E-NMIN"
    of = plan(256, 1000, **noised, trust={"malicious_fraction": 0.02, "server": "curious"})
    encoded = of.at(0).encoded
    assert encoded.noise.honest == encoded.quorum.n_min - encoded.quorum.corrupt < 113
    stages = [{"kind": "feedback"}, {"kind": "top_k", "fraction": 0.1}]
    assert plan(256, 1000, privacy="local_dp", stage=stages, dp=EXAMPLE).spend is not None


def dp_data_dependent_absence() -> None:
    """An update that overflows a stage before its clip was refused, and one of zeros counted."""
    stage = [{"kind": "random_k", "fraction": 0.01}]
    for word, merge in (("central_dp", {"kind": "sum"}), ("local_dp", {"kind": "sum"}), ("distributed_dp", MASKS)):
        of = plan(4096, 20, privacy=word, round={"rounds": 5}, dp=DP, stage=stage, merge=merge)
        quiet, loud = (answer(of, np.full(4096, x, np.float32)) for x in (0.0, 1e37))
        assert type(quiet) is type(loud) is not frame.Refusal
    assert refused(100, privacy="central_dp", dp={**DP, "clip_l2": 1e6}) == "E-VALUE"  # had no room in the sum


def fixed_point_sensitivity() -> None:
    """Rounding each contribution to 2^-40 moved the sum by up to twice what was counted."""
    unit, dim = 2.0**-40, 1 << 16
    for clip in (1e-10, 1e-9):
        assert refused(20, privacy="central_dp", dp={**DP, "clip_l2": clip}, dim=dim) == "E-PRECISION"
    of = plan(dim, 20, privacy="central_dp", dp={**DP, "clip_l2": 1e-8})
    x = np.full(dim, (floor(1e-8 / dim**0.5 / unit - 0.5) + 0.50001) * unit, np.float32)
    pipe, turn = of.at(0), Turn(0, of.public(0), root(2), device="d")
    total = pipe.add(pipe.start_sum(), pipe.encode(x, {}, 1.0, pipe.init(), turn)[0], turn)
    apart = np.linalg.norm(total.acc.body.astype(np.float64) * unit)
    assert np.linalg.norm(x.astype(np.float64)) < 1e-8 < apart <= noised_neighbour_distance(pipe.totals[0])


def model_not_checked() -> None:
    """Two devices trained from two models in one session of masks."""
    of = plan(256, 20, merge=MASKS, **HIDDEN)
    other = np.full(256, 7, np.float32)
    honest = invited(of)
    for params, code in ((honest.params, ""), (other, "E-BLOB")):
        event = device_events.Invited(honest.invite, params, honest.secrets, None)
        _, effects = machine.step(of, machine.join(of, "dev0"), event)
        said = [frame.load(e.frame) for e in effects if isinstance(e, device_events.SendFrame)]
        assert [f.code for f in said if isinstance(f, frame.Refusal)] == ([code] if code else [])


def noise_from_recipe() -> None:
    """Anybody with the recipe could take the noise off: it came from its seed."""
    of = plan(256, 20, privacy="local_dp", round={"rounds": 5}, dp={**DP, "epsilon": 2.0})
    pipe, x = of.at(0), np.zeros(256, np.float32)
    with pytest.raises(ValueError, match="no private key"):
        pipe.encode(x, {}, 1.0, pipe.init(), Turn(0, of.public(0)))
    one, other = (merged(of, x, Turn(0, of.public(0), root(i), device="d")) for i in (1, 2))
    assert (one != other).all()


def one_bit_zero() -> None:
    """One bit on a grid that all share has no zero: a device that is zeroed moves the sum by twice its length."""
    stage = [{"kind": "clip", "l2": 1.0}, {"kind": "quantize", "bits": 1, "grid": "shared"}]
    of = plan(64, 20, privacy="central_dp", stage=stage, dp=DP)
    total = of.at(0).totals[0]
    assert total.sensitivity == pytest.approx(2.0 * total.space.l2)


def dealt(n: int, lies: dict[int, str]) -> dict[str, str]:
    """Devices that are reported in a session that ends with a sum."""
    session = Session(n)
    names = list(IDENTITIES)
    assert isinstance(Lies(session, {names[i]: lie for i, lie in lies.items()}).play(), server.Released)
    return {device: code for device, code in session.refused if device in names}


def one_dealer_abort() -> None:
    """One device that deals shares of another seed ended every round, and nobody was named."""
    for n in (6, 32):
        assert dealt(n, {1: "seed"}) == {"d001": "E-SHARE"}


def two_liars_abort() -> None:
    """Two devices that reveal wrong shares ended the session, and nobody was named."""
    for n, liars in ((12, (0,)), (12, (0, 6)), (32, (0, 16))):
        assert dealt(n, dict.fromkeys(liars, "wrong")) == {f"d{i:03d}": "E-SECAGG-REVEAL" for i in liars}


def population_not_bound() -> None:
    """Two populations had one run id and one session."""
    for recipe in ({**HIDDEN, "merge": MASKS}, {"privacy": "distributed_dp", "merge": MASKS, "dp": DP}):
        many, few = (plan(256, n, **recipe, trust={"malicious_fraction": 0.02}) for n in (1000, 40))
        assert many.run != few.run
        assert many.session(invited(many).invite) != few.session(invited(few).invite)


def random_k_twice() -> None:
    """Two choices of half the coordinates drew the same numbers: a coordinate's mean was between 0.93 and 2."""
    stage = [{"kind": "random_k", "fraction": 0.5}] * 2
    of = plan(100, 9, privacy="none", metrics="none", stage=stage)
    assert of.at(0).encoded.unbiased
    drawn = [merged(of, np.ones(100, np.float32), Turn(0, derive(root(3), i), root(2), device="d")) for i in range(600)]
    means = np.array([x[:100] for x in drawn]).mean(axis=0)
    assert np.abs(means - 1.0).max() < 6.0 * (3.0 / 600) ** 0.5


def record_failure_sends_bare_zeros() -> None:
    """A record with which training fails was answered by exact zeros, without noise."""
    data = torch.arange(160.0).reshape(40, 4) / 100, torch.ones(40, 1)

    def loss(how: str) -> Callable[..., Any]:
        def of(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
            if how == "raise" and bool((batch[0] == 777.0).any()):
                raise IndexError("index out of range in self")
            return huber_loss(model(batch[0]) * (4.0 if how == "infinite" else 1.0), batch[1]), len(batch[0])

        return of

    for how, value in (("raise", 777.0), ("infinite", 3e38)):
        x = data[0].clone()
        x[0, 0] = value
        section = TrainingSection(optimizer="sgd", batch=4, clip_grad=0.0)
        trainer = TorchTrainer(torch.nn.Linear(4, 1, bias=False), loss(how), {"d": TensorShard((x, data[1]))}, section)
        trainer.step_noise = StepNoise(1.0, 1.0, 0.9)
        update = trainer.fit(FitRequest("d", 0, trainer.initial(), LocalRule(steps=4, lr=0.1), root(4), root(9))).x
        assert np.isfinite(update).all()
        assert update.all()


def record_steps_from_server() -> None:
    """The server said how many noised steps a device takes, and nothing compared it with what was counted."""
    of = plan(256, 20, privacy="local_dp", round={"rounds": 10}, training={"local_steps": 10}, dp=EXAMPLE)
    for steps in (100, 1000):
        said = answer(of, np.zeros(256, np.float32), rule=LocalRule(steps=steps, lr=of.rule(0).lr))
        assert isinstance(said, frame.Refusal)
        assert said.code == "E-INVITE"


def server_picks_cohort() -> None:
    """All corrupt devices of the population may be in a cohort that a lying server picks."""
    for population, cohort, share, minimum in ((1000, 125, 0.02, 0.9), (1000, 200, 0.01, 0.5), (500, 60, 0.02, 0.9)):
        turns = {**IN_TURN, "cohort": cohort, "minimum": minimum}
        trust = {"malicious_fraction": share, "dropout_fraction": 0.05, "server": "malicious"}
        of = plan(256, population, privacy="distributed_dp", merge=MASKS, dp=DP, round=turns, trust=trust)
        quorum, corrupt = of.at(0).encoded.quorum, floor(share * population)
        assert quorum.corrupt == corrupt
        assert of.at(0).encoded.noise.honest == quorum.n_min - corrupt
        k, t = of.secagg(0).policy.shape(of.sampling.invite)
        assert k < of.sampling.invite - 1 or 2 * t > of.sampling.invite + corrupt
    trust = {"malicious_fraction": 0.05, "dropout_fraction": 0.05, "server": "malicious"}
    assert refused(1000, privacy="distributed_dp", merge=MASKS, dp=DP, round=IN_TURN, trust=trust) == "E-NMIN"


def two_server_small_batch() -> None:
    """Two servers' shares compiled with batches of two, of which one may be corrupt."""
    for merge in (MASKS, SHARES):
        assert refused(100, **HIDDEN, merge=merge, round={"rounds": 2, "minimum": 0.02}) == "E-NMIN"
    assert refused(100, privacy="distributed_dp", dp=DP, merge=SHARES, round={"rounds": 2, "minimum": 0.02}) == "E-NMIN"


FOUND = (
    adaptive_clip_zero_out, compile_gaps, dp_data_dependent_absence, fixed_point_sensitivity, model_not_checked,
    noise_from_recipe, one_bit_zero, one_dealer_abort, population_not_bound, random_k_twice,
    record_failure_sends_bare_zeros, record_steps_from_server, server_picks_cohort, two_liars_abort,
    two_server_small_batch,
)  # fmt: skip


LARGE = (one_dealer_abort, two_liars_abort)  # sessions of many devices


@pytest.mark.parametrize(
    "outcome",
    [pytest.param(check, marks=[pytest.mark.slow] * (check in LARGE)) for check in FOUND],
    ids=[check.__name__ for check in FOUND],
)
def test_what_broke_a_promise_does_not(outcome: Callable[[], None]) -> None:
    outcome()
