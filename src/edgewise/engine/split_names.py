"""Names by which the two sides of a session of split learning find each other (``engine.split_messages.Hello``)."""

from __future__ import annotations

import hashlib

from edgewise.core.training import DeviceId

_SESSION, _PARTS = b"edgewise split session 1\0", b"edgewise split parts 1\0"


def session_name(run: str, round: int, device: DeviceId) -> bytes:
    """Name the session of a device in a round of a run: 32 bytes."""
    return hashlib.sha256(_SESSION + f"{run}\0{round}\0{device}".encode()).digest()


def parts_name(run: str, device_part: str, rest: str) -> bytes:
    """Name everything that both sides must share: 32 bytes.

    Args:
        run: digest of the run's facts, which fix the recipe and the files of the model.
        device_part, rest: digests of the layouts of both parts (``core.vector.Spec.digest``).
    """
    return hashlib.sha256(_PARTS + f"{run}\0{device_part}\0{rest}".encode()).digest()
