"""Sections of the report on samples, time, pipeline and provenance: HTML from ``summary.build``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from edgewise.apps.report import data_read, numbers, repeat, settings, svg
from edgewise.apps.report.html import details, facts, pair, panel, row, table
from edgewise.apps.runs.toml_text import toml

Summary = Mapping[str, Any]
EMPTY = hashlib.sha256(b"").hexdigest()


def samples_section(s: Summary) -> str:
    """Show continuations of held-out text by the base and the federated model. Empty if the recipe asks for none."""
    if not s["samples"]:
        return ""
    hint = (
        "Some devices' held-out text and how both models continue its beginning. The recipe asks for it "
        "(<code>report.samples</code>). Both models draw with one seed. Nothing was selected."
    )
    parts = []
    for one in s["samples"]:
        rows = [("the device", one["actual"], "quiet")]
        rows += [(numbers.MODELS[m], one[m], m) for m in ("base", "federated")]
        key = '<dt><span class="key" style="--c:var(--{})"></span>{}</dt><dd>{}</dd>'
        texts = "".join(key.format(colour, escape(name), escape(text.rstrip()) or "–") for name, text, colour in rows)
        parts.append(f'<h4>{escape(one["device"])}</h4><p class="sample">{escape(one["prompt"])}</p><dl>{texts}</dl>')
    return "<div class=gap></div>" + panel("Samples of text", hint, f'<div class="samples">{"".join(parts)}</div>')


def time_section(s: Summary) -> str:
    """Build the section on time: wall clock by part of the run, and computing inside the rounds."""
    t = s["seconds"]
    wall = [
        svg.Bar("rounds", t["rounds"], numbers.duration(t["rounds"]), "", "federated"),
        svg.Bar("evaluation", t["evaluate"], numbers.duration(t["evaluate"]), "", "centralised"),
        svg.Bar("comparisons", t["compare"], numbers.duration(t["compare"]), "", "local_only"),
    ]
    work = [
        svg.Bar("training on devices", t["train"], numbers.duration(t["train"]), "", "federated"),
        svg.Bar("encoding on devices", t["encode"], numbers.duration(t["encode"]), "", "local_only"),
        svg.Bar("aggregation on the server", t["aggregate"], numbers.duration(t["aggregate"]), "", "centralised"),
    ]
    workers = s["facts"].get("workers")
    beside = f" on {workers} worker{'s' if workers != 1 else ''}" if workers else ""
    peak = s["memory"]["process_peak"]
    memory = (
        f" A process that trained took {numbers.size(peak)} of memory at most, with Python and torch." if peak else ""
    )
    return pair(
        panel(
            f"Wall clock: {numbers.duration(t['total'])}",
            "Loading and writing this report are not included.",
            svg.svg_stack("Wall-clock time by part of the run", wall),
        ),
        panel(
            "Computing inside the rounds",
            f"Seconds of work, summed over devices{beside}.{memory}",
            svg.svg_stack("Computing time inside the rounds", work),
        ),
    )


def pipeline_section(s: Summary) -> str:
    """Build the section on the update pipeline, the broadcast pipeline, and what each party learns."""
    claims = s["plan"]["claims"]
    shown = _pipeline_rows(s["plan"]["trace"], "The update pipeline, checked before any data was read.")
    down = _pipeline_rows(
        s["plan"]["trace_down"], "The broadcast pipeline: the download of a device that took part in the last round."
    )
    items = "".join(f"<li>{escape(c)}</li>" for c in claims)
    who = f'<h3 class="later">Who learns what</h3><ul class="claims">{items}</ul>' if items else ""
    return f'<div class="panel">{shown}{down}{who}</div>' if shown or who else '<p class="hint">Not recorded.</p>'


def _pipeline_rows(trace: Sequence[Mapping[str, Any]], note: str) -> str:
    """Draw the stages of an update with their bounds."""
    rows = []
    for i, r in enumerate(trace):
        cells = [escape(r["does"])]
        if r["role"] in ("merge", "post", "strategy"):
            cells += [""] * 6
        else:
            unit = f"{r['bits']:g} bit"
            cells += [
                numbers.count(r["dim"]),
                unit,
                _bound_cell(r["l2"]),
                _yes_or_no(r["summable"]),
                _yes_or_no(r["unbiased"]),
            ]
            cells.append(numbers.size(r["bytes"]))
        opens = r["role"] == "stage" and i + 1 < len(trace) and trace[i + 1]["role"] == "inner"
        name = escape(r["name"].split("(")[0] if opens else r["name"])
        rows.append(row(f"{'↳ ' if r['role'] == 'inner' else ''}{name}", cells, r["role"], plain=(0,)))
    heads = ("part", "what it does", "length", "each", "L2 bound", "summable", "unbiased", "bytes")
    return table(heads, rows, note, plain=(0,), reflow=True) if rows else ""


def _bound_cell(x: float | None) -> str:
    """Write a bound. None is "none"."""
    return '<span class="no">none</span>' if x is None else numbers.figures(x)


def _yes_or_no(x: bool) -> str:
    """Write a property as yes or no."""
    return '<span class="yes">yes</span>' if x else '<span class="no">no</span>'


def provenance_section(s: Summary) -> str:
    """Build the section on provenance: everything that is needed to reproduce the model."""
    f = s["facts"]
    began = f.get("started_at")
    when = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M UTC") if began else ""
    engine = f"{f.get('engine', '')}, {f.get('workers')} workers" if f.get("workers", 1) != 1 else f.get("engine", "")
    known = {"model", "parameters", "fingerprint", "engine", "workers", "started_at", "initial_sha256", "trainable"}
    known |= {"model_fingerprint", "spec_sha256"}
    more = [
        (k.replace("_", " "), escape(_short_value(v))) for k, v in f.items() if k not in known and v not in ([], "")
    ]
    listed = facts(
        [
            ("model", escape(str(f.get("model") or s["recipe"]["model"]["base"]))),
            ("parameters", f"{numbers.count(s['parameters'])}, of which {numbers.count(s['trainable'])} trained"),
            ("run id", _digest_cell(s["run"])),
            ("recipe SHA-256", _digest_cell(s["recipe_sha256"])),
            ("initial model SHA-256", _digest_cell(s["initial_sha256"])),
            (
                "final model SHA-256",
                _digest_cell(s["model_sha256"]) + f" <small>after {s['rounds']['kept']} rounds</small>",
            ),
            *([("data fingerprint", _digest_cell(f["fingerprint"]))] if f.get("fingerprint") else []),
            ("frozen weights SHA-256", _digest_cell(f.get("model_fingerprint"))),
            ("layout SHA-256", _digest_cell(f.get("spec_sha256"))),
            ("seed", escape(str(s["seed"]))),
            ("started", when),
            ("engine", escape(engine)),
            ("versions", escape(", ".join(f"{k} {v}" for k, v in s["versions"].items()))),
            *more,
        ]
    )
    what = "<h3>The recipe</h3><p class='hint'>The keys that differ from their defaults.</p>"
    own = f"{what}<pre>{escape(toml(settings.settings_not_default(s['recipe'])))}</pre>"
    whole = details("recipe.toml, with all defaults", f"<pre>{escape(toml(s['recipe']))}</pre>")
    return f'<div class="panel">{listed}</div>{_reading_section(s)}{repeat.repeat_block(s)}{own}{whole}'


def _reading_section(s: Summary) -> str:
    """List the files and rows that were read or left out. Empty if the trainer does not report them."""
    if not s["reading"]:
        return ""
    listed = facts((name, escape(figure)) for name, figure in data_read.data_read_rows(s["reading"]))
    return f'<h3>The data</h3><div class="panel">{listed}</div>'


def _digest_cell(x: str | None) -> str:
    """Format a digest. The digest of no bytes is left out: nothing is frozen if all weights are trained."""
    return f'<span class="hash">{escape(x)}</span>' if x and x != EMPTY else ""


def _short_value(value: Any) -> str:
    """Cut a value to 300 characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 300 else text[:299] + "…"
