"""The roster of a run: the public keys of its devices as one blob, 32 bytes each, sorted and joined.

A device is named by the fingerprint of its key, so nobody can give its name to another key. The run's facts hold the
digest of the blob, so all devices of a run know the same devices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise

from edgewise.core.errors import DecodeError
from edgewise.drivers.http.identity import key_fingerprint

KEY_BYTES = 32


def dump(keys: Collection[bytes]) -> bytes:
    """Encode the public keys of a run's roster as a blob."""
    return b"".join(sorted(keys))


def parse_roster(raw: bytes, population: int) -> Mapping[str, bytes]:
    """Decode a roster as device -> key.

    Raises:
        DecodeError: E-FACTS for bytes that ``dump`` does not write for so many devices.
    """
    keys = [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]
    if len(raw) != population * KEY_BYTES or any(a >= b for a, b in pairwise(keys)):
        what = f"the roster of the run does not hold the keys of {population} devices."
        raise DecodeError("E-FACTS", what, "ask the operator of the server.")
    return {key_fingerprint(key): key for key in keys}
