"""Training code of a script (a task, a training loop, metrics), and the trainer that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.apps.federation.digest import digest
from edgewise.apps.report.summary_types import RoundRow
from edgewise.core.errors import DataError, RecipeError
from edgewise.core.metric import BUILT_IN
from edgewise.plan.catalogue import Extension
from edgewise.plan.objects import NO_OBJECTS, Objects
from edgewise.plan.recipe.recipe import Recipe

if TYPE_CHECKING:
    from edgewise.learn.task import TorchTask

_ROUND_FIGURES = frozenset({*RoundRow.__annotations__, *BUILT_IN, "perplexity", "held_out_loss"})


@dataclass(frozen=True)
class OwnTraining:
    """The training code that a federation was given.

    Attributes:
        task: the task, with the loop and all metrics in it. None: a language model is trained.
        data: the data of the task's devices.
        loop, metrics: as given to ``Federation``.
    """

    task: TorchTask | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    loop: Any = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def objects(self, recipe_dir: Path, run_dir: Path) -> Objects:
        """Make the trainer an extension, with the digests of all objects that it uses.

        Args:
            recipe_dir: the folder that relative paths of the recipe start from.
            run_dir: the folder that gets a cache of tokenized text.
        """
        if self.task is None and self.loop is None and not self.metrics:
            return NO_OBJECTS
        own = {"the training loop": self.loop} if self.loop is not None else {}
        own |= {f"the metric {name}": metric for name, metric in self.metrics.items()}
        trainer = self._text_trainer(recipe_dir, run_dir)
        data: Mapping[str, Any] = {}
        if self.task is not None:
            own |= {"the module": self.task.module, "the loss": self.task.loss, "collate": self.task.collate}
            data = {f"the data of {device!r}": given for device, given in self.data.items()}
            trainer = self._task_trainer
        digests = {**{n: digest(one) for n, one in own.items()}, **{n: _records_digest(one) for n, one in data.items()}}
        modules = {getattr(one, "__module__", None) or type(one).__module__ for one in own.values()}
        listed = tuple(sorted(m for m in modules if not m.startswith(("edgewise.", "torch."))))
        return Objects(Extension(trainer=trainer), digests, listed, tuple(own))

    def _task_trainer(self, recipe: Recipe) -> Any:
        from edgewise.learn.task import TaskTrainer

        assert self.task is not None
        return TaskTrainer(self.task, self.data, recipe)

    def _text_trainer(self, recipe_dir: Path, run_dir: Path) -> Callable[[Recipe], Any]:
        def make(recipe: Recipe) -> Any:
            from edgewise.learn.text import trainer as text
            from edgewise.learn.text.own_text import own_text_work

            engine = recipe.engine.on_cpu("your own loop or metrics")
            made = text.make(recipe.model_copy(update={"engine": engine}), recipe_dir, run_dir / "cache")
            made.own = own_text_work(made, self.loop, self.metrics)
            return made

        return make


def _records_digest(given: Any) -> str:
    """Compute the digest of a device's records.

    A dataset that reads files counts by its records, not by their paths.
    """
    if callable(given) and not hasattr(given, "__getitem__"):
        given = given()
    if isinstance(given, list | tuple) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        return digest(given)
    tensors = getattr(given, "tensors", None)  # A TensorDataset has them.
    return digest([digest(given[i]) for i in range(len(given))] if tensors is None else tensors)


def check_names(metrics: Iterable[str], recipe: Recipe) -> None:
    """Refuse a simulator metric whose name means another figure of a round.

    A round shows the figures of all kinds side by side. Two figures of one name would overwrite each other.

    Raises RecipeError(E-EXTENSION): for a name of a ``[[metric]]``, of a built-in figure, or of a column of a round.
    """
    declared = {one.name for one in recipe.metric}
    for name in metrics:
        if name in declared:
            what = f"{name} is a simulator metric (metrics=) and a [[metric]] of the recipe."
            fix = "name them apart: the simulator measures metrics= exactly, a [[metric]] travels with bounds."
            raise RecipeError("E-EXTENSION", what, fix)
        if name in _ROUND_FIGURES:
            what = f"{name} is a figure that every round has already."
            raise RecipeError("E-EXTENSION", what, "give the simulator metric another name.")


def own_training_code(model: Any, data: Mapping[str, Any] | None, loop: Any, metrics: Mapping[str, Any]) -> OwnTraining:
    """Collect the training code that a federation was given.

    Raises:
        RecipeError(E-EXTENSION): for a loop or a metric that cannot be called, and for two metrics of one name.
        DataError(E-DATA-EMPTY): for a task without data.
    """
    for name, one in {**metrics, **({"loop": loop} if loop is not None else {})}.items():
        if not callable(one):
            raise RecipeError(
                "E-EXTENSION", f"{name} is a {type(one).__name__}, which cannot be called.", "give a function."
            )
    if type(model).__name__ != "TorchTask":  # A name suffices, and torch is not imported for it.
        return OwnTraining(loop=loop, metrics=metrics)
    from edgewise.learn.task import TorchTask

    assert isinstance(model, TorchTask)
    if data is None:
        raise DataError("E-DATA-EMPTY", "a task needs data.", 'give data={"alice": dataset, ...}.')
    if twice := sorted(set(metrics) & set(model.metrics)):
        raise RecipeError("E-EXTENSION", f"two metrics are called {twice[0]}.", "give one another name.")
    every = {**model.metrics, **metrics}
    task = replace(model, metrics=every, loop=loop or model.loop)
    return OwnTraining(task, data, task.loop, every)
