"""PNG plots of a run in ``out/plots``, for slides and papers. The report has its own charts in SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from edgewise.apps.report import cost, numbers, participation, simulator_metrics
from edgewise.apps.report.svg import clipped, is_wide, log_ticks
from edgewise.core.errors import EdgewiseError, StoreError

# Okabe and Ito's palette, which people with any colour vision tell apart. Each model also has its own marker.
COLOUR = {
    "base": "#7a828c",
    "local_only": "#d98300",
    "federated": "#0072b2",
    "personal": "#a3527f",
    "centralised": "#009e73",
    "lost": "#c8502b",
    "quiet": "#c3c8cf",
}
MARKER = {"base": "o", "local_only": "D", "federated": "o", "personal": "s", "centralised": "^"}
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelcolor": "#5b6570",
    "axes.edgecolor": "#c3c8cf",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9eae6",
    "text.color": "#1c2127",
    "xtick.color": "#5b6570",
    "ytick.color": "#5b6570",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
    "savefig.dpi": 160,
}
LINE = 0.062  # Height of a label, as a share of the axis.
MANY = 60  # With more devices the spread is drawn by rank.

Summary = Mapping[str, Any]


def write_report_plots(summary: Summary, out: Path) -> list[Path]:
    """Write the figures that the run has numbers for, and return their paths.

    Args:
        summary: the result of ``summary.build``.
    Raises:
        EdgewiseError: E-DEPENDENCY without matplotlib.
        StoreError: E-DISK where the files cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        fix = 'pip install "edgewise[train]", or in a clone `make setup`.'
        raise EdgewiseError("E-DEPENDENCY", "plots need matplotlib.", fix) from None
    written: list[Path] = []
    with matplotlib.rc_context(STYLE):
        for name, draw in (
            ("quality", _draw_quality),
            ("metrics", _draw_metrics),
            ("devices", _draw_devices),
            ("bytes", _draw_bytes),
            ("quality_for_bytes", _quality_for_bytes),
            ("participation", _draw_participation),
        ):
            path = out / "plots" / f"{name}.png"
            with _save_figure(path, name, summary) as figure:
                drawn = draw(figure, summary)
            if drawn:
                written.append(path)
            else:
                _remove_figure(path)  # An earlier report may have drawn a figure that this one leaves out.
    return written


def _remove_figure(path: Path) -> None:
    """Remove a figure, if there is one. Raises StoreError(E-DISK)."""
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot remove {path}: {e.strerror}.", "free some space.") from None


@contextmanager
def _save_figure(path: Path, name: str, s: Summary) -> Iterator[Any]:
    """Make a figure without global state (no pyplot), and save it if something was drawn on it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = len(s["per_device"]) if len(s["per_device"]) <= MANY else 10
    figure = Figure(figsize=(9.5, max(3.6, 1.5 + 0.24 * shown) if name == "devices" else 3.8))
    FigureCanvasAgg(figure)
    yield figure
    if figure.axes:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, metadata={"Software": None})
        except OSError as e:
            raise StoreError("E-DISK", f"cannot write {path}: {e.strerror}.", "free some space.") from None


def _label_ends(axes: Any, ends: Sequence[tuple[str, str, float]], x: float) -> None:
    """Write names at the right end of lines, moved apart if they would touch."""
    is_log = axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    at = -inf
    for label, colour, y in sorted(ends, key=lambda e: e[2]):
        above = at * (high / low) ** LINE if is_log else at + LINE * (high - low)
        at = max(y, above)  # Labels move upwards only. The lowest stays in place.
        axes.annotate(
            label, (x, at), xytext=(8, 0), textcoords="offset points", va="center", color=colour, weight="bold"
        )


def _whole_round_ticks(axes: Any) -> None:
    """Put ticks at whole rounds only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))


