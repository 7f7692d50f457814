"""The HTML report of a run: one self-contained file without scripts or requests, light and dark, printable.

The page is built from the result of ``summary.build`` alone. So ``edgewise report`` can rebuild it from ``run.db``.

    with RunStore(Path("runs/demo")) as store:
        write_run_page(store, summary.build(store), Path("runs/demo"))
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from edgewise.apps.report import (
    alone_or_together,
    cost,
    data_read,
    numbers,
    participation,
    personal,
    privacy,
    pruned,
    redistillation,
    sections,
    settings,
    simulator_metrics,
    svg,
)
from edgewise.apps.report.html import card, details, facts, pair, panel, row, table
from edgewise.apps.runs.toml_text import toml
from edgewise.drivers.storage.files import write_durably

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # With this policy the browser refuses any request.
PARTS = ("Verdict", "Quality", "Privacy", "Cost", "Participation", "Time", "Pipeline", "Provenance")


def write_run_page(summary: Mapping[str, Any], out: Path) -> Path:
    """Write ``report.html``, ``rounds.csv`` and the resolved ``recipe.toml`` into ``out``.

    Args:
        summary: the result of ``summary.build``.
    Returns:
        The path of the page.
    """
    path = out / "report.html"
    write_durably(out / "recipe.toml", toml(summary["recipe"]).encode())
    write_durably(out / "rounds.csv", rounds_csv(summary).encode())
    write_durably(path, run_page(summary).encode())
    return path


def _flat_row(r: Mapping[str, Any]) -> dict[str, Any]:
    """Give each metric of a round's row a cell of its own."""
    own = {f"metric_{name}": value for name, value in r.get("summed_metrics", {}).items()}
    return {key: value for key, value in r.items() if key != "summed_metrics"} | own


def rounds_csv(s: Mapping[str, Any]) -> str:
    """Format the rounds as CSV for other programs.

    A row holds ``per_round`` of ``summary.json`` and the perplexities of the federated model after that round. A cell
    is empty if its value is unknown.
    """
    measured = {c["played"]: c for c in s["curve"]}
    figures = ("weighted_mean", "median", "worst_decile")
    rows = []
    for r in s["per_round"]:
        after = measured.get(r["round"] + 1, {})
        rows.append({**_flat_row(r), "round": r["round"] + 1, **{f"perplexity_{k}": after.get(k) for k in figures}})
    text = io.StringIO()
    if rows:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return text.getvalue()


def run_page(s: Mapping[str, Any]) -> str:
    """Build the HTML of the whole page from ``summary.build``."""
    css = resources.files("edgewise.apps.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    bodies = (
        _verdict_cards(s),
        _quality_section(s),
        privacy.privacy_section(s),
        cost.cost_section(s),
        participation.section(s),
        sections.time_section(s),
        sections.pipeline_section(s),
        sections.provenance_section(s),
    )
    links = "".join(f'<li><a href="#{p.lower()}">{p}</a></li>' for p in PARTS)
    parts = "".join(
        f'<section id="{p.lower()}" aria-labelledby="h-{p.lower()}"><h2 id="h-{p.lower()}">{p}</h2>{b}</section>'
        for p, b in zip(PARTS, bodies, strict=True)
    )
    notes = "".join(note(s) for note in (_chosen_model_in_words, _unfinished_note, _not_covered, _data_notes))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{escape(s["name"])} · edgewise report</title><style>{css}</style></head><body>
