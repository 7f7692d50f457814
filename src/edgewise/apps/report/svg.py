"""Charts as inline SVG. Colours are CSS variables (``--base`` ...), so one drawing serves light, dark and print.

Every chart is drawn twice, for wide and for narrow screens; the style sheet shows the one that fits (``_both``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from edgewise.apps.report import numbers


class Series(NamedTuple):
    """One line: points in data units, a colour variable, and the label at its right end."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    dashed: bool = False


Scale = Callable[[float], float]
NARROW = 320  # Width of a chart on a phone, in pixels.
WIDE = 30.0  # With a larger ratio of largest to smallest value, the small ones lie on a linear axis.


def _text(x: float, y: float, s: str, cls: str = "", anchor: str = "start", colour: str = "", more: str = "") -> str:
    """Make one text element. ``cls`` adds CSS classes, and ``more`` follows in a softer colour."""
    style = f' style="fill:var(--{colour}-text)"' if colour else ""
    after = f'<tspan dx="6" class="note">{escape(more)}</tspan>' if more else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{cls}"{style}>{escape(s)}{after}</text>'


def clipped(name: str, pixels: float) -> str:
    """Cut ``name`` to fit into ``pixels`` at label size."""
    characters = int(pixels / 6.6)
    return name if len(name) <= characters else name[: characters - 1] + "…"


def _both(draw: Callable[[bool], str], large: bool = False) -> str:
    """Join a chart for wide and one for narrow screens. Empty if there is nothing to draw.

    ``large`` means that the wide chart needs more than a column.
    """
    wide, narrow = draw(False), draw(True)
    size = " large" if large else ""
    return f'<div class="wide{size}">{wide}</div><div class="narrow{size}">{narrow}</div>' if wide else ""


def svg_ticks_apart(at: Sequence[float], scale: Scale, pixels: float) -> list[float]:
    """Select the ticks whose labels stay far enough from the one before."""
    out: list[float] = []
    for t in at:
        if not out or abs(scale(t) - scale(out[-1])) >= pixels:
            out.append(t)
    return out


def _frame(width: int, height: float, title: str, body: Iterable[str]) -> str:
    """Make the svg element. A screen reader says ``title``."""
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}" style="max-width:{width}px">'
        + "".join(body)
        + "</svg>"
    )


def svg_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """List round numbers (1, 2, 2.5, 5 times a power of ten) inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """List 1, 2, 5 times powers of ten inside [low, high]; evenly spaced round numbers if those are fewer than two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) > 1 else svg_ticks(low, high)


def is_wide(values: Sequence[float]) -> bool:
    """Tell whether the range of positive values is so wide that a linear axis hides the small ones."""
    return min(values) > 0 and max(values) > WIDE * min(values)


def svg_scale(low: float, high: float, start: float, stop: float) -> Scale:
    """Map data to the pixels of a chart."""
    span = (high - low) or 1.0
    return lambda v: start + (v - low) / span * (stop - start)


def spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Find positions near ``wanted`` that are ``gap`` apart, inside [low, high] as far as there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    out = list(wanted)
    for before, i in zip([None, *order], order, strict=False):
        out[i] = max(out[i], low if before is None else out[before] + gap)
    limit = high
    for i in reversed(order):
        out[i] = min(out[i], limit)
        limit = out[i] - gap
    return out


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    unit: Callable[[float], str],
    band: Sequence[tuple[float, float, float]] = (),
    band_colour: str = "federated",
    whole_x: bool = True,
    log_x: bool = False,
    log_y: bool = False,
    width: int = 520,
    height: int = 280,
) -> str:
    """Lines with their names at the right end, or above them on a narrow screen. ``band``: (x, low, high) drawn behind.
    ``unit`` formats values.

    ``log_x`` needs x above 0. ``log_y`` draws values that are far apart (``is_wide``) on a log axis, which says so.
    """

    def draw(narrow: bool) -> str:
        size = (NARROW, 210) if narrow else (width, height)
        return _draw_lines(title, series, x_name, unit, band, band_colour, whole_x, log_x, log_y, size, narrow)

    return _both(draw, width > 600)


