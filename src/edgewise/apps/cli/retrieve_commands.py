"""The commands that search a device's own documents: index and ask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgewise.apps.terminal.options import Debug, Json
from edgewise.core.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.learn.retrieve.embed import Embedder
    from edgewise.plan.recipe.retriever import Pool

BUNDLED = "bundled"
POOLS = ("tokens", "states")


def index(
    documents: Annotated[
        Path,
        typer.Option("--documents", help="A .txt, .md or .jsonl file, or a folder of them.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new file for the index.", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="bundled, or the folder of a run or a model.")
    ] = BUNDLED,
    pool: Annotated[
        str, typer.Option("--pool", help="Mean of tokens or of states; default: as the run trained, or states.")
    ] = "",
    column: Annotated[str, typer.Option("--column", help="Field of .jsonl rows with the text.")] = "text",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Index your own documents, to ask questions about them.

    Cuts the documents into passages, and stores their words and their vectors by the model in one file. The file holds
    the documents' text, and only its owner may read it. Nothing is sent anywhere.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> dict[str, Any]:
        if out.exists():
            raise EdgewiseError("E-FILE-EXISTS", f"{out} exists already.", "name another file, or move it.")
        if pool not in ("", *POOLS):
            what = f"--pool {pool!r:.60} is no way to make a vector."
            raise EdgewiseError("E-USE", what, f"take {' or '.join(POOLS)}, or leave it out.")
        from edgewise.apps.terminal import sessions

        with sessions.interrupts(), sessions.quiet_screen(None, debug):
            from edgewise.drivers.storage.files import write_first
            from edgewise.learn.retrieve.index import build, read_documents

            found = read_documents(documents, column)
            raw = build(found, embedder(model, pool or None), _lasting(model))
            try:
                write_first(out, raw)
            except FileExistsError:
                raise EdgewiseError("E-FILE-EXISTS", f"{out} exists already.", "name another file.") from None
            except OSError as e:
                raise EdgewiseError("E-DISK", f"cannot write {out}: {e.strerror}.", "choose another place.") from None
        if not as_json:
            print(f"{len(found)} documents, {len(raw):,} bytes: {out}")
        return {"documents": len(found), "size_bytes": len(raw), "index": str(out)}

    raise typer.Exit(CommandSession("index", as_json=as_json, debug=debug).run(body))


def ask(
    place: Annotated[
        Path, typer.Argument(metavar="INDEX", help="A file that `edgewise index` wrote.", show_default=False)
    ],
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    by: Annotated[str, typer.Option("--by", help="words (BM25), meaning (vectors) or both.")] = "words",
    k: Annotated[int, typer.Option("--top", min=1, help="Largest number of passages.")] = 5,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="The index's model, if its folder has moved.")
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the passages of your documents that answer a question.

    Prints the sentence that fits best, and the passages with their scores. The question stays on this machine.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> dict[str, Any]:
        from edgewise.apps.terminal import sessions

        with sessions.quiet_screen(None, debug):
            from edgewise.learn.retrieve.index import read_index
            from edgewise.learn.retrieve.query import WAYS, WORDS, answer, check_embedder, search

            if by not in WAYS:
                raise EdgewiseError("E-USE", f"--by {by!r:.60} is no way to search.", f"take {', '.join(WAYS)}.")
            try:
                opened = read_index(place.read_bytes(), str(place))
            except OSError as e:
                what = f"{place} cannot be read: {e.strerror}."
                raise EdgewiseError("E-INDEX", what, "name a file that `edgewise index` wrote.") from None
            try:
                embed = None
                if by != WORDS or model:
                    embed = embedder(model or opened.model, opened.pool)
                    check_embedder(opened, embed, str(place))
                found = search(opened, embed, question, k, by)
            finally:
                opened.tables.close()
            best = answer(found, question)
        if not as_json:
            print(best or "No passage shares a word with the question.")
            for one in found:
                print(f"\n[{one.score:.4g}] {one.source}\n{one.text}")
        return {"answer": best, "passages": [one._asdict() for one in found]}

    raise typer.Exit(CommandSession("ask", as_json=as_json, debug=debug).run(body))


def embedder(model: str, pool: str | None = None) -> Embedder:
    """Open the embedder of a model: ``bundled``, or a folder as ``edgewise generate`` takes it.

    Args:
        pool: one of ``POOLS``. None: that of a run which trained a retriever, and ``states`` for any other model.
    Raises:
        EdgewiseError: E-USE. ModelError: E-MODEL.
    """
    from edgewise.learn.retrieve.embed import Embedder

    if model == BUNDLED:
        from edgewise.learn.models.load import load

        loaded = load(BUNDLED, Path())
        return Embedder(loaded.model, loaded.tokens, cast("Pool", pool or "states"))
    from edgewise.apps.models.in_use import open_model

    used = open_model(Path(model))
    return Embedder(used.model, used.tokens, cast("Pool", pool or used.pool or "states"))


def _lasting(model: str) -> str:
    """Return a name of the model that holds in every folder."""
    return model if model == BUNDLED else str(Path(model).resolve())
