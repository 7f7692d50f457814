"""Client halves through the device machine and the pipeline: the papers' algorithms, written out again in float64.

Each device has the loss sum(a (w - b)^2) / 2 with curvatures a and a minimum b of its own, so that local steps drift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from invited import invited
from toy_recipe import PLAIN

from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.errors import RecipeError
from edgewise.core.memory import Memory
from edgewise.core.training import FitRequest, Update
from edgewise.core.vector import Spec, Vector
from edgewise.engine import device as machine
from edgewise.engine import device_events, device_state
from edgewise.plan import explain
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe import recipe
from edgewise.strategies.base import State

DIM, N, ROUNDS, LR, K = 12, 4, 6, 0.1, 5
SPEC = Spec.of([("w", (8,), "float32"), ("b", (4,), "float32")])
RNG = np.random.default_rng(7)
CURVES, MINIMA = RNG.uniform(0.2, 2.0, (N, DIM)), RNG.normal(1.0, 1.0, (N, DIM))
STEPS = (5, 2, 4, 1)  # of each device, where they differ
SOME = ((0, 1, 2), (1, 3), (0, 2, 3), (0, 1), (2, 3), (0, 1, 2, 3))  # who contributes in which round
ALL = ((0, 1, 2, 3),) * ROUNDS


def plan_of(kind: str, population: int = N, changes: Mapping[str, Any] | None = None, **strategy: float) -> Plan:
    plain: dict[str, Any] = {
        "strategy": {"kind": kind, **strategy},
        "round.rounds": ROUNDS,
        "round.minimum": 0.25,
        "training.optimizer": "sgd",
        "training.lr": LR,
        "training.schedule": "constant",
        "training.local_steps": K,
        **(changes or {}),
    }
    made = recipe.parse(PLAIN, overrides=plain)
    return compile(made, SPEC, population, BUILT_IN)


UNEVEN = {"training.local_steps": 0, "training.local_epochs": 1.0, "training.max_local_steps": K}


@dataclass
class Federation:
    """Devices by number, and the server between them. No contribution is lost unless it is in ``ignored``."""

    plan: Plan
    steps: tuple[int, ...] = (K,) * N
    states: dict[int, device_state.Idle] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server: State = self.plan.strategy.init(np.zeros(DIM, np.float32))
        for i in range(N):
            self.states[i] = device_state.join(self.plan, f"d{i}")

    def fit(self, device: int, request: FitRequest) -> Update:
        w, correction = request.params.astype(np.float32).copy(), request.correction
        for _ in range(self.steps[device]):
            g = CURVES[device] * (w - MINIMA[device]) + correction.pull * (w - request.params)
            g = g if correction.shift is None else g + correction.shift
            w = (w - request.rule.lr * g).astype(np.float32)
        return Update(w - request.params, {"loss_first": 1.0, "loss_last": 1.0}, 1.0)

    def contribution(self, device: int, number: int) -> frame.Contribution:
        plan, accepted = self.plan, self.accepted.get(device)
        params = plan.layout.broadcast(self.server)
        state, effects = machine.step(plan, self.states[device], invited(plan, number, params, accepted=accepted))
        request = next(e.request for e in effects if isinstance(e, device_events.Train))
        update = self.fit(device, request)
        state, effects = machine.step(plan, state, device_events.Trained(update, steps=self.steps[device]))
        assert isinstance(state, device_state.Idle)
        self.states[device] = state
        message = frame.load(next(e.frame for e in effects if isinstance(e, device_events.SendFrame)))
        assert isinstance(message, frame.Contribution)
        return message

    def round(self, number: int, devices: tuple[int, ...], ignored: tuple[int, ...] = ()) -> None:
        plan, turn = self.plan, self.plan.turn(number)
        pipe = plan.at(number)
        total = pipe.start_sum()
        for device in devices:
            message = self.contribution(device, number)
            if device in ignored:
                continue
            total = pipe.add(total, pack.unpack(message.payload, pipe.encoded), turn)
            self.accepted[device] = number
        aggregate, _ = pipe.release(total, turn, bytes(32), Memory())
        self.server = plan.strategy.apply(self.server, plan.layout.aggregated(aggregate))

    def played(self, rounds: tuple[tuple[int, ...], ...]) -> Federation:
        for number, devices in enumerate(rounds):
            self.round(number, devices)
        return self

    def kept(self, device: int, name: str) -> Vector:
        """Read a device's memory after the server has used all its contributions."""
        settled = device_state.settled(self.plan, self.states[device], self.accepted.get(device))
        assert settled is not None
        x = settled.committed.memory.child(machine.STRATEGY).get(name)
        return np.zeros(DIM, np.float32) if x is None else x


