"""FLTrust: what it makes by hand, what liars cannot do whatever their number, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Aggregate
from edgewise.merges.fltrust import fltrust, trusted_mean
from edgewise.plan.client_rules import check_root
from edgewise.plan.recipe.recipe import from_plain

Rows = NDArray[np.float32]


def played(sent: list[tuple[str, Rows, float]]) -> Aggregate:
    pipe = pipeline(Space(len(sent[0][1]), Quorum(2, 20), head=("loss",), head_l2=40.0), [], fltrust("root"))
    total = pipe.start_sum()
    for i, (device, x, loss) in enumerate(sent):
        payload, _ = pipe.encode(x, {"loss": loss}, 1.0, pipe.init(), Turn(0, root(1), derive(root(2), i)))
        total = pipe.add(total, payload, Turn(0, root(1), device=device))
    return pipe.release(total, Turn(0, root(1)), root(3), pipe.start_memory())[0]


def test_by_hand() -> None:
    """cos = 1, 0.6, -1 and 0 to the root's update of length 2. So g = (1 (2, 0) + 0.6 (1.2, 1.6)) / 1.6."""
    rows = np.array([[9.0, 0.0], [3.0, 4.0], [-5.0, 0.0], [0.0, 7.0]])
    assert trusted_mean(np.array([2.0, 0.0]), rows) == pytest.approx(np.array([2.72, 0.96]) / 1.6)


def test_the_root_is_found_by_its_name_and_is_not_part_of_the_mean() -> None:
    sent = [("a", [0.0, 5.0], 1.0), ("root", [2.0, 0.0], 900.0), ("b", [4.0, 3.0], 3.0), ("c", [-8.0, 6.0], 7.0)]
    found = played([(d, np.array(x, np.float32), loss) for d, x, loss in sent])
    assert found.mean == pytest.approx(2 * np.array([0.8, 0.6]), rel=1e-6)
    assert found.head["loss"] == 3.0, "the median of the others"
    assert found.n == 4


def test_no_number_of_liars_makes_it_longer_or_turns_it_round() -> None:
    rng = np.random.default_rng(1)
    trusted = rng.standard_normal(30).astype(np.float32)
    for lie in (-1e4 * trusted, rng.standard_normal(30) * 1e4, trusted * 1e4):
        sent = [("root", trusted, 0.0)] + [(f"{i}", (lie + i).astype(np.float32), 0.0) for i in range(15)]
        found = played(sent).mean
        assert np.linalg.norm(found) <= np.linalg.norm(trusted) * (1 + 1e-6)
        assert found @ trusted >= 0


@pytest.mark.parametrize("trusted", [None, np.zeros(2, np.float32), np.array([-1.0, 0.0], np.float32)])
def test_without_a_direction_the_model_stays(trusted: Rows | None) -> None:
    others = [(d, np.array([3.0, 0.0], np.float32), 1.0) for d in "abc"]
    found = played(others if trusted is None else [("root", trusted, 1.0), *others])
    assert found.mean.tolist() == [0.0, 0.0]
    assert found.head["loss"] == 1.0


def test_rounds_that_may_lack_the_root_are_refused() -> None:
    plain = {"privacy": "none", "merge": {"kind": "fltrust", "root": "device-1"}}
    check_root(from_plain(plain), ["device-0", "device-1"])
    with pytest.raises(RecipeError, match="device-1' is no device of this run"):
        check_root(from_plain(plain), ["device-0"])
    with pytest.raises(RecipeError, match=r'fltrust with round.sampling = "fixed"'):
        check_root(from_plain({**plain, "round": {"sampling": "fixed", "cohort": 3}}))
    with pytest.raises(CompositionError, match=r"E-BYZANTINE.*fltrust.* needs 2 updates"):
        pipeline(Space(2, Quorum(1, 20)), [], fltrust("root"))
