"""The disk space that models, blobs and token caches of other runs take on a device: bounded, and given back with time.

    sweep_device_folders(home, {run}, limit_bytes, age_s, now_s)      # a run that needs something again downloads or
    makes it again

A device's own state is not touched: codec memory, answered rounds, privacy ledger, personal models.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgewise.drivers.storage import files

RUNS, MODELS = "runs", "models"  # folders in the device's home
BLOBS, CACHE = "blobs", "cache"  # folders of a run
MODEL_OF = "model"  # file of a run with the name of its model's folder


@dataclass(frozen=True)
class _CachedFolder:
    path: Path
    used_s: float
    size_bytes: int


def note_model_use(folder: Path, model: str) -> None:
    """Note in a run's folder which folder of ``models`` it uses. Raises StoreError(E-DISK)."""
    files.write_durably(folder / MODEL_OF, model.encode(), owner_only=True)


def note_folders_used(*folders: Path) -> None:
    """Note that these folders are used now."""
    for folder in folders:
        with suppress(OSError):
            os.utime(folder)


def sweep_device_folders(
    home: Path, in_use: Collection[str], limit_bytes: float, age_s: float, now_s: float
) -> list[Path]:
    """Remove what no run in use needs: first what is too old, then the least recently used down to the limit.

    Args:
        in_use: names of the folders of runs that must stay, with their models. Runs that wait for a personal model
            keep their models too.
        limit_bytes: bytes that all models, blobs and caches may have together. What is in use counts, and stays.
        age_s: seconds after which what was not used goes.
    Returns:
        the removed paths. What the disk does not let go stays.
    """
    parts = sorted(_parts(home), key=lambda part: part.used_s)
    needed = {home / MODELS / name for name in _models(home, in_use)}
    total, removed = sum(part.size_bytes for part in parts), list[Path]()
    for part in parts:
        if part.path in needed or part.path.parent.name in in_use:
            continue
        if total > limit_bytes or now_s - part.used_s > age_s:
            _remove(part.path)
            if not part.path.exists():
                removed.append(part.path)
                total -= part.size_bytes
    return removed


def _parts(home: Path) -> Iterator[_CachedFolder]:
    found = [folder / name for folder in _listed(home / RUNS) for name in (BLOBS, CACHE)]
    for path in [*found, *_listed(home / MODELS)]:
        with suppress(OSError):  # It may go while this looks at it.
            sizes = [inner.stat().st_size for inner in (path, *path.rglob("*")) if inner.is_file()]
            yield _CachedFolder(path, path.stat().st_mtime, sum(sizes))


def _models(home: Path, in_use: Collection[str]) -> Iterator[str]:
    """Yield the names of the models that runs in use, and waiting personal models, need."""
    from edgewise.apps.device.personal import WANTED

    for folder in _listed(home / RUNS):
        if folder.name in in_use or (folder / WANTED).exists():
            with suppress(OSError, UnicodeDecodeError):
                yield (folder / MODEL_OF).read_text(encoding="ascii")


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        files.discard(path)
