"""Nothing secret comes from a recipe's seed: whoever has the recipe, so the server, could derive it too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from arch.source import SRC, dotted, files, nodes, tree

PURE = ("core", "codecs", "merges", "privacy", "strategies", "secagg", "crypto", "plan", "engine")
SEEDED = ("plan.key", "self.plan.key", "self._plan.key", "recipe.seed", "self.recipe.seed", "self._recipe.seed")

# Where the pure layers derive anything from the seed, and what for. All of it is public.
PUBLIC = {
    "codecs/project/low_rank.py: low_rank": "the start of a power iteration, the same for everybody",
    "plan/strategy.py: _without_alarms": "where FLoRA's new adapters begin, the same for everybody",
    "plan/participants.py: participants": "which devices of a simulation are in no round",
    "plan/plan.py: Plan.key": "the root of those below",
    "plan/plan.py: Plan.device_rule": "which device trains how many blocks, which everybody may know",
    "plan/plan.py: Plan.work": "which device has which LoRA rank and how many blocks, which everybody may know",
    "plan/plan.py: Plan.batch_key": "order of batches and dropout, which runs repeat by",
    "plan/plan.py: Plan.public": "the round's public key, which invitations announce",
    "plan/plan.py: Plan.turn_down": "rounding of the model that all devices are sent",
}


def functions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Functions and methods of a module with their names; inner ones belong to the outermost."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef):
            yield from (
                (f"{node.name}.{inner.name}", inner) for inner in node.body if isinstance(inner, ast.FunctionDef)
            )
            yield from ((node.name, inner) for inner in node.body if not isinstance(inner, ast.FunctionDef))
        else:
            yield (node.name if isinstance(node, ast.FunctionDef) else "module"), node


def seeded(name: str, node: ast.AST) -> bool:
    """Tell whether the code takes the seed, or a key that comes from it."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and dotted(inner.func) in ("root", "keys.root"):
            return True
        if isinstance(inner, ast.Attribute) and dotted(inner) in SEEDED:
            return True
        if name.startswith("Plan.") and isinstance(inner, ast.Attribute) and dotted(inner) == "self.key":
            return True
    return False


def test_the_pure_layers_derive_nothing_secret_from_the_seed() -> None:
    """A new place has to say here what for; a device's secrets are ``core.keys.Secrets``, a server's its entropy."""
    found = {
        f"{path.relative_to(SRC).as_posix()}: {name}"
        for path in files()
        if path.relative_to(SRC).parts[0] in PURE
        for name, node in functions(path)
        if seeded(name, node)
    }
    assert found == PUBLIC.keys()


RANDOMNESS = ("entropy", "secret", "secrets", "private", "sampling_key", "identity")


def defaults() -> Iterator[tuple[str, str]]:
    """Every name of an argument or a field that has a default, and where it stands; a default of None is none."""
    for path, node in nodes(ast.arguments, ast.AnnAssign):
        where = path.relative_to(SRC).as_posix()
        if isinstance(node, ast.arguments):
            plain = [*node.posonlyargs, *node.args]
            pairs = [*zip(reversed(plain), reversed(node.defaults), strict=False)]
            pairs += [(a, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True) if d is not None]
            yield from ((a.arg, where) for a, d in pairs if not is_none(d))
        elif isinstance(node.target, ast.Name) and node.value is not None:
            value = node.value
            if isinstance(value, ast.Call):  # field(default=..., repr=False)
                given = [k.value for k in value.keywords if k.arg in ("default", "default_factory")]
                if not given:
                    continue
                value = given[0]
            if not is_none(value):
                yield node.target.id, where


def is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def test_randomness_has_no_default() -> None:
    """Whoever forgets it gets an error, and not the numbers that everybody else has who forgot it."""
    found = {(name, where) for name, where in defaults() if name in RANDOMNESS}
    assert not {name for name, _ in found}, found
