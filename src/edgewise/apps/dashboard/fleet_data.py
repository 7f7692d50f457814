"""Figures of devices, tokens, mail, models, budgets and the audit log for their pages, as plain JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from edgewise.apps.dashboard import run_data
from edgewise.apps.dashboard.run_data import RunReader
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.fleet import audit, members, promotions
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.fleet.tables import MAIL, MEMBERS, ROUNDS
from edgewise.drivers.http.service import Service
from edgewise.drivers.storage import charges
from edgewise.plan.facts import parse
from edgewise.privacy import ledger

COMPARED = ("played", "abandoned", "loss", "perplexity", "bytes_up", "bytes_down", "seconds", "epsilon")
PAGE = 200  # rows of a list on one page


def dashboard_member_counts(c: sa.Connection) -> dict[str, dict[str, int]]:
    """Count a fleet's members by role and status, for a page."""
    found: dict[str, dict[str, int]] = {}
    columns = (MEMBERS.c.role, MEMBERS.c.status)
    for role, status, n in c.execute(sa.select(*columns, sa.func.count()).group_by(*columns)):
        found.setdefault(role, {})[status] = int(n)
    return found


def devices_among(c: sa.Connection, names: Sequence[str]) -> int:
    """Count the approved devices among members."""
    found, some = 0, MEMBERS.c.status == members.APPROVED
    for i in range(0, len(names), 500):  # SQLite takes a limited number of values
        query = sa.select(sa.func.count()).where(some, MEMBERS.c.role == "device", MEMBERS.c.id.in_(names[i : i + 500]))
        found += c.execute(query).scalar() or 0
    return found


def dashboard_devices(c: sa.Connection, service: Service, status: str, after: str) -> list[dict[str, Any]]:
    """List members in the order of their ids, a page at a time, with the seconds since their last call here."""
    now = time.monotonic()
    return [
        {
            "id": one.id, "label": one.label, "role": one.role, "status": one.status, "tags": list(one.tags),
            "joined_s": one.joined_s, "token": one.token,
            "seen_ago_s": None if (at := service.presence.progress_s.get(one.id)) is None else max(0.0, now - at),
        }
        for one in members.listed(c, status or None, after, PAGE)
    ]  # fmt: skip


def dashboard_round_under_way(c: sa.Connection, run: str) -> dict[str, Any] | None:
    """Show the round of a run that takes frames now: frames by phase and direction. None: no round is open."""
    round = c.execute(sa.select(sa.func.max(ROUNDS.c.round)).where(ROUNDS.c.run == run)).scalar()
    if round is None:
        return None
    here = (MAIL.c.run == run) & (MAIL.c.round == round)
    columns = (MAIL.c.phase, MAIL.c.inbound)
    rows = c.execute(
        sa.select(*columns, sa.func.count()).where(here).group_by(*columns).order_by(sa.func.min(MAIL.c.number))
    )
    return {
        "round": int(round),
        "phases": [{"phase": phase, "from_devices": bool(inbound), "frames": int(n)} for phase, inbound, n in rows],
    }


def dashboard_budget(run: ServedRun) -> float | None:
    """Return the epsilon that a run may spend. None: it promises none."""
    return _stated_epsilon(run.facts)


@lru_cache(maxsize=4096)
def _stated_epsilon(facts: bytes) -> float | None:
    noise = parse(facts).noise
    return None if noise is None else noise.epsilon


def dashboard_models(c: sa.Connection) -> dict[str, Any]:
    """List promotions with the model that stands, and whether a rollback has a model to return to."""
    history = promotions.promotion_history(c)
    standing = promotions.standing_promotions(history)
    rows = [{**asdict(one), "blobs": dict(one.blobs)} for one in reversed(history)]
    return {
        "history": rows,
        "standing": None if not standing else {**asdict(standing[-1]), "blobs": dict(standing[-1].blobs)},
        "former": None if len(standing) < 2 else {"name": standing[-2].name, "run": standing[-2].run},
    }


