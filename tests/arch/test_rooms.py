"""Each folder of the package has its line in the docs and its own docstring, and unit tests have the same folders."""

from __future__ import annotations

import ast
import re

from arch.source import ROOT, SRC

LINES = 3  # of a package's docstring, without empty ones
LONGER = {"edgewise"}  # begins with a usage example
UNIT = ROOT / "tests" / "unit"
ACROSS = {  # Unit tests of a topic that no single module holds, and the topic.
    "apps/cli/test_folders.py": "all commands that write",
    "apps/cli/test_join.py": "the command join, of two modules of commands",
    "apps/federation/test_notebooks.py": "what a notebook shows of all objects",
    "codecs/quantize/test_grids.py": "the grids of eden, codebook and quantize beside each other",
    "codecs/select/test_sparse.py": "all stages that send some coordinates",
    "codecs/test_hidden_ladder.py": "the ladder with secure aggregation, over plan and engine",
    "codecs/test_pieces.py": "decoding by pieces, of all codecs",
    "drivers/fleet/test_run_documents.py": "documents that several modules publish",
    "drivers/test_older_absence.py": "all stores, as earlier versions wrote them",
    "learn/compress/test_smaller_models.py": "pruned and factorized models, and what loads them",
    "learn/compress/test_stopped.py": "a distillation that its run ends",
    "learn/models/test_ffa.py": "rules of LoRA, over adapters and strategies",
    "learn/models/test_last_blocks.py": "blocks, over adapters and memory",
    "learn/test_holding_back.py": "held-out data, over trainers and personal models",
    "learn/text/test_packing.py": "packed documents, over blocks and attention",
    "learn/text/test_plays.py": "the text that ships as an asset",
    "learn/text/test_sft_masks.py": "masks of chats beside another library's",
    "plan/recipe/test_fuzz.py": "any recipe",
    "plan/test_edge_llm.py": "one shipped recipe",
    "plan/test_large_populations.py": "the cost of facts, over several modules",
    "plan/test_phases.py": "phases, over plan, device and memory",
    "plan/test_shipped_recipes.py": "all shipped recipes",
    "plan/test_split_passes.py": "a promise, over recipe and split rounds",
    "test_benchmarks.py": "benchmarks/",
    "test_continual_benchmark.py": "benchmarks/",
    "test_fleet_load.py": "benchmarks/",
    "test_run_py.py": "run.py",
}


def packages() -> set[str]:
    """Dotted names of the folders with Python files or assets, and of the folders above them."""
    files = [*SRC.rglob("*.py"), *(p for p in (SRC / "assets").rglob("*") if p.is_file())]
    folders = {p.parent.relative_to(SRC.parent) for p in files}
    folders |= {parent for folder in folders for parent in folder.parents if parent.parts}
    return {".".join(f.parts) for f in folders if "__pycache__" not in f.parts}


def named() -> dict[str, str]:
    """Map the packages of the tree in docs/design.md to their sentences."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = text.split("## Where things live", 1)[1].split("```", 2)[1]
    found: dict[str, str] = {}
    path: list[str] = []
    for line in block.strip("\n").splitlines():
        match = re.fullmatch(r"( *)(\w+) *(.*)", line)
        assert match is not None, f"no line of the tree: {line!r}"
        assert len(match[1]) % 2 == 0, f"indented by an odd number: {line!r}"
        path = [*path[: len(match[1]) // 2], match[2]]
        assert ".".join(path) not in found, f"twice in the tree: {line!r}"
        found[".".join(path)] = match[3]
    return found


def test_the_tree_of_the_docs_is_the_tree() -> None:
    tree = named()
    assert not packages() - tree.keys(), "add a line to the tree in docs/design.md"
    assert not tree.keys() - packages(), "no such folder: take the line out of docs/design.md"
    bad = [name for name, sentence in tree.items() if not re.fullmatch(r"\S.+\.", sentence)]
    assert not bad, f"without a sentence: {bad}"


def test_each_package_says_what_lives_there() -> None:
    bad = []
    for path in sorted(SRC.rglob("__init__.py")):
        name = ".".join(path.parent.relative_to(SRC.parent).parts)
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines = [line for line in docstring.splitlines() if line.strip()]
        if not lines or (len(lines) > LINES and name not in LONGER):
            bad.append(f"{name}: {len(lines)} lines")
    assert not bad, f"a package's docstring has one to {LINES} lines:\n" + "\n".join(bad)


def _mirrored(place: str) -> bool:
    """Tell whether a unit test is where its module is: ``test_<module>.py`` or ``test_<module>_<topic>.py``.

    The tests of a whole package have its name, beside it or inside.
    """
    folder, _, file = place.rpartition("/")
    words = file.removeprefix("test_").removesuffix(".py").split("_")
    here = SRC / folder
    names = ["_".join(words[:n]) for n in range(len(words), 0, -1)]
    return here.is_dir() and any((here / f"{n}.py").is_file() or (here / n).is_dir() or n == here.name for n in names)


def test_unit_tests_have_the_folders_of_the_source() -> None:
    places = {p.relative_to(UNIT).as_posix() for p in UNIT.rglob("test_*.py")}
    lost = sorted(place for place in places - ACROSS.keys() if not _mirrored(place))
    assert not lost, "move beside the name of its module, or list the topic in ACROSS:\n" + "\n".join(lost)
    assert not ACROSS.keys() - places, "in ACROSS, and not there"
    assert not (whole := [place for place in ACROSS if _mirrored(place)]), f"take out of ACROSS: {whole}"
