"""Recipes of ``edgewise new``: annotated, for a person's own data, and validated before they are written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from math import ceil, log2
from pathlib import Path
from typing import Any, NamedTuple, get_args

from edgewise.apps.cli import new_text
from edgewise.apps.cli.doctor import cores
from edgewise.apps.cli.shipped import STUDENT
from edgewise.core import keys
from edgewise.core.errors import DataError, RecipeError
from edgewise.core.vector import Spec
from edgewise.drivers.storage.files import write_new
from edgewise.learn.text import corpus
from edgewise.learn.text.headers import OWNERS, PROMPTS, TIMES, is_column_name
from edgewise.learn.text.look import DataLook, look_at_data
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe import first_run, recipe
from edgewise.plan.recipe.data import DataSection, Header
from edgewise.plan.recipe.findings import nearest
from edgewise.plan.recipe.privacy import DP_WORDS, RENAMED, Privacy

MOST_ROWS = 0.9  # A block is long enough for this share of rows with their prompts.
LONGEST_ROW = 512  # Tokens of the longest block: the context of the bundled model.
FEW = 100  # With fewer devices, device-level noise is larger than their common signal.


class Answers(NamedTuple):
    """A person's answers.

    They are the recipe's file, the path of the data from the current folder, the keys of ``[data]`` that name columns
    or deal rows out (``columns``), the privacy word, the base model, and the unit of privacy.
    """

    file: Path
    data: str
    columns: Mapping[str, Any]
    privacy: str
    base: str = "bundled"
    unit: str = "device"


class DataOptions(NamedTuple):
    """The options on the data; empty or 0 if not given."""

    text: str = ""
    owner: str = ""
    devices: int = 0
    base: str = ""
    header: Header = "auto"


class Written(NamedTuple):
    """A written recipe: its file, the number of devices in the data, and notes to read before a run."""

    file: Path
    devices: int
    notes: tuple[str, ...]


def recipe_file(name: str) -> Path:
    """Return the file of a recipe: ``mine.toml`` for both ``mine`` and ``mine.toml``."""
    return Path(name) if name.endswith(".toml") else Path(f"{name}.toml")


def first_look_at_data(data: str, header: Header, ask: Callable[[str, str], str] | None) -> tuple[DataLook, Header]:
    """Take a first look at the data, and decide whether the first line names its columns.

    A person is asked if that is in doubt.

    Raises:
        DataError: as ``learn.text.look.look_at_data``. RecipeError: E-COMBO for a header of data that is not CSV.
    """
    found = look_at_data(data, Path(), header)
    if header != "auto" and found.source != "csv":
        what = (
            f"--{'' if header else 'no-'}header: {data} is {'a folder of text' * (not found.columns) or found.source}."
        )
        raise RecipeError("E-COMBO", what, "leave the option out. It is for CSV files.")
    if ask and (doubtful := [c for c in found.columns if c.header]):
        line = ", ".join(c.name for c in found.columns)
        question = f"the first line is {line:.200} ({doubtful[0].header}): does it name the columns? yes or no"
        header = ask(question, "no").strip().lower() in ("yes", "y")
        found = look_at_data(data, Path(), header)
    return found, header


def columns_for_recipe(
    found: DataLook, data: str, asked: DataOptions, ask: Callable[[str, str], str] | None
) -> dict[str, Any]:
    """Choose the keys of ``[data]`` for a table: columns that a person names, else the likeliest ones.

    Args:
        ask: (question, proposal) -> a person's answer; None if nobody can be asked.
    Raises:
        DataError: E-DATA-COLUMN if a column does not exist or none is likely, E-DATA-FORMAT for a table that seems to
        have no header. RecipeError: E-COMBO for columns of a folder, and for chats that the base model cannot read.
    """
    read = _data_section(found, data, asked, ask)
    vouched = any(c.header for c in found.columns if c.name in (read.get("text"), read.get("owner")))
    return {**read, "header": True if vouched else asked.header} if vouched or asked.header != "auto" else read


def _data_section(
    found: DataLook, data: str, asked: DataOptions, ask: Callable[[str, str], str] | None
) -> dict[str, Any]:
    """Make the [data] section of what was found, and ask where it is not clear."""
    if not found.columns:
        for option, given in (("text", asked.text), ("owner", asked.owner)):
            if given:
                what = f"--{option} {given}: {data} is a folder of text, which has no columns."
                raise RecipeError("E-COMBO", what, f"leave out --{option}.")
        return _dealt_evenly(asked) if asked.devices else {}
    out: dict[str, Any] = {}
    prompts: list[str] = []
    chats = found.chats("messages")
    if asked.text in chats or (chats and not asked.text and not found.texts()):
        out["messages"] = asked.text or chats[0]
        if asked.base in ("", "bundled"):
            what = f"`{out['messages']}` holds chats. A model's chat template reads them, and the bundled one has none."
            fix = "name a chat model: --base FOLDER or --base hub:owner/name; or write prompts and answers apart."
            raise RecipeError("E-COMBO", what, fix)
    else:
        out["text"] = _chosen_column(found, "text", asked.text, found.texts(), ask)
        if prompts := found.prompts(out["text"]):
            out["prompt"] = prompts if len(prompts) > 1 else prompts[0]
    if asked.devices:
        if asked.owner:
            raise RecipeError("E-COMBO", "--owner and --devices both assign rows to devices.", "leave one of them out.")
        return {**out, **_dealt_evenly(asked)}
    return {
        **out,
        "owner": _chosen_column(found, "owner", asked.owner, found.owners([out.get("text", ""), *prompts]), ask),
    }


def _dealt_evenly(asked: DataOptions) -> dict[str, Any]:
    """Make the keys that deal the text to devices at random."""
    return {"partition": "iid", "devices": asked.devices}


def _chosen_column(
    found: DataLook, key: str, given: str, proposed: list[str], ask: Callable[[str, str], str] | None
) -> str:
    """Choose a column: as given, as proposed, or as a person says."""
    names = [c.name for c in found.columns]
    for c in found.columns:
        if not given and c.header and c.name in (proposed[:1] or names):
            what = f"the table seems to have no header: {c.name!r:.60} stands in its first line, and {c.header}."
            raise DataError("E-DATA-FORMAT", what, "say --no-header; or --header, if the first line names the columns.")
    likely = [c for c in found.columns if c.name in proposed]
    if key == "owner" and not (ask or given) and len(likely) > 1 and not is_column_name(proposed[0], OWNERS):
        values = ", ".join(f"`{c.name}` ({c.distinct:,} values)" for c in likely)
        raise DataError(
            "E-DATA-COLUMN", f"several columns may name the owner of a row: {values}.", "say --owner COLUMN."
        )
    if ask and not given:
        given = ask(f"{key}: the column, of {', '.join(names)}", proposed[0] if proposed else "")
    if given in names:
        return given
    if given:
        near = nearest(given, names)
        hint = f"did you mean `{near}`?" if near else f"columns: {', '.join(names)}."
        raise DataError("E-DATA-COLUMN", f"--{key} {given}: there is no such column.", hint)
    if not proposed:
        what = f"no column looks like the {key} ({new_text.MEANS[key]})."
        hint = f"name one with --{key}; columns: {', '.join(names)}."
        if key == "owner":
            hint += " Or deal the rows out at random: --devices 20."
        elif others := found.chats("other"):
            hint = f'write the messages of `{others[0]}` as a list of {{"role": ..., "content": ...}}; or {hint}'
        raise DataError("E-DATA-COLUMN", what, hint)
    return proposed[0]


def write_new_recipe(answers: Answers, found: DataLook) -> Written:
    """Write the recipe of `edgewise new` to a new file.

    Guarantees: the recipe is valid, its data can be read, and its stages, privacy and cohorts compose for the bundled
        model and the devices of the data.
    Raises:
        RecipeError, CompositionError, DataError: the errors that a run would raise. StoreError: E-FILE-EXISTS.
    """
    word, words = answers.privacy, get_args(Privacy)
    if word not in words:
        near = nearest(word, words)
        hint = f"did you mean `{near}`?" if near else f"one of: {', '.join(words)}."
        if word in RENAMED:
            new, unit = RENAMED[word]
            hint = f"write --privacy {new}" + (f" --unit {unit}." if unit != "device" else ".")
        raise RecipeError("E-VALUE", f"--privacy {word}: there is no such word.", hint)
    if answers.unit not in new_text.UNIT:
        raise RecipeError("E-VALUE", f"--unit {answers.unit}: there is no such unit.", "one of: device, example.")
    example = answers.unit == "example"
    if example and word != "local_dp":
        raise RecipeError("E-COMBO", f"--unit example with --privacy {word}.", "write --privacy local_dp.")
    folder = answers.file.parent
    section = {"source": found.source, "path": _relative_path(answers.data, folder), **answers.columns}
    held = _measure_devices(section, folder)
    devices = held.devices
    settings = _first_settings(word, example, held)
    hints = {"prompt": found.like(PROMPTS), "time": found.like(TIMES)} if found.columns else {}
    hints = {key: name for key, name in hints.items() if name and name not in answers.columns.values()}
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in answers.file.stem).strip("._-")
    base = (
        answers.base
        if answers.base == "bundled" or answers.base.startswith("hub:")
        else _relative_path(answers.base, folder)
    )
    facts = {
        "name": name[:64] or "mine",
        "base": base,
        "privacy": word,
        "unit": answers.unit,
        "data": section,
        "devices": devices,
        "hints": hints,
    }
    text = new_text.new_recipe_text(facts, settings)
    _check_composes(text, devices)
    write_new(answers.file, text.encode())
    return Written(answers.file, devices, tuple(_notes_on_recipe(word, example, devices, settings)))


def _relative_path(data: str, folder: Path) -> str:
    """Write a path relative to the recipe's folder."""
    at = Path(data).expanduser()
    return data if at.is_absolute() else os.path.relpath(at, folder)


