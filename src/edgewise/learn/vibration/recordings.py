"""Read recordings of vibration from a file, by site and fault.

    found = read(Path("bearings.npz"), recipe.vibration)
    found.sites["1772"]["IR_7"]                   # float32 recordings of this fault at this site

Two forms of file:

- ``npz`` of numpy, without pickles: an array [samples] for each recording, called SITE/FAULT.
- CSV with a first line: a column for each recording, called SITE/FAULT. Shorter columns end in empty cells.

A fault's name may have a place, which does not count: ``OR@6_7`` and ``OR@3_7`` are both ``OR_7``. An entry ``rate_hz``
with one number is compared with ``vibration.rate_hz``.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.foreign import foreign
from edgewise.core.safe_repr import outline
from edgewise.core.training import POOLED
from edgewise.core.vector import Array
from edgewise.plan.recipe.vibration import VibrationSection

RATE = "rate_hz"
MOST_SAMPLES = 1 << 31
_FIX = "write it in one of the two forms of `edgewise explain vibration`."
_PLACE = re.compile(r"@[^_]*")


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings of machines.

    Attributes:
        names: the faults and the healthy state, sorted.
        sites: site -> fault -> its recordings, float32[samples] each.
        fingerprint: SHA-256 of everything that the file says.
    """

    names: tuple[str, ...]
    sites: Mapping[str, Mapping[str, tuple[Array, ...]]]
    fingerprint: str

    __repr__ = outline


def read(path: Path, section: VibrationSection) -> Recordings:
    """Read a file of recordings.

    Raises:
        DataError: E-DATA-MISSING where there is no such file. E-DATA-FORMAT for another form, another rate, or samples
            that are not finite or all equal. E-DATA-EMPTY for a site that lacks a fault of the rig's, for a rig without
            healthy recordings, and where there is no rig or no other site.
    """
    if not path.is_file():
        raise DataError("E-DATA-MISSING", f"there is no file {path}.", "check data.path.")
    arrays = _columns(path) if path.suffix.lower() == ".csv" else _arrays(path)
    _check_rate(arrays.pop(RATE, None), path, section.rate_hz)
    digest = hashlib.sha256()
    sites: dict[str, dict[str, tuple[Array, ...]]] = {}
    for name, x in sorted(arrays.items()):
        site, slash, fault = name.partition("/")
        if not (site and slash and fault) or site == POOLED:
            raise DataError("E-DATA-FORMAT", f"{path} has {name!r:.60}, and a recording is called SITE/FAULT.", _FIX)
        x = _checked_recording(x, f"{path}: {name!r:.60}")
        digest.update(f"{name}\0{x.size}\0".encode() + x.tobytes())
        held = sites.setdefault(site, {})
        fault = _PLACE.sub("", fault)
        held[fault] = (*held.get(fault, ()), x)
    _check_sites(sites, path, section)
    return Recordings(tuple(sorted(sites[section.rig])), sites, digest.hexdigest())


def _arrays(path: Path) -> dict[str, Array]:
    """Read an ``npz`` file."""
    with (
        foreign(DataError, "E-DATA-FORMAT", str(path), _FIX),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as opened,
    ):
        return {name: np.asarray(opened[name]) for name in opened.files}


def _columns(path: Path) -> dict[str, Array]:
    """Read the columns of a CSV file."""
    with foreign(DataError, "E-DATA-FORMAT", str(path), _FIX), path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        names = [name.strip() for name in next(lines, [])]
        found: list[list[float]] = [[] for _ in names]
        for number, line in enumerate(lines, 2):
            if len(line) > len(names):
                raise ValueError(f"line {number} has {len(line)} cells, and the first line {len(names)}")
            for column, cell in zip(found, line, strict=False):
                if cell.strip():
                    if len(column) < number - 2:
                        raise ValueError(f"line {number}: a column goes on after an empty cell")
                    column.append(float(cell))
    if len(set(names)) < len(names):
        raise DataError("E-DATA-FORMAT", f"{path}: two columns have the same name.", _FIX)
    return {name: np.array(column, np.float32) for name, column in zip(names, found, strict=True)}


def _check_rate(given: Any, path: Path, rate_hz: float) -> None:
    """Refuse a file that says another rate."""
    if given is None:
        return
    if given.size != 1 or given.dtype.kind not in "iuf":
        raise DataError("E-DATA-FORMAT", f"{path}: {RATE!r} is not one number.", _FIX)
    if float(given.reshape(-1)[0]) != rate_hz:
        what = f"{path} has {float(given.reshape(-1)[0]):g} samples in a second, and vibration.rate_hz is {rate_hz:g}."
        raise DataError("E-DATA-FORMAT", what, "resample the recordings, or give their rate and a window that fits it.")


def _checked_recording(x: Array, where: str) -> Array:
    """Return a recording as float32. Raises DataError(E-DATA-FORMAT)."""
    if x.ndim != 1 or x.dtype.kind not in "iuf":
        raise DataError("E-DATA-FORMAT", f"{where} is {x.dtype}{list(x.shape)}, not numbers [samples].", _FIX)
    if x.size > MOST_SAMPLES:
        raise DataError("E-DATA-FORMAT", f"{where} has {x.size:,} samples, the most are {MOST_SAMPLES:,}.", _FIX)
    found = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(found).all():
        bad = int(np.flatnonzero(~np.isfinite(found))[0])
        raise DataError("E-DATA-FORMAT", f"{where}: sample {bad} is not finite.", "cut the recording before it.")
    return found


def _check_sites(sites: Mapping[str, Mapping[str, Any]], path: Path, section: VibrationSection) -> None:
    """Refuse sites that cannot be trained on the rig's faults. Raises DataError(E-DATA-EMPTY)."""
    rig, healthy = section.rig, section.healthy
    if rig not in sites:
        what = f"{path} has no recording of the rig {rig!r:.40}; its sites are {', '.join(sorted(sites)) or 'none'}."
        raise DataError("E-DATA-EMPTY", what, "name the site of the test rig in vibration.rig.")
    if healthy not in sites[rig]:
        what = f"{path}: the rig {rig!r:.40} has no recording {healthy!r:.40}, from which all sites learn health."
        raise DataError("E-DATA-EMPTY", what, "add one, or name it in vibration.healthy.")
    if len(sites) < 2 or len(sites[rig]) < 2:
        what = f"{path} has {len(sites)} sites and {len(sites[rig])} states of the rig's machine, and each needs two."
        raise DataError("E-DATA-EMPTY", what, "add recordings.")
    for site, held in sorted(sites.items()):
        if lacks := sorted(set(sites[rig]) - {healthy} - set(held)):
            what = f"{path}: site {site!r:.40} has no recording of the fault {lacks[0]!r:.40}, which the rig has."
            raise DataError("E-DATA-EMPTY", what, "add one, or leave out the fault or the site.")
        if strange := sorted(set(held) - set(sites[rig])):
            what = f"{path}: site {site!r:.40} has the fault {strange[0]!r:.40}, which the rig has not."
            raise DataError("E-DATA-EMPTY", what, "add a recording of the rig's, or leave it out.")
