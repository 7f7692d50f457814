"""``pytest --cpu 20`` lists the 20 tests that took the most processor time, their waited children's included.

On a busy machine the time on the clock says little. Imports, compiled kernels and module fixtures count for the test
that needed them first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

_KEY = pytest.StashKey[float]()
_SPENT: dict[str, float] = {}


def _spent_s() -> float:
    return sum(os.times()[:4])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", type=int, default=0, metavar="N", help="list the N tests with the most processor time")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_KEY] = _spent_s()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    if call.when == "teardown" and _KEY in item.stash:
        item.user_properties.append(("cpu_s", _spent_s() - item.stash[_KEY]))  # travels from a worker with the report
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _SPENT.update((report.nodeid, s) for name, s in report.user_properties if name == "cpu_s")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not (most := config.getoption("--cpu")):
        return
    terminalreporter.section(f"{sum(_SPENT.values()):.0f} s of processor time in {len(_SPENT)} tests")
    for name, s in sorted(_SPENT.items(), key=lambda pair: -pair[1])[:most]:
        terminalreporter.write_line(f"{s:8.2f} s  {name}")
