"""SHA-256 digests as text."""

from __future__ import annotations

import re

DIGEST = r"[0-9a-f]{64}"  # 64 lower-case hexadecimal digits
_PATTERN = re.compile(DIGEST)


def is_digest(text: str) -> bool:
    """Say whether ``text`` is a SHA-256 digest in lower-case hexadecimal, and nothing else.

    >>> is_digest("0" * 64), is_digest("0" * 63 + "G"), is_digest("0" * 64 + "\\n")
    (True, False, False)
    """
    return _PATTERN.fullmatch(text) is not None
