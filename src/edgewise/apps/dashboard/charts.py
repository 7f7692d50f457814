"""Charts of the dashboard as inline SVG with classes only, because its pages allow no inline styles.

Browsers with scripts replace a chart by an interactive one of the same data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from edgewise.apps.report import numbers
from edgewise.apps.report.svg import svg_scale, svg_ticks, svg_ticks_apart

WIDTH, HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, WIDTH - 10, 34, HEIGHT - 34
SERIES = 8  # colours; later series repeat them


def dashboard_lines(title: str, data: Mapping[str, Any], unit: str = "", limit: float | None = None) -> Markup:
    """Draw curves over rounds. Empty without points.

    Args:
        data: ``{"x": [...], "series": [{"name", "y"}, ...]}``; a value may be None.
        unit: ``bytes`` writes sizes; otherwise plain figures.
        limit: a dashed horizontal line, such as a budget.
    """
    x, series = data["x"], data["series"]
    values = [v for one in series for v in one["y"] if v is not None]
    if not values:
        return Markup("")
    if limit is not None:
        values.append(limit)
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * 0.06
    low = 0.0 if low >= 0 and low < 0.35 * high else low - room
    across, down = svg_scale(x[0], x[-1], _LEFT, _RIGHT), svg_scale(low, high + room, _BOTTOM, _TOP)
    body = []
    for t in svg_ticks(low, high + room, 4):
        body.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{down(t):.1f}" y2="{down(t):.1f}" class="grid"/>')
        body.append(_text(_LEFT - 8, down(t) + 4, written(t, unit), "tick end"))
    for t in svg_ticks_apart([t for t in svg_ticks(x[0], x[-1], 6) if t == int(t)], across, 44):
        body.append(_text(across(t), _BOTTOM + 17, f"{t:,.0f}", "tick middle"))
    if limit is not None:
        body.append(f'<path d="M{_LEFT} {down(limit):.1f}H{_RIGHT}" class="limit"/>')
    at = float(_LEFT)
    for i, one in enumerate(series):
        path = " ".join(_path(x, one["y"], across, down))
        body.append(f'<path d="{path}" class="line s{i % SERIES}"/>')
        points = [(a, b) for a, b in zip(x, one["y"], strict=True) if b is not None]
        if len(points) == 1:
            body.append(
                f'<circle cx="{across(points[0][0]):.1f}" cy="{down(points[0][1]):.1f}" r="3.5" class="f{i % SERIES}"/>'
            )
        name = one["name"] if len(one["name"]) <= 24 else one["name"][:23] + "…"
        body.append(f'<rect x="{at:.0f}" y="8" width="12" height="12" rx="2" class="f{i % SERIES}"/>')
        body.append(_text(at + 18, 18, name, "name"))
        at += 40 + 7.2 * len(name)
    last = [(one["name"], one["y"][-1]) for one in series if one["y"][-1] is not None]
    spoken = ", ".join(f"{name} {written(value, unit)}" for name, value in last)
    label = escape(f"{title} by round; last: {spoken}" if spoken else title)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" class="chart">'
    return Markup(f"{head}{''.join(body)}</svg>")


def dashboard_bar(share: float) -> Markup:
    """Draw one horizontal bar of a share in [0, 1]."""
    share = 0.0 if not math.isfinite(share) else min(1.0, max(0.0, share))
    return Markup(
        '<svg viewBox="0 0 100 6" preserveAspectRatio="none" class="bar" aria-hidden="true">'
        f'<rect width="100" height="6" class="rail"/><rect width="{100 * share:.2f}" height="6" class="fill"/></svg>'
    )


def written(value: float, unit: str) -> str:
    """Write a value of a chart's axis."""
    if unit == "bytes":
        return numbers.size(value) if value else "0"
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _path(x: Sequence[float], y: Sequence[float | None], across: Any, down: Any) -> list[str]:
    out, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if b is None:
            pen = "M"
            continue
        out.append(f"{pen}{across(a):.1f} {down(b):.1f}")
        pen = "L"
    return out


def _text(x: float, y: float, text: str, classes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(text)}</text>'
