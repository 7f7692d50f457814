"""The largest memory that the processes of a run have taken."""

from __future__ import annotations

import sys


def peak_bytes(pooled: bool) -> int | None:
    """Return the largest resident memory so far of this process, or of a worker process that has ended, in bytes.

    It holds Python, torch, the model and all that the process did, and never falls. None: this system does not tell it.

    Args:
        pooled: worker processes train. Otherwise this process does.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_CHILDREN if pooled else resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