<a class="skip" href="#verdict">Skip to the verdict</a><div class="page"><header>
<p class="kind">edgewise report · run <span class="hash">{escape(s["run"][:12])}</span></p>
<h1>{escape(s["name"])}</h1><p class="lead">{_report_lead(s)}</p>{notes}
<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{parts}</main>
<footer><code>edgewise report</code> made this page from <code>run.db</code>. The same numbers are in
<code>summary.json</code>.</footer></div></body></html>
"""


def _report_lead(s: Mapping[str, Any]) -> str:
    """Summarise the run in a few sentences. The first one compares it with training alone."""
    first, note = (
        alone_or_together.sentence(s, lambda figure: f"<b>{figure}</b>"),
        alone_or_together.alone_won_reason(s),
    )
    return f"{first} {_change_in_words(s)}{f' {note}' if note else ''}"


def _change_in_words(s: Mapping[str, Any]) -> str:
    """Say how the rounds changed the model, and how much each device uploaded."""
    ppl, change = s["perplexity"], s["change_percent"]["federated"]
    played = s["rounds"]["played"]
    measured = max((c["played"] for c in s["curve"]), default=played)  # The shown perplexity is of this round.
    if s["rounds"]["kept"] < played:
        measured = s["rounds"]["kept"]
    who = f"{numbers.count(s['population'])} devices" if s["population"] else "The devices"
    if abandoned := s["rounds"]["abandoned"]:
        few = "because too few devices contributed"
        who = f"{numbers.count(abandoned)} of {played} rounds were abandoned {few}. {who}"
    if change is None and ppl["federated"] and ppl["base"]:
        return f"{who} trained for {measured} rounds. A held-out perplexity is too large for a number."
    if change is None:
        return f"{who} trained for {played} rounds. The federated model has not been measured yet."
    verb = "lowered" if change < 0 else "raised"
    first = (
        f"{who} training together for {measured} rounds {verb} held-out perplexity from"
        f" <b>{numbers.perplexity(ppl['base']['weighted_mean'])}</b> to"
        f" <b>{numbers.perplexity(ppl['federated']['weighted_mean'])}</b> ({numbers.percent(change)})."
    )
    b = s["bytes"]
    up = b["up_per_device_round"]
    if up is None:
        return first
    against = numbers.against(b["up_ratio"], b["up_ratio_update"])
    return f"{first} Each device uploaded <b>{numbers.size(up)}</b> per round: {against}."


def _chosen_model_in_words(s: Mapping[str, Any]) -> str:
    """Name the final model and the reason for an early end, if held-out losses decided them."""
    r = s["rounds"]
    if r["stopped"]:
        sentence = numbers.early_end_reason(r["played"], r["planned"], r["waited"], r["kept"])
    elif r["kept"] < r["played"]:
        sentence = f"{numbers.counts(r['kept'])}, of {r['played']} played, because its held-out loss is the lowest"
    else:
        return ""
    sentence = f"{sentence[0].upper()}{sentence[1:]}."
    if r["kept"] < r["played"]:
        n = sum(c.get("weighted_mean") is not None for c in s["curve"])
        sentence += (
            f" It was chosen from {n} evaluations on the same text, so its figures here are slightly optimistic."
        )
    return f'<p class="note-box" role="note">{escape(sentence)}</p>'


def _unfinished_note(s: Mapping[str, Any]) -> str:
    """Warn of a run that is not complete."""
    if s["complete"]:
        return ""
    return (
        f'<p class="note-box" role="note"><b>This run is not complete:</b> {numbers.unfinished(s)}.'
        " The figures cover the finished part. Continue with <code>--resume</code>.</p>"
    )


def _not_covered(s: Mapping[str, Any]) -> str:
    if not s["not_covered"]:
        return ""
    return (
        '<p class="note-box" role="note"><b>Epsilon does not cover the figures of this page.</b> '
        f"{escape(s['not_covered'][0].upper() + s['not_covered'][1:])}. Figures of single devices are in "
        "<code>devices.json</code>, which only the owner of this folder can read.</p>"
    )


def _data_notes(s: Mapping[str, Any]) -> str:
    """Note omitted text, prompts that were cut, and a comparison that was not possible."""
    notes = data_read.notes(s["reading"]) if s["reading"] else []
    if s["no_pooled_data"]:
        notes.append("Centralised training was not compared, because the trainer has no pooled data of all devices.")
    return "".join(f'<p class="note-box" role="note">{escape(note)}</p>' for note in notes)


def _verdict_cards(s: Mapping[str, Any]) -> str:
    """Draw the cards with the figures that matter most."""
    ppl, change, share, b = s["perplexity"], s["change_percent"], s["share_improved"], s["bytes"]
    cards = []
    if ppl["federated"]:
        cards.append(
            card(
                "Federated perplexity",
                numbers.measured_perplexity(ppl["federated"]["weighted_mean"]),
                f"{numbers.percent(change['federated'])} against the base",
            )
        )
    if share["over_base"] is not None:
        over = share["over_local_only"]
        more = f"{_percent(over)} do better than alone" if over is not None else "training alone was not measured"
        cards.append(card("Measured devices that improve", _percent(share["over_base"]), more))
    if b["up_per_device_round"] is not None:
        more = (
            f"{numbers.against(b['up_ratio'], b['up_ratio_update'])}; "
            f"download {numbers.size(b['down_per_device_round'])}"
        )
        cards.append(card("Upload per device and round", numbers.size(b["up_per_device_round"]), more))
    if (crossed := b["split"]) and crossed["sessions"]:
        where = f"of it, behind block {crossed['cut']} ({crossed['shape']})"
        more = f"{where}; down {numbers.size(crossed['down_per_session'])}"
        title, size = "Activations and gradients up", crossed["up_per_session"]
        if crossed["once"]:
            title, size, more = "Activations, up once", crossed["up_total"], f"of all devices, {where[7:]}"
        cards.append(card(title, numbers.size(size), more))
    p = s["participation"]
    missing = f"{p['lost']} lost, {p['late']} late"
    if p["unused"]:
        missing += f", {numbers.count(p['unused'])} in abandoned rounds"
    if p["invited"]:
        cards.append(
            card(
                "Contributions that counted",
                numbers.percent(100 * p["accepted"] / p["invited"], signed=False),
                f"{numbers.count(p['accepted'])} of {numbers.count(p['invited'])}; {missing}",
            )
        )
    models = f'<div class="panel models">{_models_table(s)}{_personal_in_words(s)}</div>'
    return f'<div class="cards">{"".join(cards)}</div>{models}{_training_panel(s)}'


def _personal_in_words(s: Mapping[str, Any]) -> str:
    """Say whom personal models help, and what they forget."""
    said = " ".join(filter(None, (personal.sentence(s), personal.unseen_sentence(s))))
    return f'<p class="hint">{escape(said)}</p>' if said else ""


def _training_panel(s: Mapping[str, Any]) -> str:
    """List what was trained and with which settings."""
    return panel("Training", "", facts((name, escape(setting)) for name, setting in settings.training_settings(s)))


def _percent(x: float) -> str:
    """Write a share in percent."""
    return numbers.percent(100 * x, signed=False)


def _models_table(s: Mapping[str, Any]) -> str:
    body = []
    for name in numbers.shown(s):
        q = s["perplexity"][name]
        key = f'<span class="key" style="--c:var(--{name})"></span>'
        head = f"{key}{numbers.MODELS[name]} <small>{numbers.MEANS[name]}</small>"
        cells = ["not run", "", "", "", ""]
        if q:
            change = "" if name == "base" else numbers.percent(s["change_percent"][name])
            keys = ("weighted_mean", "median", "worst_decile")
            cells = [*(numbers.figure(q, k) for k in keys), change, numbers.count(q["devices"] or None)]
        body.append(row(head, cells, "ours" if name == numbers.result(s) else ""))
    counts = {q["devices"] for q in s["perplexity"].values() if q}
    odd = "" if len(counts) < 2 else " The models were measured on different devices, so compare with care."
    return table(
        ("model", "weighted mean", "median", "worst 10 %", "change", "devices"),
        body,
        "Held-out perplexity. Lower is better. The weighted mean is over all held-out tokens. The median and the worst"
        f" 10 % are over the measured devices.{odd}",
    )


def _metric_chart(s: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Draw a metric that the recipe declares over the rounds."""
    name = metric["name"]
    means = [
        (r["round"] + 1, r["summed_metrics"][name]) for r in s["per_round"] if r["summed_metrics"].get(name) is not None
    ]
    std = f" The noise on it has standard deviation {numbers.figures(metric['noise_std'])}."
    noise = std if metric["noise_std"] else ""
    between = f"between {numbers.figures(metric['lower'])} and {numbers.figures(metric['upper'])}"
    series = [svg.Series("mean", "federated", means, dots=True)]
    chart = svg.lines(f"{name} by round", series, x_name="round", unit=lambda v: f"{v:.3f}")
    return panel(
        escape(name),
        f"Sent by devices ([[metric]]): the mean with the weights of their updates. Each value is {between}.{noise}",
        chart,
    )


