"""A torch module, a training loop and metrics of one's own: what they find reaches summary, report and rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

import edgewise as ew

pytestmark = pytest.mark.slow
RECIPE: dict[str, Any] = {
    "privacy": "none", "name": "flowers", "round": {"rounds": 3}, "data": {"holdout": 0.25},
    "training": {"local_steps": 10, "batch": 8, "lr": 0.5, "optimizer": "sgd"}, "eval": {"every": 1},
}  # fmt: skip


def points(device: int) -> Any:
    """Two classes on either side of one line; each device has them from another place."""
    import torch

    g = torch.Generator().manual_seed(device)
    x = torch.randn(40, 2, generator=g) + device
    return x, (x.sum(1) > 2).long()


def task(**more: Any) -> Any:
    import torch
    from torch.nn.functional import cross_entropy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Linear(2, 2)
    return ew.TorchTask(net, lambda net, batch: cross_entropy(net(batch[0]), batch[1]), {"accuracy": accuracy}, **more)


def accuracy(net: Any, held: Any) -> float:
    return sum(int(net(x[None]).argmax() == y) for x, y in held) / len(held)


def loop(net: Any, data: Any, round: Any) -> Any:
    """The same SGD as edgewise's, on all records at once."""
    import torch
    from torch.nn.functional import cross_entropy

    x, y = (torch.stack([record[i] for record in data]) for i in (0, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=round.lr)
    for _ in range(round.steps):
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        round.correct()
        optimizer.step()
    return net, len(data), {"loss": loss.detach(), "steps": round.steps}


def data() -> dict[str, Any]:
    import torch

    listed = list(zip(*points(1), strict=True))
    return {"a": points(0), "b": listed, "c": lambda: torch.utils.data.TensorDataset(*points(2))}


def test_a_classifier_learns_and_its_accuracy_is_everywhere(tmp_path: Path) -> None:
    import torch

    given = task()
    before = given.module.weight.detach().clone()
    fed = ew.Federation(RECIPE, model=given, data=data())
    assert fed.check(fast=True).facts["population"] == 3
    seen = [round.metrics for round in fed.rounds(tmp_path / "run")]
    assert all({"accuracy", "held_out_loss", "loss_last"} <= m.keys() for m in seen)
    run = ew.open_run(tmp_path / "run")
    assert torch.equal(given.module.weight, before), "a copy is trained"
    rows = [m for m in run.summary["simulator_metrics"] if m["model"] in ("base", "federated")]
    alone = [m for m in run.summary["simulator_metrics"] if m["model"] == "local_only"]
    assert [(m["model"], m["round"]) for m in rows] == [("base", -1), *[("federated", r) for r in range(3)]]
    assert [(m["round"], sorted(m["devices"])) for m in alone] == [(2, ["a", "b", "c"])]
    assert rows[-1]["mean"] == pytest.approx(sum(rows[-1]["devices"].values()) / 3)
    assert rows[-1]["mean"] > rows[0]["mean"]
    assert run.rounds.column("accuracy") == [m["accuracy"] for m in seen]
    trained = run.model(torch.nn.Linear(2, 2))
    assert accuracy(trained, list(zip(*points(1), strict=True))[30:]) == rows[-1]["devices"]["b"]
    with pytest.raises(ew.EdgewiseError, match="E-EXPORT"):
        run.model()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "accuracy by rounds played" in page
    assert (tmp_path / "run" / "plots" / "metrics.png").is_file()
    assert run.summary["complete"]
    assert msgspec.convert(run.summary, ew.Summary, strict=False) == run.summary, "the declared form has every key"
    assert ew.summary_schema()["$defs"]["Summary"]["required"]
    changed = {**data(), "b": points(3)}
    with pytest.raises(ew.EdgewiseError, match="E-RESUME: the data of 'b' changed"):
        ew.Federation(RECIPE, model=given, data=changed).run(tmp_path / "run", resume=True)
    with pytest.raises(ew.EdgewiseError, match="E-RESUME: the training loop is new"):
        ew.Federation(RECIPE, model=given, data=data(), loop=loop).run(tmp_path / "run", resume=True)


@pytest.mark.parametrize("kind", ["fedavg", "scaffold"])
def test_a_loop_of_ones_own_trains(tmp_path: Path, kind: str) -> None:
    fed = ew.Federation({**RECIPE, "compare": {"local_only": False, "centralised": False}}, model=task(loop=loop),
                        data=data(), strategy=kind)  # fmt: skip
    run = fed.run(tmp_path / "run")
    assert run.summary["simulator_metrics"][-1]["mean"] > run.summary["simulator_metrics"][0]["mean"]
    assert {m["name"] for m in run.summary["simulator_metrics"] if m["model"] == "training"} == {"loss", "steps"}
    assert run.rounds.column("train_steps") == [10.0] * 3
    assert run.model().weight.shape == (2, 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda net, data, round: net, "returned a Linear"),
        (lambda net, data, round: (net, 1, {}), "`loss` is not among them"),
        (lambda net, data, round: ({"weight": 0}, 1, {"loss": 1}), "names 1 tensors, the model has 2"),
        (lambda net, data, round: (net, -1, {"loss": 1}), "n = -1"),
    ],
)
def test_what_a_loop_may_not_give_costs_its_devices_the_round(tmp_path: Path, wrong: Any, said: str) -> None:
    fed = ew.Federation(RECIPE, model=task(loop=wrong), data=data())
    with pytest.raises(ew.EdgewiseError, match=f"E-ROUND.*E-TRAIN.*{said}"):
        fed.run(tmp_path / "run")


def test_objects_stay_in_one_process(tmp_path: Path) -> None:
    pool = {**RECIPE, "simulation": {"engine": "pool", "workers": 2}}
    with pytest.raises(ew.EdgewiseError, match=r"E-COMBO: .*pool.* the metric accuracy, .*the loss, .*inproc"):
        ew.Federation(pool, model=task(), data=data()).run(tmp_path / "run")


def test_with_an_epsilon_no_digest_of_data_is_shown(tmp_path: Path) -> None:
    recipe = {
        **RECIPE, "privacy": "central_dp", "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0},
        "compare": {"local_only": False, "centralised": False}, "round": {"rounds": 1, "sampling": "all"},
    }  # fmt: skip
    run = ew.Federation(recipe, model=task(), data=data()).run(tmp_path / "run")
    assert run.summary["facts"]["objects"] == {}
    assert all(m["devices"] == {} for m in run.summary["simulator_metrics"])
    assert run.devices.column("device") == ["a", "b", "c"]
