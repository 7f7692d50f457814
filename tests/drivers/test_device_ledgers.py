"""A device's privacy budget over all its runs: charged before a frame leaves, and kept on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import erfc, exp, inf, pi, sqrt
from pathlib import Path
from typing import get_args
from weakref import finalize

import numpy as np
import pytest
from invited import invitation
from kept_devices import Round
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.core import frame, vector
from edgewise.core.errors import StoreError
from edgewise.core.space import Adjacency
from edgewise.drivers.simulation.keys import simulated_root, simulated_secrets, simulated_trust
from edgewise.drivers.storage.device_ledgers import FileLedgers
from edgewise.drivers.storage.device_store import FileDevices
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.engine.owner_budget import UNCOUNTED, OwnerBudget
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.privacy.accountant import COARSE, epsilon
from edgewise.privacy.device_ledger import DeviceCharge, DeviceLedger, charge, spent
from edgewise.privacy.ledger import Budget, OverBudget
from edgewise.privacy.spend import PrivacyEvent, Unit, gaussian, local, matrix, poisson, record_level
from edgewise.secagg import server

DELTA = 1e-6
LOCAL = {
    "privacy": "local_dp", "metrics": "none", "stage": [], "merge": {"kind": "sum"}, "dp.noise_multiplier": 4.0,
    "dp.delta": 1e-5, "dp.clip_l2": 4.0, "round.rounds": 3,
}  # fmt: skip
MASKED = {**LOCAL, "privacy": "distributed_dp", "merge": {"kind": "secure_sum"}, "round.minimum": 0.75}
ME = "d00001"
PLAIN = {"privacy": "none", "metrics": "none", "stage": [], "round.rounds": 3}


class Run:
    """A run as the device d00001 meets it. ``budget``: its owner's."""

    def __init__(self, folder: Path, name: str, settings: dict[str, object], budget: OwnerBudget | None) -> None:
        recipe = make_recipe({**settings, "name": name})
        trainer = ToyTrainer(recipe)
        self.plan = compile(recipe, trainer.spec, 8, with_extensions(["toy"]))
        self.model = trainer.initial()
        (folder / name).mkdir(exist_ok=True)
        downloads = Downloads(self.plan.spec.dim, self.plan.downlink)
        downloads.put(vector.digest(vector.to_bytes(self.model)), vector.to_bytes(self.model))
        root = simulated_root(self.plan, "", {})
        store = FileDevices(folder / name, self.plan.run)
        self.closes = finalize(self, store.close)
        self.devices = Devices(
            self.plan, registered(trainer), store, downloads, simulated_trust(root),
            partial(simulated_secrets, self.plan, root), budget=budget,
        )  # fmt: skip

    def asked(self, number: int) -> frame.Message:
        invite = invitation(self.plan, number, self.model, accepted=number - 1 if number else None)
        raw = self.devices.answer(ME, frame.dump(invite)).frame
        assert raw is not None
        return frame.load(raw)


def refused(message: frame.Message) -> str:
    return message.code if isinstance(message, frame.Refusal) else ""


def test_charges_of_earlier_enrolments_count(tmp_path: Path) -> None:
    first, second = (DeviceCharge(run, 0, gaussian(4.0)) for run in ("one", "two"))
    with FileLedgers(tmp_path) as ledgers:
        ledgers.charge("before", first)
    with FileLedgers(tmp_path, ["before"]) as ledgers:
        ledgers.charge(ME, second)
        assert ledgers.charges(ME) == (first, second)
        assert OwnerBudget(Budget(10.0, DELTA), ledgers).spent(ME) == spent([first, second], DELTA)
    with FileLedgers(tmp_path) as ledgers:
        assert ledgers.charges(ME) == (second,)


def test_the_second_run_is_refused_in_the_middle(tmp_path: Path) -> None:
    """The first run takes all its rounds. Of the second, the cap allows one."""
    settings, sent = LOCAL, frame.Contribution
    (event,) = set(Run(tmp_path, "probe", settings, None).plan.spend.events)  # type: ignore[union-attr]
    cap = Budget((epsilon({event: 4}, DELTA, COARSE) + epsilon({event: 5}, DELTA, COARSE)) / 2, DELTA)
    (tmp_path / "ledgers").mkdir()
    with FileLedgers(tmp_path / "ledgers") as ledgers:
        first = Run(tmp_path, "first", settings, OwnerBudget(cap, ledgers))
        assert all(isinstance(first.asked(number), sent) for number in range(3))
    with FileLedgers(tmp_path / "ledgers") as ledgers:  # the agent was restarted in between
        budget = OwnerBudget(cap, ledgers)
        second = Run(tmp_path, "second", settings, budget)
        assert isinstance(second.asked(0), sent)
        before = budget.spent(ME)
        answer = second.asked(1)
        assert refused(answer) == "E-BUDGET"
        assert isinstance(answer, frame.Refusal)
        assert "first" not in answer.reason, "a server learns nothing of other runs"
        assert budget.spent(ME) == before <= cap.epsilon
        assert [(c.run, c.round) for c in ledgers.charges(ME)] == [
            *((first.plan.run, number) for number in range(3)), (second.plan.run, 0),
        ]  # fmt: skip
        assert ledgers.charges("d00002") == ()
        assert budget.refusal(ME, second.plan, 0) is None, "a round that is charged may be asked for again"
        assert budget.refusal("d00002", second.plan, 1) is None, "another device has its own"


