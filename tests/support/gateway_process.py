"""A gateway in a process of its own, which can be told to die at its first durable step.

python gateway_process.py FOLDER PORT [before|after]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


class Process:
    """A gateway's process. ``kill``: whether it dies (SIGKILL) before or after its first commit."""

    def __init__(self, folder: Path, port: int = 0, kill: str = "") -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
        command = [sys.executable, __file__, str(folder), str(port), *([kill] if kill else ())]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline() or 0)
        self.url = f"https://127.0.0.1:{self.port}"

    @property
    def dead(self) -> bool:
        """Tell whether the process has been killed."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Kill it, if it lives."""
        self._process.kill()
        self._process.communicate()


class Restarted:
    """A gateway that dies before every durable step, and once more after it, and is started again each time."""

    def __init__(self, folder: Path) -> None:
        self.deaths, self._folder, self._over = 0, folder, threading.Event()
        self.process = Process(folder)
        self.url, self._port = self.process.url, self.process.port
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Restarted:
        self.process.end()
        self._next()
        self._thread.start()
        return self

    def _next(self) -> None:
        self.process = Process(self._folder, self._port, ("before", "after")[self.deaths % 2])

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            if self.process.dead:
                self.deaths += 1
                self.process.end()
                self._next()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.process.end()


def main() -> None:
    from edgewise.apps.gateway.start import Gateway
    from edgewise.drivers.fleet.database import Database

    folder, port, *kill = sys.argv[1:]
    if kill:
        real = Database.write

        def dying(self: Database, change: Any) -> None:
            if kill == ["after"]:
                real(self, change)
            os.kill(os.getpid(), signal.SIGKILL)

        Database.write = dying  # type: ignore[method-assign]
    with Gateway(Path(folder), port=int(port)) as gateway:
        print(gateway.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
