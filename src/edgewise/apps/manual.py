"""The pages of docs/, which ship with the package: `edgewise explain` shows an error code, a page or a recipe key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from edgewise.core.errors import REGISTRY, EdgewiseError

_SECTION = re.compile(r"^## (E-[A-Z0-9-]+)\n(.*?)(?=^#|\Z)", re.DOTALL | re.MULTILINE)


class Topic(NamedTuple):
    """Something that can be explained: ``kind`` is ``code``, ``page`` or ``key``; ``text`` is Markdown."""

    kind: str
    name: str
    text: str


def folder() -> Path:
    """The folder of the pages: in the installed package, or in a clone beside ``src``.

    Raises EdgewiseError(E-UNKNOWN) where the installation lacks them.
    """
    package = Path(str(resources.files("edgewise")))
    for place in (package / "docs", package.parents[1] / "docs"):
        if (place / "errors.md").is_file():
            return place
    raise EdgewiseError("E-UNKNOWN", f"{package} was installed without its pages.", "install edgewise again.")


def pages() -> dict[str, Path]:
    """Page name -> file, e.g. ``threat-model``."""
    return {path.stem: path for path in sorted(folder().glob("*.md"))}


def codes() -> list[str]:
    """All error codes, as ``docs/errors.md`` orders them."""
    return list(_sections())


def find(asked: str) -> Topic:
    """What ``asked`` names: an error code (in any case, and without ``E-`` where no page or key has that
    name), a page, or a recipe key.

    Raises EdgewiseError(E-UNKNOWN) with the nearest of all that can be explained.
    """
    word = asked.strip().upper().replace("_", "-")
    code = word if word.startswith("E-") else f"E-{word}"
    if word in REGISTRY:
        return _code(word)
    known = pages()
    if (page := asked.strip().lower().removesuffix(".md").removeprefix("docs/")) in known:
        return Topic("page", page, known[page].read_text(encoding="utf-8"))
    from edgewise.apps import keys  # pydantic takes a third of a second

    if asked in keys.paths():
        return Topic("key", asked, keys.describe(asked))
    if code in REGISTRY:
        return _code(code)
    raise EdgewiseError("E-UNKNOWN", f"nothing is called {asked!r:.80}.", _hint(asked, code, known, keys.paths()))


def _code(code: str) -> Topic:
    return Topic("code", code, f"# {code}\n\n{_sections()[code]}\n")


def _hint(asked: str, code: str, known: Iterable[str], keys: Sequence[str]) -> str:
    same = [key for key in keys if key.rsplit(".", 1)[-1] == asked.lower()]
    near = [
        *get_close_matches(code, REGISTRY, n=2, cutoff=0.7),
        *same[:2],
        *get_close_matches(asked.lower(), [*known, *keys], n=2, cutoff=0.7),
    ]
    if not near:  # a word of a code: `budget` of E-BUDGET, `secagg` of E-SECAGG-FEW
        near = [c for c in REGISTRY if code[2:] in c][:3]
    if near:
        return f"did you mean {' or '.join(f'`{one}`' for one in dict.fromkeys(near))}?"
    return "`edgewise explain` lists all codes and pages."


def overview() -> str:
    """All that can be explained, as lines for a terminal."""
    lines = [f"{code:<20} {REGISTRY[code].title}" for code in codes()]
    for name, path in pages().items():
        title = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        lines.append(f"{name:<20} {title}")
    lines.append("\nand every key of a recipe, e.g. training.lr or stage.quantize")
    return "\n".join(lines)


@cache
def _sections() -> dict[str, str]:
    """Code -> its section of the page, without the heading."""
    page = (folder() / "errors.md").read_text(encoding="utf-8")
    return {code: text.strip().removesuffix("---").strip() for code, text in _SECTION.findall(page)}
