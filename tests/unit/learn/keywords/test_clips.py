"""Files of clips, and who holds which clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.core.keys import root
from edgewise.learn.keywords.clips import Clips, dealt, of_one, public_of, read
from unit.learn.keywords.made_clips import WORDS, recipe, spectrograms, write


def rows(clips: Clips) -> set[bytes]:
    return {clip.tobytes() for clip in clips.x}


def test_each_clip_has_one_holder_and_the_seed_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.npz")
    section, clips = recipe(path).keywords, read(path)
    found = dealt(clips, section, root(1))
    assert sorted(found.devices) == [f"{word}-{home:02d}" for word in WORDS for home in (0, 1)]
    holders = [rows(found.public), rows(found.test), *(rows(held) for held in found.devices.values())]
    assert sum(map(len, holders)) == len(set().union(*holders)) == len(WORDS) * 14
    assert [len(found.public.label), len(found.test.label)] == [12, 12]
    assert all(set(held.label) == {WORDS.index(device[:-3])} for device, held in found.devices.items())
    assert rows(dealt(clips, section, root(1)).test) == rows(found.test)
    assert rows(dealt(clips, section, root(2)).test) != rows(found.test)


def test_clips_that_fill_no_home_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.npz", each=16)
    found = dealt(read(path), recipe(path).keywords, root(1))
    assert len(found.devices) == 6
    assert sum(len(held.label) for held in found.devices.values()) == 18


def owned(**changes: Any) -> dict[str, Any]:
    x = np.concatenate([spectrograms(i, 4, 1) for i in range(3)])
    arrays = {
        "x": x, "keyword": np.repeat(WORDS, 4), "owner": np.array(["", "ann", "ann", "test"] * 3),
        "test": np.array([False, False, False, True] * 3),
    }  # fmt: skip
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def test_a_file_with_owners_says_who_holds_which_clip(tmp_path: Path) -> None:
    np.savez(tmp_path / "clips.npz", **owned())
    clips = read(tmp_path / "clips.npz")
    found = dealt(clips, recipe(tmp_path).keywords, root(1))
    assert list(found.devices) == ["ann"]
    assert sorted(found.devices["ann"].label) == [0, 0, 1, 1, 2, 2]
    assert [len(found.public.label), len(found.test.label)] == [3, 3]


def test_a_device_has_all_clips_with_an_owner_and_numbers_keywords_as_the_model_does(tmp_path: Path) -> None:
    np.savez(tmp_path / "clips.npz", **owned())
    words = ("up", "other", "left", "down")
    clips = read(tmp_path / "clips.npz", words)
    found = of_one(clips, "phone")
    assert list(found.devices) == ["phone"]
    assert sorted(found.devices["phone"].label) == [0, 0, 2, 2, 3, 3]
    assert (found.public.names, sorted(found.public.label), len(found.test.label)) == (words, [0, 2, 3], 3)
    np.savez(tmp_path / "one.npz", up=spectrograms(2, 5, 1))
    alone = of_one(read(tmp_path / "one.npz", words), "phone")
    assert [len(alone.devices["phone"].label), len(alone.public.label), len(alone.test.label)] == [5, 0, 0]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "clips.npz", ("up", "left"))
    assert caught.value.code == "E-DATA-FORMAT"
    np.savez(tmp_path / "none.npz", **owned(owner=np.array([""] * 12)))
    with pytest.raises(DataError) as caught:
        of_one(read(tmp_path / "none.npz", words), "phone")
    assert caught.value.code == "E-DATA-EMPTY"


def test_whoever_trains_the_base_needs_public_clips_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.npz")
    section = recipe(path).keywords
    found = public_of(read(path), section, root(1))
    assert rows(found.public) == rows(dealt(read(path), section, root(1)).public)
    assert (found.devices, len(found.test.label)) == ({}, 0)
    np.savez(tmp_path / "owned.npz", **owned(owner=np.array([""] * 12), test=None))
    assert len(public_of(read(tmp_path / "owned.npz"), section, root(1)).public.label) == 12
    np.savez(tmp_path / "owned.npz", **owned(owner=np.array(["ann"] * 12)))
    with pytest.raises(DataError) as caught:
        public_of(read(tmp_path / "owned.npz"), section, root(1))
    assert caught.value.code == "E-DATA-EMPTY"


def test_bytes_stand_for_log_powers() -> None:
    x = np.array([[[0, 255]]], np.uint8)
    clips = Clips(("a", "b"), x, np.zeros(1, np.int64))
    np.testing.assert_allclose(clips.powers(), [[[-14.0, 8.0]]], rtol=1e-6)
    given = replace(clips, x=np.array([[[1.5, -2.0]]]))
    np.testing.assert_array_equal(given.powers(), np.array([[[1.5, -2.0]]], np.float32))


FORMS = [
    ("E-DATA-FORMAT", {"up": np.zeros((2, 3), np.uint8), "down": np.zeros((2, 3), np.uint8)}),
    ("E-DATA-FORMAT", {"up": np.zeros((2, 3, 4), np.int64), "down": np.zeros((2, 3, 4), np.int64)}),
    ("E-DATA-FORMAT", {"up": np.zeros((2, 3, 4), np.uint8), "down": np.zeros((2, 3, 5), np.uint8)}),
    ("E-DATA-FORMAT", {"up": np.zeros((2, 3, 4), np.uint8), "down": np.zeros((2, 3, 4), np.float32)}),
    ("E-DATA-FORMAT", {"up": np.full((2, 3, 4), np.nan), "down": np.zeros((2, 3, 4))}),
    ("E-DATA-FORMAT", {"up": np.zeros((2, 3, 4), np.uint8), "owner": np.array(["a"])}),
    ("E-DATA-EMPTY", {"up": np.zeros((2, 3, 4), np.uint8)}),
    ("E-DATA-FORMAT", owned(owner=None)),
    ("E-DATA-FORMAT", owned(keyword=np.arange(12))),
    ("E-DATA-FORMAT", owned(test=np.zeros(12))),
    ("E-DATA-FORMAT", owned(owner=np.array(["ann"]))),
    ("E-DATA-EMPTY", owned(owner=np.array(["ann"] * 12))),
    ("E-DATA-EMPTY", owned(owner=np.array([""] * 12))),
    ("E-DATA-EMPTY", owned(test=None)),
    ("E-DATA-FORMAT", owned(owner=np.array(["", "*", "*", "*"] * 3))),
]


@pytest.mark.parametrize(("code", "arrays"), FORMS)
def test_other_content_is_refused_by_name(tmp_path: Path, code: str, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "clips.npz", **arrays)
    with pytest.raises(DataError) as caught:
        dealt(read(tmp_path / "clips.npz"), recipe(tmp_path).keywords, root(1))
    assert caught.value.code == code


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file") as caught:
        read(tmp_path / "none.npz")
    assert caught.value.code == "E-DATA-MISSING"
    (tmp_path / "text.npz").write_text("no clips")
    np.savez(tmp_path / "objects.npz", up=np.array([{}], dtype=object), down=np.array([{}], dtype=object))
    for name in ("text.npz", "objects.npz"):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        assert caught.value.code == "E-DATA-FORMAT"
