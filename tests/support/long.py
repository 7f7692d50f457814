"""Extent of a test: a sample in ``make test``, all of it in ``make test-long``.

Mark such tests ``long``. ``long(sample=2)`` on a test with parameters plays two of its cases in ``make test``, evenly
spread over them, and none with ``sample=0`` (``conftest.py`` does it); ``examples`` is for what a test draws itself.
"""

from __future__ import annotations

import os

LONG = os.environ.get("EDGEWISE_TEST_LONG") == "1"


def examples(few: int, many: int = 0) -> int:
    """``few`` examples in ``make test``; ``many`` of them, or twenty times as many, in ``make test-long``."""
    return (many or 20 * few) if LONG else few
