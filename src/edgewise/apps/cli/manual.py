"""Topics of ``edgewise explain``: error codes, pages of docs/, recipe keys and glossary words.

The pages ship with the package.
"""

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

_ENTRY = re.compile(r"^## ([^\n]+)\n(.*?)(?=^#|\Z)", re.DOTALL | re.MULTILINE)
_ALSO = re.compile(r"\*Also:\* (.+)")


class Topic(NamedTuple):
    """A topic of the manual: ``kind`` is ``code``, ``page``, ``key`` or ``word``, and ``text`` is Markdown."""

    kind: str
    name: str
    text: str


def manual_folder() -> Path:
    """Find the folder of the pages: in the installed package, or in a clone next to ``src``.

    Raises EdgewiseError(E-UNKNOWN) if the installation lacks them.
    """
    package = Path(str(resources.files("edgewise")))
    for place in (package / "docs", package.parents[1] / "docs"):
        if (place / "errors.md").is_file():
            return place
    raise EdgewiseError("E-UNKNOWN", f"{package} was installed without its pages.", "install edgewise again.")


def manual_pages() -> dict[str, Path]:
    """Map page names such as ``threat-model`` to files: all pages except those of ``adr`` and the site's index.

    No two pages have the same name.
    """
    found = (path for path in manual_folder().rglob("*.md") if path.parent.name != "adr" and path.stem != "index")
    return {path.stem: path for path in sorted(found, key=lambda path: path.stem)}


def documented_error_codes() -> list[str]:
    """List all error codes in the order of ``docs/errors.md``."""
    return list(_code_sections())


def find_topic(asked: str) -> Topic:
    """Find a topic of `edgewise explain` by its name.

    The name is an error code in any case, with or without ``E-``, or a page, a recipe key, or a glossary word in any
    case, in the plural, with spaces or hyphens.

    Raises EdgewiseError(E-UNKNOWN) with the nearest topics.
    """
    word = asked.strip().upper().replace("_", "-")
    code = word if word.startswith("E-") else f"E-{word}"
    if word in REGISTRY:
        return _code_topic(word)
    known = manual_pages()
    if (page := asked.strip().lower().removesuffix(".md").rsplit("/", 1)[-1]) in known:
        return Topic("page", page, known[page].read_text(encoding="utf-8"))
    from edgewise.apps.cli import recipe_schema as keys  # Its import of pydantic takes a third of a second.

    if asked in keys.schema_paths():
        return Topic("key", asked, keys.describe(asked))
    if term := _glossary_words().get(_plain_word(asked)):
        return Topic("word", term, f"# {term}\n\n{_glossary_entries()[term]}\n")
    if code in REGISTRY:
        return _code_topic(code)
    raise EdgewiseError(
        "E-UNKNOWN", f"nothing is called {asked!r:.80}.", _similar_topics(asked, code, known, keys.schema_paths())
    )


def _code_topic(code: str) -> Topic:
    """Make the topic of an error code."""
    return Topic("code", code, f"# {code}\n\n{_code_sections()[code]}\n")


def _similar_topics(asked: str, code: str, known: Iterable[str], keys: Sequence[str]) -> str:
    """Suggest topics whose names are like the asked one."""
    same = [key for key in keys if key.rsplit(".", 1)[-1] == asked.lower()]
    words = _glossary_words()
    near = [
        *get_close_matches(code, REGISTRY, n=2, cutoff=0.8 if same else 0.7),
        *same[:2],
        *dict.fromkeys(words[one] for one in get_close_matches(_plain_word(asked), words, n=3, cutoff=0.75)),
        *get_close_matches(asked.lower(), [*known, *keys], n=2, cutoff=0.7),
    ]
    if not near:  # The name may be a part of a code, as `secagg` is of E-SECAGG-FEW.
        near = [c for c in REGISTRY if code[2:] in c][:3]
    if not near:  # The name may be one word of a longer term.
        parts = {_plain_word(part) for part in asked.split()}
        near = [term for term in _glossary_entries() if parts & {_plain_word(part) for part in term.split()}][:3]
    if near:
        return f"did you mean {' or '.join(f'`{one}`' for one in dict.fromkeys(near))}?"
    return "`edgewise explain` lists all codes, pages and words."


def manual_overview() -> str:
    """List all topics as lines for a terminal."""
    lines = [f"{code:<20} {REGISTRY[code].title}" for code in documented_error_codes()]
    for name, path in manual_pages().items():
        title = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        lines.append(f"{name:<20} {title}")
    lines += [
        "",
        "words: " + ", ".join(_glossary_entries()),
        "",
        "and every key of a recipe, e.g. training.lr or stage.quantize",
    ]
    return "\n".join(lines)


@cache
def _code_sections() -> dict[str, str]:
    """Map each code to its section of the page, without the heading."""
    page = (manual_folder() / "errors.md").read_text(encoding="utf-8")
    return {code: text.strip().removesuffix("---").strip() for code, text in _SECTION.findall(page)}


@cache
def _glossary_entries() -> dict[str, str]:
    """Map each word to its entry in the glossary, without the heading."""
    page = (manual_folder() / "glossary.md").read_text(encoding="utf-8")
    return {term.strip(): text.strip() for term, text in _ENTRY.findall(page)}


@cache
def _glossary_words() -> dict[str, str]:
    """Map every glossary word and its other names (``_plain_word``) to the word that has the entry."""
    out: dict[str, str] = {}
    for term, text in _glossary_entries().items():
        also = _ALSO.match(text)
        for name in [term, *(also[1].split(",") if also else ())]:
            out[_plain_word(name)] = term
    return out


def _plain_word(word: str) -> str:
    """Strip case, spaces, hyphens and the plural s from a word."""
    return re.sub(r"[\s_-]+", "", word.casefold()).removesuffix("s")
