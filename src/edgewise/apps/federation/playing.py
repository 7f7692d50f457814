"""Progress and events of a federation's run while it is played."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from edgewise.apps.runs.rounds import Round, round_of_event
from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.core.vector import Spec
from edgewise.drivers.storage import folder
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.recipe import Recipe


class Heard:
    """An event sink that collects the figures of the latest round."""

    def __init__(self, run_dir: Path) -> None:
        self.started: events.RunStarted | None = None
        self._run_dir, self._lost = run_dir, dict[str, str]()
        self._finished: events.RoundFinished | None = None
        self._measured: dict[str, float] = {}

    def __call__(self, event: events.AnyEvent) -> None:
        match event:
            case events.RunStarted():
                self.started = event
            case events.RoundStarted():
                self._lost, self._measured = {}, {}
            case events.Lost():
                self._lost[event.device] = event.code
            case events.RoundFinished():
                self._finished = event
            case events.Evaluated(model="federated" | "base") if event.nll:
                tokens = sum(event.tokens.values())
                self._measured["held_out_loss"] = math.fsum(event.nll.values()) / tokens if tokens else math.inf

            case events.OwnMeasured(model="federated" | "training"):
                front = "train_" if event.model == "training" else ""
                for name, each in event.metrics.items():
                    self._measured[front + name] = math.fsum(each.values()) / len(each)

    def round(self, spec: Spec) -> Round:
        """Return the latest round, with its held-out loss and simulator metrics where they were measured."""
        assert self._finished is not None  # Each step of the run is a round.
        found = round_of_event(self._finished, self._lost, spec, self._run_dir)
        found.metrics.update(self._measured)
        return found


class Shown:
    """A context that shows the progress of a run on standard error and yields its sinks."""

    def __init__(self, recipe: Recipe) -> None:
        from edgewise.apps.terminal.progress import ProgressScreen

        self._progress = ProgressScreen(recipe, sys.stderr, quiet=False)

    def __enter__(self) -> tuple[Callable[[events.AnyEvent], None], ...]:
        return (self._progress.__enter__(),)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, traceback)


def wants_progress(asked: bool | None) -> bool:
    """Decide whether to show progress: as asked, or else on a terminal and in a notebook."""
    return (sys.stderr.isatty() or "ipykernel" in sys.modules) if asked is None else asked


def has_run(run_dir: Path) -> bool:
    """Tell whether a run has begun in the folder. Raises StoreError as ``RunStore``."""
    if not (run_dir / "run.db").is_file():
        return False
    with RunStore(run_dir) as store:
        return store.run() is not None


def remove(run_dir: Path) -> None:
    """Remove a run's folder.

    Raises:
        StoreError: E-FOLDER for a folder that edgewise did not make. E-RUN-EXISTS while another process works in it.
    """
    if folder.is_foreign_folder(run_dir):
        folder.claim(run_dir)  # This refuses with the reason.
    has_run(run_dir)
    try:
        shutil.rmtree(run_dir)
    except FileNotFoundError:
        return
    except OSError as e:
        raise StoreError("E-DISK", f"cannot remove {run_dir}: {e.strerror}.", "choose another out.") from None
