"""Sentences on the data that was read or left out, for ``check``, the start of a run, and the report.

The counts come from ``learn.text.reading``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.apps.report import numbers
from edgewise.learn.text.files import HIDDEN, OWN

Reading = Mapping[str, Any]


def data_read_table(r: Reading) -> Any:
    """Format ``data_read_rows`` as a rich table without lines."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, sentence in data_read_rows(r):
        grid.add_row(name, Text(sentence))
    return grid


def data_read_rows(r: Reading) -> list[tuple[str, str]]:
    """List (name, sentence) of each count. A count of nothing is left out."""
    t = r["text"]
    found = [("files", _read_in_words(r["files"])), ("rows", _read_in_words(r["rows"]) if r["rows"] else "")]
    some = "" if r["examined"] == r["devices"] else f" on {numbers.count(r['examined'])} of the devices"
    tokens = f"{numbers.count(r['train_tokens'])} to train, {numbers.count(r['held_tokens'])} held out{some}"
    found += [("tokens", tokens), ("held out", held_out(r)), ("max_tokens", _text_not_read(r))]
    if t["replaced"]:
        found.append(("not UTF-8", f"{numbers.count(t['replaced'])} bad bytes became U+FFFD in the text"))
    if t["empty"] and not r["rows"]:
        found.append(("empty", _counted_in_words(t["empty"], "document has", "documents have") + " no token"))
    if n := r["unread_documents"]:
        found.append(("unread", _counted_in_words(n, "document", "documents") + " cannot be read and are left out"))
    found += [
        ("devices", _devices_without_training(r)),
        ("names", _similar_names(r)),
        ("prompts", prompts(r)),
        ("long prompts", prompts_over(r)),
    ]
    return [(name, sentence) for name, sentence in found if sentence]


def notes(r: Reading) -> list[str]:
    """List the notes for the start of a run: omitted text, and prompts that were cut.

    Hidden files and files of edgewise itself are not mentioned, because everybody expects their omission.
    """
    sentences = [prompts(r), prompts_over(r), _text_not_read(r), _devices_without_training(r), _similar_names(r)]
    if omitted := {reason: n for reason, n in r["files"]["left_out"].items() if reason not in (HIDDEN, OWN)}:
        sentences.append(f"Files left out: {_reasons_in_words(omitted)}")
    return [s[0].upper() + s[1:] + "." for s in sentences if s]


def prompts(r: Reading) -> str:
    """Count the answers that are trained without their whole prompt in the block. Empty without any."""
    t = r["text"]
    if not t["answers_short"]:
        return ""
    return (
        f"{_share_of(t['answers_short'], t['answers'])} of the answers ({numbers.count(t['answers_short'])} of "
        f"{numbers.count(t['answers'])}) see less than their whole prompt: "
        f"{_share_of(t['tokens_short'], t['answer_tokens'])} of all their tokens are predicted without all of it "
        f"in the block, {_share_of(t['tokens_blind'], t['answer_tokens'])} without any of it. "
        f"Blocks have data.sequence_len = {r['sequence_len']} tokens: raise it, or shorten the prompts"
    )


def prompts_over(r: Reading) -> str:
    """Count the rows that are not used because their prompts are too long. Empty without any."""
    n = r["text"]["prompts_over"]
    if not n:
        return ""
    verb = "is" if n == 1 else "are"
    return (
        f"{_counted_in_words(n, 'row', 'rows')} {verb} not used: the prompt alone is as long as data.max_tokens = "
        f"{r['max_tokens']}, which counts prompts and texts of a device together"
    )


def held_out(r: Reading) -> str:
    """State in a report which data is held out."""
    share = f"the last {numbers.percent(100 * r['holdout'], signed=False)}"
    order = f" by `{r['time']}`" if r["time"] else ""
    if r["rows"]:
        each = "each window's rows of a device" if r.get("stream") else "each device's rows"  # Older runs lack the key.
        what = f"{share} of {each}{order or ' in their order'}"
        return f"{what}, whole rows" if r["prompt"] else what
    if r["pieces"]:
        return f"{share} of each piece of a file (about 2 kB); the device trains on the beginning of the same piece"
    return f"{share} of each file"


def _text_not_read(r: Reading) -> str:
    """Say how much text no device trains on."""
    t, characters = r["text"], r["text"]["characters"] - r["text"]["characters_beyond"]
    if not t["characters_beyond"]:
        return ""
    about = (
        f", about {numbers.count(round(t['tokens'] * t['characters_beyond'] / characters))} tokens"
        if characters
        else ""
    )
    share, limit = _share_of(t["characters_beyond"], t["characters"]), r["max_tokens"]
    unused = _counted_in_words(t["beyond"], "document is", "documents are")
    whole = "a window of a device" if r.get("stream") else "a device"
    return (
        f"{share} of the text is beyond data.max_tokens = {limit} of {whole}{about}: {unused} not used, "
        f"{numbers.count(t['cut'])} cut"
    )


def _devices_without_training(r: Reading) -> str:
    """Say which devices cannot train, and why."""
    c = r["cannot"]
    sentences = [
        f"{numbers.count(n)} {what}"
        for n, what in (
            (c["too_little"], "with too little text to train on"),
            (c["unreadable"], f"that cannot be read ({r['example']})"),
            (c["no_holdout"], "with too little text for a hold-out"),
        )
        if n
    ]
    return f"of {numbers.count(r['examined'])} devices, {', '.join(sentences)}" if sentences else ""


def _similar_names(r: Reading) -> str:
    """Name devices whose names differ little."""
    alike = r.get("alike")  # runs that began before it was counted have none
    if not alike or not alike["names"]:
        return ""
    names = [repr(name if len(name) <= 40 else f"{name[:39]}…") for name in alike["example"][:3]]
    return (
        f"{numbers.count(alike['names'])} devices differ from another one in case, spaces or Unicode form only, as "
        f"{', '.join(names[:-1])} and {names[-1]} do. Each counts as an owner of its own; "
        "spell them alike if they are one"
    )


def _read_in_words(part: Mapping[str, Any]) -> str:
    """Write how many were read, and how many left out."""
    left_out = part["left_out"]
    return f"{numbers.count(part['read'])} read" + (f"; left out: {_reasons_in_words(left_out)}" if left_out else "")


def _reasons_in_words(left_out: Mapping[str, int]) -> str:
    """List reasons with their numbers."""
    return ", ".join(f"{reason} ({numbers.count(n)})" for reason, n in left_out.items())


def _counted_in_words(n: int, one: str, more: str) -> str:
    """Write a number of things."""
    return f"{numbers.count(n)} {one if n == 1 else more}"


def _share_of(part: int, whole: int) -> str:
    """Write a share in percent."""
    if 0 < part < 0.0005 * whole:
        return "under 0.1 %"
    return numbers.percent(100 * part / whole, signed=False)
