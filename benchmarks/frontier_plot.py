"""What ``frontier.py --plot`` shows: the figure and its table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rungs import REFERENCE

Record = Mapping[str, Any]
# Okabe and Ito's palette: colours that everyone can tell apart; one for each family of rungs, dashed when used up.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a828c", "#8a6d00")
DASHES = ((0, ()), (0, (4, 2)), (0, (1, 1.5)))


def show(records: Sequence[Record], png: Path) -> None:
    """Draw the newest settings' runs and print their table."""
    runs = newest(records)
    if REFERENCE not in runs:
        raise SystemExit(f"{REFERENCE!r} is not among the finished runs: nothing to compare with")
    draw(runs, png)
    print(table(runs))


def newest(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Rung -> its runs (one per seed), of the last task settings in the file; says what it leaves out."""
    played = [r for r in records if "error" not in r]
    if not played:
        raise SystemExit("the file has no finished run")
    last = {(r["rung"], r["seed"]): r for r in played if r["base"] == played[-1]["base"]}
    settings = {r["rung"]: r["settings"] for r in last.values()}
    kept = [r for r in last.values() if r["settings"] == settings[r["rung"]]]
    if left := len(played) - len(kept):
        print(f"{left} runs with other settings are left out")
    done = {(r["rung"], r["seed"]) for r in kept}
    for r in records:
        if "error" in r and r["base"] == played[-1]["base"] and (r["rung"], r["seed"]) not in done:
            print(f"{r['rung']}, seed {r['seed']}: {r['error']}")
    out: dict[str, list[Record]] = {}
    for r in sorted(kept, key=lambda r: -r["up_per_device_round"]):
        out.setdefault(r["rung"], []).append(r)
    return out


def final(runs: Sequence[Record]) -> list[float]:
    """Perplexity at the end, per seed; inf where no float holds it."""
    return [float("inf") if (p := r["curve"][-1]["perplexity"]) is None else p for r in runs]


def table(runs: Mapping[str, Sequence[Record]]) -> str:
    """Markdown. Bits are per trained parameter of the rung itself; the difference is of the means, to the reference."""
    reference = runs[REFERENCE]
    base_up, base_end = reference[0]["up_per_device_round"], statistics.fmean(final(reference))
    start = statistics.fmean(r["curve"][0]["perplexity"] for r in reference)
    lines = [
        f"{reference[0]['task']}: {reference[0]['population']} devices, {len(reference[0]['rounds'])} rounds, "
        f"perplexity before {start:.2f}",
        "",
        "| rung | bits per parameter | up, MB per device and round | times smaller | down, MB | perplexity (min..max) "
        f"| to {REFERENCE} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in runs.items():
        up, end = statistics.fmean(r["up_per_device_round"] for r in each), final(each)
        down = statistics.fmean(r["down_per_device_round"] for r in each)
        lines.append(
            f"| {name} | {8 * up / each[0]['trainable']:.3g} | {up / 1e6:.4g} | {base_up / up:,.4g} | "
            f"{down / 1e6:.3g} | {statistics.fmean(end):.2f} ({min(end):.2f}..{max(end):.2f}, n = {len(end)}) | "
            f"{100 * (statistics.fmean(end) / base_end - 1):+.1f} % |"
        )
    return "\n".join(lines)


def draw(runs: Mapping[str, Sequence[Record]], png: Path) -> None:
    """One line per rung: the mean over seeds, the range as a band, its name at the end."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from edgewise.apps.report.png import STYLE
    from edgewise.apps.report.svg import log_ticks

    families = list(dict.fromkeys(name.split()[0] for name in runs if name != REFERENCE))
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": True}):
        figure = Figure(figsize=(11, 6.6))
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        ends = []
        for name, each in runs.items():
            at = families.index(name.split()[0]) if name != REFERENCE else -1
            colour = "#1c2127" if at < 0 else PALETTE[at % len(PALETTE)]
            dash = DASHES[0 if at < 0 else at // len(PALETTE) % len(DASHES)]
            points = list(zip(*(r["curve"][1:] for r in each), strict=True))  # by evaluation, then by seed
            x = [statistics.fmean(p["up"] for p in seeds) / 1e6 for seeds in points]
            y = [[p["perplexity"] for p in seeds if p["perplexity"] is not None] for seeds in points]
            if not all(y):
                continue  # no float holds it: the table says so
            axes.plot(x, [statistics.fmean(v) for v in y], color=colour, ls=dash, marker="o", ms=4, lw=1.8)
            axes.fill_between(x, [min(v) for v in y], [max(v) for v in y], color=colour, alpha=0.15, lw=0)
            ends.append((name, colour, x[-1], statistics.fmean(y[-1])))
        first = runs[REFERENCE][0]
        before = statistics.fmean(r["curve"][0]["perplexity"] for r in runs[REFERENCE])
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / (high / low) ** 0.3, max(high, before * 1.02))  # most rungs end low: room for their names
        axes.axhline(before, color="#7a828c", lw=1.4, ls=(0, (4, 3)))
        axes.annotate(
            f"before training {before:.1f}", (0.004, before), xycoords=("axes fraction", "data"), xytext=(0, -11),
            textcoords="offset points", color="#5b6570",
        )  # fmt: skip
        axes.axhline(next(y for name, _, _, y in ends if name == REFERENCE), color="#1c2127", lw=0.8, alpha=0.5)
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = log_ticks(*limits)
            axis.set_ticks(ticks, [f"{t:,.6g}" for t in ticks])
        axes.minorticks_off()
        seeds = len({r["seed"] for each in runs.values() for r in each})
        axes.set(
            title=f"{first['task']}: held-out perplexity by what a device has sent ({seeds} seeds: mean and range)",
            xlabel="MB sent per device, mean over all devices (log scale)",
            ylabel="perplexity (log scale)",
        )
        name_ends(figure, axes, ends)
        figure.savefig(png, metadata={"Software": None})


def name_ends(figure: Any, axes: Any, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Names beside the last points, each where it meets the least of lines, points and other names."""
    figure.draw_without_rendering()  # settles the layout, so that pixels are final
    crowd = []  # what names should keep off, in pixels
    for line in axes.lines[: len(ends)]:  # the rungs' own were drawn first
        path = line.get_transform().transform(line.get_xydata())
        crowd += [tuple(a + (b - a) * t / 8) for a, b in pairwise(path) for t in range(9)]
    places = [
        *((7, -4, "left"), (4, 6, "left"), (4, -14, "left"), (0, 9, "center"), (0, -18, "center")),
        *((-7, -4, "right"), (-4, 8, "right"), (-4, -16, "right")),
        *((3, -18 - 12 * row, "right") for row in range(1, 9)),
    ]
    spots = [(end, axes.transData.transform(end[2:])) for end in ends]
    taken: list[Any] = []
    for name, colour, x, y in sorted(
        ends, key=lambda end: end[2]
    ):  # from the left: a name's stem meets no earlier name
        left, top = axes.transData.transform((x, y))
        options = []
        for order, (dx, dy, side) in enumerate(places):
            text = axes.annotate(
                name, (x, y), xytext=(dx, dy), textcoords="offset points", ha=side, color=colour, weight="bold", size=9
            )
            box = text.get_window_extent(figure.canvas.get_renderer())
            text.remove()
            stem = [(left, top + (box.y1 - top) * t / 12) for t in range(1, 13)] if dy < -20 else []
            outside = box.x0 < axes.bbox.x0 or box.x1 > figure.bbox.x1 or box.y0 < axes.bbox.y0
            barred = sum(x < e[2] and box.x0 < at[0] + 3 and at[0] - 3 < box.x1 and box.y0 < at[1] for e, at in spots)
            hits = sum(box.overlaps(t) for t in taken) + sum(t.contains(*p) for t in taken for p in stem)
            options.append(
                (
                    1000 * outside + 100 * hits + 30 * barred + sum(box.contains(*p) for p in crowd) + order / 10,
                    order,
                    box,
                    stem,
                )
            )
        arrow = {"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6, "relpos": (1, 1)}
        _, order, box, stem = min(options, key=lambda option: option[:2])
        dx, dy, side = places[order]
        axes.annotate(
            name, (x, y), xytext=(dx, dy), textcoords="offset points", ha=side, color=colour, weight="bold", size=9,
            arrowprops=arrow if stem else None,
        )  # fmt: skip
        taken.append(box)
        crowd += stem
