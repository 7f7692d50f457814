"""Section ``[data]`` of a text that one reader reads as a whole, from its name.

whole_text("plays-public", {}, 128)                    # ships with edgewise
whole_text("notes.jsonl", {"text": "body"}, 128)       # a table, by its suffix
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgewise.core.errors import DataError
from edgewise.plan.recipe.data import SHIPPED, DataSection

COLUMNS = ("text", "prompt", "messages")
TABLES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".jl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
PACKED = (".gz", ".bz2", ".xz", ".zst")


def whole_text(on: str, columns: Mapping[str, str], length: int, folder: Path = Path()) -> DataSection:
    """Describe a text as the section ``[data]`` of a recipe does.

    Args:
        on: "plays", "plays-public", "python-stdlib", or a file or folder of text or rows.
        columns: column names of a table by key, of ``COLUMNS``.
        length: tokens of a block.
        folder: the folder where a relative path starts.
    Raises:
        DataError: E-DATA-COLUMN.
    """
    if unknown := sorted(columns.keys() - set(COLUMNS)):
        what = f"a distillation reads no column {unknown[0]!r:.60}."
        raise DataError("E-DATA-COLUMN", what, f"take one of these keys: {', '.join(COLUMNS)}.")
    path = Path(on)
    suffix = Path(path.stem).suffix if path.suffix.lower() in PACKED else path.suffix
    source = on if on in SHIPPED else TABLES.get(suffix.lower(), "text")
    if columns and (source not in TABLES.values() or ("messages" in columns and source == "csv")):
        what = f"--column names a column of a table, and {on} has no column for {', '.join(columns)}."
        raise DataError("E-DATA-COLUMN", what, "leave it out, or name a table: .jsonl, .csv or .parquet.")
    if "messages" in columns and len(columns) > 1:
        what = "--column messages=... holds prompts and answers already."
        raise DataError("E-DATA-COLUMN", what, "leave out the other columns.")
    where = {} if on in SHIPPED else {"path": str((folder / path.expanduser()).resolve())}
    return DataSection.model_validate(
        {"source": source, "partition": "whole", "sequence_len": length, **where, **columns}
    )
