"""Simulate a recipe that distils between rounds, and kill this process at a point of its second distillation.

python killed_distillation.py RECIPE OUT POINT          POINT: "", "step", "kept" or "committed"
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any


def kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Kill at a step of the student, after the teacher was kept, or after the commit."""
    from edgewise.drivers.storage.run_store import RunStore
    from edgewise.learn.compress import teaching

    rate, keep, commit, count = teaching.lesson_rate, RunStore.keep, RunStore.commit, [0]

    def slow_rate(lesson: Any, step: int) -> float:
        count[0] += 1
        if point == "step" and count[0] == 9:
            kill()
        return rate(lesson, step)

    def keep_once(self: Any, name: str, *more: Any) -> None:
        keep(self, name, *more)
        if point == "kept" and name == "teacher-b":
            kill()

    def commit_once(self: Any, checkpoint: Any, *more: Any) -> None:
        commit(self, checkpoint, *more)
        if point == "committed" and checkpoint.next_round == 4:
            kill()

    teaching.lesson_rate, RunStore.keep, RunStore.commit = slow_rate, keep_once, commit_once  # type: ignore[method-assign]


if __name__ == "__main__":
    import edgewise

    recipe, out, point = sys.argv[1:]
    if point:
        arm(point)
    edgewise.simulate(recipe, out=Path(out))
