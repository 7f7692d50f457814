"""An agent that is killed at one durable operation after the other, and started again each time.

python mortal_agent.py HOME CONTROL ACTION PLACE...        with the shim preloaded

The program loads everything once, and forks a child for each life of the agent, so that a life costs no imports. It
prints a line for each death.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

from kit import ACTIONS, _Control


class MortalAgent:
    """A context manager: the agent of ``home`` dies by SIGKILL at its durable operations 1, 1 + step, 1 + 2 step, ...

    Operations are counted from each start of the agent. After ``last`` it lives without harm.

    Attributes:
        deaths: the operations at which it was killed.
    """

    def __init__(self, home: Path, shim: Path, action: str, step: int, last: int) -> None:
        control = home.parent / f"{home.name}.control"
        places = map(str, [*range(1, last + 1, step), 0])
        self._command = [sys.executable, __file__, str(home), str(control), str(ACTIONS[action]), *places]
        path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
        self._environment = {**os.environ, "PYTHONPATH": path, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
        self.deaths: list[int] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.deaths.append(int(line))

    def __enter__(self) -> MortalAgent:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the agent ends with it
        self._process.wait(60)
        self._reader.join()


def live(home: Path, control: Path, action: int, at: int) -> None:
    """One life of the agent, in a child: until its death, or until standard input ends."""
    from owned import toy

    from edgewise.apps.device import agent
    from edgewise.drivers.http import link

    link.LONGEST_PAUSE_S = 0.3
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    arm = ctypes.CDLL(os.environ["LD_PRELOAD"]).edgewise_arm
    arm(str(home).encode(), str(control).encode(), ctypes.c_int64(at), action, 28, 0)
    agent.work(home, make=toy, wait_s=1.0)


def main() -> None:
    """Fork a child for each place."""
    import owned  # noqa: F401 (and with it all that an agent needs)

    import edgewise.apps.device.agent  # noqa: F401

    home, control, action = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for at in map(int, sys.argv[4:]):
        control.write_bytes(bytes(ctypes.sizeof(_Control)))
        assert len(os.listdir("/proc/self/task")) == 1, "a thread runs, so a fork is not safe"
        if (child := os.fork()) == 0:
            try:
                live(home, control, action, at)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -9:
            return
        print(at, flush=True)


if __name__ == "__main__":
    main()