def of_masks(folder: Path, name: str, budget: OwnerBudget) -> Round:
    """A run of masks. One owner has all its devices."""
    return Round(folder / name, lambda: False, {**MASKED, "name": name, "data.devices": 5}, budget)


def test_masks_are_charged_when_the_update_leaves(tmp_path: Path) -> None:
    """Keys and shares say nothing of it. A session that ended before is free, and the round may be asked for again."""
    with FileLedgers(tmp_path) as ledgers:
        run = of_masks(tmp_path, "masks", OwnerBudget(Budget(1e5, DELTA), ledgers))
        ended = run.play(0, nonce=7, lost=lambda device, state: isinstance(state, server.Sharing))
        assert isinstance(ended, server.Aborted)
        assert ledgers.charges(ME) == ()
        assert isinstance(run.play(0), server.Released)
        assert [(c.run, c.round) for c in ledgers.charges(ME)] == [(run.plan.run, 0)]


def test_another_run_may_spend_what_a_session_counted_on(tmp_path: Path) -> None:
    """The update of the session does not leave then, and the server is told so."""
    with FileLedgers(tmp_path) as ledgers:
        (event,) = set(of_masks(tmp_path, "probe", OwnerBudget(Budget(1.0, DELTA), ledgers)).plan.spend.events)  # type: ignore[union-attr]
        cap = Budget(epsilon({event: 1}, DELTA, COARSE) * 1.1, DELTA)
        run = of_masks(tmp_path, "masks", OwnerBudget(cap, ledgers))

        def lost(device: str, state: server.State) -> bool:
            if device == ME and isinstance(state, server.Masking):
                ledgers.charge(ME, DeviceCharge("another", 0, event))
            return False

        released = run.play(0, lost=lost)
        assert isinstance(released, server.Released)
        assert ME not in released.survivors
        assert [c.run for c in ledgers.charges(ME)] == ["another"]


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("how", ["deleted", "put back"])
@pytest.mark.parametrize("settings", [LOCAL, MASKED], ids=["local", "masks"])
def test_a_device_that_lost_its_state_draws_no_noise_again(
    tmp_path: Path, settings: dict[str, object], how: str
) -> None:
    """Its ledger knows for which rounds an update has left, also where the store is that of a round before."""
    with FileLedgers(tmp_path) as ledgers:
        budget = OwnerBudget(Budget(1e5, DELTA), ledgers)
        run = of_masks(tmp_path, "run", budget) if settings is MASKED else Run(tmp_path, "run", settings, budget)
        kept = tmp_path / "run"

        def played(number: int) -> None:
            assert isinstance(run.play(number), server.Released) if isinstance(run, Round) else run.asked(number)

        played(0)
        older = {path: path.read_bytes() for path in kept.glob("*.safetensors")}
        played(1)
        for path, raw in older.items():
            path.write_bytes(raw) if how == "put back" else path.unlink()
        charged = ledgers.charges(ME)
        answer = run.answer(ME, run.invite(1, nonce=9)) if isinstance(run, Round) else run.asked(1)
        assert refused(answer) == "E-SECAGG-ORDER"
        assert ledgers.charges(ME) == charged
        played(2)
        assert len(ledgers.charges(ME)) == 3


def test_masks_of_an_older_state_do_not_leave_twice(tmp_path: Path) -> None:
    """A copy from between the shares and the masked update is put back: other boxes would give another masked sum."""
    with FileLedgers(tmp_path) as ledgers:
        run = of_masks(tmp_path, "run", OwnerBudget(Budget(1e5, DELTA), ledgers))
        older, boxes = dict[Path, bytes](), list[frame.Message]()
        honest = run.answer

        def answer(device: str, message: frame.Message) -> frame.Message:
            if device == ME and isinstance(message, frame.Step) and b"boxes" in message.body:
                older.update({path: path.read_bytes() for path in run.folder.glob("*.safetensors")})
                boxes.append(message)
            return honest(device, message)

        run.answer = answer  # type: ignore[method-assign]
        run.play(0)
        for path, raw in older.items():
            path.write_bytes(raw)
        assert run.said(ME, boxes[0]) is None
        assert refused(honest(ME, run.invite(0))) == "E-SECAGG-ORDER"


