"""The import contracts of pyproject.toml hold, leave no package out, and torch stays away from the fast paths."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib

import pytest

from arch.source import ROOT, SRC, files, imported, nodes

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
EDGES = {"apps", "drivers", "learn"}  # where I/O, clocks, threads and torch live
HEAVY = ("torch", "transformers", "peft", "accelerate", "ray", "matplotlib")


def packages() -> set[str]:
    """The packages directly below edgewise."""
    return {p.parent.name for p in SRC.glob("*/__init__.py")}


@pytest.mark.slow  # `make check` runs the import linter itself
def test_import_contracts() -> None:
    # A process of its own: import-linter configures logging, which turns off every logger that exists by then.
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("contract", "free"),
    [("the pure layers do no I/O", EDGES), ("torch stays in learn and apps", {"learn", "apps"})],
)
def test_no_package_is_left_out_of_a_contract(contract: str, free: set[str]) -> None:
    [found] = [c for c in CONTRACTS if c["name"] == contract]
    listed = {name.removeprefix("edgewise.") for name in found["source_modules"]}
    assert listed == packages() - free, f"pyproject.toml, contract {contract!r}: make source_modules match src/edgewise"


def imports() -> dict[str, set[str]]:
    """Module -> the modules of edgewise that it imports anywhere, also inside functions and for type checkers."""
    names = {".".join(("edgewise", *p.relative_to(SRC).with_suffix("").parts)): p for p in files()}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    modules = {path: name for name, path in names.items()}
    found: dict[str, set[str]] = {name: set() for name in names}
    for path, node in nodes(ast.Import, ast.ImportFrom):
        name = modules[path]
        found[name] |= {t if t in names else t.rpartition(".")[0] for t in imported(node)} & names.keys() - {name}
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Modules that nothing imports any more are taken away, again and again; circles are left."""
    left = imports()
    while free := {name for name in left if not any(name in others for others in left.values())}:
        left = {name: others for name, others in left.items() if name not in free}
    while ends := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in ends}
    assert not left


def loaded_by(code: str) -> set[str]:
    """Find the heavy packages that a fresh interpreter has loaded after ``code``."""
    report = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["edgewise", "edgewise.apps.cli.main"])
def test_start_imports_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import {module}")


def test_cli_has_its_entry_point() -> None:
    from edgewise.apps.cli.main import main

    assert callable(main)


@pytest.mark.slow
def test_everything_below_drivers_imports_without_torch() -> None:
    names = [
        ".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(SRC.rglob("*.py"))
        if path.relative_to(SRC).parts[0] in packages() - EDGES
    ]
    assert not loaded_by("\n".join(f"import {name}" for name in names))
