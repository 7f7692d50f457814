"""Settings of text that arrives over time (``data.stream``): what does not go together, and what a stream rules out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from edgewise.plan.recipe.rules import Section, SettingError

KEYS = ("window", "window_start", "window_rounds", "replay", "replay_share")
DATED = ("plays",)  # Shipped text with times of its own: the years of the plays.
TABLES = ("jsonl", "csv", "parquet")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def data_faults(section: Section) -> Iterator[SettingError]:
    """Find keys of a stream that lack one another, and text without times. ``section``: the section [data]."""
    data: Any = section
    if not data.stream:
        given = [key for key in KEYS if getattr(data, key) != type(data).model_fields[key].default]
        if given:
            what = f"data.{given[0]} is about text that arrives over time, and data.stream is false"
            yield SettingError("E-COMBO", what, "write stream = true, or leave it out")
        return
    if not data.window:
        what = "data.window is required with data.stream: it says how much time a window takes"
        yield SettingError("E-MISSING", what, "write days, or units of a column with numbers, as in window = 30.0")
    if not data.window_start:
        what = "data.window_start is required with data.stream: it says when the first window begins"
        yield SettingError("E-MISSING", what, 'write a date or a number, as in window_start = "2024-01-01"')
    elif not _NUMBER.fullmatch(data.window_start) and not _is_date(data.window_start):
        what = f'data.window_start = "{data.window_start:.40}" is neither a number nor a date as ISO 8601 writes it'
        yield SettingError("E-VALUE", what, 'write it like "2024-01-31", or like "1590"')
    if data.source in TABLES and not data.time:
        what = "data.time is required with data.stream: it names the column with the time of a row"
        yield SettingError("E-MISSING", what, "name the column")
    elif data.source not in (*TABLES, *DATED, "own"):
        what = f'data.stream with data.source = "{data.source}": its text has no times'
        yield SettingError("E-COMBO", what, 'name a table with a column of times, or source = "plays"')
    if not data.replay and data.replay_share != type(data).model_fields["replay_share"].default:
        what = "data.replay_share is a share of replayed text, and data.replay = 0 replays none"
        yield SettingError("E-COMBO", what, "write how many blocks a device replays, as in replay = 32")


def stream_faults(recipe: Any) -> Iterator[SettingError]:
    """Find settings of a recipe (``plan.recipe.recipe.Recipe``) that do not go with a stream."""
    data, training = recipe.data, recipe.training
    if not data.stream:
        return
    if recipe.dp.example:
        what = (
            'data.stream with dp.unit = "example": its account draws each block of a device at one rate in every step'
        )
        what += ", and of a stream only a window and some earlier blocks are there to be drawn"
        yield SettingError("E-COMBO", what, "protect whole devices, or leave out data.stream")
    if training.local_epochs:
        what = "data.stream with training.local_epochs: passes are counted over all text of a device, not over a window"
        yield SettingError("E-COMBO", what, "give training.local_steps")
    if recipe.personal.method != "none":
        what = f'data.stream with personal.method = "{recipe.personal.method}": no window is that of a personal model'
        yield SettingError("E-COMBO", what, "leave out [personal], or data.stream")
    if recipe.split.used:
        what = "data.stream with [split]: the sessions of a divided model train all text of a device"
        yield SettingError("E-COMBO", what, "leave out one of them")
    if data.replay and not 1 <= round(data.replay_share * training.batch) < training.batch:
        what = f"data.replay_share = {data.replay_share:g} of training.batch = {training.batch} leaves no block for "
        what += "replayed text, or none for the window"
        yield SettingError("E-COMBO", what, "raise training.batch, or choose another share")


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
