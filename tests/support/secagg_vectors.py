"""Write ``tests/protocol/vectors``: what another implementation of ``docs/protocol.md`` must send, accept and refuse.

    python tests/support/secagg_vectors.py

Everything is derived from one seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hpke
import secagg_frames
import secagg_pieces
import secagg_rejects
import secagg_sessions
import secagg_two_servers

HERE = Path(__file__).parents[1] / "protocol" / "vectors"


def made() -> dict[str, Any]:
    """File name -> contents."""
    records = secagg_sessions.sessions()
    with hpke.repeatable():
        session = secagg_two_servers.session()
        shared = {"session": session, "refused": secagg_two_servers.rejects(session)}
    return {
        "frames.json": secagg_frames.frames(),
        "pieces.json": secagg_pieces.pieces(),
        "sessions.json": records,
        "refused.json": {
            "by devices": secagg_rejects.device_rejects(records),
            "accepted by devices": secagg_rejects.device_answers(records),
            "by servers": secagg_rejects.server_rejects(records),
            "by owners": secagg_rejects.floors(),
        },
        "two_servers.json": shared,
    }


def main() -> None:
    """Write the files."""
    for name, contents in made().items():
        (HERE / name).write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
