#!/usr/bin/env python3
"""Draw sixteen public functions and classes of the package, to ask a fresh reader where each lives.

    .venv/bin/python scripts/draw_names.py --seed 7
    .venv/bin/python scripts/draw_names.py --seed 7 --answers

The reader sees the names alone and guesses each one's module. ``--answers`` prints the modules, each with the purpose.
"""

from __future__ import annotations

import argparse
import ast
import random
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"
DRAWN = 16


def public_names() -> list[tuple[str, str, str]]:
    """List (name, module, first line of the docstring) of public functions and classes outside of classes."""
    found = []
    for path in sorted((SRC / "edgewise").rglob("*.py")):
        module = ".".join(path.relative_to(SRC).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            if isinstance(node, kinds) and not node.name.startswith("_"):
                found.append((node.name, module, (ast.get_docstring(node) or "").split("\n")[0]))
    return found


def draw(seed: int) -> list[tuple[str, str, str]]:
    """Draw names. The same seed gives the same names for the same source."""
    return random.Random(seed).sample(public_names(), DRAWN)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw names of the package, to guess where they live.")
    parser.add_argument("--seed", type=int, required=True, help="the same seed draws the same names")
    parser.add_argument("--answers", action="store_true", help="print each name's module and purpose too")
    given = parser.parse_args()
    for number, (name, module, purpose) in enumerate(draw(given.seed), 1):
        print(f"{number:2} {name}" + (f"  {module}: {purpose}" if given.answers else ""))


if __name__ == "__main__":
    main()
