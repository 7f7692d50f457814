"""Measurements of ``edgewise bench edge-llm``: the share of each step in the workflow of the recipe ``edge-llm``.

    OUT/teacher, OUT/student    a teacher and its student, made once of public text
    OUT/longer                  the same student after a tenth more steps: a control that no device takes part in
    OUT/NAME.toml, OUT/NAME     recipe and run of each row

A row differs from the one before it by one step of the workflow, except where its name says "instead". Every row begins
with the same student and is measured on the same devices. A finished row is read from its folder, and an unfinished one
goes on. Each run is a process of its own, so its memory is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgewise.apps.cli.shipped import FOLDER, STUDENT
from edgewise.apps.models.distilling import DistillRequest, distil_to_folder
from edgewise.apps.report import numbers
from edgewise.apps.runs.toml_text import toml
from edgewise.core.errors import EdgewiseError, RoundError
from edgewise.drivers.storage import folder
from edgewise.drivers.storage.files import write_durably
from edgewise.learn.compress.teaching import Lesson
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.loading import load

if TYPE_CHECKING:
    from rich.console import Console

PUBLIC, BATCH = "plays-public", 16  # 16 blocks of 64 tokens in a step
TEACHER_LAYERS, TEACHER_RATE, TEACHER_DATA, STUDENT_RATE, MORE_RATE = 8, 1e-3, 0.9, 2e-3, 5e-4
SERVER_RATE = 2e-3  # The student is nearer to its goal than the bundled model, so the server takes smaller steps.
MORE = 0.1  # Share of further steps of the control.
RESULTS = "edge-llm.json"
SIM = (sys.executable, "-m", "edgewise.apps.cli.main", "sim")
Tell = Callable[[str], object]

_OPEN: dict[str, Any] = {  # The server sees each update, and nothing is rounded, hidden or noised.
    "privacy": "none", "dp": {}, "trust": {}, "merge": {"kind": "sum"}, "stage": [{"kind": "weigh"}],
    "model.quantize": "none", "trainable.rule": "fedit", "personal": {}, "distill": {},
}  # fmt: skip
_SHARED = [  # Shares add integers of one grid.
    {"kind": "clip", "l2": 1.0}, {"kind": "rotate"}, {"kind": "clamp", "stds": 5.0},
    {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"},
]  # fmt: skip
_FFA = {**_OPEN, "trainable.rule": "ffa"}
_NF4 = {**_FFA, "model.quantize": "nf4"}
_HIDDEN = {
    **{key: value for key, value in _NF4.items() if key != "trust"}, "privacy": "hidden",
    "merge": {"kind": "shared_sum"}, "stage": _SHARED,
}  # fmt: skip
_AGAIN = {"distill.every": 2, "distill.teacher": "teacher"}
_SPLIT = {  # The device has two blocks and the head. What crosses is under no epsilon, and goes to the gateway.
    "personal": {}, "distill": {},
    "split": {"cut": 2, "shape": "U", "server_parts": "frozen", "held_by": "gateway"},
}  # fmt: skip


class Row(NamedTuple):
    """One row: the step that it adds, and the keys of the recipe that it changes.

    ``run``: the run whose figures it has, where that is another row's, else None. ``of``: the model that is measured.
    """

    name: str
    says: str
    changes: Mapping[str, Any]
    model: str = "student"
    of: str = "federated"
    run: str | None = None


ROWS = (
    Row("control", "more public text, no devices", {**_OPEN, "round.rounds": 1}, "longer", "base"),
    Row("adapters", "adapters, all visible", _OPEN),
    Row("fixed", "+ fixed factor A", _FFA),
    Row("four-bit", "+ base in 4 bits", _NF4),
    Row("shares", "+ shares at two servers", _HIDDEN),
    Row("noise", "+ noise on devices", {"personal": {}, "distill": {}}),
    Row("distilled", "+ re-distillation", _AGAIN, run="whole"),
    Row("whole", "+ personal models", _AGAIN, of="personal"),
    Row("split", "noise, and a split model instead", _SPLIT),
    Row(
        "coordinates",
        "0.5 % of all weights instead of adapters",
        {
            "personal": {}, "distill": {}, "model.quantize": "none", "trainable": {"kind": "full"},
            "stage": [{"kind": "shared_top_k", "fraction": 0.005}],
        },
    ),
)  # fmt: skip
NAMES = tuple(row.name for row in ROWS)


def bench_edge(out: Path, rounds: int, steps: int, names: tuple[str, ...], tell: Tell) -> dict[str, Any]:
    """Benchmark the edge workflow: make teacher and student, play the rows, and write ``OUT/edge-llm.json``.

    Args:
        rounds: rounds of each run. steps: of the teacher and of the student.
        names: rows, of ``NAMES``; empty for all. Rows that are finished are shown too.
        tell: receives a line for each part of the work.
    Returns:
        ``baseline`` and ``baseline_nf4`` (the student in float32 and in 4 bits on devices, None where no
        row has it), ``teacher``, ``student`` and ``longer`` (perplexity on
        held-out public text) and ``rows``: ``name``, ``says``, ``perplexity``, ``change_percent`` against the baseline,
        ``bytes_up``, ``bytes_down`` (a device and round), ``epsilon``, ``delta``, ``memory_bytes`` (the process that
        played it, with the server), ``seconds``.
    Raises:
        EdgewiseError: E-UNKNOWN for another row, E-FOLDER for a folder that edgewise did not make, and the errors of
            distillations and runs. RoundError(E-ROUND) where a run fails.
    """
    if unknown := [name for name in names if name not in NAMES]:
        what = f"bench edge-llm has no row {unknown[0]!r:.40}."
        raise EdgewiseError("E-UNKNOWN", what, f"one of {', '.join(NAMES)}.")
    folder.claim(out)
    made = _models(out, steps, tell)
    wanted = [
        row for row in ROWS if not names or row.name in names or _summary(out / (row.run or row.name)).get("complete")
    ]
    summaries = {row.name: _played(row, out, rounds, tell) for row in wanted}
    bases = {
        s["recipe"]["model"].get("quantize", "none"): _base(s) for name, s in summaries.items() if name != "control"
    }
    baseline = bases.get("none")
    rows = [_figures(row, summaries[row.name], baseline) for row in ROWS if row.name in summaries]
    found = {
        "rounds": rounds, "steps": steps, **made, "baseline": baseline, "baseline_nf4": bases.get("nf4"), "rows": rows,
    }  # fmt: skip
    write_durably(out / RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    return found


def _models(out: Path, steps: int, tell: Tell) -> dict[str, float]:
    """Make the teacher, the student and the control. Returns their perplexity on held-out public text."""
    config = json.loads((STUDENT / "config.json").read_bytes())
    write_durably(out / "teacher.json", json.dumps({**config, "num_hidden_layers": TEACHER_LAYERS}).encode())
    more = max(1, round(MORE * steps))
    lessons = {
        "teacher": ("bundled", out / "teacher.json", Lesson("logits", steps, TEACHER_RATE, BATCH, data=TEACHER_DATA)),
        "student": (str(out / "teacher"), STUDENT, Lesson("logits", steps, STUDENT_RATE, BATCH)),
        "longer": (str(out / "teacher"), out / "student", Lesson("logits", more, MORE_RATE, BATCH)),
    }
    found = {}
    for name, (teacher, to, lesson) in lessons.items():
        dest = out / name
        if not (dest / "distilled.json").is_file():
            tell(f"{name}: {lesson.steps} steps on {PUBLIC}")
            begun = (out / f".{name}.distill").is_dir()
            distil_to_folder(DistillRequest(teacher, str(to), PUBLIC, dest, lesson, length=64, resume=begun))
        found[name] = json.loads((dest / "distilled.json").read_bytes())["student"]["perplexity"]
    return found


def _played(row: Row, out: Path, rounds: int, tell: Tell) -> dict[str, Any]:
    """Play a row, or find it played. Returns its summary."""
    name = row.run or row.name
    run, path = out / name, out / f"{name}.toml"
    changes = {"name": name, "model.base": row.model, "round.rounds": rounds, "eval.every": 0}
    changes |= {"strategy.lr": SERVER_RATE, **row.changes}
    text = toml(load(FOLDER / "edge-llm.toml", changes, BUILT_IN).resolved()).encode()
    if path.is_file() and path.read_bytes() != text:
        what = f"{path} is of another measurement."
        raise EdgewiseError("E-RUN-EXISTS", what, "choose another --out, or the rounds that it began with.")
    write_durably(path, text)
    summary = _summary(run)
    if not summary.get("complete"):
        tell(f"{name}: {row.says}")
        command = [*SIM, str(path), "--out", str(run), "--quiet"]
        command += ["--resume"] if (run / "run.db").is_file() else []
        with open(out / f"{name}.log", "ab") as log:
            if subprocess.run(command, stdout=log, stderr=log).returncode:
                raise RoundError("E-ROUND", f"the row {row.name} failed.", f"see {out / name}.log.")
        summary = _summary(run)
    return summary


def _base(s: Mapping[str, Any]) -> float:
    """Take the perplexity of the model before training from a summary."""
    return float(s["perplexity"]["base"]["weighted_mean"])


def _summary(run: Path) -> dict[str, Any]:
    """Read the summary of a run. Empty where there is none."""
    path = run / "summary.json"
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _figures(row: Row, s: Mapping[str, Any], baseline: float | None) -> dict[str, Any]:
    """Take a row's figures from its summary."""
    perplexity = s["perplexity"][row.of]["weighted_mean"]
    alone, card = row.of == "base", (s["plan"]["privacy"] or {}).get("card") or {}
    return {
        "name": row.name,
        "says": row.says,
        "perplexity": perplexity,
        "change_percent": 100 * (perplexity / baseline - 1) if baseline else None,
        "bytes_up": None if alone else s["bytes"]["up_per_device_round"],
        "bytes_down": None if alone else s["bytes"]["down_per_device_round"],
        "epsilon": card.get("against_server"),
        "delta": card.get("delta"),
        "memory_bytes": None if alone else s["memory"]["process_peak"],
        "seconds": None if alone else s["seconds"]["total"],
    }


def show_edge_bench(console: Console, found: Mapping[str, Any]) -> None:
    """Print the benchmark of the edge workflow (``bench_edge``)."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("step", overflow="fold")
    for name in ("perplexity", "change", "up", "down", "epsilon", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for says, key in (("the distilled student", "baseline"), ("the same in 4 bits", "baseline_nf4")):
        table.add_row(says, numbers.figures(found[key]), *[""] * 6)
    for r in found["rows"]:
        table.add_row(
            r["says"],
            numbers.figures(r["perplexity"]),
            numbers.percent(r["change_percent"]) if r["change_percent"] is not None else numbers.NOTHING,
            *(numbers.size(r[key]) if r[key] else "" for key in ("bytes_up", "bytes_down")),
            numbers.figures(r["epsilon"]) if r["epsilon"] else "none",
            numbers.size(r["memory_bytes"]) if r["memory_bytes"] else "",
            numbers.duration(r["seconds"]) if r["seconds"] else "",
        )
    console.print(table)
    what = (
        f"\nheld-out perplexity on devices after {found['rounds']} rounds; bytes of a device and round; memory of the "
    )
    console.print(Text(what + "process that simulates devices and servers", "dim"))