def _quality_section(s: Mapping[str, Any]) -> str:
    """Draw perplexity and losses over the rounds."""
    curve = [c for c in s["curve"] if c.get("weighted_mean") is not None]
    last = max((c["played"] for c in curve), default=0)
    series = [svg.Series("federated", "federated", [(c["played"], c["weighted_mean"]) for c in curve], dots=True)]
    for name in ("base", "local_only", "centralised", "personal"):
        if (q := s["perplexity"][name]) and curve and q["weighted_mean"] is not None:
            ends = [(0.0, q["weighted_mean"]), (last, q["weighted_mean"])]
            series.append(svg.Series(numbers.MODELS[name], name, ends, dashed=True))
    band = [(c["played"], c["low"], c["high"]) for c in curve if None not in (c["low"], c["high"])]
    held = svg.lines(
        "Held-out perplexity by rounds played", series, x_name="rounds played", unit=numbers.perplexity, band=band,
        log_y=True,
    )  # fmt: skip
    rounds = [r for r in s["per_round"] if r["loss_last"] is not None]
    loss = svg.lines(
        "Training loss by round",
        [
            svg.Series("first steps", "base", [(r["round"] + 1, r["loss_first"]) for r in rounds]),
            svg.Series("last steps", "federated", [(r["round"] + 1, r["loss_last"]) for r in rounds], dots=True),
        ],
        x_name="round",
        unit=lambda v: f"{v:.3f}",
    )
    shade = "The line is the mean over tokens. The shade is the middle 80 % of devices. Lower is better."
    quarters = "Nats per token in the first and the last quarter of the local steps, averaged over devices."
    panels = [
        panel("Held-out perplexity", shade, held),
        alone_or_together.longer_alone_panel(s),
        panel("Training loss", quarters, loss),
    ]
    panels += [_metric_chart(s, metric) for metric in s["summed_metrics"]]
    shown = pair(*filter(None, panels))
    return (
        '<p class="hint">Measured on held-out text: the latest part of each device\'s text, which nobody trains on.</p>'
        f"{shown}{simulator_metrics.panels(s)}{redistillation.distillation_panel(s)}{pruned.pruning_panel(s)}{_device_spread(s)}{sections.samples_section(s)}"
    )


