"""A server's folder with two released models of a toy run, and a promotion or a rollback in it.

prepared(folder, run)        the first of the two is promoted
change(folder, "promote")    promote the second
change(folder, "rollback")   return to the first
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from edgewise.apps.server import promoting, submission
from edgewise.drivers.fleet import served
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.service import Service
from edgewise.drivers.storage import run_record

FIRST, SECOND = 2, 3
BY = "0" * 32


def opened(folder: Path, now_s: Callable[[], float] = time.time) -> Service:
    """The state of the server in a folder."""
    return Service(folder, ServerLimits(), now_s)


def prepared(folder: Path, run: Path) -> None:
    """Make the folder of a server that has the finished run ``run``, and promote its model after ``FIRST`` rounds."""
    known = run_record.read_run_record(run).run
    with opened(folder) as service:
        out = submission.folder(service, known["id"])
        out.parent.mkdir()
        shutil.copytree(run, out)
        facts = known["facts"]["plan_facts"].encode()
        row = ServedRun(known["id"], "toy", served.FINISHED, None, SECOND, facts, b"", {}, BY, service.now_s())
        service.database.write(lambda c: served.add(c, row))
        promoting.promote(service, known["id"], FIRST, BY)


def change(folder: Path, verb: str) -> None:
    """Start the server, promote its model after ``SECOND`` rounds or return to the one before, and stop it."""
    with opened(folder) as service:
        if verb == "promote":
            with service.database.read() as c:
                (row,) = served.listed(c)
            promoting.promote(service, row.run, SECOND, BY)
        else:
            promoting.rollback(service, BY)
