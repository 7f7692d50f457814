"""Write ``tests/protocol/vectors``: what another implementation of ``docs/protocol.md`` must send, accept and refuse.

    python tests/support/secagg_vectors.py

Everything is derived from one seed, but for HPKE's own randomness in ``two_servers.json``, which is written anew only
with ``--two-servers``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import secagg_pieces
import secagg_rejects
import secagg_sessions
import secagg_two_servers

HERE = Path(__file__).parents[1] / "protocol" / "vectors"


def made() -> dict[str, Any]:
    """File name -> contents, of what is the same each time."""
    records = secagg_sessions.sessions()
    return {
        "pieces.json": secagg_pieces.pieces(),
        "sessions.json": records,
        "refused.json": {
            "by devices": secagg_rejects.device_rejects(records),
            "accepted by devices": secagg_rejects.device_answers(records),
            "by servers": secagg_rejects.server_rejects(records),
            "by owners": secagg_rejects.floors(),
        },
    }


def two_servers() -> dict[str, Any]:
    """The contents of ``two_servers.json``."""
    session = secagg_two_servers.session()
    return {"session": session, "refused": secagg_two_servers.rejects(session)}


def main() -> None:
    """Write the files."""
    files = made() | ({"two_servers.json": two_servers()} if "--two-servers" in sys.argv else {})
    for name, contents in files.items():
        (HERE / name).write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
