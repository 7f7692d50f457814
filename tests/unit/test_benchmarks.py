"""Every benchmark still starts, and the published figures of privacy accounting are still reproduced."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from benchmarked import FOLDER, names_of

PROGRAMS = sorted(FOLDER.glob("*.py"))
MISPRINT = "independent noise (1000, 100, 10): rms"  # printed 70.8, is sqrt(10 x 1001 / 2) = 70.746


@pytest.mark.slow
def test_every_benchmark_can_be_imported() -> None:
    """By path, since some are called as modules of the standard library are; elsewhere, since some set variables."""
    code = "import runpy, sys\nfor path in sys.argv[1:]:\n    print(path), runpy.run_path(path, run_name='imported')"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, PROGRAMS)], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert len(PROGRAMS) > 20
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1]}: {done.stderr}"


@pytest.fixture(scope="module")
def accountant() -> Iterator[dict[str, Any]]:
    """The names of ``benchmarks/accountant.py``."""
    with names_of("accountant.py") as found:
        yield found


def missed(accountant: dict[str, Any], part: str) -> tuple[list[str], int]:
    """Names of the figures of a part that are not reproduced, and how many figures it has."""
    rows = list(accountant[part]())
    return [name for name, expected, ours in rows if not accountant["reproduced"](name, expected, ours)], len(rows)


@pytest.mark.slow
def test_published_figures_without_sampling_are_reproduced(accountant: dict[str, Any]) -> None:
    assert missed(accountant, "plain_ones") == ([], 23)
    assert missed(accountant, "correlated") == ([MISPRINT], 25)


@pytest.mark.slow
def test_the_other_published_figures_are_reproduced(accountant: dict[str, Any]) -> None:
    assert missed(accountant, "sampled") == ([], 27)
    assert missed(accountant, "calibrations") == ([], 16)
