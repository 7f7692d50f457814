"""Sections of the report on cost, participation, time, pipeline and provenance: HTML from ``summary.build``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from edgewise.apps.report import data_read, numbers, repeat, settings, svg
from edgewise.apps.report.html import details, facts, pair, panel, row, table
from edgewise.apps.runs.toml_text import toml

Summary = Mapping[str, Any]
EMPTY = hashlib.sha256(b"").hexdigest()
FEW_POINTS = 3  # A line of fewer points gets a sentence that names them.
MATRIX_DEVICES, MATRIX_ROUNDS = 64, 120  # The cells of a larger matrix are too small to see.


def byte_stages(s: Summary) -> list[tuple[str, float, str]]:
    """List (name, bytes of one contribution, colour) from the float32 model through every stage to the wire."""
    b, trace = s["bytes"], s["plan"]["trace"]
    out: list[tuple[str, float, str]] = []
    if b["float32_model"] and b["float32_model"] != b["float32_update"]:
        out.append(("whole model, float32", b["float32_model"], "quiet"))
    for i, r in enumerate(trace):
        combinator = i + 1 < len(trace) and trace[i + 1]["role"] == "inner" and r["role"] == "stage"
        if r["role"] in ("start", "stage", "inner") and not combinator:
            name = "update, float32" if r["role"] == "start" else f"after {r['name']}"
            out.append((name, r["bytes"], "quiet" if r["role"] == "start" else "federated"))
    if b["up_per_device_round"]:
        out.append(("measured upload", b["up_per_device_round"], "centralised"))
    if b["down_per_device_round"]:
        out.append(("measured download", b["down_per_device_round"], "local_only"))
    return out


def cost(s: Summary) -> str:
    """Build the section on bytes: by stage of the pipeline, and perplexity against bytes."""
    b = s["bytes"]
    whole = b["float32_model"] or b["float32_update"]
    rows = [
        svg.Bar(name, value, numbers.size(value), "" if not whole else _share_of(value, whole), colour)
        for name, value, colour in byte_stages(s)
    ]
    stages = panel(
        "Bytes of one contribution",
        "Size of the update after each stage, and of the measured frame. Shares are of the float32 model.",
        svg.bars("Bytes of one contribution by stage", rows, left=168),
    )
    totals = table(
        ("", "per device and round", "against float32", "all devices and rounds"),
        [
            row(
                name,
                [
                    numbers.size(b[f"{k}_per_device_round"]),
                    numbers.smaller(b[f"{k}_ratio"]),
                    numbers.size(b[f"{k}_total"]),
                ],
            )
            for k, name in (("up", "upload: contributions"), ("down", "download: models and invitations"))
        ],
        f"The model has {numbers.size(b['float32_model'])} in float32, and its trained part "
        f"{numbers.size(b['float32_update'])}.",
        reflow=True,
    )
    return f'{pair(stages, _quality_for_bytes(s))}<div class="panel">{totals}{_raw_text(b)}</div>'


def _raw_text(b: Mapping[str, Any]) -> str:
    """Compare the uploads with the size of the training text."""
    text, up = b["text_per_device"], b["up_per_device"]
    if not text or not up:
        return ""
    more = ""
    if up > text:
        more = " Sending the text itself would have taken fewer bytes. Federating does not save bytes here."
    return (
        f'<p class="hint">A device trains on about <b>{numbers.size(text)}</b> of text, and all devices together on '
        f"{numbers.size(b['text_total'])}. A device uploaded <b>{numbers.size(up)}</b> in all rounds: "
        f"{numbers.than(text / up, 'its text')}.{more}</p>"
    )


def _share_of(value: float, whole: float) -> str:
    share = 100 * value / whole
    return "" if share > 99.5 else f"{numbers.figures(share, 2)} %"


def moved(s: Summary) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """List (name, colour, points) of uploads, and of uploads plus downloads.

    A point is (MB of one device so far, perplexity).
    """
    points = [p for p in s["quality_for_bytes"] if p["perplexity"] is not None and p["up"] > 0]
    out = [("sent", "federated", [(p["up"] / 1e6, p["perplexity"]) for p in points])]
    if any(p["down"] for p in points):
        out.append(("both ways", "local_only", [((p["up"] + p["down"]) / 1e6, p["perplexity"]) for p in points]))
    return out if points else []


def _quality_for_bytes(s: Summary) -> str:
    lines = moved(s)
    if not lines:
        return ""
    few, every = "", s["recipe"]["eval"]["every"]
    there = [p for p in s["quality_for_bytes"] if p["perplexity"] is not None and p["up"] > 0]
    if len(there) < FEW_POINTS:
        played = " and ".join(str(p["played"]) for p in there)
        few = f"The model was measured only after round {played} (eval.every = {every})."
    if len(there) == 1:
        (p,) = there
        moved_then = f"At perplexity {numbers.perplexity(p['perplexity'])} a device had uploaded"
        sizes = f"{numbers.size(p['up'])} and downloaded {numbers.size(p['down'])}"
        return panel("Quality for bytes", few, f"<p>{moved_then} {sizes}.</p>")
    series = [svg.Series(name, colour, points, dots=True) for name, colour, points in lines]
    if (q := s["perplexity"]["base"]) and q["weighted_mean"] is not None:
        at = [x for _, _, points in lines for x, _ in points]
        ends = [(x, q["weighted_mean"]) for x in (min(at), max(at))]
        series.append(svg.Series(numbers.MODELS["base"], "base", ends, dashed=True))
    chart = svg.lines(
        "Held-out perplexity by megabytes moved",
        series,
        x_name="MB per device (log scale)",
        unit=numbers.perplexity,
        whole_x=False,
        log_x=True,
        log_y=True,
    )
    hint = "Held-out perplexity against the bytes that a device has sent, and sent plus received (mean over devices)."
    return panel("Quality for bytes", f"{hint} {few}".strip(), chart)


def samples(s: Summary) -> str:
    """Show continuations of held-out text by the base and the federated model; empty if the recipe asks for none."""
    if not s["samples"]:
        return ""
    said = (
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
    return "<div class=gap></div>" + panel("Samples of text", said, f'<div class="samples">{"".join(parts)}</div>')


def participation(s: Summary) -> str:
    """Build the section on participation: funnel, lost contributions, devices by rounds, and a table of rounds.

    A chart is left out if all of its values would be the same.
    """
    p = s["participation"]
    if not p["invited"]:
        return '<p class="hint">No round has been finished yet.</p>'
    dropped = p["lost_by_code"].get("dropped", 0)
    steps = [
        svg.Bar(n, v, numbers.count(v), numbers.percent(100 * v / p["invited"], signed=False), "federated")
        for n, v in funnel(p)
    ]
    causes = [
        svg.Bar(numbers.lost(code), n, numbers.count(n), code if code.startswith("E-") else "", "lost")
        for code, n in reasons(p)
    ]
    why = svg.bars("Lost contributions by reason", causes, left=250)
    hint = f"{p['lost'] - dropped} failed, {dropped} dropped out, {p['late']} came late in virtual time."
    if why or p["accepted"] < p["invited"]:
        top = pair(
            panel("Funnel", "Invitations of all rounds.", svg.bars("Participation funnel", steps, left=165)),
            panel("Lost contributions", hint, why),
        )
    else:
        top = f"<p>Nothing was lost. All {numbers.count(p['invited'])} invitations gave contributions that counted.</p>"
    return top + _rungs(s) + _matrix(s) + _rounds(s)


def _rungs(s: Summary) -> str:
    """Draw the contributions by codec that devices chose; empty if the codec is fixed."""
    used = [r for r in s["rungs"] if r["accepted"]]
    rows = [
        svg.Bar(
            r["name"],
            r["accepted"],
            numbers.count(r["accepted"]),
            f"{numbers.count(r['devices'])} devices, {numbers.size(r['bytes_up'])}",
            "federated",
        )
        for r in used
    ]
    if not rows:
        return ""
    hint = f"Accepted contributions by the rung that the device chose. The ladder has {len(s['rungs'])} rungs."
    return "<div class=gap></div>" + panel("Codecs that devices chose", hint, svg.bars("Contributions by rung", rows))


def funnel(p: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Count the invitations that reached each step, from invited to accepted."""
    connected = p["invited"] - p["lost_by_code"].get("dropped", 0)
    return [
        ("invited", p["invited"]),
        ("stayed connected", connected),
        ("answered in time", connected - p["late"]),
        ("accepted", p["accepted"] + p["unused"]),
        *([("in a round that counted", p["accepted"])] if p["unused"] else []),
    ]


