#!/usr/bin/env python3
"""Retrieval by the frozen bundled model against BM25: recall@1, recall@5 and MRR on MTS-Dialog.

    python benchmarks/retrieval.py FOLDER_OF_MTS_DIALOG

The documents are dialogues between doctor and patient, one passage each: the 100 of the validation set and others
of the training set. A query is the note on a validation dialogue, and that dialogue is what has to be found.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from edgewise.apps.cli.retrieve_commands import embedder
from edgewise.learn.retrieve import index as indexes
from edgewise.learn.retrieve.query import WAYS, search

OTHERS = 400
FOUND = 100  # A dialogue that is found later counts as not found.


def rows(file: Path) -> list[tuple[str, str]]:
    """Read the notes and dialogues of a table."""
    with file.open(encoding="utf-8", newline="") as f:
        return [(row["section_text"], " ".join(row["dialogue"].split())) for row in csv.DictReader(f)]


def main() -> None:
    """Index the dialogues, ask for each note, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with ValidationSet.csv and TrainingSet.csv")
    folder = parser.parse_args().folder
    asked, others = rows(folder / "ValidationSet.csv"), rows(folder / "TrainingSet.csv")[:OTHERS]
    documents = [indexes.IndexedText(str(i), text) for i, (_, text) in enumerate(asked + others)]
    indexes.passages.__defaults__ = (1 << 30,)  # A dialogue is one passage.
    embed = embedder("bundled")
    index = indexes.read_index(indexes.build(documents, embed, "bundled"))
    print(f"{len(asked)} queries, {len(index.vectors_NH)} passages")
    for by in WAYS:
        ranks = []
        for i, (note, _) in enumerate(asked):
            sources = [one.source for one in search(index, embed, note, FOUND, by)]
            ranks.append(sources.index(str(i)) + 1 if str(i) in sources else 0)
        at1, at5 = (sum(0 < r <= k for r in ranks) / len(ranks) for k in (1, 5))
        mrr = sum(1 / r for r in ranks if r) / len(ranks)
        print(f"{by:8} recall@1 {at1:.3f}   recall@5 {at5:.3f}   MRR {mrr:.3f}")
    index.tables.close()


if __name__ == "__main__":
    main()
