"""Files of recordings: both forms, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.learn.vibration.recordings import read
from unit.learn.vibration.made_recordings import STATES, recipe, recordings, write


def test_an_npz_and_a_csv_with_the_same_samples_are_read_alike(tmp_path: Path) -> None:
    held = {name: x[:20] for name, x in recordings().items()}
    held["load-1/IR_7"] = held["load-1/IR_7"][:15]
    np.savez(tmp_path / "a.npz", **held)
    rows = [",".join([*held, "rate_hz"])]
    for i in range(20):
        cells = [repr(float(x[i])) if i < len(x) else "" for x in held.values()]
        rows.append(",".join([*cells, "12000" if i == 0 else ""]))
    (tmp_path / "a.csv").write_text("\n".join(rows), encoding="utf-8")
    section = recipe(tmp_path / "a.npz").vibration
    one, other = read(tmp_path / "a.npz", section), read(tmp_path / "a.csv", section)
    assert one.fingerprint == other.fingerprint
    assert one.names == STATES
    assert len(other.sites["load-1"]["IR_7"][0]) == 15


def test_the_place_of_a_fault_does_not_count(tmp_path: Path) -> None:
    x = recordings()["rig/IR_7"]
    path = write(
        tmp_path / "a.npz", **{f"{site}/OR@{at}_7": x for site in ("rig", "load-1", "load-2") for at in (3, 6)}
    )
    found = read(path, recipe(path).vibration)
    assert "OR_7" in found.names
    assert len(found.sites["load-2"]["OR_7"]) == 2


NAN = np.array([0.0, np.nan] * 1000)
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"rate_hz": np.array(48000)}, "E-DATA-FORMAT", "48000 samples in a second"),
    ({"rate_hz": np.array("fast")}, "E-DATA-FORMAT", "rate_hz"),
    ({"rig/IR_7": NAN}, "E-DATA-FORMAT", "sample 1 is not finite"),
    ({"rig/IR_7": np.zeros((2, 9))}, "E-DATA-FORMAT", "[2, 9]"),
    ({"rig/IR_7": np.array(["a"])}, "E-DATA-FORMAT", "not numbers"),
    ({"noise": np.ones(9)}, "E-DATA-FORMAT", "SITE/FAULT"),
    ({"*/IR_7": np.ones(9)}, "E-DATA-FORMAT", "SITE/FAULT"),
    ({"load-1/IR_7": None}, "E-DATA-EMPTY", "no recording of the fault 'IR_7'"),
    ({"load-1/OR_7": np.ones(9)}, "E-DATA-EMPTY", "which the rig has not"),
    ({"rig/Normal": None}, "E-DATA-EMPTY", "no recording 'Normal'"),
    ({f"rig/{state}": None for state in STATES}, "E-DATA-EMPTY", "no recording of the rig 'rig'"),
]


@pytest.mark.parametrize(("changes", "code", "named"), REFUSED)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], code: str, named: str
) -> None:
    path = write(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError) as caught:
        read(path, recipe(path).vibration)
    assert caught.value.code == code
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rig/a,rig/a\n1,2\n", "same name"),
        ("rig/a,rig/b\n1,x\n", "could not convert"),
        ("rig/a,rig/b\n1,2,3\n", "3 cells"),
        ("rig/a,rig/b\n1,2\n,2\n1,2\n", "after an empty cell"),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="E-DATA-FORMAT") as caught:
        read(path, recipe(path).vibration)
    assert named in str(caught.value)


def test_files_that_are_missing_or_no_arrays_are_refused(tmp_path: Path) -> None:
    section = recipe(tmp_path / "a.npz").vibration
    with pytest.raises(DataError, match="E-DATA-MISSING"):
        read(tmp_path / "a.npz", section)
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="E-DATA-FORMAT"):
        read(tmp_path / "a.npz", section)
