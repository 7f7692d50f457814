"""Options and arguments that several commands share. Imports nothing but typer: help must come at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. --set training.lr=0.01."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in that directory.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON envelope on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what libraries print.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no table, only errors.")]
Engine = Annotated[
    str | None,
    typer.Option("--engine", help="inproc or pool.", autocompletion=lambda: ["inproc", "pool"]),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes of the pool.")]
Extension = Annotated[
    list[str] | None,
    typer.Option("--extension", metavar="MODULE", help="Importable module, or its file, with parts of your own."),
]
Listen = Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen.")]
Names = Annotated[
    list[str] | None, typer.Option("--name", metavar="HOST", help="A name or address by which devices reach it.")
]
Certificate = Annotated[Path | None, typer.Option("--cert", help="Your own certificate chain (PEM).")]
Key = Annotated[Path | None, typer.Option("--key", help="Its key (PEM).")]
Log = Annotated[
    str,
    typer.Option("--log", metavar="FILE", help="JSON lines; a .log in FOLDER if left out, - standard error."),
]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (TOML).", show_default=False)]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.", show_default=False)]
HOME = Path(os.environ.get("EDGEWISE_HOME", "~/.edgewise"))
Home = Annotated[Path, typer.Option("--home", envvar="EDGEWISE_HOME", help="Folder of your key and your server.")]