def _device_spread(s: Mapping[str, Any]) -> str:
    """Draw the perplexity of every device under every model, with a table of all devices.

    Few devices have a row each. More than 60 are drawn by rank.
    """
    models = [m for m in numbers.DRAWN if s["perplexity"][m]]
    order = "federated" if "federated" in models else "base"
    rows = sorted((r for r in s["per_device"] if r.get(order)), key=lambda r: -r[order])
    if not rows:
        return ""
    if len(rows) <= 60:
        chart = svg.dumbbells("Perplexity of each device under each model", rows, models)
        hint = "One row per device, sorted by the federated model."
    else:
        ranked = {m: sorted(r[m] for r in rows if r.get(m)) for m in models}
        lines = [
            svg.Series(numbers.MODELS[m], m, [(100 * i / max(1, len(v) - 1), p) for i, p in enumerate(v)])
            for m, v in ranked.items()
        ]
        chart = svg.lines(
            "Perplexity over devices", lines, x_name="% of devices, best first", unit=numbers.perplexity, width=1000
        )
        hint = f"{numbers.count(len(rows))} devices. Each curve is sorted by itself. Its label is the worst device."
    cells = [
        row(
            escape(r["device"]),
            [
                numbers.count(r["tokens"]),
                numbers.count(r["held_out_tokens"]),
                *(numbers.perplexity(r.get(m)) for m in models),
                str(len(r["rounds"])),
            ],
        )
        for r in rows
    ]
    heads = ("device", "training tokens", "held-out tokens", *(numbers.MODELS[m] for m in models), "rounds")
    return f"<div class=gap></div>{panel('Devices', hint, chart)}" + details(
        f"Table of all {len(rows)} devices", table(heads, cells)
    )
