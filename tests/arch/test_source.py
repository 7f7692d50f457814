"""Rules that can be read off the source: safety, randomness, size, documentation, error handling."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from arch.source import ROOT, SRC, dotted, files, imported, nodes, tracked, tree, where

LONGEST = 400
PAGES = {"engine/coordinator.py": 280}  # what one reads as a whole; a room for what it gains
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "os.system", "os.popen", "pandas.read_pickle", "yaml.load"}
UNSAFE_KEYWORDS = {"allow_pickle", "shell", "trust_remote_code"}
# Explicit generators, made from derived keys. Everything else below numpy.random draws from or seeds from elsewhere.
EXPLICIT = {"Generator", "Philox", "SeedSequence", "BitGenerator"}


def test_no_code_from_data() -> None:
    """No pickle, no eval, no shell: nothing that turns bytes from elsewhere into behaviour."""
    bad = []
    for path, node in nodes(ast.Import, ast.ImportFrom, ast.Call):
        for name in imported(node):
            if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS:
                bad.append(f"{where(path, node)}: import of {name}")
        if isinstance(node, ast.Call):
            if dotted(node.func) in UNSAFE_CALLS:
                bad.append(f"{where(path, node)}: call of {dotted(node.func)}")
            for keyword in node.keywords:
                literal_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in UNSAFE_KEYWORDS and not literal_false:
                    bad.append(f"{where(path, node)}: {keyword.arg} is not False")
    assert not bad, "\n".join(bad)


def test_no_global_randomness() -> None:
    """All randomness comes from derived keys (core.keys) or entropy that a driver hands in."""
    bad = []
    for path, node in nodes(ast.Import, ast.ImportFrom, ast.Attribute):
        for name in imported(node):
            head, _, last = name.rpartition(".")
            if name.split(".")[0] == "random" or (head == "numpy.random" and last not in EXPLICIT):
                bad.append(f"{where(path, node)}: import of {name}")
        if isinstance(node, ast.Attribute):
            head, _, last = dotted(node).rpartition(".")
            if head in ("np.random", "numpy.random") and last not in EXPLICIT:
                bad.append(f"{where(path, node)}: {dotted(node)}; use core.keys")
    assert not bad, "\n".join(bad)


def test_a_name_is_imported_from_where_it_lives() -> None:
    """No ``import x as x``, which would offer a module's name as another's."""
    bad = [
        f"{where(path, node)}: {alias.name}"
        for path, node in nodes(ast.Import, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    assert not bad, "\n".join(bad)


def test_no_handler_hides_errors() -> None:
    """No bare except; a handler of everything says which boundary it guards: ``# boundary: why`` on its line."""
    broad, bad = {"Exception", "BaseException"}, []
    for path, node in nodes(ast.ExceptHandler, ast.Call):
        if isinstance(node, ast.ExceptHandler):
            if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None and node.type is not None:
                continue  # cleans up and passes everything on
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            caught = {dotted(kind) for kind in kinds if kind is not None}
        elif dotted(node.func) in ("suppress", "contextlib.suppress"):
            caught = {dotted(argument) for argument in node.args}
        else:
            continue
        line = path.read_text(encoding="utf-8").splitlines()[node.lineno - 1]
        if not caught:
            bad.append(f"{where(path, node)}: bare except")
        elif caught & broad and not re.search(r"# boundary: \S", line):
            bad.append(f"{where(path, node)}: catches {', '.join(caught & broad)} without `# boundary: why`")
    assert not bad, "\n".join(bad)


def test_files_stay_readable() -> None:
    """A module is about one thing; the ten longest are printed (pytest -s)."""
    sizes = sorted(((len(p.read_text(encoding="utf-8").splitlines()), where(p)) for p in files()), reverse=True)
    print("\n".join(f"{n:5} {name}" for n, name in sizes[:10]))
    limits = {where(SRC / name): limit for name, limit in PAGES.items()}
    long = [f"{name}: {n} lines" for n, name in sizes if n > limits.get(name, LONGEST)]
    assert not long, f"over {LONGEST} lines or the limit of a page, split by topic:\n" + "\n".join(long)


TWICE = {  # Names of one idea in two places.
    "Recipe": "as a person gives it, and checked",
    "Aborted": "an ended session of secure aggregation, of a device and of the server",
    "Sharing": "the step of secret shares, of a device and of the server",
    "_Message": "the base of messages, between devices and servers and inside of secure aggregation",
}


def test_no_class_name_stands_twice() -> None:
    """A class name has one meaning in the package. Name a second idea apart, or say here why it is one idea."""
    names: dict[str, list[str]] = {}
    for path, node in nodes(ast.ClassDef):
        names.setdefault(node.name, []).append(where(path, node))
    twice = {name: places for name, places in names.items() if len(places) > 1}
    assert twice.keys() == TWICE.keys(), twice


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods; dunder methods and overloads explain themselves."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            marks = {dotted(d) for d in node.decorator_list}
            if marks & {"overload", "typing.overload", "override", "typing.override"}:
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def test_public_names_are_documented() -> None:
    bad = []
    for path in files():
        module = tree(path)
        if module.body and not ast.get_docstring(module):
            bad.append(f"{where(path)}: module")
        bad += [f"{where(path, n)}: {name}" for name, n in public(module.body) if not ast.get_docstring(n)]  # type: ignore[arg-type]
    assert not bad, "without a docstring:\n" + "\n".join(bad)


def test_no_machine_paths() -> None:
    """Nothing tracked names a folder that exists on one machine only."""
    pattern = re.compile(r"(?<![\w.~$}*-])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me)/\w+")
    bad = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if found := pattern.search(line):
                bad.append(f"{path.relative_to(ROOT).as_posix()}:{number}: {found.group()}")
    assert not bad, "\n".join(bad)


def test_run_py_parses_on_old_interpreters() -> None:
    """So that Python 3.8 can say that 3.11 is needed."""
    path: Path = ROOT / "run.py"
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_no_assertion_of_a_test_holds_whatever_happens() -> None:
    """``assert True`` tests nothing. Ruff sees the others: ``x or True`` (SIM222), tuples (F631), texts (PLW0129)."""
    empty = re.compile(r"^[ \t]*assert (True|[0-9.]+)[ \t]*(,|#|$)", re.MULTILINE)
    paths = sorted((ROOT / "tests").rglob("*.py"))
    bad = [where(path) for path in paths if empty.search(path.read_text(encoding="utf-8"))]
    assert not bad, "\n".join(bad)
