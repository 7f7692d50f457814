"""Options and arguments that several commands share. The module imports only typer, so that help is fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. --set training.lr=0.01."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the output of libraries.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="inproc (one process), pool (worker processes) or ray (a cluster).",
        autocompletion=lambda: ["inproc", "pool", "ray"],
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="HOST:PORT", help="Ray cluster to train on (auto: the one here)."),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Number of worker processes.")]
Extension = Annotated[
    list[str] | None,
    typer.Option("--extension", metavar="MODULE", help="Module or Python file with your own parts. Repeatable."),
]
Listen = Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Address to listen on.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="HOST", help="Host name or address by which devices reach it. Repeatable."),
]
Certificate = Annotated[Path | None, typer.Option("--cert", help="Your own certificate chain (PEM).")]
Key = Annotated[Path | None, typer.Option("--key", help="Key of your certificate (PEM).")]
Log = Annotated[
    str,
    typer.Option(
        "--log", metavar="FILE", help="File for JSON log lines; - is standard error (default: a .log file in FOLDER)."
    ),
]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (TOML).", show_default=False)]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.", show_default=False)]
HOME = Path(os.environ.get("EDGEWISE_HOME", "~/.edgewise"))
Home = Annotated[
    Path, typer.Option("--home", envvar="EDGEWISE_HOME", help="Folder with your key and the address of your server.")
]
