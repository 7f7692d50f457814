"""A device's privacy budget over all its runs: charged before a frame leaves, and kept on the disk."""

from __future__ import annotations

import json
from functools import partial
from math import inf
from pathlib import Path

import pytest
from invited import invitation
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.core import frame, vector
from edgewise.core.errors import StoreError
from edgewise.drivers.device_ledgers import FileLedgers
from edgewise.drivers.device_store import FileDevices
from edgewise.drivers.devices import Devices
from edgewise.drivers.following import Downloads
from edgewise.drivers.identities import simulated_root, simulated_secrets, simulated_trust
from edgewise.engine.owner_budget import OwnerBudget
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.privacy.accountant import COARSE, epsilon
from edgewise.privacy.device_ledger import DeviceCharge, DeviceLedger, charge, spent
from edgewise.privacy.ledger import Budget, Refused
from edgewise.privacy.spend import Event, gaussian, local, matrix, poisson, record_level

DELTA = 1e-6
LOCAL = {
    "privacy": "local_dp", "metrics": "none", "stage": [], "merge": {"kind": "sum"}, "dp.noise_multiplier": 4.0,
    "dp.delta": 1e-5, "dp.clip_l2": 4.0, "round.rounds": 3,
}  # fmt: skip
MASKED = {**LOCAL, "privacy": "distributed_dp", "merge": {"kind": "secure_sum"}, "round.minimum": 0.75}
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
        self.devices = Devices(
            self.plan, registered(trainer), FileDevices(folder / name, self.plan.run), downloads, simulated_trust(root),
            partial(simulated_secrets, self.plan, root), budget=budget,
        )  # fmt: skip

    def asked(self, number: int) -> frame.Message:
        nonce = bytes([number]) * 32 if self.plan.hides else b""
        invite = invitation(self.plan, number, self.model, accepted=number - 1, nonce=nonce)
        raw = self.devices.answer("d00001", frame.dump(invite)).frame
        assert raw is not None
        return frame.load(raw)


def refused(message: frame.Message) -> str:
    return message.code if isinstance(message, frame.Refusal) else ""


@pytest.mark.parametrize(
    ("settings", "sent"), [(LOCAL, frame.Contribution), (MASKED, frame.Step)], ids=["local", "masks"]
)
def test_the_second_run_is_refused_in_the_middle(tmp_path: Path, settings: dict[str, object], sent: type) -> None:
    """The first run takes all its rounds. Of the second, the cap allows one; asked again, that round stays free."""
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
        before = budget.spent("d00001")
        answer = second.asked(1)
        assert refused(answer) == "E-BUDGET"
        assert isinstance(answer, frame.Refusal)
        assert "first" not in answer.reason, "a server learns nothing of other runs"
        assert budget.spent("d00001") == before <= cap.epsilon
        assert [(c.run, c.round) for c in ledgers.charges("d00001")] == [
            *((first.plan.run, number) for number in range(3)), (second.plan.run, 0),
        ]  # fmt: skip
        assert ledgers.charges("d00002") == ()
        assert budget.refusal("d00001", second.plan, 0) == "", "a round that is charged may be asked for again"
        assert budget.refusal("d00002", second.plan, 1) == "", "another device has its own"


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
            patch.setattr("edgewise.drivers.device_ledgers.os.fsync", full)
            with pytest.raises(StoreError, match="E-DISK"):
                run.asked(0)
        assert run.devices.store.load("d00001") is None, "nothing has left, so nothing is answered"


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


def charged(*charges: DeviceCharge, cap: float = 1e6) -> DeviceLedger | Refused:
    ledger: DeviceLedger | Refused = DeviceLedger(Budget(cap, DELTA))
    for one in charges:
        assert isinstance(ledger, DeviceLedger)
        ledger = charge(ledger, one)
    return ledger


def test_rounds_of_all_runs_compose_and_kinds_of_neighbours_are_added_up() -> None:
    many = [DeviceCharge(run, number, gaussian(2.0)) for run in "ab" for number in range(3)]
    assert spent(many, DELTA) == pytest.approx(epsilon({gaussian(2.0): 6}, DELTA))
    assert spent([*many, *many], DELTA) == spent(many, DELTA)
    one, two, three = gaussian(2.0), local(9.0), record_level(1.0, 0.01, 5)
    mixed = [DeviceCharge("a", 0, one), DeviceCharge("b", 0, two), DeviceCharge("c", 0, three)]
    total = sum(epsilon({event: 1}, DELTA, COARSE) for event in (one, two, three))
    assert spent(mixed, DELTA) == pytest.approx(total)


def test_sampling_of_devices_amplifies_nothing_for_who_knows_that_it_took_part() -> None:
    rare = poisson(1.0, 0.001)
    assert spent([DeviceCharge("a", 0, rare)], DELTA) == pytest.approx(epsilon({rare.seen: 1}, DELTA))
    assert spent([DeviceCharge("a", 0, rare)], DELTA) > 3.0 > epsilon({rare: 1}, DELTA)


def test_correlated_noise_costs_once_a_run_and_covers_no_more_rounds_than_it_was_sized_for() -> None:
    event: Event = matrix(3.0, rounds=8, gap=2, takes=4)
    one = [DeviceCharge("a", number, event) for number in (0, 2, 4, 6)]
    assert spent(one, DELTA) == pytest.approx(epsilon({event: 1}, DELTA))
    assert spent([*one, DeviceCharge("a", 7, event)], DELTA) == inf
    two = [*one, *(DeviceCharge("b", number, event) for number in (1, 3))]
    assert spent(two, DELTA) == pytest.approx(epsilon({event: 2}, DELTA))


def test_a_round_is_charged_once_and_with_one_event() -> None:
    ledger = charged(DeviceCharge("a", 0, gaussian(2.0)))
    assert isinstance(ledger, DeviceLedger)
    assert charge(ledger, DeviceCharge("a", 0, gaussian(2.0))) is ledger
    assert isinstance(charge(ledger, DeviceCharge("a", 0, gaussian(3.0))), Refused)
    assert isinstance(charged(DeviceCharge("a", 0, gaussian(0.5)), cap=1.0), Refused)
