"""Opening a run directory that must exist (a RunStore alone would begin an empty one)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgewise.core.errors import StoreError
from edgewise.drivers.store import RunStore


@contextmanager
def opened(run_dir: Path) -> Iterator[RunStore]:
    """The store of an existing run. Raises StoreError(E-RESUME) where there is none."""
    if not (run_dir / "run.db").is_file():
        raise StoreError("E-RESUME", f"there is no run in {run_dir}.", "give the folder that holds run.db.")
    with RunStore(run_dir) as store:
        if store.run() is None:
            raise StoreError("E-RESUME", f"the run in {run_dir} never began.", "start it again.")
        yield store
