"""The command ``edgewise distill``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Json

WEIGHTS = ("equal", "text", "entropy")
LOSSES = ("logits", "jsd", "gkd", "sequence", "top_k")


def distill(
    teacher: Annotated[
        str,
        typer.Argument(metavar="TEACHER", help="A model's folder, hub:owner/name, or bundled.", show_default=False),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="SIZE|CONFIG",
            help="Parameters (4M), a config.json, or a student's folder.",
            show_default=False,
        ),
    ],
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="TEXT",
            help="File or folder of text or rows, or plays, plays-public or python-stdlib.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the student.", show_default=False)],
    loss: Annotated[
        str,
        typer.Option("--loss", help=f"{', '.join(LOSSES[:-1])} or {LOSSES[-1]}.", autocompletion=lambda: list(LOSSES)),
    ] = "logits",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")] = 500,
    rate: Annotated[float, typer.Option("--rate", min=1e-9, max=10, help="Largest learning rate.")] = 2e-3,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Blocks of text per step.")] = 8,
    length: Annotated[int, typer.Option("--length", min=8, max=8192, help="Tokens of a block.")] = 128,
    tau: Annotated[float, typer.Option("--tau", min=0.01, max=100, help="Temperature of both models.")] = 2.0,
    beta: Annotated[
        float, typer.Option("--beta", min=0, max=1, help="For jsd and gkd: 0 is forward KL, 1 reverse KL.")
    ] = 0.5,
    data: Annotated[
        float, typer.Option("--data", min=0, max=1, help="Weight of the loss on the real next tokens.")
    ] = 0.5,
    generated: Annotated[
        float,
        typer.Option("--generated", min=0, max=1, help="For gkd and sequence: share of steps on generated text."),
    ] = 0.5,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="For top_k: the teacher's kept logits.")] = 32,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="KEY=NAME", help="Column of text, prompt or messages. Repeatable."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="TEACHER", help="A further teacher with the same tokenizer. Repeatable."),
    ] = None,
    weigh: Annotated[
        str,
        typer.Option(
            "--weigh", help="Of several teachers: equal, text or entropy.", autocompletion=lambda: list(WEIGHTS)
        ),
    ] = "equal",
    adapt: Annotated[
        int,
        typer.Option("--adapt", min=0, help="Steps in which the teacher first learns the text, and a trained student."),
    ] = 0,
    adapt_rate: Annotated[
        float, typer.Option("--adapt-rate", min=1e-9, max=10, help="Largest learning rate of the teacher.")
    ] = 5e-4,
    teacher_out: Annotated[
        Path | None, typer.Option("--teacher-out", help="New folder for the adapted teacher.")
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Also train the same student on the text alone, for comparison.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides weights, order and draws.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a distillation that was interrupted.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Distil a smaller model from a larger one, on text.

    The student is a folder that transformers reads, with the teacher's tokenizer and a report of what was kept. A size
    takes fewer of the teacher's layers where that fits, and else a new Llama of that size.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> dict[str, Any]:
        import sys

        from edgewise.apps.terminal import sessions
        from edgewise.core.errors import EdgewiseError, Interrupted

        if loss not in LOSSES:
            raise EdgewiseError("E-DISTILL", f"there is no loss {loss!r:.40}.", f"take one of {', '.join(LOSSES)}.")
        if weigh not in WEIGHTS:
            raise EdgewiseError("E-DISTILL", f"there is no rule {weigh!r:.40}.", f"--weigh {' or '.join(WEIGHTS)}.")
        if loss == "sequence" and also:
            what = "several teachers together write no text, which --loss sequence needs."
            raise EdgewiseError("E-DISTILL", what, "take another loss, or one teacher.")
        with sessions.interrupts(), sessions.quiet_screen(None, debug) as screen:
            from edgewise.apps.models.distilling import DistillRequest, distil_to_folder
            from edgewise.apps.terminal.progress_bar import steps as bar
            from edgewise.learn.compress.teaching import Lesson

            lesson = Lesson(loss, steps, rate, batch, tau, beta, data, generated, top_k)
            named = dict(one.partition("=")[::2] for one in columns or ())
            wanted = DistillRequest(
                teacher,
                to,
                on,
                out,
                lesson,
                named,
                length,
                seed=seed,
                beside=beside,
                resume=resume,
                also=tuple(also or ()),
                weigh=weigh,
                adapt=adapt,
                adapt_lr=adapt_rate,
                teacher_dest=teacher_out,
            )
            try:
                with bar(None if as_json else screen) as step:
                    found = distil_to_folder(wanted, step)
            except KeyboardInterrupt:
                what = "stopped. The newest saved state is at most some seconds old."
                raise Interrupted("E-INTERRUPTED", what, f"continue with: {sessions.again(sys.argv)}") from None
        if not as_json:
            _show(found)
        return found

    raise typer.Exit(CommandSession("distill", as_json=as_json, debug=debug).run(body))


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from edgewise.apps.models.distilled_card import COLUMNS, distilled_model_rows

    shown = Table(box=None, pad_edge=False)
    for i, name in enumerate(COLUMNS):
        shown.add_column(name, justify="right" if i else "left")
    for row in distilled_model_rows(found):
        shown.add_row(*row)
    Console().print(shown)
    print(f"{found['dest']}: began as {found['student']['origin']}")
