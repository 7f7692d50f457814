"""What is not there is None: no field of a class means it by empty text, no bytes or -1 (docs/design.md, "Absence")."""

from __future__ import annotations

import ast

from arch.source import nodes, where

# The fields whose default is a value, or whose form another program or a person decides. A new one stands in the table
# of docs/design.md too, with its reason.
STAYS = {
    "keys of an owner's device.toml, as TOML has no null": {
        "Data.messages", "Data.prompt", "Data.separator", "Data.time", "Data.time_format", "Data.tools",
    },
    "options of a command, where an empty one is none": {
        "DataOptions.base", "DataOptions.owner", "DataOptions.text", "EvaluationRequest.metric", "ShrinkRequest.how",
    },
    "sentences, labels and notes for people, where an empty one is shown as one": {
        "Bar.note", "Check.fix", "Lost.reason", "Progress.note", "ReportLoss.reason", "Sentences.blocks",
        "Useless.reason",
    },
    "text that was read, which may be empty": {"Origin.text", "Origin.where"},
}  # fmt: skip


def _means_nothing(node: ast.expr | None) -> bool:
    try:
        value = ast.literal_eval(node) if node is not None else None
    except ValueError:
        return False
    return value in ("", b"") or (type(value) in (int, float) and value == -1)


def test_absence_is_none() -> None:
    """Fields with such a default are those of the list, and the list has no other."""
    allowed = {name for names in STAYS.values() for name in names}
    found = {
        f"{kind.name}.{ast.unparse(field.target)}": f"{where(path, field)}"
        for path, kind in nodes(ast.ClassDef)
        for field in kind.body
        if isinstance(field, ast.AnnAssign) and _means_nothing(field.value)
    }
    new = sorted(f"{place}: {name}" for name, place in found.items() if name not in allowed)
    assert not new, "say absence by None:\n" + "\n".join(new)
    assert not allowed - set(found), f"gone from the code, so also from this list: {sorted(allowed - set(found))}"
