"""A stage for toy runs with faults; and at the end of a test run, how many faults were played."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import Stage


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of runs are written there."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="edgewise-faults-", dir=place))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def stage(folder: Path) -> Iterator[Stage]:
    """One loaded process that plays the runs of a module."""
    with Stage(folder) as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each configuration, and one for all: faults played, failures, seconds."""
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for report in (r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)):
        for key, value in report.user_properties if report.when == "call" else ():
            if key == "walk":
                name, *figures = value
                sums[name] = [a + b for a, b in zip(sums[name], figures, strict=True)]
    if not sums:
        return
    terminalreporter.section("durable operations")
    for name, (faults, failures, seconds) in {
        **sums,
        "all": [sum(x) for x in zip(*sums.values(), strict=True)],
    }.items():
        rate = faults / max(seconds, 1e-9)
        terminalreporter.write_line(
            f"{name:28}{faults:8,} faults {failures:4} failures {seconds:9,.1f} s {rate:6.1f}/s"
        )