def dashboard_privacy(runs: Sequence[ServedRun], progress: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List the budgets of runs that promise an epsilon, the newest first."""
    found = []
    for run in reversed(runs):
        if (limit := dashboard_budget(run)) is None:
            continue
        spent = progress[run.run]["epsilon"] or 0.0
        played = progress[run.run]["played"]
        found.append({
            "run": run.run, "name": run.name, "state": run.state, "budget": limit, "spent": spent,
            "left": max(0.0, limit - spent), "rounds_left": max(0, run.rounds - played), "played": played,
            "rounds": run.rounds,
        })  # fmt: skip
    return found


def dashboard_charges(folder: Path) -> dict[str, Any]:
    """List the newest charges of a run's ledger, and say whether each follows from the one before."""
    names = ("number", "round", "attempt", "cohort", "event", "digest")
    with run_data.opened_run_to_show(folder) as c:
        run, instance = c.execute("SELECT id, instance FROM runs").fetchone()
        found = c.execute(f"SELECT {', '.join(names)} FROM charges ORDER BY number").fetchall()
    stored = [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in found]
    try:
        entries, links = charges.read_stored_charges(stored, ledger.first_ledger_link(run, instance))
    except (EdgewiseError, ValueError, KeyError, TypeError) as e:  # whatever the parsing of a changed row raises
        return {"charges": [], "count": len(stored), "problem": f"The ledger was changed: {e}."}
    rows = [
        {
            "number": i + 1, "round": one.round + 1, "attempt": one.attempt[:12], "cohort": one.cohort,
            "event": one.event.to_plain(), "digest": digest,
        }
        for i, (one, digest) in enumerate(zip(entries, links[1:], strict=True))
    ]  # fmt: skip
    return {"charges": rows[::-1][:PAGE], "count": len(rows), "problem": None}


def dashboard_audit_rows(c: sa.Connection, before: int, verify: bool) -> dict[str, Any]:
    """List rows of the audit log, the newest first. ``verify``: recompute the whole chain."""
    rows = audit.newest_audit_rows(c, PAGE, before)
    who = sorted({one.by for one in rows})
    labels = dict(c.execute(sa.select(MEMBERS.c.id, MEMBERS.c.label).where(MEMBERS.c.id.in_(who))).all())
    shown = [{**asdict(one), "name": labels.get(one.by, "")} for one in rows]
    found: dict[str, Any] = {"rows": shown, "verified": None, "problem": None}
    if verify:
        found["problem"] = audit.audit_log_problem(audit.audit_log_rows(c))
        found["verified"] = found["problem"] is None
    return found


def dashboard_comparison(reader: RunReader, folders: Mapping[str, tuple[ServedRun, Path]]) -> dict[str, Any]:
    """Put runs side by side: figures, the loss of each over the rounds, and the recipe keys that differ."""
    rows, series, recipes = [], [], {}
    for run, (row, folder) in folders.items():
        found = reader.figures(folder, run_data.BUCKETS // 2)
        losses = [one for one in found["charts"]["loss"]["series"] if one["name"] == run_data.HEAD_NAMES["loss_last"]]
        series += [
            {"name": f"{row.name} {run[:6]}", "x": found["charts"]["loss"]["x"], "y": one["y"]} for one in losses
        ]
        rows.append({
            "run": run, "name": row.name, "state": row.state, "budget": dashboard_budget(row),
            **{key: found[key] for key in COMPARED},
        })  # fmt: skip
        recipes[run] = flat(parse(row.facts).settings())
    keys = sorted({key for one in recipes.values() for key in one})
    differing = [key for key in keys if len({repr(one.get(key)) for one in recipes.values()}) > 1]
    return {
        "runs": rows,
        "losses": on_one_axis(series),
        "recipe": [{"key": key, "values": [one.get(key) for one in recipes.values()]} for key in differing],
    }


def on_one_axis(series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put curves of different runs on the union of their rounds."""
    x = sorted({round for one in series for round in one["x"]})
    at = [dict(zip(one["x"], one["y"], strict=True)) for one in series]
    return {
        "x": x,
        "series": [{"name": one["name"], "y": [y.get(v) for v in x]} for one, y in zip(series, at, strict=True)],
    }


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map dotted keys to the values of nested tables."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
