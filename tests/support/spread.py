"""Spread of tests over processes: rooms that share costly imports stay in one process, and the longest work goes first.

xdist splits by files (``--dist loadfile``). Each process that plays a test of ``learn`` loads peft and the code of the
models, 5 s, and each that plays a rule of the source parses all of it. A file that starts last keeps one process busy
while the others have nothing to do, so files with long tests start first.
"""

from __future__ import annotations

from typing import Any

import pytest

ROOMS = {
    "tests/arch/": "the source",
    "tests/laws/test_trainers.py::test_every_trainer_is_under_these_laws": "the source",
    "tests/laws/test_trainers.py::test_the_abilities_of_a_trainer_are_looked_for_in_one_place": "the source",
    "tests/unit/engine/test_trainer.py": "the source",
    "tests/unit/learn/": "torch",
    "tests/unit/strategies/": "torch",
}  # by the beginnings of the tests' names
LONG_S, SLOW_S, FAST_S = 15.0, 2.0, 0.02  # rough processor times of a test


def work_unit(nodeid: str) -> str:
    """Name the room or the file of a test: what is played in one process."""
    return next((room for folder, room in ROOMS.items() if nodeid.startswith(folder)), nodeid.split("::", 1)[0])


def longest_first(items: list[pytest.Item]) -> None:
    """Sort the tests by the rough cost of their units, the costliest unit first. Within a unit their order stays."""
    costs: dict[str, float] = {}
    for item in items:
        cost = LONG_S if item.get_closest_marker("long") else SLOW_S if item.get_closest_marker("slow") else FAST_S
        costs[work_unit(item.nodeid)] = costs.get(work_unit(item.nodeid), 0.0) + cost
    items.sort(key=lambda item: -costs[work_unit(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Split by ``work_unit`` where xdist would split by files."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class UnitScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return work_unit(nodeid)

    config.option.loadscopereorder = False  # by the number of tests, which says little about their cost
    return UnitScheduling(config, log)