def _draw_lines(
    title: str,
    series: Sequence[Series],
    x_name: str,
    unit: Callable[[float], str],
    band: Sequence[tuple[float, float, float]],
    band_colour: str,
    whole_x: bool,
    log_x: bool,
    log_y: bool,
    size: tuple[int, int],
    narrow: bool,
) -> str:
    drawn = [s for s in series if s.points]
    points = [p for s in drawn for p in s.points]
    if not points:
        return ""
    width, height = size
    legend = 18 * len(drawn) + 8 if narrow else 0
    height += legend
    names = max(len(s.label + unit(s.points[-1][1])) for s in drawn)  # They stand on the right of a wide chart.
    left, right, top, bottom = (
        46,
        width - (12 if narrow else max(136, 26 + round(7.6 * names))),
        14 + legend,
        height - 38,
    )
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    values = [p[1] for p in points] + [v for _, a, b in band for v in (a, b)]
    room = (max(values) - min(values) or abs(max(values)) or 1.0) * 0.06
    y_low = 0.0 if min(values) >= 0 and min(values) < 0.35 * max(values) else min(values) - room
    x, y = svg_scale(x_low, x_high, left, right), svg_scale(y_low, max(values) + room, bottom, top)
    x_ticks, y_ticks = svg_ticks(x_low, x_high, 5 if narrow else 6), svg_ticks(y_low, max(values) + room)
    if log_x:
        powers, x_ticks = svg_scale(math.log(x_low), math.log(x_high), left, right), log_ticks(x_low, x_high)

        def x(v: float) -> float:
            return powers(math.log(v))

    body = []
    if log_y and is_wide(values):
        heights = svg_scale(math.log(min(values)), math.log(max(values)), bottom, top)

        def y(v: float) -> float:
            return heights(math.log(v))

        y_ticks = svg_ticks_apart(log_ticks(min(values), max(values)), y, 24)
        body.append(_text(left, top - 4, "log scale", "axis"))
    for t in y_ticks:
        body.append(f'<line x1="{left}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}" class="grid"/>')
        body.append(_text(left - 7, y(t) + 4, f"{t:,.6g}", "tick", "end"))
    for t in svg_ticks_apart([t for t in x_ticks if not whole_x or t == int(t)], x, 30):
        body.append(_text(x(t), bottom + 17, f"{t:,.6g}", "tick", "middle"))
    body.append(_text((left + right) / 2, height - 4, x_name, "axis", "middle"))
    if band:
        ring = [(a, c) for a, _, c in band] + [(a, b) for a, b, _ in reversed(band)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in ring)
        body.append(f'<polygon points="{path}" style="fill:var(--{band_colour})" class="band"/>')
    for s in drawn:
        body += _draw_line(s, x, y)
    if narrow:
        for i, s in enumerate(drawn):
            dash = ' stroke-dasharray="5 4"' if s.dashed else ""
            down = 10 + 18 * i
            body.append(f'<path d="M2 {down}h20" class="line" style="stroke:var(--{s.colour})"{dash}/>')
            more = unit(s.points[-1][1])
            body.append(_text(30, down + 4, clipped(s.label, 180), "name", colour=s.colour, more=more))
        return _frame(width, height, title, body)
    places = spread_labels([y(s.points[-1][1]) + 4 for s in drawn], 16, top + 4, bottom + 4)
    for s, at in zip(drawn, places, strict=True):
        body.append(_text(right + 10, at, s.label, "name", colour=s.colour, more=unit(s.points[-1][1])))
    return _frame(width, height, title, body)


def _draw_line(s: Series, x: Scale, y: Scale) -> list[str]:
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in s.points)
    dash = ' stroke-dasharray="5 4"' if s.dashed else ""
    out = [f'<polyline points="{path}" class="line" style="stroke:var(--{s.colour})"{dash}/>']
    if s.dots:
        out += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.4" class="dot" style="fill:var(--{s.colour})"/>'
            for a, b in s.points
        ]
    return out


