"""Windows of the rig, of nodes and of the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.learn.vibration import windows
from edgewise.learn.vibration.recordings import read
from unit.learn.vibration.made_recordings import SAMPLES, recipe, recordings, write


def dealt(tmp_path: Path, changes: dict[str, Any] | None = None, **settings: Any) -> windows.DealtWindows:
    path = write(tmp_path / "a.npz", **(changes or {}))
    section = recipe(path, **settings).vibration
    return windows.dealt(read(path, section), section)


def ramp() -> Any:
    """Samples that tell their place: the windows of a square are all different."""
    return np.arange(SAMPLES, dtype=np.float32) ** 2


def test_windows_are_cut_in_time_and_no_sample_is_held_twice(tmp_path: Path) -> None:
    found = dealt(tmp_path, {"load-1/IR_7": ramp()})
    ir = 1
    held = [found.nodes[f"load-1-{i}"].sent for i in (0, 1)]
    own = [one.x[one.label == ir] for one in held]
    assert [len(one) for one in own] == [2, 2]  # 1,200 samples train: four windows of 256
    train = ramp()[:1200].astype(np.float64)
    for i, x in enumerate(np.concatenate(own)):
        cut = train[i * 256 : i * 256 + 256]
        np.testing.assert_allclose(x, (cut - cut.mean()) / cut.std(), atol=1e-5)
    test = found.tests["load-1"]
    later = ramp()[1200 + 128 : 1200 + 128 + 256].astype(np.float64)
    np.testing.assert_allclose(test.x[test.label == ir][0], (later - later.mean()) / later.std(), atol=1e-5)


def test_a_site_without_a_healthy_recording_holds_its_part_of_the_rigs(tmp_path: Path) -> None:
    found = dealt(tmp_path, {"rig/Normal": np.arange(4 * SAMPLES, dtype=np.float32) ** 2})
    healthy = 2
    firsts = [found.nodes[f"load-{site}-0"].sent for site in (1, 2)]
    one, other = (held.x[held.label == healthy] for held in firsts)
    assert len(one) == len(other) > 0
    assert not np.allclose(one[0], other[0])
    assert all((test.label == healthy).any() for test in found.tests.values())


def test_the_raw_bytes_are_those_of_the_windows_that_are_sent(tmp_path: Path) -> None:
    found = dealt(tmp_path)
    assert found.raw_bytes == sum(2 * 256 * len(held.sent.label) for held in found.nodes.values())
    assert found.nodes_of("load-2") == ["load-2-0", "load-2-1"]


def test_validation_reads_the_first_part_alone(tmp_path: Path) -> None:
    long = {name: np.tile(x, 2) for name, x in recordings().items()}
    validation = recipe(tmp_path / "a.npz").vibration.model_dump() | {"validation": True}
    settings: dict[str, Any] = {"vibration": validation}
    changed = np.concatenate([long["load-1/IR_7"][:2400], ramp()[:1600]])
    before, after = (dealt(tmp_path, long | one, **settings) for one in ({}, {"load-1/IR_7": changed}))
    np.testing.assert_array_equal(before.tests["load-1"].x, after.tests["load-1"].x)
    np.testing.assert_array_equal(before.nodes["load-1-1"].sent.x, after.nodes["load-1-1"].sent.x)


def test_recordings_that_are_too_short_or_stuck_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        dealt(tmp_path, {"load-2/IR_7": ramp()[:800]})
    assert caught.value.code == "E-DATA-EMPTY"
    assert "load-2/IR_7" in str(caught.value)
    stuck = ramp()
    stuck[300:900] = 5.0
    with pytest.raises(DataError, match="stuck"):
        dealt(tmp_path, {"load-2/IR_7": stuck})
