"""End an enrolment: tell the server, and remove the files that edgewise made on this device.

The owner's text and policy are never touched. Files that edgewise did not make stay.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgewise.apps.device import control, policy, record
from edgewise.apps.device.room import MODELS, RUNS
from edgewise.apps.device.unit import CACHE
from edgewise.core.errors import StoreError
from edgewise.drivers.http import home as homes
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage import files
from edgewise.drivers.storage.counter_file import LEDGERS

PATIENCE_S = 30.0  # time to keep trying the server
POLITE_S, LONGEST_S = 5.0, 25.0  # time that an agent gets to end by itself, and after a signal
STATE = (RUNS, MODELS, CACHE, control.SAYS, control.ORDER)
SECRETS = (homes.KEY, homes.SERVER)
RECORDS = (record.FILE, LEDGERS)


def leave(home: Path, keep_records: bool = False, offline: bool = False) -> dict[str, Any]:
    """End the agent, let the server revoke this device, and remove its key and state.

    Args:
        keep_records: keep the record of what was sent, and the privacy ledger.
        offline: do not tell the server, which then still lists the device.
    Returns:
        ``told``: whether the server knows. ``removed`` and ``stays``: paths.
    Raises:
        TransportError: E-IDENTITY for a folder without an enrolment. E-CONNECT if the server cannot be told. Nothing is
            removed then.
        StoreError: E-RUN-EXISTS if the agent does not end. E-DISK.
    """
    homes.load(home)
    _end_agent(home)
    if not offline:
        with Link(home, PATIENCE_S) as link:
            link.leave()
    for path in home.iterdir():  # unfinished files of a killed process; one can be a copy of the key
        if files.TEMPORARY.fullmatch(path.name):
            _remove(path)
    removed = [str(home / name) for name in _gone(keep_records) if _remove(home / name)]
    files.sync_folder(home)
    files.discard(home / control.LOCK)
    stays = [str(path) for path in sorted(home.iterdir())]
    return {"told": not offline, "removed": removed, "stays": stays}


def _gone(keep_records: bool) -> tuple[str, ...]:
    return (*SECRETS, *STATE, *(() if keep_records else RECORDS))


def _end_agent(home: Path) -> None:
    """End the agent, at first by an order, then by a signal. Raises StoreError(E-RUN-EXISTS)."""
    if control.running_agent(home) is None:
        return
    control.give_owner_order(home, control.Order("leave"))
    if control.wait_for_agent_end(home, POLITE_S):
        return
    agent = control.running_agent(home)
    if agent is not None and agent.pid > 0:
        with suppress(OSError):
            os.kill(agent.pid, signal.SIGTERM)
    if not control.wait_for_agent_end(home, LONGEST_S):
        what = f"the agent in {home} has not ended yet. It sends nothing any more."
        raise StoreError("E-RUN-EXISTS", what, "wait for it, or end your script, and leave again.")


def _remove(path: Path) -> bool:
    """Remove a file or a folder. Returns whether there was one. Raises StoreError(E-DISK)."""
    if not path.exists():
        return False
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as e:
        raise StoreError("E-DISK", f"cannot remove {path}: {e.strerror}.", "remove it by hand.") from None
    return True


def leaving_words(done: dict[str, Any], home: Path) -> list[str]:
    """Describe the result of leaving a server, for a screen."""
    sentence = "the server has revoked this device" if done["told"] else "the server was not told, and still lists it"
    out = [f"left: {sentence}", f"  removed  {len(done['removed'])} of its files and folders: key, state, models"]
    ours = {str(home / name) for name in (policy.FILE, *RECORDS)}
    for path in done["stays"]:
        out.append(f"  stays    {path}{'' if path in ours else '  (not made by edgewise)'}")
    out.append("  your text was never anywhere else than where it is")
    return out