class _HeldText(NamedTuple):
    """Amounts of text on devices.

    ``median_bytes`` is that of the median device. ``blocks`` is an upper estimate over all devices. ``row_tokens`` is
    about the length of most rows with their prompts, and 0 without prompts.
    """

    devices: int
    median_bytes: int
    blocks: int
    row_tokens: int


def _measure_devices(section: Mapping[str, Any], folder: Path) -> _HeldText:
    """Measure a sample of devices. A token has about three bytes, and each document has a partial block of its own."""
    with tempfile.TemporaryDirectory(prefix="edgewise-new-") as cache:
        listed = corpus.load(DataSection(**section), folder, Path(cache), keys.root(0))
        looked = listed.devices[:: max(1, len(listed.devices) // 25)]
        refused: list[DataError] = []
        read = [
            [(len(d.prompt), _text_bytes(d.text)) for d in _readable_documents(listed, name, refused)]
            for name in looked
        ]
    if len(refused) == len(looked):
        raise refused[0]
    n, sizes = len(listed.devices), sorted(sum(size for _, size in rows) for rows in read)
    blocks = sum(size // new_text.SEQUENCE_LEN + 1 for rows in read for _, size in rows)
    whole = sorted(prompt + size for rows in read for prompt, size in rows if prompt)
    row_tokens = whole[int(MOST_ROWS * len(whole))] // 3 if whole else 0
    return _HeldText(n, sizes[len(sizes) // 2], ceil(n * blocks / len(read)), row_tokens)


def _text_bytes(text: str) -> int:
    """Count the bytes of a text."""
    return len(text.encode("utf-8", "replace"))


def _readable_documents(listed: corpus.Corpus, device: str, refused: list[DataError]) -> list[corpus.Document]:
    """Read a device's documents. Note the refusal of those that cannot be read."""
    try:
        return list(listed.documents(device))
    except DataError as e:  # This device cannot take part. A run says so and continues without it.
        refused.append(e)
        return []


def _first_settings(word: str, example: bool, held: _HeldText) -> dict[str, Any]:
    """Choose cohorts, rounds and steps of a first run from the number of devices and their amounts of text."""
    n, noisy = held.devices, word in ("central_dp", "distributed_dp")
    drawn = first_run.recipe_cohorts(word, n)
    steps = min(
        4, max(2, round(held.median_bytes / 3 / 256 / 2))
    )  # half a pass per round: 3 bytes a token, 4 x 64 a step
    out: dict[str, Any] = {
        "cohort": drawn.cohort,
        "sampling": drawn.sampling,
        "rounds": 16 if noisy else 8 if not drawn.cohort else 12,
        "steps": 1 if word in DP_WORDS and not example else steps,
        "minimum": drawn.minimum,
        "workers": cores(),
        "sequence_len": min(LONGEST_ROW, max(new_text.SEQUENCE_LEN, 2 ** ceil(log2(max(1, held.row_tokens))))),
        "measured": 100 if n > 100 else 0,
        "delta": first_run.recipe_delta(max(n, held.blocks if example else 0)),  # It depends on the number of units.
    }
    return out if drawn.corrupt is None else {**out, "corrupt": drawn.corrupt, "fraction": drawn.fraction}


def _check_composes(text: str, devices: int) -> None:
    """Compile the recipe for the bundled model's whole layout. Raises the errors of ``edgewise check``."""
    from safetensors import safe_open

    with safe_open(STUDENT / "model.safetensors", framework="numpy") as f:
        shapes = [(name, tuple(f.get_slice(name).get_shape()), "float32") for name in sorted(f.keys())]
    compile(recipe.parse(text, "the new recipe"), Spec.of(shapes), devices, BUILT_IN)


def _notes_on_recipe(word: str, example: bool, devices: int, settings: Mapping[str, Any]) -> list[str]:
    """List what a person should know of the recipe."""
    notes = []
    if word in DP_WORDS and not example and devices < FEW:
        notes.append(
            f"{devices} devices are few for noise. It does not shrink with their number, and learning needs "
            "hundreds of devices. A run will hold its epsilon and learn little."
        )
    if word == "local_dp" and not example:
        notes.append("local noise hides each single update, so it is very large.")
    if word in first_run.CORRUPT and settings["fraction"] < first_run.CORRUPT[word]:
        notes.append(
            f"at most {settings['corrupt']} of the {devices:,} devices may work with a lying server. A larger "
            "round.cohort tolerates more."
        )
    return notes