def reasons(p: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Count missing contributions by code, late ones included, the most frequent first."""
    found = {**p["lost_by_code"], **({"late": p["late"]} if p["late"] else {})}
    return sorted(found.items(), key=lambda pair: -pair[1])


def _matrix(s: Summary) -> str:
    devices, rounds = s["per_device"], s["rounds"]["played"]
    if not (0 < len(devices) <= MATRIX_DEVICES and 0 < rounds <= MATRIX_ROUNDS):
        return ""
    everyone = s["recipe"]["round"]["sampling"] == "all"
    rows = [(d["device"], list(_fates(d, rounds, everyone))) for d in devices]
    if {fate for _, fates in rows for fate in fates} <= {"accepted"}:
        return ""
    late = '<span><i style="border:1.5px solid var(--local_only)"></i>late</span>' if everyone else ""
    legend = (
        '<div class="legend"><span><i style="background:var(--federated)"></i>accepted</span>'
        f'<span><i style="background:var(--lost)"></i>lost</span>{late}</div>'
    )
    chart = svg.matrix("Devices by rounds: accepted, lost or late", rows, rounds)
    return "<div class=gap></div>" + panel("Participation by device", "Each column is a round.", legend + chart)


def _fates(device: Mapping[str, Any], rounds: int, everyone: bool) -> Iterator[str]:
    """Yield a device's fate in each round: ``accepted``, ``lost``, ``late`` or, if unknown, an empty text.

    If everybody is invited, a device that neither contributed nor was lost must have been late.
    """
    for r in range(rounds):
        if r in device["rounds"]:
            yield "accepted"
        elif str(r) in device["lost"]:
            yield "lost"
        else:
            yield "late" if everyone else ""


def _rounds(s: Summary) -> str:
    lags = any(r["lag_l2"] for r in s["per_round"])
    rows = [
        row(
            str(r["round"] + 1) + ("" if r["met"] else " <small>abandoned</small>"),
            [
                numbers.count(r["accepted"]),
                numbers.count(r["lost"]),
                numbers.count(r["late"]),
                numbers.NOTHING if r["loss_last"] is None else f"{r['loss_last']:.4f}",
                *(
                    numbers.NOTHING if value is None else numbers.figures(value)
                    for value in r.get("summed_metrics", {}).values()
                ),
                numbers.figures(r["update_l2"]),
                *([numbers.figures(r["lag_l2"])] if lags else []),
                numbers.size(r["bytes_up"]),
                numbers.size(r["bytes_down"]),
                numbers.duration(r["seconds"]),
            ],
        )
        for r in s["per_round"]
    ]
    lag = ("devices behind by, L2",) if lags else ()
    own = [
        m["name"] + (f" ± {numbers.figures(m['noise_std'])}" if m["noise_std"] else "")
        for m in s.get("summed_metrics", ())
    ]
    heads = ("round", "accepted", "lost", "late", "train loss", *own, "update L2", *lag, "up", "down", "time")
    beside = '<p class="hint"><code>rounds.csv</code> next to this page has more columns.</p>'
    return details(f"Table of all {len(rows)} rounds", table(heads, rows) + beside) if rows else ""


def time(s: Summary) -> str:
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
    return pair(
        panel(
            f"Wall clock: {numbers.duration(t['total'])}",
            "Loading and writing this report are not included.",
            svg.stack("Wall-clock time by part of the run", wall),
        ),
        panel(
            "Computing inside the rounds",
            f"Seconds of work, summed over devices{beside}.",
            svg.stack("Computing time inside the rounds", work),
        ),
    )


def pipeline(s: Summary) -> str:
    """Build the section on the update pipeline, the broadcast pipeline, and what each party learns."""
    claims = s["plan"]["claims"]
    shown = _trace(s["plan"]["trace"], "The update pipeline, checked before any data was read.")
    down = _trace(
        s["plan"]["trace_down"], "The broadcast pipeline: the download of a device that took part in the last round."
    )
    items = "".join(f"<li>{escape(c)}</li>" for c in claims)
    who = f'<h3 class="later">Who learns what</h3><ul class="claims">{items}</ul>' if items else ""
    return f'<div class="panel">{shown}{down}{who}</div>' if shown or who else '<p class="hint">Not recorded.</p>'


def _trace(trace: Sequence[Mapping[str, Any]], note: str) -> str:
    rows = []
    for i, r in enumerate(trace):
        cells = [escape(r["does"])]
        if r["role"] in ("merge", "post", "strategy"):
            cells += [""] * 6
        else:
            unit = f"{r['bits']:g} bit"
            cells += [numbers.count(r["dim"]), unit, _bound(r["l2"]), _yes(r["summable"]), _yes(r["unbiased"])]
            cells.append(numbers.size(r["bytes"]))
        opens = r["role"] == "stage" and i + 1 < len(trace) and trace[i + 1]["role"] == "inner"
        name = escape(r["name"].split("(")[0] if opens else r["name"])
        rows.append(row(f"{'↳ ' if r['role'] == 'inner' else ''}{name}", cells, r["role"], plain=(0,)))
    heads = ("part", "what it does", "length", "each", "L2 bound", "summable", "unbiased", "bytes")
    return table(heads, rows, note, plain=(0,), reflow=True) if rows else ""


def _bound(x: float | None) -> str:
    return '<span class="no">none</span>' if x is None else numbers.figures(x)


def _yes(x: bool) -> str:
    return '<span class="yes">yes</span>' if x else '<span class="no">no</span>'


def provenance(s: Summary) -> str:
    """Build the section on provenance: everything that is needed to reproduce the model."""
    f = s["facts"]
    began = f.get("started_at")
    when = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M UTC") if began else ""
    engine = f"{f.get('engine', '')}, {f.get('workers')} workers" if f.get("workers", 1) != 1 else f.get("engine", "")
    known = {"model", "parameters", "fingerprint", "engine", "workers", "started_at", "initial_sha256", "trainable"}
    known |= {"model_fingerprint", "spec_sha256"}
    more = [(k.replace("_", " "), escape(_short(v))) for k, v in f.items() if k not in known and v not in ([], "")]
    listed = facts(
        [
            ("model", escape(str(f.get("model") or s["recipe"]["model"]["base"]))),
            ("parameters", f"{numbers.count(s['parameters'])}, of which {numbers.count(s['trainable'])} trained"),
            ("run id", _hash(s["run"])),
            ("recipe SHA-256", _hash(s["recipe_sha256"])),
            ("initial model SHA-256", _hash(s["initial_sha256"])),
            ("final model SHA-256", _hash(s["model_sha256"]) + f" <small>after {s['rounds']['kept']} rounds</small>"),
            *([("data fingerprint", _hash(f["fingerprint"]))] if f.get("fingerprint") else []),
            ("frozen weights SHA-256", _hash(f.get("model_fingerprint"))),
            ("layout SHA-256", _hash(f.get("spec_sha256"))),
            ("seed", escape(str(s["seed"]))),
            ("started", when),
            ("engine", escape(engine)),
            ("versions", escape(", ".join(f"{k} {v}" for k, v in s["versions"].items()))),
            *more,
        ]
    )
    what = "<h3>The recipe</h3><p class='hint'>The keys that differ from their defaults.</p>"
    own = f"{what}<pre>{escape(toml(settings.own(s['recipe'])))}</pre>"
    whole = details("recipe.toml, with all defaults", f"<pre>{escape(toml(s['recipe']))}</pre>")
    return f'<div class="panel">{listed}</div>{_read(s)}{repeat.block(s)}{own}{whole}'


def _read(s: Summary) -> str:
    """List the files and rows that were read or left out; empty if the trainer does not report them."""
    if not s["reading"]:
        return ""
    listed = facts((name, escape(said)) for name, said in data_read.rows(s["reading"]))
    return f'<h3>The data</h3><div class="panel">{listed}</div>'


def _hash(x: str | None) -> str:
    """Format a digest. The digest of no bytes is left out: nothing is frozen if all weights are trained."""
    return f'<span class="hash">{escape(x)}</span>' if x and x != EMPTY else ""


def _short(value: Any) -> str:
    said = value if isinstance(value, str) else json.dumps(value)
    return said if len(said) <= 300 else said[:299] + "…"
