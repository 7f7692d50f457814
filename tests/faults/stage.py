"""The process in which toy runs are played: it loads everything once, and forks a child for each run.

Started by ``faults.kit`` with the shim preloaded. Reads one JSON request a line on standard input and answers one JSON
line: {"status": exit status, minus the signal's number where one ended it, "code": of a named error, "said": the rest}.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import promotions
import statements
import texts
import workers
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core.errors import EdgewiseError

PATIENCE_S = 120  # a run that takes longer hangs


def run(settings: dict[str, Any], out: Path, resume: bool = False) -> None:
    """A toy run, by default without a report. With the key ``server``: a change on the server in the folder."""
    if "server" in settings:
        promotions.change(out, settings["server"])
        return
    keys = {k: v for k, v in settings.items() if k not in ("report", "environ", "text")}
    text = settings.get("text", False)
    recipe, place = (texts.make_recipe(keys), texts.place()) if text else (make_recipe(keys), Path("/"))
    simulation.run(
        recipe, out=out, recipe_dir=place, resume=resume, extensions=[] if text else ["toy"],
        report=settings.get("report", False),
    )  # fmt: skip


def play(request: dict[str, Any], told: int) -> None:
    """One run in a forked child, which this ends: 0, 1 for a named error, 70 for anything else."""
    os.environ.update({**request["environ"], **request["settings"].get("environ", {})})
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(PATIENCE_S)
    noise = os.open(os.devnull, os.O_WRONLY)
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    out, status, said = Path(request["out"]), 0, {"code": "", "said": ""}
    ctypes.CDLL(os.environ["LD_PRELOAD"]).edgewise_arm(
        str(out.parent).encode(), request["control"].encode(), ctypes.c_int64(request["at"]),
        request["action"], request["error"], request["forever"],
    )  # fmt: skip
    try:
        if request["forks"]:
            workers.fork(request["settings"]["simulation.workers"], told)
        run(request["settings"], out, request["resume"])
    except EdgewiseError as e:
        status, said = 1, {"code": e.code, "said": e.what}
    except BaseException:
        status, said = 70, {"code": "", "said": traceback.format_exc()}
    os.write(told, json.dumps(said).encode())
    os._exit(status)


def alone() -> bool:
    """Wait for threads that have ended: the kernel lists a thread for a moment after it was joined."""
    give_up_s = time.monotonic() + 5.0
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < give_up_s:
        time.sleep(0.001)
    return len(os.listdir("/proc/self/task")) == 1


def main() -> None:
    """Answer requests until standard input ends.

    A recipe is played once here before the first child plays it, so that children find all compiled and imported. A
    child has no more than the thread that forked it, so there must be no other one that could hold a lock.
    """
    statements.share()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    folder, warm = Path(sys.argv[1]), set()
    texts.use(folder.parent / "place")
    for line in sys.stdin:
        request = json.loads(line)
        settings = {**request["settings"], "simulation.engine": "inproc"}
        if (name := json.dumps(settings)) not in warm:
            warm.add(name)
            if "server" in settings:
                shutil.copytree(request["out"], folder / str(len(warm)))
            before = dict(os.environ)
            os.environ.update(settings.get("environ", {}))
            with suppress(EdgewiseError):  # the child will say so
                run(settings, folder / str(len(warm)))
            os.environ.clear()
            os.environ.update(before)
            gc.collect()
            gc.freeze()  # a collection in a child would copy all pages that it looks at
        assert alone(), "a thread runs, so a fork is not safe"
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            play(request, send)
        os.close(send)
        print(json.dumps({"child": child}), file=answers, flush=True)
        with os.fdopen(receive, "rb") as pipe:
            _, status = os.waitpid(child, 0)
            os.set_blocking(pipe.fileno(), False)
            said = json.loads(pipe.read() or b'{"code": "", "said": ""}')
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), **said}), file=answers, flush=True)


if __name__ == "__main__":
    main()
