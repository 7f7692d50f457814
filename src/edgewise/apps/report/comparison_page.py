"""HTML page that compares several runs: figures, differing settings and overlaid curves, self-contained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from edgewise.apps.report import comparison, numbers, svg
from edgewise.apps.report.html import pair, panel, row, table
from edgewise.apps.report.page import POLICY
from edgewise.core.errors import StoreError
from edgewise.drivers.storage.files import write_durably

MARK = '<meta name="generator" content="edgewise compare">'
# Close to Okabe and Ito's colours, which people with any colour vision tell apart. Text is darker, dark mode lighter.
LIGHT = ("0072b2", "d55e00", "009e73", "b0588c", "b58900", "2f8fc7", "7a5c2e", "5f666f")
LIGHT_TEXT = ("00609a", "a84a00", "00795a", "8f3f70", "7d5f00", "1f6f9e", "634a24", "4d545c")
DARK = ("4aa8e8", "f0824a", "1fb58a", "d98bb8", "e0b341", "7cc4ee", "b8935a", "9aa4ae")


def write_comparison_page(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page. It overwrites only an older page of its kind. Raises StoreError: E-FILE-EXISTS, E-DISK."""
    try:
        with path.open("rb") as f:
            ours = MARK.encode() in f.read(2048)
    except FileNotFoundError:
        ours = True
    except OSError as e:
        raise StoreError("E-DISK", f"cannot write {path}: {e.strerror}.", "choose another --out.") from None
    if not ours:
        raise StoreError(
            "E-FILE-EXISTS", f"{path} exists and is not a page of edgewise compare.", "choose another --out."
        )
    write_durably(path, comparison_page(found).encode())
    return path


