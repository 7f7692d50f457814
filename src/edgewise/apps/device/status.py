"""The status of a device for its owner: enrolment, present work, what was sent, and refused runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.apps.device import control, personal, policy, record
from edgewise.core.errors import RecipeError
from edgewise.drivers.http import home as homes
from edgewise.drivers.storage import counter_file

SHOWN = 12  # characters of a run's id that a screen shows
RUNS, REFUSALS = 5, 5  # the number of newest ones that a screen shows


def found(home: Path, now_s: float) -> dict[str, Any]:
    """Collect the status of a device as plain JSON, without asking a server.

    Raises TransportError(E-IDENTITY) for a folder without an enrolment, and StoreError as ``device_record_lines`` and
    ``counter_file.load``.
    """
    enrolled = homes.load(home)
    agent, order = control.running_agent(home), control.read_owner_order(home, now_s)
    state, why, since_s = ("not running", None, None) if agent is None else (agent.state, agent.why, agent.since_s)
    if order.pause:
        state, why, since_s = "paused", _until(order.until_s), None
    if (older := counter_file.older(counter_file.load(counter_file.path(home, enrolled.name)))) is not None:
        state, why, since_s = "stopped", str(older), None
    budget: dict[str, float] | None = None
    trouble, evaluates = "", True
    try:
        own = policy.load(home)
        cap, evaluates = own.budget, own.privacy.evaluation
        budget = None if cap.epsilon is None else {"epsilon": cap.epsilon, "delta": cap.delta}
    except RecipeError as e:
        trouble = str(e)
    return {
        "device": enrolled.name, "server": enrolled.url, "server_key": enrolled.server, "state": state, "why": why,
        "since_s": since_s, "running": agent is not None, "policy": str(home / policy.FILE), "policy_error": trouble,
        "budget": budget, "evaluation": evaluates, "home": str(home),
        "left": record.device_record_summary(record.device_record_lines(home), now_s),
        "personal": personal.made_personal_models(home), "personal_wanted": personal.wanted_personal_models(home),
    }  # fmt: skip


def device_status_lines(status: Mapping[str, Any]) -> list[str]:
    """Write the device's status for a screen."""
    left, why = status["left"], f": {status['why']}" if status["why"] else ""
    since = f"  since {local_moment(status['since_s'])}" if status["since_s"] is not None else ""
    out = [f"device   {status['device']}  of {status['server']}", f"now      {status['state']}{why}{since}"]
    if status["state"] == "paused" and status["running"]:
        out.append("         the agent runs, and nothing leaves")
    if status["policy_error"]:
        out.append(f"policy   {status['policy_error']}")
    whole = left["all"]
    out.append(
        f"left     today {amount(left['today'])}; in all {amount(whole)}, {counted_noun(whole['rounds'], 'round')}"
    )
    for run in sorted(left["runs"], key=lambda one: -(one["last_s"] or 0.0))[:RUNS]:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(run["kinds"].items()))
        out.append(
            f"  run {run['run'][:SHOWN]}  {counted_noun(run['rounds'], 'round')}, "
            f"last {local_moment(run['last_s'])}: {kinds}"
        )
    for one in status["personal"]:
        out.append(f"personal model of run {one['run'][:SHOWN]}, made {local_moment(one['at_s'])}: {one['file']}")
    for run in status["personal_wanted"]:
        out.append(f"personal model of run {run[:SHOWN]}: made when the run has finished")
    spent, budget = left["epsilon"], status["budget"]
    if budget is not None:
        of = f"{budget['epsilon']:g} at delta {budget['delta']:g}, over all runs"
        out.append(f"epsilon  {0.0 if spent is None else spent:.4g} of {of}")
    else:
        out.append("epsilon  not capped by your policy")
    if not status["evaluation"]:
        out.append("losses   none on held-out text leaves: privacy.evaluation = false in your policy")
    for one in sorted(left["refusals"], key=lambda one: -one["last_s"])[:REFUSALS]:
        out.append(f"refused  run {one['run'][:SHOWN]}, {counted_noun(one['times'], 'time')}: {one['reason']}")
    return out


def amount(count: Mapping[str, Any]) -> str:
    """Write a number of frames and bytes in words."""
    size = count["bytes"]
    unit, by = next((u, b) for u, b in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1)) if size >= b or b == 1)
    return f"{counted_noun(count['frames'], 'frame')}, {size / by:.3g} {unit}"


def counted_noun(count: int, word: str) -> str:
    """Write a count with its noun."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def local_moment(at_s: float) -> str:
    """Write a point in time, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))


def _until(until_s: float | None) -> str:
    return "until `edgewise device resume`" if until_s is None else f"until {local_moment(until_s)}"
