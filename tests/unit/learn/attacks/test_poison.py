"""Updates that liars craft, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.learn.attacks.poison import Attack, FlippedLoss, crafted_update
from edgewise.learn.models.load import TextLoss
from edgewise.learn.text.marks import marked_document

OWN = np.array([1.0, -2.0], np.float32)
ALL = [OWN, np.array([3.0, 2.0], np.float32)]


@pytest.mark.parametrize(
    ("attack", "want"),
    [
        ("none", [1.0, -2.0]),
        ("flip", [-3.0, 6.0]),
        ("ipm", [-1.0, 0.0]),
        ("alie", [2.0 - 1.5 * 1.0, 0.0 - 1.5 * 2.0]),
        ("mimic", [1.0, -2.0]),
        ("free", [0.0, 0.0]),
    ],
)
def test_by_hand(attack: Attack, want: list[float]) -> None:
    found = crafted_update(attack, OWN, ALL)
    assert found.tolist() == want
    assert found.dtype == np.float32
    assert crafted_update("mimic", ALL[1], ALL).tolist() == [1.0, -2.0], "all send that of the first"


@pytest.mark.parametrize("isolated", [False, True])
def test_false_labels_are_counted_from_the_end_of_the_vocabulary(isolated: bool) -> None:
    """What is read, what does not count and the positions stay. V = 10: 4 becomes 5, 9 becomes 0."""
    piece = np.array([3, ~7, 4, 9], np.int32)
    row_S = torch.from_numpy((marked_document(piece) if isolated else piece)[None].astype(np.int64))
    loss = TextLoss(torch.float32, isolated)
    read_BT, next_BT, positions_BT = loss.inputs(row_S)
    false = FlippedLoss(loss, 10).inputs(row_S)
    assert torch.equal(false[0], read_BT)
    assert next_BT.tolist() == [[-1, 4, 9]]
    assert false[1].tolist() == [[-1, 5, 0]]
    assert (false[2] is None) == (positions_BT is None) == (not isolated)
