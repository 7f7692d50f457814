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
    """``runs/<name>-<hash>``; with ``fresh`` the first such folder without a run (or, to resume, the last with one).

    With ``fresh``, folders that edgewise did not make are passed over.
    """
    first = Path("runs") / f"{recipe.name}-{recipe.sha256()[:8]}"
    if not fresh:
        return first
    taken, at = first, first
    number = 1
    while (foreign := folder.foreign(at)) or (at / "recipe.toml").exists():  # written when a run begins, not before
        taken, number = taken if foreign else at, number + 1
        at = first.with_name(f"{first.name}-{number}")
    return taken if resume else at


def free(name: str) -> Path:
    """The first folder of this name that is not there."""
    first = at = Path("runs") / name
    number = 1
    while at.exists():
        number += 1
        at = first.with_name(f"{first.name}-{number}")
    return at


@contextmanager
def opened(run_dir: Path) -> Iterator[RunStore]:
    """The store of an existing run (a RunStore alone would begin an empty one).

    Raises StoreError(E-RESUME) where there is none.
    """
    from edgewise.drivers.storage.run_store import RunStore

    if not ((run_dir / "run.db").is_file() and folder.made(run_dir)):
        raise StoreError("E-RESUME", f"there is no run in {run_dir}.", "give the folder that holds run.db.")
    with RunStore(run_dir) as store:
        if store.run() is None:
            raise StoreError("E-RESUME", f"the run in {run_dir} never began.", "start it again.")
        yield store
