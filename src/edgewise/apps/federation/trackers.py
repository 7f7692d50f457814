"""Experiment trackers as callbacks: TensorBoard, Trackio, MLflow, Weights & Biases.

    fed = edgewise.Federation(recipe, data=data, callbacks=[edgewise.TensorBoard()])

None of these packages is a dependency of edgewise. A tracker imports its package when it is made. Without the package
it says how to install it. A tracker gets the figures of each round under their names in ``Round.metrics`` and
``callbacks.callback_figures``, and the settings of the recipe by dotted key.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from edgewise.apps.federation.callbacks import Callback, Started, callback_figures
from edgewise.apps.report.comparison import flat
from edgewise.apps.runs.rounds import Round
from edgewise.core.errors import EdgewiseError


def _tracker_package(name: str, who: str, install: str) -> Any:
    """Import a tracker's package. Raises EdgewiseError(E-DEPENDENCY) if it is missing."""
    try:
        return import_module(name)
    except ImportError:
        raise EdgewiseError("E-DEPENDENCY", f"{who} needs the package {install}.", f"pip install {install}.") from None


def _run_settings(run: Started) -> dict[str, Any]:
    """List the run's settings as a tracker takes them."""
    plain = flat(run.recipe.resolved())
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in plain.items()}


def _round_figures(round: Round) -> dict[str, float]:
    """List the figures of a round as numbers."""
    return {name: float(value) for name, value in callback_figures(round).items() if name != "round"}


class TensorBoard(Callback):
    """Write scalars for TensorBoard into ``folder``. None: into ``tensorboard`` in the run's folder."""

    def __init__(self, folder: str | Path | None = None) -> None:
        _tracker_package("tensorboard", "TensorBoard", "tensorboard")
        self._made = _tracker_package("torch.utils.tensorboard", "TensorBoard", "tensorboard").SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def begin(self, run: Started) -> None:
        """Open the log."""
        self._writer = self._made(str(self._folder or run.run_dir / "tensorboard"))
        settings = "\n".join(f"    {key} = {value}" for key, value in _run_settings(run).items())
        self._writer.add_text("recipe", settings)

    def __call__(self, round: Round) -> object:
        """Add the round's scalars."""
        if self._writer is not None:
            for name, value in _round_figures(round).items():
                self._writer.add_scalar(name, value, round.number)
        return None

    def end(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _ClientTracker(Callback):
    """Base of trackers with ``init``, ``log`` and ``finish``: Trackio, Weights & Biases."""

    def __init__(self, module: Any, project: str, options: dict[str, Any]) -> None:
        self._module, self._project, self._options = module, project, options
        self._run: Any = None

    def begin(self, run: Started) -> None:
        """Begin a run of the tracker, with the recipe as its configuration."""
        options = {"name": run.run_dir.name, "config": _run_settings(run), **self._options}
        self._run = self._module.init(project=self._project, **options)

    def __call__(self, round: Round) -> object:
        """Log the round's figures."""
        if self._run is not None:
            self._module.log(_round_figures(round), step=round.number)
        return None

    def end(self) -> None:
        """End the tracker's run."""
        if self._run is not None:
            self._module.finish()
            self._run = None


class Trackio(_ClientTracker):
    """Log to Trackio. ``options`` are further arguments of ``trackio.init``."""

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__(_tracker_package("trackio", "Trackio", "trackio"), project, options)


class WandB(_ClientTracker):
    """Log to Weights & Biases. ``options`` are further arguments of ``wandb.init``, such as ``mode="offline"``."""

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__(_tracker_package("wandb", "WandB", "wandb"), project, options)


class MLflow(Callback):
    """Log to MLflow. ``tracking_uri`` is its server or folder. None: as MLflow is set."""

    def __init__(self, experiment: str, tracking_uri: str | None = None) -> None:
        self._mlflow = _tracker_package("mlflow", "MLflow", "mlflow")
        self._experiment, self._uri, self._open = experiment, tracking_uri, False

    def begin(self, run: Started) -> None:
        """Begin a run of the experiment, with the recipe as its parameters."""
        if self._uri is not None:
            self._mlflow.set_tracking_uri(self._uri)
        self._mlflow.set_experiment(self._experiment)
        self._mlflow.start_run(run_name=run.run_dir.name)
        self._open = True
        self._mlflow.log_params({key: str(value)[:500] for key, value in _run_settings(run).items()})

    def __call__(self, round: Round) -> object:
        """Log the round's figures."""
        if self._open:
            self._mlflow.log_metrics(_round_figures(round), step=round.number)
        return None

    def end(self) -> None:
        """End the run."""
        if self._open:
            self._mlflow.end_run()
            self._open = False