def _marker(model: str, x: float, y: float) -> str:
    """Draw a model's own marker, so that colour is never the only sign."""
    at, style = f'transform="translate({x:.1f},{y:.1f})"', f'style="--c:var(--{model})"'
    shapes = {
        "base": '<circle r="4" class="hollow" {}/>',
        "local_only": '<path d="M0-5.4 5.4 0 0 5.4-5.4 0z" class="solid" {}/>',
        "federated": '<circle r="5" class="solid" {}/>',
        "personal": '<path d="M-4.4-4.4h8.8v8.8h-8.8z" class="solid" {}/>',
        "centralised": '<path d="M0-5.2 5 4-5 4z" class="solid" {}/>',
    }
    return shapes[model].format(f"{at} {style}")


def dumbbells(title: str, rows: Sequence[Mapping[str, Any]], models: Sequence[str], width: int = 1000) -> str:
    """Draw each device's perplexity under each model on a log axis, in the given order. ``device`` names a row."""
    return _both(lambda narrow: _draw_dumbbells(title, rows, models, NARROW if narrow else width, narrow), large=True)


def _draw_dumbbells(
    title: str, rows: Sequence[Mapping[str, Any]], models: Sequence[str], width: int, narrow: bool
) -> str:
    values = [row[m] for row in rows for m in models if row.get(m)]
    if not values:
        return ""
    left, right, step, top = (106, width - 10, 20, 46 + 18 * (len(models) - 1)) if narrow else (150, width - 24, 20, 46)
    height = top + step * len(rows) + 40
    low, high = min(values) / 1.08, max(values) * 1.08
    scale = svg_scale(math.log(low), math.log(high), left, right)
    body, at, down = [], 2.0 if narrow else float(left), 12
    for m in models:
        body.append(_marker(m, at + 6, down) + _text(at + 16, down + 4, numbers.MODELS[m], "name", colour=m))
        at, down = (at, down + 18) if narrow else (at + 34 + 7.4 * len(numbers.MODELS[m]), down)
    bottom = top + step * len(rows) - 6
    for t in svg_ticks_apart(log_ticks(low, high), lambda v: scale(math.log(v)), 34):
        here = scale(math.log(t))
        body.append(f'<line x1="{here:.1f}" x2="{here:.1f}" y1="{top - 12}" y2="{bottom}" class="grid"/>')
        body.append(_text(here, bottom + 17, f"{t:,.6g}", "tick", "middle"))
    axis = "perplexity (log, lower is better)" if narrow else "held-out perplexity (log scale, lower is better)"
    body.append(_text((left + right) / 2, height - 4, axis, "axis", "middle"))
    for i, row in enumerate(rows):
        y = top + step * i
        shown = [(m, scale(math.log(row[m]))) for m in models if row.get(m)]
        name = str(row["device"])
        body.append(_text(left - 12, y + 4, clipped(name, left - 12), "label", "end"))
        if shown:
            ends = [p for _, p in shown]
            body.append(f'<line x1="{min(ends):.1f}" x2="{max(ends):.1f}" y1="{y}" y2="{y}" class="bar-line"/>')
        body += [_marker(m, p, y) for m, p in shown]
    return _frame(width, height, title, body)


class Bar(NamedTuple):
    """One horizontal bar: name on the left, value text at its end, an optional note behind that."""

    name: str
    value: float
    shown: str
    note: str = ""
    colour: str = "federated"


def bars(title: str, rows: Sequence[Bar], *, width: int = 520, left: int = 170) -> str:
    """Draw horizontal bars from zero with direct labels and no axis. On a narrow screen the labels are above them."""
    return _both(lambda narrow: _bars_below(title, rows) if narrow else _bars_beside(title, rows, width, left))


