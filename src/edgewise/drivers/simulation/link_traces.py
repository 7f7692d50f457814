"""Measured links from a CSV file, for simulations.

Columns ``trace`` (any name) and ``mbit`` (megabit a second), in any order among others::

    trace,mbit
    bus-1,3.4
    bus-1,0.9
    hut-7,0.12

The rows of a trace are its samples in the order of the file, one for each round. Times of day are not used: a
simulation's clock starts at zero in every round, so that a resumed run has the same times.
"""

from __future__ import annotations

import csv
import hashlib
import io
from math import isfinite
from pathlib import Path

from edgewise.core.errors import DataError
from edgewise.core.foreign import foreign

Traces = tuple[tuple[float, ...], ...]  # megabit a second; sorted by the traces' names
COLUMNS = ("trace", "mbit")


def read_traces(path: Path) -> tuple[Traces, str]:
    """Read the traces of a file, and the SHA-256 of its bytes.

    Raises:
        DataError: E-DATA-MISSING. E-DATA-COLUMN. E-DATA-FORMAT where the file is not CSV in UTF-8, or a sample is not a
            finite number above 0. E-DATA-EMPTY.
    """
    with foreign(DataError, "E-DATA-MISSING", f"simulation.link_trace: {path}", "check the path."):
        raw = path.read_bytes()
    with foreign(DataError, "E-DATA-FORMAT", f"{path} is not CSV in UTF-8", "save it as CSV in UTF-8."):
        rows = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
        names = list(rows.fieldnames or ())
        table = [(row["trace"], row["mbit"], rows.line_num) for row in rows] if set(COLUMNS) <= set(names) else []
    if absent := [c for c in COLUMNS if c not in names]:
        what = f"{path} has no column {absent[0]}."
        raise DataError("E-DATA-COLUMN", what, "its first line must name the columns trace and mbit.")
    if twice := [c for c in COLUMNS if names.count(c) > 1]:
        what = f"{path}: the header names {twice[0]} more than once."
        raise DataError("E-DATA-FORMAT", what, "give every column a name of its own.")
    samples: dict[str, list[float]] = {}
    for trace, mbit, line in table:
        samples.setdefault(trace or "", []).append(_link_speed(mbit, f"{path}:{line}"))
    if not samples:
        raise DataError("E-DATA-EMPTY", f"{path} has no samples.", "give at least one row.")
    return tuple(tuple(samples[name]) for name in sorted(samples)), hashlib.sha256(raw).hexdigest()


def _link_speed(text: str | None, where: str) -> float:
    """Read a speed in Mbit/s. Raises DataError with the row."""
    if text is None:
        raise DataError("E-DATA-FORMAT", f"{where}: the row has no mbit.", "give a number of Mbit/s above 0.")
    try:
        mbit = float(text)
    except ValueError:
        mbit = 0.0
    if not (isfinite(mbit) and mbit > 0.0):
        raise DataError(
            "E-DATA-FORMAT", f"{where}: mbit = {text!r:.40} is no speed.", "give a number of Mbit/s above 0."
        )
    return mbit
