"""Agents of enrolled devices as processes, by the program's own command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EDGEWISE = [sys.executable, "-m", "edgewise.apps.cli.main"]


@contextmanager
def devices(homes: list[Path]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One agent for each home, until the block ends."""
    agents = [subprocess.Popen([*EDGEWISE, "device", "run", "--home", str(home)]) for home in homes]
    try:
        yield agents
    finally:
        for agent in agents:
            agent.terminate()
        for agent in agents:
            agent.wait()