def _draw_quality(figure: Any, s: Summary) -> bool:
    """Draw perplexity and losses over the rounds."""
    curve = [c for c in s["curve"] if c.get("weighted_mean") is not None]
    rounds = [r for r in s["per_round"] if r["loss_last"] is not None]
    if not curve:
        return False
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    x = [c["played"] for c in curve]
    left.plot(x, [c["weighted_mean"] for c in curve], color=COLOUR["federated"], marker="o", lw=2, ms=5)
    left.fill_between(
        x, [c["low"] or 0 for c in curve], [c["high"] or 0 for c in curve], color=COLOUR["federated"], alpha=0.13, lw=0
    )
    ends = [("federated", curve[-1]["weighted_mean"])]
    for name in ("base", "local_only", "centralised", "personal"):
        if (q := s["perplexity"][name]) and q["weighted_mean"] is not None:
            left.plot([x[0], x[-1]], [q["weighted_mean"]] * 2, color=COLOUR[name], lw=1.8, ls=(0, (4, 3)))
            ends.append((name, q["weighted_mean"]))
    if is_wide([c["low"] or c["weighted_mean"] for c in curve] + [v for _, v in ends]):
        left.set_yscale("log")
        height = log_ticks(*left.get_ylim())
        left.set_yticks(height, [f"{t:,.6g}" for t in height])
        left.minorticks_off()
    else:
        left.set_ylim(bottom=0)
    named = [(f"{numbers.MODELS[n]} {numbers.perplexity(v)}", COLOUR[n], v) for n, v in ends]
    _label_ends(left, named, x[-1])
    _whole_round_ticks(left)
    left.set(title="Held-out perplexity", xlabel="rounds played (shade: middle 80 % of devices)")
    if rounds:
        x = [r["round"] + 1 for r in rounds]
        steps: list[tuple[str, str, float]] = []
        for key, name, colour in (("loss_first", "first steps", "base"), ("loss_last", "last steps", "federated")):
            values = [r[key] for r in rounds]
            right.plot(x, values, color=COLOUR[colour], lw=2, marker="o" if colour == "federated" else "", ms=4)
            steps.append((name, COLOUR[colour], values[-1]))
        _label_ends(right, steps, x[-1])
        _whole_round_ticks(right)
        right.set(title="Training loss, nats per token", xlabel="round")
    else:
        right.set_axis_off()
    return True


def _draw_metrics(figure: Any, s: Summary) -> bool:
    """Draw simulator metrics, at most four side by side."""
    found = dict(list(simulator_metrics.series(s).items())[:4])
    for at, (name, kinds) in enumerate(found.items()):
        axes = figure.add_subplot(1, len(found), at + 1)
        for kind, points in kinds.items():
            colour = COLOUR["federated" if kind == "held out" else "base"]
            axes.plot(*zip(*points, strict=True), color=colour, lw=2, marker="o", ms=4, label=kind)
        _whole_round_ticks(axes)
        axes.set(title=_plain_name(clipped(name, 700 / len(found))), xlabel="rounds played")
        axes.legend(frameon=False)
    return bool(found)


def _draw_devices(figure: Any, s: Summary) -> bool:
    """Draw the perplexities of the devices."""
    models = [m for m in numbers.DRAWN if s["perplexity"][m]]
    order = "federated" if "federated" in models else "base"
    rows = sorted((r for r in s["per_device"] if r.get(order)), key=lambda r: r[order])
    if not rows:
        return False
    axes = figure.subplots()
    draw = _draw_device_rows if len(rows) <= MANY else _draw_ranked
    draw(axes, rows, models)
    axes.set_xscale("log")
    ticks = log_ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [f"{t:,.6g}" for t in ticks])
    axes.minorticks_off()
    axes.set(title="Held-out perplexity of each device", xlabel="perplexity (log scale, lower is better)")
    figure.legend(loc="outside upper right", ncols=4, frameon=False, handletextpad=0.2)
    return True


def _plain_name(name: str) -> str:
    """Cut a name from data or an extension to fit, and escape its ``$``, which would start mathematics."""
    return clipped(name, 230).replace("$", r"\$")


