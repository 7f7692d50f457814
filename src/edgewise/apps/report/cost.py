"""Cost of a run in bytes: its section of the report, by pipeline stage and against perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.apps.report import numbers, svg
from edgewise.apps.report.html import pair, panel, row, table

Summary = Mapping[str, Any]
FEW_POINTS = 3  # A line of fewer points gets a sentence that names them.


def cost_section(s: Summary) -> str:
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
                    numbers.smaller_in_words(b[f"{k}_ratio"]),
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
        f"{numbers.compared_size(text / up, 'its text')}.{more}</p>"
    )


def _share_of(value: float, whole: float) -> str:
    share = 100 * value / whole
    return "" if share > 99.5 else f"{numbers.figures(share, 2)} %"


def curves_of_bytes(s: Summary) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """List (name, colour, points) of uploads, and of uploads plus downloads.

    A point is (MB of one device so far, perplexity).
    """
    points = _points_with_perplexity(s)
    out = [("sent", "federated", [(p["up"] / 1e6, p["perplexity"]) for p in points])]
    if any(p["down"] for p in points):
        out.append(("both ways", "local_only", [((p["up"] + p["down"]) / 1e6, p["perplexity"]) for p in points]))
    return out if points else []


def _points_with_perplexity(s: Summary) -> list[Any]:
    """List the points of quality for bytes that have a perplexity, after the first upload."""
    return [p for p in s["quality_for_bytes"] if p["perplexity"] is not None and p["up"] > 0]


def _quality_for_bytes(s: Summary) -> str:
    lines = curves_of_bytes(s)
    if not lines:
        return ""
    few, every = "", s["recipe"]["eval"]["every"]
    there = _points_with_perplexity(s)
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
