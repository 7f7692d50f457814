"""Loops are compiled at their first call, with those that they call; a program that calls none imports no numba."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewise.core.compiled import compiled


@compiled
def _twice(x: int) -> int:
    """Double a number."""
    return 2 * x


@compiled
def _total_of_doubles(xs: NDArray[np.int64]) -> Any:
    total = 0
    for x in xs:
        total += _twice(x)
    return total


def test_a_loop_calls_another_one() -> None:
    assert (_twice.__name__, _twice.__doc__) == ("_twice", "Double a number.")
    assert _total_of_doubles(np.arange(5)) == 20
    assert _total_of_doubles(np.arange(5)) == _twice(10) == 20
    assert [type(loop).__name__ for loop in (_twice, _total_of_doubles)] == ["CPUDispatcher"] * 2


@pytest.mark.parametrize(
    "module",
    [
        "secagg.server",
        *(
            pytest.param(module, marks=pytest.mark.slow)
            for module in ("engine.coordinator", "apps.server.start", "apps.device.record")
        ),
    ],
)
def test_what_computes_nothing_imports_no_compiler(module: str) -> None:
    code = f"import sys, edgewise.{module}; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
