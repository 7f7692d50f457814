"""Windows of time, and replay of earlier ones: a round trains its window, and what is replayed never is later text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from edgewise.core.errors import DataError, RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import POOLED, FitRequest
from edgewise.core.vector import Array
from edgewise.learn.text.corpus import load
from edgewise.learn.text.stream import StreamShard, WindowShard, unreached
from edgewise.learn.text.trainer import TextTrainer, make
from edgewise.plan.recipe.recipe import DataSection, from_plain
from edgewise.plan.recipe.sections import TrainingSection

BATCH = 8
TRAINING = TrainingSection(batch=BATCH, local_steps=3)


def rows(name: str, times: list[object]) -> list[dict[str, object]]:
    """Rows of a device, whose text tells them apart."""
    return [
        {"who": name, "at": t, "text": f"{name} saw {t}: " + f"number {i} of them " * 6} for i, t in enumerate(times)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    table = rows("ann", [*[0.5] * 6, *[1] * 6, *[2] * 6, *[4] * 6]) + rows("bob", [2] * 8) + rows("cat", [-7] * 8)
    (folder / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in np.random.default_rng(1).permutation(table)))
    return folder


def trainer(place: Path, **data: object) -> TextTrainer:
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {
            "source": "jsonl", "path": "t.jsonl", "owner": "who", "time": "at", "sequence_len": 16, "holdout": 0.2,
            "stream": True, "window": 1.0, "window_start": "0", "window_rounds": 2, **data,
        },
        "round": {"rounds": 10},
        "training": {"batch": BATCH, "lr": 0.01, "local_steps": 3},
        "eval": {"max_tokens": 64},
    }  # fmt: skip
    return make(from_plain(plain), place, place / "cache")


def shard_of(t: TextTrainer, device: str) -> StreamShard:
    shard = t.text(device)
    assert isinstance(shard, StreamShard)
    return shard


def taken(shard: WindowShard, key: int = 0) -> list[list[tuple[int, ...]]]:
    """The blocks of each step."""
    return [[tuple(row) for part, _ in step for row in part.tolist()] for step in shard.batches(3, TRAINING, root(key))]


def as_rows(blocks_NS: Array) -> set[tuple[int, ...]]:
    """Blocks as the loss gets them: full ones are as they are."""
    return {tuple(row) for row in blocks_NS.tolist()}


def test_a_round_trains_on_its_window_alone(place: Path) -> None:
    shard = shard_of(trainer(place), "ann")
    assert shard.blocks.windows_V3[:, 0].tolist() == [0, 1, 2, 4]
    for round, window in [(0, 0), (1, 0), (2, 1), (5, 2), (8, 4), (99, 4)]:
        own = as_rows(shard.window(window).blocks.train_NS)
        at = shard.at("ann", round, root(0))
        assert {row for step in taken(at) for row in step} <= own
        assert at.count == shard.window(window).count
        assert all(len(step) == min(BATCH, at.size) for step in taken(at))


def test_a_silent_device_goes_on_with_its_latest_window_and_none_begins_before_its_text(place: Path) -> None:
    t = trainer(place)
    ann, bob, cat = (shard_of(t, name) for name in ("ann", "bob", "cat"))
    assert taken(ann.at("ann", 6, root(0))) == taken(ann.at("ann", 5, root(0)))  # Window 3 has no text of hers.
    assert cat.at("cat", 0, root(0)).size == cat.window(0).size  # Earlier rows belong to the first window.
    with pytest.raises(DataError, match=r"E-DEVICE-DATA: device 'bob' has no text up to window 1"):
        bob.at("bob", 3, root(0))
    assert bob.at("bob", 4, root(0)).size


def test_no_block_has_text_of_two_windows_and_each_window_holds_out(place: Path) -> None:
    t = trainer(place)
    shard = shard_of(t, "ann")
    for window, time in [(0, "0.5"), (1, "1"), (2, "2"), (4, "4")]:
        blocks = shard.window(window).blocks
        assert len(blocks.train_NS)
        assert len(blocks.held_NS)
        ids = np.concatenate([blocks.train_NS, blocks.held_NS]).ravel()
        text = t.loaded.tokens.decode(np.where(ids < 0, ~ids, ids).tolist())
        assert f"saw {time}:" in text
        assert not [other for other in ("0.5", "1", "2", "4") if other != time and f"saw {other}:" in text]


def test_replay_is_bounded_drawn_from_earlier_windows_and_by_the_secret(place: Path) -> None:
    shard = shard_of(trainer(place, replay=4, replay_share=0.25), "ann")
    assert not len(shard.at("ann", 0, root(0)).replayed())  # Nothing was before.
    at = shard.at("ann", 8, root(0))
    before = shard.blocks.windows_V3[2, 1]
    old = at.replayed()
    assert len(set(old.tolist())) == 4
    assert (old < before).all()
    pool = as_rows(shard.blocks.train_NS[old])
    own = as_rows(shard.window(4).blocks.train_NS)
    for step in taken(at):
        assert len(step) == BATCH
        assert sum(row in pool for row in step) >= 2
        assert all(row in pool or row in own for row in step)
    assert taken(shard.at("ann", 8, root(0))) == taken(at)
    again = shard.at("ann", 8, root(1)).replayed()
    assert again.tolist() != old.tolist()
    draws = np.bincount(np.concatenate([shard.at("ann", 8, root(s)).replayed() for s in range(600)]), minlength=before)
    expected = 600 * 4 / before
    assert abs(draws - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.slow
def test_the_weight_is_the_windows_and_the_update_depends_on_the_secret_only_with_replay(place: Path) -> None:
    def fit(t: TextTrainer, secret: int, round: int = 4) -> tuple[float, bytes]:
        request = FitRequest("ann", round, t.initial(), LocalRule(steps=3, lr=0.01), root(0), root(secret))
        update = t.fit(request)
        return update.count, update.x.tobytes()

    bare, full = trainer(place), trainer(place, replay=4)
    assert fit(bare, 0) == fit(bare, 1)
    assert fit(full, 0) == fit(full, 0) != fit(full, 1)
    assert fit(full, 0)[0] == fit(bare, 0)[0] == shard_of(bare, "ann").window(2).count
    assert fit(full, 0, round=0) == fit(bare, 0, round=0)


def test_measurements_are_of_all_windows_alike_and_the_pool_has_all_text(place: Path) -> None:
    t = trainer(place)
    shard = shard_of(t, "ann")
    measured = t.evaluate("ann", t.initial())
    each = [min(16, shard.window(w).blocks.held_tokens) for w in (0, 1, 2, 4)]
    assert measured.tokens == sum(each)
    update = t.fit(FitRequest(POOLED, 0, t.initial(), LocalRule(steps=1, lr=0.01), root(0), root(0)))
    assert update.count == sum(t.text(d).count for d in t.devices())


def test_the_blocks_come_from_the_cache_and_change_with_the_windows(place: Path) -> None:
    first, again = (shard_of(trainer(place), "ann").blocks for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert isinstance(a, np.memmap)
        np.testing.assert_array_equal(a, b)
    wide = shard_of(trainer(place, window=2.0), "ann").blocks
    assert wide.windows_V3[:, 0].tolist() == [0, 1, 2]


def windows(folder: Path, times: list[object], start: str, length: float, **more: object) -> list[int | None]:
    """The window of each row."""
    path = folder / "w.jsonl"
    path.write_text("".join(json.dumps({"who": "a", "at": t, "text": "some text"}) + "\n" for t in times))
    section = DataSection(
        source="jsonl", path="w.jsonl", owner="who", time="at", stream=True, window=length, window_start=start, **more
    )  # type: ignore[arg-type]
    return [d.window for d in load(section, folder, folder / "cache", root(0)).documents("a")]


def test_windows_are_counted_exactly_from_their_start(tmp_path: Path) -> None:
    assert windows(tmp_path, [-1, 0, "9.99", 10, 29.5, 30], "0", 10.0) == [0, 0, 0, 1, 2, 3]
    assert windows(tmp_path, ["0.1", "0.2", "0.3"], "0", 0.1) == [1, 2, 3]
    days = ["2024-01-01", "2024-01-30", "2024-01-31", "2024-03-01"]
    assert windows(tmp_path, days, "2024-01-01", 30.0) == [0, 0, 1, 2]
    zones = ["2024-01-01T23:59:59Z", "2024-01-01T23:00:00-02:00", "2024-01-02T12:00:00Z"]
    assert windows(tmp_path, zones, "2024-01-01", 0.5) == [1, 2, 3]
    assert windows(tmp_path, ["31.01.2024", "01.03.2024"], "2024-01-31", 30.0, time_format="%d.%m.%Y") == [0, 1]


@pytest.mark.parametrize(
    ("times", "start"), [(["2024-01-01"], "0"), ([1, 2], "2024-01-01"), ([0, 1e300], "0"), ([0, "1e99999"], "0")]
)
def test_a_start_of_another_kind_and_a_time_beyond_all_windows_are_refused(
    tmp_path: Path, times: list[object], start: str
) -> None:
    with pytest.raises(DataError, match=r"E-DATA-FORMAT.*data\.window_start"):
        windows(tmp_path, times, start, 1.0)


def test_the_plays_come_by_year(tmp_path: Path) -> None:
    section = DataSection(source="plays", stream=True, window=5.0, window_start="1590", partition="iid", devices=4)
    corpus = load(section, tmp_path, tmp_path / "cache", root(0))
    assert corpus.last_window == 4
    for device in corpus.devices:
        found = [d.window for d in corpus.documents(device)]
        assert found == sorted(found)
        assert set(found) == {0, 1, 2, 3, 4}


def test_a_run_that_ends_elsewhere_than_its_text_says_so() -> None:
    section = DataSection(source="plays", stream=True, window=5.0, window_start="1590", window_rounds=3)
    assert unreached(section, 15, 4) == ()
    assert unreached(section, 13, 4) == ()
    assert "ends in window 3, and the text goes on to window 4" in unreached(section, 12, 4)[0]
    assert "from round 16 on" in unreached(section, 16, 4)[0]
    assert unreached(DataSection(), 3, None) == ()


def test_a_stream_is_not_dealt_out_anew(place: Path) -> None:
    recipe = from_plain(
        {"privacy": "none", "data": {"source": "plays", "stream": True, "window": 5.0, "window_start": "1590"}}
    )
    with pytest.raises(RecipeError, match=r"E-COMBO.*belongs to its window"):
        make(recipe, place, place / "cache", skew="iid")
