"""The demo's text: 24 characters that each keep their lines, in the package; and the script that makes the file."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from docs.blocks import ROOT
from edgewise.core.errors import RecipeError
from edgewise.core.keys import root
from edgewise.learn.text import corpus
from edgewise.learn.text.sources import find_documents
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.recipe.data import DataSection

SHIPPED = ROOT / "src/edgewise/assets/plays/plays.jsonl.gz"
PUBLIC = SHIPPED.with_name("public.jsonl.gz")


def test_the_file_is_small_and_holds_a_like_amount_of_each_character() -> None:
    assert SHIPPED.stat().st_size < 200_000
    rows = [json.loads(line) for line in gzip.decompress(SHIPPED.read_bytes()).decode().splitlines()]
    characters = Counter[str]()
    for row in rows:
        assert set(row) == {"speaker", "text"}
        characters[row["speaker"]] += len(row["text"])
    assert (len(rows), len(characters)) == (1877, 24)
    assert (min(characters.values()), max(characters.values())) == (10_471, 18_432)


def test_each_character_is_a_device_with_its_own_lines(tmp_path: Path) -> None:
    section = DataSection(source="plays")
    found = corpus.load(section, tmp_path, tmp_path / "cache", root(0))
    assert len(found.devices) == 24
    assert not found.cut_each, "the hold-out is the end of what a character says"
    spoken = [d.text for d in found.documents("WARWICK")]
    assert len(spoken) == 98
    assert spoken[0] == "I wonder how the king escaped our hands."
    assert find_documents(section, tmp_path, tmp_path / "cache").owners == found.devices


def test_the_public_text_is_of_other_characters(tmp_path: Path) -> None:
    assert PUBLIC.stat().st_size < 130_000
    found = corpus.load(DataSection(source="plays-public"), tmp_path, tmp_path / "cache", root(0))
    others = corpus.load(DataSection(source="plays"), tmp_path, tmp_path / "cache", root(0))
    assert len(found.devices) == 10
    assert not {*found.devices} & {*others.devices}


@pytest.mark.parametrize("key", ["path", "owner", "text"])
def test_its_columns_and_place_are_not_asked_for(key: str) -> None:
    with pytest.raises(RecipeError, match="E-COMBO"):
        recipes.from_plain({"privacy": "none", "data": {"source": "plays", key: "mine"}})


def test_the_script_ranks_speakers_and_keeps_the_order_of_speeches() -> None:
    spec = importlib.util.spec_from_file_location("build_plays", ROOT / "scripts/build_plays.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    parts = [f"S{i:02d}:\n{'long ' * (40 - i)}\nend {turn}" for turn in range(2) for i in range(40)]
    text = "\n\n".join([*parts, "S12:\n", "no speaker here\njust a line", "S11:\nlast word"])
    rows = [json.loads(line) for line in script.lines(text)]
    assert [row["speaker"] for row in rows][:5] == ["S10", "S10", "S11", "S11", "S11"]
    assert list(dict.fromkeys(row["speaker"] for row in rows)) == [f"S{i}" for i in range(10, 34)]
    assert [row["text"].split()[-1] for row in rows[2:5]] == ["0", "1", "word"]
    assert gzip.decompress(script.packed(text)).decode().splitlines() == script.lines(text)
    public = [json.loads(line)["speaker"] for line in script.lines(text, script.PUBLIC)]
    assert list(dict.fromkeys(public)) == [f"S{i:02d}" for i in range(10)]