def trained(i: int, w: np.ndarray, steps: int, more: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    y = w.copy()
    for _ in range(steps):
        y = y - LR * (CURVES[i] * (y - MINIMA[i]) + more(y))
    return y


def scaffold_by_hand(rounds: tuple[tuple[int, ...], ...], steps: tuple[int, ...]) -> np.ndarray:
    w, c, own = np.zeros(DIM), np.zeros(DIM), np.zeros((N, DIM))
    for devices in rounds:
        moved, changed = [], []
        for i in devices:
            shift = c - own[i]
            y = trained(i, w, steps[i], lambda _, shift=shift: shift)
            new = own[i] - c + (w - y) / (steps[i] * LR)
            moved.append(y - w)
            changed.append(new - own[i])
            own[i] = new
        w = w + np.mean(moved, axis=0)
        c = c + len(devices) / N * np.mean(changed, axis=0)
    return w


def feddyn_by_hand(rounds: tuple[tuple[int, ...], ...], steps: tuple[int, ...], alpha: float = 0.1) -> np.ndarray:
    w, h, own = np.zeros(DIM), np.zeros(DIM), np.zeros((N, DIM))
    for devices in rounds:
        ends = []
        for i in devices:
            y = trained(i, w, steps[i], lambda y, i=i, w=w: alpha * (y - w) - own[i])
            own[i] = own[i] - alpha * (y - w)
            ends.append(y)
        h = h - alpha / N * np.sum([y - w for y in ends], axis=0)
        w = np.mean(ends, axis=0) - h / alpha
    return w


def fednova_by_hand(rounds: tuple[tuple[int, ...], ...], steps: tuple[int, ...], rho: float = 0.0) -> np.ndarray:
    w = np.zeros(DIM)
    for devices in rounds:
        a = [(k - rho * (1 - rho**k) / (1 - rho)) / (1 - rho) for k in (steps[i] for i in devices)]
        directions = [(trained(i, w, steps[i], np.zeros_like) - w) / a_i for i, a_i in zip(devices, a, strict=True)]
        w = w + np.mean(a) * np.mean(directions, axis=0)
    return w


def momentum_by_hand(rounds: tuple[tuple[int, ...], ...], steps: tuple[int, ...], beta: float = 0.9) -> np.ndarray:
    w, own = np.zeros(DIM), np.zeros((N, DIM))
    for devices in rounds:
        for i in devices:
            own[i] = beta * own[i] + (1 - beta) * (trained(i, w, steps[i], np.zeros_like) - w)
        w = w + np.mean([own[i] for i in devices], axis=0)
    return w


CASES = {
    "momentum": (plan_of("momentum"), momentum_by_hand, (K,) * N),
    "scaffold": (plan_of("scaffold"), scaffold_by_hand, (K,) * N),
    "scaffold, unequal steps": (plan_of("scaffold", changes=UNEVEN), scaffold_by_hand, STEPS),
    "feddyn": (plan_of("feddyn"), feddyn_by_hand, (K,) * N),
    "fednova": (plan_of("fednova", changes=UNEVEN), fednova_by_hand, STEPS),
}


@pytest.mark.parametrize("rounds", [ALL, SOME], ids=["all", "some"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_papers_algorithm(case: str, rounds: tuple[tuple[int, ...], ...]) -> None:
    plan, by_hand, steps = CASES[case]
    got = Federation(plan, steps).played(rounds).server.params
    np.testing.assert_allclose(got, by_hand(rounds, steps), rtol=2e-4, atol=2e-5)


def test_momentum_counts_as_more_plain_steps() -> None:
    plan = plan_of("fednova", changes={**UNEVEN, "training.momentum": 0.9})
    got = Federation(plan, STEPS).played(ALL).server.params  # its devices take plain steps all the same
    np.testing.assert_allclose(got, fednova_by_hand(ALL, STEPS, rho=0.9), rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_corrected_devices_end_at_the_minimum_of_the_mean_loss_and_averaging_does_not() -> None:
    best = (CURVES * MINIMA).sum(axis=0) / CURVES.sum(axis=0)
    off = {}
    for kind in ("fedavg", "scaffold", "feddyn"):
        plan, many = plan_of(kind, changes={"round.rounds": 60}), ((0, 1, 2, 3),) * 60
        off[kind] = float(np.abs(Federation(plan).played(many).server.params - best).max())
    assert off["scaffold"] < off["fedavg"] / 20
    assert off["feddyn"] < off["fedavg"] / 2


def fixed_point(kind: str, lr: float) -> np.ndarray:
    """Solve for the model that a round of all devices leaves as it is.

    k plain steps move a device by (1 - (1 - lr a)^k) (b - w). FedNova divides that by k.
    """
    k = np.array(STEPS)[:, None]
    pulls = (1 - (1 - lr * CURVES) ** k) / (k if kind == "fednova" else 1)
    return (pulls * MINIMA).sum(axis=0) / pulls.sum(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "off"), [("fedavg", 0.513), ("fednova", 0.155)])
def test_with_unequal_steps_averaging_ends_far_from_the_minimum_of_the_mean_loss(kind: str, off: float) -> None:
    """Averaging weighs each loss by its device's steps. FedNova keeps a rest that goes to 0 with the rate."""
    plan = plan_of(kind, changes={**UNEVEN, "round.rounds": 60})
    end = Federation(plan, STEPS).played(((0, 1, 2, 3),) * 60).server.params
    np.testing.assert_allclose(end, fixed_point(kind, LR), atol=1e-4)
    best = (CURVES * MINIMA).sum(axis=0) / CURVES.sum(axis=0)
    assert np.abs(end - best).max() == pytest.approx(off, abs=1e-3)


def test_fednova_with_equal_steps_is_fedavg_to_the_bit() -> None:
    nova = Federation(plan_of("fednova", changes=UNEVEN)).played(SOME).server.params
    assert nova.tobytes() == Federation(plan_of("fedavg", changes=UNEVEN)).played(SOME).server.params.tobytes()


def test_scaffold_begins_as_fedavg_to_the_bit_and_with_one_device_is_sgd() -> None:
    first = [Federation(plan_of(kind)).played(ALL[:1]).server.params.tobytes() for kind in ("scaffold", "fedavg")]
    assert first[0] == first[1]
    alone = Federation(plan_of("scaffold", population=1)).played(((0,),) * ROUNDS)
    want = trained(0, np.zeros(DIM), K * ROUNDS, np.zeros_like)
    np.testing.assert_allclose(alone.server.params, want, rtol=1e-4, atol=1e-5)


def test_memory_counts_only_when_the_server_used_the_contribution() -> None:
    """The server's control variate is the mean of the devices' while both count the same contributions."""
    run = Federation(plan_of("scaffold"))
    for number, (devices, ignored) in enumerate([(ALL[0], (1,)), ((0, 1), ()), (ALL[0], (2, 3)), ((2, 3), (3,))]):
        run.round(number, devices, ignored)
        mean = np.mean([run.kept(i, "c") for i in range(N)], axis=0)
        np.testing.assert_allclose(run.server.slots["c"], mean, rtol=1e-4, atol=1e-5)
    assert run.kept(1, "c").any()


def test_a_device_that_is_asked_again_says_the_same() -> None:
    run = Federation(plan_of("scaffold")).played(ALL[:2])
    one, two = (run.contribution(0, 2) for _ in range(2))
    assert bytes(one.payload) == bytes(two.payload)


def test_a_strategy_without_a_client_half_sends_and_keeps_nothing_more() -> None:
    plan, prox, twice = plan_of("fedavg"), plan_of("fedprox"), plan_of("scaffold")
    assert plan.layout.sent is plan.layout.given is plan.spec
    x = np.zeros(DIM, np.float32)
    assert plan.layout.outgoing(x, {}) is x
    assert plan.upload_bytes(0) == prox.upload_bytes(0)
    assert not device_state.remembers(prox)
    assert (twice.layout.sent.dim, twice.layout.given.dim, twice.snapshot_bytes) == (2 * DIM, 2 * DIM, 8 * DIM)
    assert twice.upload_bytes(0) == pytest.approx(plan.upload_bytes(0) + 4 * DIM)
    assert [s.name for s in twice.layout.sent.segments] == ["w", "b", "c/w", "c/b"]


def test_check_says_what_travels_and_stays() -> None:
    plan = plan_of("scaffold")
    assert "and as many for c of scaffold" in explain.trace(plan)[0]["does"]
    assert any(claim == "raw text never leaves a device" for claim in plan.claims), "what it keeps adds up what it sent"
    nova = plan_of("fednova", changes=UNEVEN)
    assert any("asks devices for steps" in claim for claim in nova.claims)


def test_what_is_not_finite_changes_no_memory() -> None:
    run = Federation(plan_of("scaffold")).played(ALL[:1])
    before = run.states[0]
    params = run.plan.layout.broadcast(run.server)
    state, _ = machine.step(run.plan, before, invited(run.plan, 1, params, accepted=0))
    bad = Update(np.full(DIM, np.nan, np.float32), {"loss_first": 1.0, "loss_last": 1.0}, 1.0)
    state, effects = machine.step(run.plan, state, device_events.Trained(bad, steps=K))
    answer = next(e.frame for e in effects if isinstance(e, device_events.SendFrame))
    assert isinstance(refusal := frame.load(answer), frame.Refusal)
    assert refusal.code == "E-NAN"
    assert isinstance(state, device_state.Idle)
    assert state.pending is None
    assert state.committed.memory is before.pending.memory  # type: ignore[union-attr]


HIDDEN = {
    "privacy": "hidden",
    "round.minimum": 1.0,
    "stage": [
        {"kind": "clip", "l2": 20.0},
        {"kind": "clamp", "linf": 4.0},
        {"kind": "quantize", "bits": 8, "grid": "shared"},
        {"kind": "wrap"},
    ],
}
NOISED = {
    "privacy": "central_dp",
    "dp.epsilon": 8.0,
    "dp.delta": 1e-5,
    "dp.clip_l2": 1.0,
    "stage": [],
    "metrics": "none",
}
REFUSED = {
    "adamw": ("scaffold", {"training.optimizer": "adamw"}, "plain SGD alone"),
    "momentum": ("scaffold", {"training.momentum": 0.9}, "with momentum"),
    "equal steps": ("fednova", {}, "equally many"),
    "noise": ("scaffold", NOISED, "add up"),
    "noise, nothing sent": ("feddyn", NOISED, "add up"),
    "noise beside models": ("moon", NOISED, "keep models"),
    "noise beside updates": ("momentum", NOISED, "keep earlier updates"),
    "turns": ("feddyn", {"stage": [{"kind": "segments", "names": ["*"], "cycle": 2}]}, "take turns"),
    "left out": ("scaffold", {"stage": [{"kind": "segments", "names": ["w", "c/w"]}]}, "leaves out"),
    "a rule": (
        "scaffold",
        {**HIDDEN, "merge": {"kind": "grouped", "groups": 5, "byzantine": 2}, "trust.malicious_fraction": 0.0},
        "need a mean",
    ),
    "rungs behind masks": (
        "scaffold",
        {**HIDDEN, "codec": "adaptive", "stage": HIDDEN["stage"][:1], "merge": {"kind": "secure_sum"}},  # type: ignore[index]
        "behind masks",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    kind, changes, why = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        plan_of(kind, population=30, changes=changes)
    assert caught.value.code == "E-COMBO"
    assert kind in caught.value.what
    assert why in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize("kind", ["feddyn", "fedprox"])
def test_other_optimizers_are_taken_where_the_equations_allow_them(kind: str) -> None:
    assert plan_of(kind, changes={"training.optimizer": "adamw"}).strategy.name.startswith(kind)


def test_running_means_may_be_compared_and_control_variates_not() -> None:
    robust = {"merge": {"kind": "centred_clip", "byzantine": 1}, "round.minimum": 1.0}
    assert plan_of("momentum", changes=robust).at(0).merge.combine is not None
    with pytest.raises(RecipeError, match=r"E-COMBO.*scaffold.*centred_clip.*need a mean"):
        plan_of("scaffold", changes=robust)


def test_changed_memory_is_never_the_one_that_was_committed() -> None:
    run = Federation(plan_of("scaffold")).played(ALL[:1])
    held = replace(run.states[0]).pending
    assert held is not None
    before = held.memory.child(machine.STRATEGY)["c"].tobytes()
    run.round(1, ALL[1])
    assert held.memory.child(machine.STRATEGY)["c"].tobytes() == before


def test_a_device_contrasts_with_its_last_model_that_counted() -> None:
    """No contrast in the first round. A model whose contribution was not used is no previous model."""
    run, asked = Federation(plan_of("moon", mu=2.0, tau=0.25)), []
    fit = run.fit

    def watched(device: int, request: FitRequest) -> Update:
        update = fit(device, request)
        asked.append((request.correction.contrast, request.params + update.x))
        return update

    run.fit = watched  # type: ignore[method-assign]
    for number, ignored in enumerate([(), (0,), (), ()]):
        run.round(number, (0,) if not ignored else (0, 1), ignored)
    of_0 = [asked[i] for i in (0, 1, 3, 4)]
    assert of_0[0][0] is None
    for at, used in ((1, 0), (2, 0), (3, 2)):
        contrast, model = of_0[at][0], of_0[used][1]
        assert contrast is not None
        assert (contrast.mu, contrast.tau) == (2.0, 0.25)
        assert contrast.previous is not None
        assert contrast.previous.tobytes() == model.tobytes()


def test_moon_without_weight_is_fedavg_to_the_bit_and_keeps_nothing() -> None:
    plan = plan_of("moon", mu=0.0)
    assert not device_state.remembers(plan)
    assert device_state.remembers(plan_of("moon"))
    got = [Federation(p).played(SOME).server.params.tobytes() for p in (plan, plan_of("fedavg"))]
    assert got[0] == got[1]