def comparison_page(found: Mapping[str, Any]) -> str:
    """Build the HTML of the whole page from ``comparison.build_comparison``."""
    css = resources.files("edgewise.apps.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    names = ", ".join(r["name"] for r in found["runs"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{MARK}
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{len(found["runs"])} runs · edgewise</title><style>{css}{_run_colours()}</style></head><body>
<div class="page"><header><p class="kind">edgewise compare</p><h1>{len(found["runs"])} runs</h1>
<p class="lead">{_comparison_lead(found)}</p>{_not_comparable_note(found)}</header><main>
<section aria-label="Figures"><div class="panel">{_figures_table(found)}</div>{_settings_table(found)}</section>
<section aria-label="Curves">{_overlaid_curves(found)}</section>{_own_metrics(found)}</main>
<footer><code>edgewise compare</code> made this page from the databases of {escape(names)}.</footer></div></body></html>
"""


def _run_colours() -> str:
    """Write the colours of runs as CSS variables, light and dark."""

    def root(shades: tuple[str, ...], texts: tuple[str, ...]) -> str:
        both = zip(shades, texts, strict=True)
        return ":root{" + "".join(f"--run{i}:#{c};--run{i}-text:#{t};" for i, (c, t) in enumerate(both)) + "}"

    return f"{root(LIGHT, LIGHT_TEXT)}@media (prefers-color-scheme: dark){{{root(DARK, DARK)}}}"


def _run_colour(i: int) -> str:
    """Name the colour of a run."""
    return f"run{i % len(LIGHT)}"


def _comparison_lead(found: Mapping[str, Any]) -> str:
    """Write the first paragraph: the best run."""
    wins = comparison.best_run(found)
    if wins is None:
        return "No two of these runs have a federated perplexity that can be compared."
    top = next(r for r in found["runs"] if r["name"] == wins)
    lowest = numbers.perplexity(top["perplexity"]["federated"])
    winner = f"<b>{escape(wins)}</b> has the lowest held-out perplexity: <b>{lowest}</b>"
    sent = (
        f", with uploads of {numbers.size(top['up_per_device_round'])} per device and round"
        if top["up_per_device_round"]
        else ""
    )
    return f"{winner}{sent}."


def _not_comparable_note(found: Mapping[str, Any]) -> str:
    """Note the runs that cannot be compared, and why."""
    notes = "<br>".join(
        escape(comparison.incomparable_reason(name, why)) for name, why in found["not_comparable"].items()
    )
    return f'<p class="note-box" role="note">{notes}</p>' if notes else ""


def _figures_table(found: Mapping[str, Any]) -> str:
    """Draw the table of figures."""
    wins = comparison.best_run(found)
    rows = [
        row(
            f'<span class="key" style="--c:var(--{_run_colour(i)})"></span>{escape(r["name"])}',
            comparison.run_figures(r),
            "ours" if r["name"] == wins else "",
        )
        for i, r in enumerate(found["runs"])
    ]
    unfinished = "" if all(r["complete"] for r in found["runs"]) else " * not complete."
    caption = (
        "Held-out perplexity is the weighted mean over tokens. Lower is better. Up is the number of bytes that devices "
        f"sent.{unfinished}"
    )
    return table(("run", *comparison.HEADS), rows, caption)


def _settings_table(found: Mapping[str, Any]) -> str:
    """Draw the table of settings that differ."""
    if not found["settings"]:
        return '<p class="hint">The runs have the same settings.</p>'
    rows = [
        row(
            f"<code>{escape(key)}</code>",
            [escape(comparison.setting_in_words(v)) for v in values],
            plain=range(len(values)),
        )
        for key, values in found["settings"].items()
    ]
    heads = ("setting", *(r["name"] for r in found["runs"]))
    return panel("Settings that differ", "", table(heads, rows, plain=range(len(heads) - 1)))


def _overlaid_curves(found: Mapping[str, Any]) -> str:
    """Draw the curves of all runs over rounds and bytes."""
    runs = found["runs"]

    def lines(title: str, points: list[list[tuple[float, float]]], x_name: str, unit: Any, whole: bool = True) -> str:
        return _overlaid(runs, title, points, x_name, unit, whole)

    by_round = lines(
        "Held-out perplexity by rounds played",
        [[(c["played"], c["perplexity"]) for c in r["curve"]] for r in runs],
        "rounds played",
        numbers.perplexity,
    )
    by_bytes = lines(
        "Held-out perplexity by bytes sent",
        [[(c["up"] / 1e6, c["perplexity"]) for c in r["curve"]] for r in runs],
        "MB that one device has sent, on average",
        numbers.perplexity,
        whole=False,
    )
    loss = lines(
        "Training loss by round",
        [[(one["round"], one["loss"]) for one in r["loss"]] for r in runs],
        "round",
        lambda v: f"{v:.3f}",
    )
    quality = pair(
        panel("Held-out perplexity by rounds", "Lower is better.", by_round)
        + panel("Held-out perplexity by bytes", "Lower and further left is better.", by_bytes)
    )
    return f"{quality}<div class=gap></div>" + pair(
        panel("Training loss", "Nats per token in the last quarter of the local steps, averaged over devices.", loss)
        + panel("Federated against alone", "Lower is better.", _perplexity_bars(found))
    )


def _overlaid(
    runs: Sequence[Mapping[str, Any]],
    title: str,
    points: list[list[tuple[float, float]]],
    x_name: str,
    unit: Any,
    whole: bool = True,
) -> str:
    """Draw one curve of each run over one axis."""
    series = [
        svg.Series(svg.clipped(r["name"], 72), _run_colour(i), p, dots=len(p) < 30, dashed=i >= len(LIGHT))
        for i, (r, p) in enumerate(zip(runs, points, strict=True))
    ]
    return svg.lines(title, series, x_name=x_name, unit=unit, whole_x=whole, height=max(280, 60 + 16 * len(runs)))


def _own_metrics(found: Mapping[str, Any]) -> str:
    """Draw a chart of each own metric, and a table of the latest means. Empty without metrics."""
    rows = comparison.metric_rows(found)
    if not rows:
        return ""
    charts = []
    for name, _ in rows:
        points = [[(one["played"], one["mean"]) for one in r["metrics"].get(name, ())] for r in found["runs"]]
        title = svg.clipped(name, 300)
        drawn = _overlaid(found["runs"], f"{title} by rounds played", points, "rounds played", lambda v: f"{v:.4g}")
        charts.append(panel(escape(title), "Own metric: mean over the measured devices.", drawn))
    heads = ("metric", *(r["name"] for r in found["runs"]))
    latest = panel("Own metrics", "The latest means.", table(heads, [row(escape(n), cells) for n, cells in rows]))
    return f'<section aria-label="Own metrics">{"".join(charts)}{latest}</section>'


def _perplexity_bars(found: Mapping[str, Any]) -> str:
    """Draw the perplexities of all runs side by side."""
    bars = []
    for i, r in enumerate(found["runs"]):
        together, alone = r["perplexity"].get("federated"), r["perplexity"].get("local_only")
        if together is not None:
            bars.append(svg.Bar(r["name"], together, numbers.perplexity(together), "federated", _run_colour(i)))
        if alone is not None:
            bars.append(svg.Bar("", alone, numbers.perplexity(alone), "alone", "quiet"))
    return svg.bars("Federated perplexity beside that of devices alone", bars)