def test_a_ledger_that_is_older_than_the_device_takes_no_round(tmp_path: Path) -> None:
    """It counts too little. What it lost of other runs is not seen here."""
    with FileLedgers(tmp_path) as ledgers:
        run = Run(tmp_path, "run", LOCAL, OwnerBudget(Budget(1e5, DELTA), ledgers))
        assert refused(run.asked(0)) == ""
        (path,) = tmp_path.glob("*.ledger")
        older = path.read_bytes()
        assert refused(run.asked(1)) == ""
        run.closes()
    for raw in (older, b""):
        path.write_bytes(raw)
        with FileLedgers(tmp_path) as ledgers:
            run = Run(tmp_path, "run", LOCAL, OwnerBudget(Budget(1e5, DELTA), ledgers))
            answer = run.asked(2)
            assert isinstance(answer, frame.Refusal)
            assert (answer.code, answer.reason) == ("E-BUDGET", UNCOUNTED)
            run.closes()


def test_a_run_without_an_epsilon_is_refused_under_a_cap(tmp_path: Path) -> None:
    with FileLedgers(tmp_path) as ledgers:
        capped = Run(tmp_path, "plain", PLAIN, OwnerBudget(Budget(10.0, DELTA), ledgers))
        assert refused(capped.asked(0)) == "E-BUDGET"
    assert refused(Run(tmp_path, "free", PLAIN, None).asked(0)) == ""


def test_a_charge_that_cannot_be_kept_keeps_the_frame_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with FileLedgers(tmp_path) as ledgers:
        run = Run(tmp_path, "full", LOCAL, OwnerBudget(Budget(1e5, DELTA), ledgers))
        with monkeypatch.context() as patch:
            patch.setattr("edgewise.drivers.storage.device_ledgers.os.fsync", full)
            with pytest.raises(StoreError, match="E-DISK"):
                run.asked(0)
        assert run.devices.store.load(ME) is None, "nothing has left, so nothing is answered"


CHARGES = [DeviceCharge("a", 0, gaussian(2.0)), DeviceCharge("a", 1, gaussian(2.0)), DeviceCharge("b", 0, local(9.0))]


def test_charges_survive_a_restart_and_a_line_that_was_being_written_is_cut_off(tmp_path: Path) -> None:
    with FileLedgers(tmp_path) as ledgers:
        for one in [*CHARGES, CHARGES[0]]:
            ledgers.charge("d", one)
        with pytest.raises(StoreError):
            FileLedgers(tmp_path)
    (path,) = tmp_path.glob("*.ledger")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"run": "b", "rou')
    with FileLedgers(tmp_path) as ledgers:
        assert ledgers.charges("d") == tuple(CHARGES)
        ledgers.charge("d", DeviceCharge("b", 1, local(9.0)))
    with FileLedgers(tmp_path) as ledgers:
        assert len(ledgers.charges("d")) == 4


@pytest.mark.parametrize("how", ["changed", "removed", "moved", "other device", "junk"])
def test_a_ledger_that_somebody_changed_is_found(tmp_path: Path, how: str) -> None:
    with FileLedgers(tmp_path) as ledgers:
        for one in CHARGES:
            ledgers.charge("d", one)
    (path,) = tmp_path.glob("*.ledger")
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {**json.loads(lines[0]), "round": 7}
    path.write_bytes(
        b"".join(
            {
                "changed": [json.dumps(changed).encode() + b"\n", *lines[1:]],
                "removed": lines[1:],
                "moved": [lines[1], lines[0], lines[2]],
                "other device": lines,
                "junk": [b"\xff\n", *lines],
            }[how]
        )
    )
    if how == "other device":
        with FileLedgers(tmp_path) as ledgers:
            ledgers.charge("e", CHARGES[0])
        (other,) = set(tmp_path.glob("*.ledger")) - {path}
        path.write_bytes(other.read_bytes())
    with FileLedgers(tmp_path) as ledgers, pytest.raises(StoreError, match="E-CHECKPOINT"):
        ledgers.charges("d")


def charged(*charges: DeviceCharge, cap: float = 1e6) -> DeviceLedger | OverBudget:
    ledger: DeviceLedger | OverBudget = DeviceLedger(Budget(cap, DELTA))
    for one in charges:
        assert isinstance(ledger, DeviceLedger)
        ledger = charge(ledger, one)
    return ledger


def test_rounds_of_all_runs_compose() -> None:
    many = [DeviceCharge(run, number, gaussian(2.0)) for run in "ab" for number in range(3)]
    assert spent(many, DELTA) == pytest.approx(epsilon({gaussian(2.0): 6}, DELTA))
    assert spent([*many, *many], DELTA) == spent(many, DELTA)
    assert spent([DeviceCharge("a", 0, gaussian(0.0)), *many], DELTA) == inf


