"""Files of split learning's sessions: what a round makes of them, and what is missing or damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.core.errors import StoreError
from edgewise.core.vector import Vector
from edgewise.drivers.storage.split_sessions import SessionFiles, SimulatedRest
from edgewise.engine.split_rest import SessionResult

START = np.zeros(3, np.float32)


def rest(*x: float) -> Vector:
    return np.array(x, np.float32)


def ended(folder: Path, in_turn: bool = False) -> SessionFiles:
    """Three devices of unequal text end their sessions in round 2."""
    files = SessionFiles(folder, in_turn)
    files.use(2, START)
    for device, count, x in (("b", 100.0, 1.0), ("a", 300.0, 2.0), ("c", 9000.0, 5.0)):
        begun = files.begin(2, device)
        files.end(2, device, SessionResult(begun + rest(x, 0, x) if in_turn else rest(x, 0, x), count, 4, 1000, 500))
    return files


def closed(folder: Path, kind: str, cap: float | None, accepted: tuple[str, ...], met: bool = True) -> Vector:
    keeper = SimulatedRest(folder, START, kind, cap, lambda round, x: None)
    return keeper.closed(2, START, accepted, met)[0]


def test_copies_are_averaged_with_the_weights_of_the_updates(tmp_path: Path) -> None:
    ended(tmp_path)
    assert closed(tmp_path, "each", 300.0, ("a", "b", "c")).tolist() == pytest.approx([22 / 7, 0, 22 / 7])
    assert closed(tmp_path, "each", None, ("a", "b")).tolist() == [1.5, 0, 1.5]
    assert closed(tmp_path, "each", 300.0, ("a",)).tolist() == [2, 0, 2]
    assert np.array_equal(closed(tmp_path, "each", 300.0, ("a", "b"), met=False), START)
    assert np.array_equal(closed(tmp_path, "frozen", None, ("a", "b")), START)


def test_sessions_in_turn_begin_where_the_one_before_ended_also_when_repeated(tmp_path: Path) -> None:
    files = ended(tmp_path, in_turn=True)
    assert closed(tmp_path, "in_turn", None, ("a",)).tolist() == [8, 0, 8]
    assert files.begin(2, "a").tolist() == [1, 0, 1]
    assert files.begin(2, "b").tolist() == [0, 0, 0]
    assert files.begin(2, "new").tolist() == [8, 0, 8]


def test_the_bytes_of_all_sessions_are_told(tmp_path: Path) -> None:
    ended(tmp_path)
    told = SimulatedRest(tmp_path, START, "each", None, lambda round, x: None).closed(2, START, ("a",), True)[1]
    assert [(e.device, e.steps, e.bytes_up, e.bytes_down) for e in told] == [(d, 4, 1000, 500) for d in "abc"]


@pytest.mark.parametrize("kind", ["each", "in_turn"])
def test_what_is_missing_damaged_or_of_another_round_is_refused(tmp_path: Path, kind: str) -> None:
    files = ended(tmp_path, kind == "in_turn")
    with pytest.raises(StoreError) as missing:
        closed(tmp_path, kind, None, ("a", "d"))
    assert missing.value.code == "E-CHECKPOINT"
    assert "the session of 'd' in round 2" in missing.value.what
    with pytest.raises(StoreError) as other:
        files.begin(3, "a")
    assert other.value.code == "E-CHECKPOINT"
    for path in (tmp_path / "split" / "000002").glob("*"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError) as damaged:
        closed(tmp_path, kind, None, ("a",))
    assert damaged.value.code == "E-CHECKPOINT"


def test_activations_are_kept_for_one_version_of_a_part_and_over_rounds(tmp_path: Path) -> None:
    files = ended(tmp_path)
    assert files.cached("a", b"1" * 32) is None
    files.cache("a", b"1" * 32, [b"one", b"", b"three"])
    SimulatedRest(tmp_path, START, "frozen", None, lambda round, x: None).use(3, START)
    assert files.cached("a", b"1" * 32) == [b"one", b"", b"three"]
    assert files.cached("a", b"2" * 32) is None
    assert not files.ended(2, "a"), "sessions of other rounds are gone"
