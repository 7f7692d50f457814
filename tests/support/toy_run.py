"""Play a toy recipe in a process of its own, printing one JSON event per line: something to kill.

python toy_run.py OUT ENGINE RESUME(0|1) [section.key=value ...]
"""

from __future__ import annotations

import signal
import sys
import tomllib
from pathlib import Path

from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core import events

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell job starts with it ignored
    out, engine, resume, *settings = sys.argv[1:]
    overrides = {k: tomllib.loads(f"v = {v}")["v"] for k, v in (s.split("=", 1) for s in settings)}

    def show(event: events.AnyEvent) -> None:
        print(events.to_json(event), flush=True)

    simulation.run(
        make_recipe({"simulation.engine": engine, **overrides}),
        out=Path(out),
        recipe_dir=Path(),
        resume=resume == "1",
        extensions=["toy"],
        sinks=[show],
        report=False,
    )