def _draw_mark(axes: Any, model: str, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw the marks of a model."""
    face = "white" if model == "base" else COLOUR[model]
    look = {"marker": MARKER[model], "c": face, "edgecolors": COLOUR[model], "linewidths": 1.6, "zorder": 3}
    axes.scatter(x, y, s=34, label=numbers.MODELS[model], **look)


def _draw_device_rows(axes: Any, rows: Sequence[Summary], models: Sequence[str]) -> None:
    """Draw one row per device."""
    for i, r in enumerate(rows):
        ends = [r[m] for m in models if r.get(m)]
        axes.plot([min(ends), max(ends)], [i, i], color=COLOUR["quiet"], lw=1.6, zorder=1)
    for m in models:
        shown = [(i, r[m]) for i, r in enumerate(rows) if r.get(m)]
        _draw_mark(axes, m, [v for _, v in shown], [i for i, _ in shown])
    axes.set_yticks(range(len(rows)), [_plain_name(str(r["device"])) for r in rows])
    axes.grid(axis="y", visible=False)


def _draw_ranked(axes: Any, rows: Sequence[Summary], models: Sequence[str]) -> None:
    """Draw each model's perplexities in order, for too many devices to have rows."""
    for m in models:
        values = sorted(r[m] for r in rows if r.get(m))
        share = [100 * i / max(1, len(values) - 1) for i in range(len(values))]
        axes.plot(values, share, color=COLOUR[m], lw=2)
        _draw_mark(axes, m, values[-1:], share[-1:])
    axes.set_ylabel("% of devices")


def _draw_bars(axes: Any, rows: Sequence[tuple[str, float, str, str]], title: str) -> None:
    """Draw horizontal bars (name, value, shown, colour), the first on top, with direct labels."""
    at = range(len(rows))
    axes.barh(at, [r[1] for r in rows], color=[COLOUR[r[3]] for r in rows], height=0.62)
    axes.set_yticks(at, [_plain_name(r[0]) for r in rows])
    for i, r in enumerate(rows):
        axes.annotate(r[2], (r[1], i), xytext=(6, 0), textcoords="offset points", va="center", weight="bold")
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.set_title(title)


def _draw_bytes(figure: Any, s: Summary) -> bool:
    """Draw the bytes of a contribution after each stage."""
    rows = [(name, value, numbers.size(value), colour) for name, value, colour in cost.byte_stages(s)]
    if not rows:
        return False
    _draw_bars(figure.subplots(), rows, "Bytes of one contribution, stage by stage")
    return True


def _quality_for_bytes(figure: Any, s: Summary) -> bool:
    lines = cost.curves_of_bytes(s)
    if not lines or len(lines[0][2]) < 2:  # One point draws no line. The report states it in words.
        return False
    axes = figure.subplots()
    for name, colour, points in lines:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=COLOUR[colour], marker="o", lw=2, ms=5)
        axes.annotate(
            name, (x[0], y[0]), xytext=(0, 8), textcoords="offset points", color=COLOUR[colour], weight="bold"
        )
    if (q := s["perplexity"]["base"]) and q["weighted_mean"] is not None:
        axes.axhline(q["weighted_mean"], color=COLOUR["base"], lw=1.8, ls=(0, (4, 3)))
        label = f"{numbers.MODELS['base']} {numbers.perplexity(q['weighted_mean'])}"
        axes.annotate(
            label, (1, q["weighted_mean"]), xytext=(-4, 4), textcoords="offset points", ha="right",
            xycoords=("axes fraction", "data"), color=COLOUR["base"], weight="bold",
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = log_ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [f"{t:,.6g}" for t in ticks])
    axes.minorticks_off()
    axes.set(title="Held-out perplexity for bytes", xlabel="MB of one device so far, mean over all devices (log scale)")
    return True


def _draw_participation(figure: Any, s: Summary) -> bool:
    """Draw the fates of invited devices."""
    p = s["participation"]
    if not p["invited"]:
        return False
    reasons = [(numbers.loss_reason(code), n, numbers.count(n), "lost") for code, n in participation.reasons(p)]
    if not reasons and p["accepted"] == p["invited"]:  # All bars would be the same.
        return False
    axes = figure.subplots(1, 2 if reasons else 1, squeeze=False)[0]
    funnel = [
        (n, v, f"{numbers.count(v)}  {100 * v / p['invited']:.0f} %", "federated") for n, v in participation.funnel(p)
    ]
    _draw_bars(axes[0], funnel, "Invitations over all rounds")
    if reasons:
        _draw_bars(axes[1], reasons, "Lost, by reason")
    return True
