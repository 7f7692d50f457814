"""The names of a program of ``benchmarks/``, which is no module."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@contextmanager
def names_of(program: str) -> Iterator[dict[str, Any]]:
    """Run a program without its main part. Its own import of ``bench`` ends with the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield runpy.run_path(str(FOLDER / program), run_name="imported")
        sys.modules.pop("bench", None)
