"""Batches of a device: own clips beside public ones, changed a little, by the key."""

from __future__ import annotations

import numpy as np

from edgewise.core.keys import root
from edgewise.learn.keywords.shards import BANDS, FRAMES, SHIFT, ClipShard, changed
from edgewise.plan.recipe.sections import TrainingSection

OWN = (np.random.default_rng(0).normal(size=(5, 20, 8)).astype(np.float32), np.full(5, 2))
PUBLIC = (np.random.default_rng(1).normal(size=(9, 20, 8)).astype(np.float32), np.repeat([0, 1, 2], 3))


def test_a_batch_has_the_share_of_public_clips() -> None:
    shard = ClipShard(OWN, PUBLIC, 3, 0.5)
    steps = list(shard.batches(3, TrainingSection(batch=8, accumulate=2), root(1)))
    assert [[len(x) for x, _ in micro] for micro in steps] == [[4, 4]] * 3
    assert all(y.sum() == len(y) for micro in steps for _, y in micro)
    only = list(ClipShard(OWN, PUBLIC, 3, 0.0).batches(3, TrainingSection(batch=4), root(1)))
    assert all((y[:, 2] == 1).all() for micro in only for _, y in micro)


def test_equal_keys_give_equal_batches() -> None:
    first, again, other = (
        next(iter(ClipShard(OWN, PUBLIC, 3, 0.5).batches(1, TrainingSection(batch=8), root(key))))[0][0]
        for key in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_records_are_the_clips_as_they_are() -> None:
    ((x, y),) = ClipShard(OWN, PUBLIC, 3, 0.5).records(np.array([4]))
    np.testing.assert_array_equal(x[0], OWN[0][4])
    assert y.tolist() == [[0.0, 0.0, 1.0]]


def test_changes_are_small() -> None:
    for frames, bands in ((80, 40), (16, 8), (3, 2)):
        x = np.ones((200, frames, bands), np.float32)
        out = changed(x, np.random.default_rng(0))
        assert (x == 1.0).all()
        kept = out.mean((1, 2))
        shifted, masked = min(SHIFT, frames // 8) / frames, min(FRAMES, frames // 4) / frames
        assert kept.max() > 0.95
        assert kept.min() >= (1 - shifted - masked) * (1 - min(BANDS, bands // 4) / bands) - 1e-6
        assert (kept.min() < 1.0) == (frames > 3)
