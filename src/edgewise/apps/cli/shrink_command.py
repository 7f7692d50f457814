"""The command ``edgewise shrink``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Json

BY = ("prune", "factorize", "quantize", "unpack")


def shrink(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model's folder, hub:owner/name, or bundled.", show_default=False),
    ],
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help=f"{', '.join(BY[:-1])} or {BY[-1]} (write a compact folder for transformers).",
            autocompletion=lambda: list(BY),
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the smaller model.", show_default=False)],
    to: Annotated[float, typer.Option("--to", metavar="SHARE", help="Share of the decoder blocks to keep.")] = 0.5,
    how: Annotated[
        str,
        typer.Option(
            "--how", help="prune: wanda, magnitude, width, depth; factorize: svd-llm, svd; quantize: int8, nf4."
        ),
    ] = "",
    on: Annotated[
        str,
        typer.Option("--on", metavar="TEXT", help="File or folder of text, or plays, plays-public or python-stdlib."),
    ] = "plays",
    steps: Annotated[int, typer.Option("--heal", metavar="STEPS", min=0, help="Steps of training after the cut.")] = 0,
    rate: Annotated[float, typer.Option("--rate", min=1e-9, max=10, help="Largest learning rate of healing.")] = 1e-3,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Blocks of text per step of healing.")] = 8,
    teacher: Annotated[
        float, typer.Option("--teacher", min=0, max=1, help="Weight of the dense model's loss in healing.")
    ] = 0.5,
    length: Annotated[int, typer.Option("--length", min=8, max=8192, help="Tokens of a block.")] = 128,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write masked or factored layers as transformers reads them.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides the order of the text in healing.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a model smaller by pruning, factorization or quantization.

    Writes a model folder with a report: perplexity, bytes, memory and speed before and after.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> dict[str, Any]:
        from edgewise.apps.terminal import sessions

        with sessions.interrupts(), sessions.quiet_screen(None, debug) as screen:
            from edgewise.apps.models.shrinking import ShrinkRequest
            from edgewise.apps.models.shrinking import shrink as run
            from edgewise.apps.terminal.progress_bar import steps as bar
            from edgewise.learn.compress.heal import HealingPlan

            healing = HealingPlan(steps, batch, rate, teacher, seed)
            with bar(None if as_json else screen) as step:
                report = run(ShrinkRequest(model, by, to, out, how or None, on, healing, dense, length), step)
        if not as_json:
            _show(report)
        return report

    raise typer.Exit(CommandSession("shrink", as_json=as_json, debug=debug).run(body))


def _show(report: Mapping[str, Any]) -> None:
    from edgewise.apps.report import numbers

    before, after = report["model"], report["smaller"]
    print(f"{report['dest']}: {before['name']} by {report['how']}, on {report['held_out_tokens']:,} held-out tokens")
    print(f"  {'':24}{'before':>12}{'after':>12}")
    print(f"  {'perplexity':24}{before['perplexity']:12.2f}{after['perplexity']:12.2f}")
    if "cut_perplexity" in report:
        print(f"  {'  before healing':24}{'':12}{report['cut_perplexity']:12.2f}")
    for name, key in (("files", "bytes"), ("weights in memory", "memory_bytes")):
        print(f"  {name:24}{numbers.size(before[key]):>12}{numbers.size(after[key]):>12}")
    print(f"  {'tokens read per second':24}{before['tokens_per_s']:12,.0f}{after['tokens_per_s']:12,.0f}")