def normal(x: float) -> float:
    return erfc(-x / sqrt(2.0)) / 2.0


def delta_of(mu: float, eps: float) -> float:
    """The delta of one Gaussian whose means are ``mu`` standard deviations apart (Balle and Wang 2018, theorem 8)."""
    return normal(mu / 2.0 - eps / mu) - exp(eps) * normal(-mu / 2.0 - eps / mu)


def smallest(delta_at: Callable[[float], float]) -> float:
    low, high = 0.0, 50.0
    while high - low > 1e-6:
        middle = (low + high) / 2.0
        low, high = (low, middle) if delta_at(middle) <= DELTA else (middle, high)
    return high


def test_different_neighbours_compose_at_one_delta() -> None:
    """Six kinds that are each nothing at this delta are not nothing together: each has all of delta for itself."""
    z = 1.0 / (2.0 * DELTA * sqrt(pi / 2.0)) * 1.01  # P[|N(0, 1)| < 1 / 2z], 99 % of delta
    kinds = [(neighbours, unit) for neighbours in get_args(Adjacency) for unit in get_args(Unit)]
    events = [PrivacyEvent("gaussian", neighbours, z=z, unit=unit) for neighbours, unit in kinds]
    assert [epsilon({event: 1}, DELTA) for event in events] == [0.0] * 6
    assert delta_of(sqrt(6.0) / z, 1e-12) > 2.0 * DELTA
    total = spent([DeviceCharge(str(n), 0, event) for n, event in enumerate(events)], DELTA)
    assert total == pytest.approx(smallest(lambda eps: delta_of(sqrt(6.0) / z, max(eps, 1e-12))), abs=2e-6)
    assert total > 0.0


@pytest.mark.slow
def test_noise_on_updates_and_on_steps_composes_as_by_hand() -> None:
    """One update with noise, 20 steps later one step of DP-SGD: delta integrated over what the step shows."""
    z, sigma, rate = 2.0, 1.5, 0.25
    y, mu = np.linspace(-14.0, 15.0, 3_001), 1.0 / (z / 2.0)
    without = np.exp(-((y / sigma) ** 2) / 2.0) / (sigma * sqrt(2.0 * pi))
    loss = np.log(1.0 - rate + rate * np.exp((2.0 * y - 1.0) / (2.0 * sigma**2)))

    def delta_at(eps: float) -> float:
        removed = np.trapezoid(without * np.exp(loss) * [delta_of(mu, eps - one) for one in loss], y)
        added = np.trapezoid(without * [delta_of(mu, eps + one) for one in loss], y)
        return float(max(removed, added))

    both = [DeviceCharge("a", 0, local(z)), DeviceCharge("b", 0, record_level(sigma, rate, 1))]
    total = spent(both, DELTA)
    assert delta_at(total) <= DELTA
    assert delta_at(total * 0.99) > DELTA
    assert total < sum(epsilon({one.event: 1}, DELTA) for one in both)


@pytest.mark.slow
def test_sampling_of_devices_amplifies_nothing_for_who_knows_that_it_took_part() -> None:
    rare = poisson(1.0, 0.001)
    assert spent([DeviceCharge("a", 0, rare)], DELTA) == pytest.approx(epsilon({rare.seen: 1}, DELTA))
    assert spent([DeviceCharge("a", 0, rare)], DELTA) > 3.0 > epsilon({rare: 1}, DELTA)


def test_correlated_noise_costs_once_a_run_and_covers_no_more_rounds_than_it_was_sized_for() -> None:
    event: PrivacyEvent = matrix(3.0, rounds=8, gap=2, takes=4)
    one = [DeviceCharge("a", number, event) for number in (0, 2, 4, 6)]
    assert spent(one, DELTA) == pytest.approx(epsilon({event: 1}, DELTA))
    assert spent([*one, DeviceCharge("a", 7, event)], DELTA) == inf
    two = [*one, *(DeviceCharge("b", number, event) for number in (1, 3))]
    assert spent(two, DELTA) == pytest.approx(epsilon({event: 2}, DELTA))


def test_a_round_is_charged_once_and_with_one_event() -> None:
    ledger = charged(DeviceCharge("a", 0, gaussian(2.0)))
    assert isinstance(ledger, DeviceLedger)
    assert charge(ledger, DeviceCharge("a", 0, gaussian(2.0))) is ledger
    assert isinstance(charge(ledger, DeviceCharge("a", 0, gaussian(3.0))), OverBudget)
    assert isinstance(charged(DeviceCharge("a", 0, gaussian(0.5)), cap=1.0), OverBudget)
