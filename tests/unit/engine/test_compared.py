"""Comparison of a round's updates: figures by hand, and where there is nothing to compare."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.apps.report import compared as shown
from edgewise.core import events
from edgewise.core.keys import Turn, derive, root
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Merge, Stage, Sum
from edgewise.engine.compared import compared
from edgewise.merges.plain import plain_sum
from edgewise.merges.robust_mean import robust_mean
from edgewise.plan.catalogue import BUILT_IN

TURN = Turn(4, root(1))


def added(merge: Merge, xs: dict[str, list[float]], stages: tuple[Stage, ...] = ()) -> tuple[Pipeline, Sum]:
    pipe = pipeline(Space(2, Quorum(3, 20)), list(stages), merge)
    total = pipe.start_sum()
    for i, (device, x) in enumerate(xs.items()):
        sent = pipe.encode(
            np.array(x, np.float32), {}, float(i + 1), pipe.init(), Turn(4, root(1), derive(root(2), i))
        )[0]
        total = pipe.add(total, sent, Turn(4, root(1), device=device))
    return pipe, total


XS = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [1.0, -1.0], "liar": [-9.0, 0.0]}


@pytest.mark.parametrize("weighed", [False, True])
def test_by_hand(weighed: bool) -> None:
    """The medians are (1, 0), and the distances 0, 1, 1 and 10. So their median is 1. Weights do not change it."""
    stages = (BUILT_IN.stages["weigh"](cap=8),) if weighed else ()
    found = {e.device: e for e in compared(*_turned(*added(robust_mean(1), XS, stages)))}
    assert [found[d].distance for d in XS] == pytest.approx([0, 1, 1, 10], abs=1e-5)
    assert [found[d].l2 for d in XS] == pytest.approx([1, 2**0.5, 2**0.5, 9], abs=1e-5)
    assert [found[d].cosine for d in XS] == pytest.approx([1, 0.5**0.5, 0.5**0.5, -1], abs=1e-5)
    assert {e.round for e in found.values()} == {4}


def _turned(pipe: Pipeline, total: Sum) -> tuple[Pipeline, Turn, Sum]:
    return pipe, TURN, total


def test_where_there_is_nothing_to_compare() -> None:
    assert list(compared(*_turned(*added(plain_sum(), XS)))) == []
    alike = list(compared(*_turned(*added(robust_mean(1), {d: [0.0, 0.0] for d in "abc"}))))
    assert [(e.l2, e.cosine, e.distance) for e in alike] == [(0.0, 0.0, 0.0)] * 3


def test_the_report_has_the_farthest_first_and_counts_rounds() -> None:
    log = [
        events.Compared(round=r, device=d, l2=1.0, cosine=0.5, distance=x)
        for r, each in enumerate([{"<a>": 1.0, "b": 4.0}, {"<a>": 2.0, "b": 6.0}])
        for d, x in each.items()
    ]
    found = shown.by_device(log)
    assert found["b"] == {"rounds": 2, "l2": 1.0, "cosine": 0.5, "distance": 5.0, "far": 2}
    html = shown.section({"per_device": [{"device": d, "compared": found.get(d)} for d in ("<a>", "b", "never")]})
    assert html.index(">b<") < html.index("&lt;a&gt;")
    assert "never" not in html
    assert shown.section({"per_device": [{"device": "a", "compared": None}]}) == ""
