"""A table to play: its rows are recipes, its columns are figures of a run's summary, and its claims are published.

    table = PaperTable(name="T3", ..., rows=(Method("FedIT", {"trainable.rule": "fedit"}), ...), ...)
    read_column(PERPLEXITY, run.summary)    242.77

A claim names two rows, the one that an article found better and the one that it found worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewise.core.safe_repr import outline


@dataclass(frozen=True)
class Method:
    """A row of a table: its name, and what its recipe has in place of the table's own settings, by dotted key."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its heading, the place of its figure in ``summary.json``, what to divide by, and its digits."""

    name: str
    path: tuple[str, ...]
    per: float = 1.0
    digits: int = 1


@dataclass(frozen=True)
class Claim:
    """A published comparison of two rows.

    Attributes:
        better, worse: names of rows.
        source: number of the published result in its table, from 0.
        margin: share by which ``better`` may be above ``worse``. More than 0 reads: no worse than that.
    """

    better: str
    worse: str
    source: int = 0
    margin: float = 0.0

    @property
    def says(self) -> str:
        """The claim as a clause."""
        if self.margin:
            return f"{self.better} within {100 * self.margin:g} % of {self.worse}"
        return f"{self.better} better than {self.worse}"


@dataclass(frozen=True)
class Published:
    """A published result: who says it, where, in which setting, and its figures."""

    who: str
    link: str
    setting: str
    figures: str


@dataclass(frozen=True)
class PaperTable:
    """A table that the engine can play with data that ships.

    Attributes:
        minutes: about how long one core works for three seeds.
        recipe: settings of all rows, as tables of a recipe without a seed.
        columns: the first decides claims; lower is better.
        differs: how this table differs from the published ones, and why its order may.
    """

    name: str
    title: str
    minutes: int
    recipe: Mapping[str, Any]
    rows: tuple[Method, ...]
    columns: tuple[Column, ...]
    published: tuple[Published, ...]
    claims: tuple[Claim, ...]
    differs: str
    notes: tuple[str, ...] = field(default=())

    __repr__ = outline


def read_column(column: Column, summary: Mapping[str, Any]) -> float | None:
    """Read a column's figure from the summary of a run; None where the run has none."""
    found: Any = summary
    for key in column.path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found) / column.per
