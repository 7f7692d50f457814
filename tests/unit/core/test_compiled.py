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


LOOPS = """
import hashlib, sys, numpy as np
from edgewise.core.compiled import interpret_loops
if sys.argv[1] == "interpreted":
    interpret_loops()
from edgewise.codecs.wire.golomb import golomb_encode
from edgewise.kernels import bits, magnitudes, rounding
rng, digest = np.random.default_rng(0), hashlib.sha256()
x = rng.normal(size=5000).astype(np.float32)
stored, levels = np.empty(5000, np.uint16), np.empty(5000, np.int8)
rounding.to_bfloat16(x, np.uint64(2**63 + 5), stored)
scales = rounding.round_blocks(x, 64, 127, np.uint64(3), levels)
added = np.empty_like(x)
peak = magnitudes.add_bfloat16(x, stored, np.float32(0.5), added)
where, size = np.zeros(5000, np.int64), np.zeros(5000, np.int32)
found = magnitudes.gather_magnitudes(x.view(np.int32), 0, int(np.float32(1.5).view(np.int32)), where, size, 0)
packed = bits.pack_bits(stored % 32, 5), bits.unpack_bits(bits.pack_bits(stored % 2, 1), 1, 5000)
rounded = rounding.unround(levels, np.full(79, 0.25), 64)
for part in (stored, levels, scales, added, where, size, golomb_encode(where[: found[1]], 9), *packed, rounded):
    digest.update(bytes(memoryview(part).cast("B")) if not isinstance(part, bytes) else part)
digest.update(repr((int(peak), tuple(map(int, found)))).encode())
print(digest.hexdigest(), "numba" in sys.modules)
"""


@pytest.mark.slow
def test_interpreted_loops_give_the_same_bits_without_numba() -> None:
    def told(word: str) -> list[str]:
        command = [sys.executable, "-W", "error", "-c", LOOPS, word]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    digest, imported = told("compiled")
    assert imported == "True"
    assert told("interpreted") == [digest, "False"]