def _bars_below(title: str, rows: Sequence[Bar]) -> str:
    x, step, body = svg_scale(0.0, max((r.value for r in rows), default=0.0) or 1.0, 0, NARROW - 2), 42, []
    for i, r in enumerate(rows):
        y, shown = step * i, f"{r.shown}  {r.note}" if r.note else r.shown
        body.append(_text(0, y + 13, clipped(r.name, NARROW - 6.8 * len(shown) - 14), "label"))
        body.append(_text(NARROW - 2, y + 13, r.shown, "strong", "end", more=r.note))
        wide = max(1.0, x(r.value))
        body.append(f'<rect x="0" y="{y + 19}" width="{wide:.1f}" height="14" rx="2" style="fill:var(--{r.colour})"/>')
    return _frame(NARROW, step * len(rows), title, body)


def _bars_beside(title: str, rows: Sequence[Bar], width: int, left: int) -> str:
    if not rows:
        return ""
    step, top = 30, 4
    right = width - 112
    x = svg_scale(0.0, max(r.value for r in rows) or 1.0, left, right)
    body = []
    for i, r in enumerate(rows):
        y = top + step * i
        length = max(1.0, x(r.value) - left)
        body.append(_text(left - 10, y + 16, clipped(r.name, left - 10), "label", "end"))
        body.append(
            f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="18" rx="2" style="fill:var(--{r.colour})"/>'
        )
        body.append(_text(left + length + 8, y + 16, r.shown, "strong", more=r.note))
    return _frame(width, top + step * len(rows) + 4, title, body)


def svg_stack(title: str, parts: Sequence[Bar], width: int = 520) -> str:
    """Draw one bar divided into parts, each labelled below with its share. Parts of zero are left out."""
    return _both(lambda narrow: _draw_stack(title, parts, NARROW if narrow else width))


def _draw_stack(title: str, parts: Sequence[Bar], width: int) -> str:
    total = sum(p.value for p in parts)
    if total <= 0:
        return ""
    body, at = [], 0.0
    positive = [p for p in parts if p.value > 0]
    for i, p in enumerate(positive):
        wide = p.value / total * width
        body.append(
            f'<rect x="{at:.1f}" y="0" width="{max(1.0, wide - 2):.1f}" height="22" rx="2"'
            f' style="fill:var(--{p.colour})"/>'
        )
        at += wide
        y = 44 + 20 * i
        body.append(f'<rect x="0" y="{y - 10}" width="11" height="11" rx="2" style="fill:var(--{p.colour})"/>')
        body.append(_text(20, y, p.name, "label") + _text(230, y, p.shown, "strong", "end"))
        body.append(
            _text(244, y, numbers.percent(100 * p.value / total, signed=False), "note") + _text(300, y, p.note, "note")
        )
    return _frame(width, 34 + 20 * len(positive), title, body)


def matrix(title: str, rows: Sequence[tuple[str, Sequence[str]]], rounds: int, width: int = 1000) -> str:
    """Draw devices by rounds: ``accepted`` filled, ``lost`` crossed, ``late`` hollow, ``""`` not invited or unknown."""
    return _both(lambda narrow: _draw_matrix(title, rows, rounds, NARROW if narrow else width, narrow), large=True)


def _draw_matrix(title: str, rows: Sequence[tuple[str, Sequence[str]]], rounds: int, width: int, narrow: bool) -> str:
    left, margin, most = (106, 2, 8) if narrow else (150, 24, 24)
    top, step = 20, 18.0
    wide = min(56.0, (width - left - margin) / max(1, rounds))
    body = []
    for r in range(0, rounds, max(1, math.ceil(rounds / most))):
        body.append(_text(left + wide * (r + 0.5), 12, str(r + 1), "tick", "middle"))
    for i, (name, cells) in enumerate(rows):
        y = top + step * i
        body.append(_text(left - 12, y + 12, clipped(name, left - 12), "label", "end"))
        for r, kind in enumerate(cells):
            x, w = left + wide * r + wide / 20, wide * 0.9
            if kind:
                body.append(
                    f'<rect x="{x:.1f}" y="{y + 1:.1f}" width="{w:.1f}" height="14" rx="2" class="cell {kind}"/>'
                )
            if kind == "lost":
                body.append(f'<path d="M{x + w / 2 - 3:.1f} {y + 5:.1f}l6 6m0-6l-6 6" class="cross"/>')
    return _frame(width, top + step * len(rows) + 4, title, body)
