"""Find the folder of a new run, and open the folder of an existing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.core.errors import StoreError
from edgewise.drivers.storage import folder
from edgewise.plan.recipe.recipe import Recipe

if TYPE_CHECKING:
    from edgewise.drivers.storage.run_store import RunStore


def place(recipe: Recipe, fresh: bool = False, resume: bool = False) -> Path:
    """Return the default folder of a recipe's run, ``runs/<name>-<hash>``.

    With ``fresh`` it is the first such folder without a run, or for resuming the last one with a run. Folders that
    edgewise did not make are then skipped.
    """
    first = Path("runs") / f"{recipe.name}-{recipe.sha256()[:8]}"
    if not fresh:
        return first
    taken, at = first, first
    number = 1
    while (foreign := folder.is_foreign_folder(at)) or (
        at / "recipe.toml"
    ).exists():  # The recipe is written when a run begins.
        taken, number = taken if foreign else at, number + 1
        at = first.with_name(f"{first.name}-{number}")
    return taken if resume else at


def free_run_folder(name: str) -> Path:
    """Return the first folder of this name that does not exist."""
    first = at = Path("runs") / name
    number = 1
    while at.exists():
        number += 1
        at = first.with_name(f"{first.name}-{number}")
    return at


@contextmanager
def opened(run_dir: Path) -> Iterator[RunStore]:
    """Open the store of an existing run. (``RunStore`` alone would make an empty one.)

    Raises StoreError(E-RESUME) for a folder without a run.
    """
    from edgewise.drivers.storage.run_store import RunStore

    if not ((run_dir / "run.db").is_file() and folder.made(run_dir)):
        raise StoreError("E-RESUME", f"there is no run in {run_dir}.", "give the folder that holds run.db.")
    with RunStore(run_dir) as store:
        if store.run() is None:
            raise StoreError("E-RESUME", f"the run in {run_dir} never began.", "start it again.")
        yield store
