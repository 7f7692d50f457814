"""Write ``tests/protocol/vectors``: what another implementation of ``docs/protocol.md`` must send, accept and refuse.

    python tests/support/secagg_vectors.py

Everything is derived from one seed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hpke
import joining_vectors
import plan_vectors
import rung_vectors
import secagg_frames
import secagg_pieces
import secagg_rejects
import secagg_sessions
import secagg_sparse
import secagg_two_servers

from edgewise.crypto import sign

HERE = Path(__file__).parents[1] / "protocol" / "vectors"


def made() -> dict[str, Any]:
    """File name -> contents."""
    with quick():
        return _made()


@contextmanager
def quick() -> Iterator[None]:
    """Look at each signature once: all devices of a session look at the same ones."""
    slow, sign.verify = sign.verify, functools.cache(sign.verify)
    try:
        yield
    finally:
        sign.verify = slow


def _made() -> dict[str, Any]:
    records = secagg_sessions.sessions()
    with hpke.repeatable():
        session = secagg_two_servers.session()
        shared = {"session": session, "refused": secagg_two_servers.rejects(session)}
    return {
        "frames.json": secagg_frames.frames(),
        "groups.json": rung_vectors.groups(),
        "joining.json": joining_vectors.joining(),
        "pieces.json": secagg_pieces.pieces(),
        "sessions.json": records,
        "refused.json": {
            "by devices": [*secagg_rejects.device_rejects(records), *secagg_sparse.rejects(records)],
            "accepted by devices": [*secagg_rejects.device_answers(records), *secagg_sparse.answers(records)],
            "by servers": secagg_rejects.server_rejects(records),
            "by owners": secagg_rejects.floors(),
        },
        "two_servers.json": shared,
    }


def main() -> None:
    """Write the files."""
    for name, contents in (made() | {"plans.json": plan_vectors.plans()}).items():
        (HERE / name).write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
