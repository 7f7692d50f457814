"""Trackers call their packages as these document it, by recorded signatures of packages too large to install for tests.

TensorBoard is tested with its own package (``tests/e2e/test_sweep.py``). The functions below have the parameters of
Trackio 0.43, Weights & Biases 0.31 and MLflow 3.18 and refuse what those refuse: other arguments, and a wrong order.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import edgewise as ew
from edgewise.apps.federation.callbacks import Started
from edgewise.core.vector import Spec
from edgewise.plan.recipe.recipe import from_plain

Calls = list[tuple[str, dict[str, Any]]]
RECIPE = from_plain({"privacy": "none", "name": "toy", "stage": [{"kind": "clip", "l2": 1.0}]})


def _client(calls: Calls, wandb: bool) -> ModuleType:
    """A package with ``init``, ``log`` and ``finish``."""
    package, is_open = ModuleType("client"), [False]

    def begin(project: str | None, name: str | None, config: Any, mode: str | None) -> object:
        is_open[0] = True
        calls.append(("init", {"project": project, "name": name, "config": config, "mode": mode}))
        return object()

    def trackio_init(
        project: str, name: str | None = None, group: str | None = None, space_id: str | None = None,
        config: dict[str, Any] | None = None, resume: str = "never", embed: bool = True,
    ) -> object:  # fmt: skip
        return begin(project, name, config, None)

    def wandb_init(
        entity: str | None = None, project: str | None = None, dir: str | None = None, id: str | None = None,
        name: str | None = None, notes: str | None = None, tags: Any = None, config: dict[str, Any] | None = None,
        group: str | None = None, mode: str | None = None, resume: Any = None,
    ) -> object:  # fmt: skip
        return begin(project, name, config, mode)

    def logged(values: dict[str, Any], step: int | None) -> None:
        assert is_open[0], "log before init"
        calls.append(("log", {"values": values, "step": step}))

    def trackio_log(metrics: dict[str, Any], step: int | None = None) -> None:
        logged(metrics, step)

    def wandb_log(data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        logged(data, step)

    def finish() -> None:
        assert is_open[0], "finish before init"
        is_open[0] = False
        calls.append(("finish", {}))

    package.init = wandb_init if wandb else trackio_init  # type: ignore[attr-defined]
    package.log = wandb_log if wandb else trackio_log  # type: ignore[attr-defined]
    package.finish = finish  # type: ignore[attr-defined]
    return package


def _mlflow(calls: Calls) -> ModuleType:
    package = ModuleType("mlflow")

    def set_tracking_uri(uri: str | Path) -> None:
        calls.append(("set_tracking_uri", {"uri": uri}))

    def set_experiment(experiment_name: str | None = None, experiment_id: str | None = None) -> None:
        calls.append(("set_experiment", {"name": experiment_name}))

    def start_run(
        run_id: str | None = None, experiment_id: str | None = None, run_name: str | None = None, nested: bool = False
    ) -> None:
        calls.append(("start_run", {"name": run_name}))

    def log_params(params: dict[str, Any], synchronous: bool | None = None, run_id: str | None = None) -> None:
        calls.append(("log_params", params))

    def log_metrics(metrics: dict[str, float], step: int | None = None, synchronous: bool | None = None) -> None:
        calls.append(("log_metrics", {"values": metrics, "step": step}))

    def end_run(status: str = "FINISHED") -> None:
        calls.append(("end_run", {"status": status}))

    for function in (set_tracking_uri, set_experiment, start_run, log_params, log_metrics, end_run):
        setattr(package, function.__name__, function)
    return package


def _round(number: int) -> ew.Round:
    return ew.Round(
        number=number, met=True, metrics={"loss_last": 2.5}, contributions=3, lost={}, bytes_up=10, bytes_down=20,
        seconds=1.0, epsilon=0.5, code=None, digest="", spec=Spec.of([]), _read=lambda: None,  # type: ignore[arg-type]
    )  # fmt: skip


def _play(tracker: ew.Callback) -> None:
    tracker.begin(Started(Path("somewhere/out"), RECIPE, None))
    for number in range(2):
        assert tracker(_round(number)) is None, "a tracker never stops a run"
    tracker.end()
    tracker.end()  # A run that an error ended may end twice.


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_client_gets_the_recipe_and_each_round(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Calls = []
    monkeypatch.setitem(sys.modules, name, _client(calls, name == "wandb"))
    _play(ew.WandB("mine", mode="offline") if name == "wandb" else ew.Trackio("mine", group="first"))
    assert [call for call, _ in calls] == ["init", "log", "log", "finish"]
    begun, first, second = calls[0][1], calls[1][1], calls[2][1]
    assert (begun["project"], begun["name"]) == ("mine", "out")
    assert begun["mode"] == ("offline" if name == "wandb" else None)
    assert begun["config"]["round.rounds"] == RECIPE.round.rounds
    assert all(isinstance(value, bool | int | float | str) for value in begun["config"].values())
    assert (first["step"], second["step"]) == (0, 1)
    assert first["values"] | {"loss_last": 2.5, "epsilon": 0.5} == first["values"]
    assert all(type(value) is float for value in first["values"].values())


def test_mlflow_gets_the_recipe_and_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Calls = []
    monkeypatch.setitem(sys.modules, "mlflow", _mlflow(calls))
    _play(ew.MLflow("mine", tracking_uri="sqlite:///runs.db"))
    assert [call for call, _ in calls] == [
        "set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "log_metrics", "end_run",
    ]  # fmt: skip
    assert (calls[1][1]["name"], calls[2][1]["name"]) == ("mine", "out")
    assert calls[3][1]["training.lr"] == str(RECIPE.training.lr)
    assert all(len(value) <= 500 for value in calls[3][1].values()), "MLflow refuses longer parameters"
    assert all(set(key) <= set(_MLFLOW_KEYS) for key in calls[3][1]), "MLflow refuses other characters in a name"
    assert calls[4][1]["values"]["loss_last"] == 2.5
    assert [c[1]["step"] for c in calls[4:6]] == [0, 1]


_MLFLOW_KEYS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. :/"
