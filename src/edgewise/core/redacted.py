"""Remove secrets from texts that others may read, such as logs and crash files.

>>> redacted("join fedtok1_abcdef failed")
'join fedtok1_[redacted] failed'
"""

from __future__ import annotations

import re

_SECRETS = (
    (re.compile(r"-----BEGIN [A-Z ]+-----.*?(-----END [A-Z ]+-----|\Z)", re.DOTALL), "[pem]"),
    (re.compile(r"fedtok1_\w+"), "fedtok1_[redacted]"),
    (re.compile(r"\bb(['\"])(?:(?!\1)[^\\]|\\.){8,}\1"), "b'[redacted]'"),
    (re.compile(r":[A-Za-z0-9+/]{40,}={0,2}:"), ":[redacted]:"),  # digests and signatures in headers
    (re.compile(r"\b(?![0-9a-fA-F]{32}\b)[0-9a-fA-F]{24,}\b"), "[redacted]"),
    (re.compile(r"\b([0-9a-fA-F]{8})[0-9a-fA-F]{24}\b"), r"\1..."),  # names of members, and nonces
)
# A quick test: most texts of a log hold no secret.
_MAYBE = re.compile(r"-----BEGIN|fedtok1_|\bb['\"]|[A-Za-z0-9+/]{24}")


def redacted(text: str) -> str:
    """Replace tokens, keys, nonces, signatures and bytes in a text.

    The first 8 of 32 hexadecimal digits stay. A member can be found by them, and a nonce cannot be used.
    """
    if not _MAYBE.search(text):
        return text
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
