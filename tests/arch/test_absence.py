"""What is not there is None: nothing means it by empty text, no bytes or -1 (docs/design.md, "Absence").

Defaults of fields and parameters, arguments of the package's own classes, attributes that are set, and values that
functions return are looked at. A literal counts wherever it may be the value: alone, as a branch of
``a if b else c``, or as a part of ``a or b``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arch.source import SRC, dotted, nodes, where

# Each table holds, by the reason, the places that may stay. A new one stands in the table of docs/design.md too.
FIELDS = {
    "options of a command as a person typed them, where an empty one is none": {
        "DataOptions.base", "DataOptions.owner", "DataOptions.text",
    },
    "words that are put behind other words, where none change nothing": {
        "Bar.note", "Progress.note", "MechanismSentences.blocks",
    },
    "a label that a person may leave empty, and that is shown as it is": {"Joining.label"},
    "the text of a recipe and the words before its faults, of which a table in Python has none": {
        "Origin.text", "Origin.where",
    },
}  # fmt: skip
TOML = "Section"  # Its classes hold the keys of a recipe, or of an owner's device.toml: TOML has no null.

ARGUMENTS = {
    "labels, and sentences of messages with fixed fields": {"Bar.name", "Broken.fix", "Key.default", "Refusal.reason"},
    "a body or a query that has no bytes": {"Caller.body", "Request.query"},
    "text of a file, which may be empty": {"Document.prompt", "Document.text"},
    "a value that is put in at once": {"SessionKeys.signature", "Turn.private", "Turn.public"},
    "the host of an address that was checked when the device joined": {"SplitAddress.host"},
}  # fmt: skip

RETURNS = {
    "parts of a sentence, which are joined": {
        "merges/robust_mean.py:bucket_in_name", "strategies/fedopt.py:factor_words",
    },
    "all bytes that there are": {"drivers/captured_output.py:read", "drivers/storage/object_store.py:read"},
    "text of a file, which may be empty": {"drivers/fleet/shared_folder.py:_text"},
    "a compiled loop, which has no None": {"codecs/wire/golomb.py:_read_code"},
    "a field of a message that older agents read": {"apps/server/run_routes.py:_released"},
}  # fmt: skip
# Here a function that returns text makes a part of a page, a screen or a card, and none is nothing to show.
SHOWN = (
    "apps/audit/", "apps/cli/", "apps/device/owner_html.py", "apps/federation/run.py",
    "apps/models/model_card.py", "apps/report/", "apps/terminal/progress.py",
)  # fmt: skip

ATTRIBUTES = {
    "bytes that are signed, where none are the authorities of the web": {"drivers/http/service.py:self.authority"},
}

PARAMETERS = {
    "sentences and parts of them": {
        "apps/terminal/sessions.py:__init__.verdict", "core/errors.py:__init__.fix", "core/foreign.py:__init__.fix",
        "plan/recipe/findings.py:faults_of.label", "privacy/card.py:privacy_budget_words.given",
        "apps/device/unit.py:_quoted.before", "apps/dashboard/charts.py:dashboard_lines.unit",
    },
    "labels and instructions that a person may leave empty": {
        "apps/device/script.py:join.label", "drivers/http/link.py:join.label",
        "apps/models/conversation.py:__init__.system",
    },
    "settings, where an empty option is none": {
        "apps/models/in_use.py:open_model.base", "apps/models/in_use.py:open_model.device",
        "apps/models/in_use.py:turn_to.owner", "apps/models/verification.py:verify_run.chain",
        "apps/server/script.py:__init__.public_url", "apps/server/start.py:__init__.public_url",
        "apps/server/start.py:__init__.database", "drivers/fleet/database.py:__init__.url",
        "drivers/http/browser.py:check_origin.public_url", "drivers/http/service.py:__init__.public_url",
        "drivers/http/service.py:__init__.database", "drivers/storage/store_place.py:parse_store_place.endpoint",
    },
    "queries of a route": {
        "apps/server/api.py:devices.after", "apps/server/api.py:devices.status",
        "apps/server/verifying.py:verify.chain",
    },
    "text that orders before all others, or begins a name": {
        "apps/dashboard/fleet_data.py:flat.prefix", "drivers/fleet/members.py:listed.after",
    },
    "a request without a body": {"drivers/http/link.py:call.body", "drivers/http/link.py:_attempt.body"},
}  # fmt: skip
OPTIONS = ("apps/cli/", "apps/report/", "apps/device/owner_html.py")  # options of commands, and parts of pages


def _is_nothing(node: ast.expr | None) -> bool:
    """Tell whether an expression may be the literal ``""``, ``b""`` or -1."""
    if isinstance(node, ast.IfExp):
        return _is_nothing(node.body) or _is_nothing(node.orelse)
    if isinstance(node, ast.BoolOp):
        return any(map(_is_nothing, node.values))
    try:
        value = ast.literal_eval(node) if node is not None else None
    except ValueError:
        return False
    return value in ("", b"") or (type(value) in (int, float) and value == -1)


def _default(value: ast.expr | None) -> bool:
    """Tell whether a field's default is nothing, also inside ``field(default=...)`` and ``Field(...)``."""
    if not isinstance(value, ast.Call) or dotted(value.func).rpartition(".")[2] not in ("field", "Field"):
        return _is_nothing(value)
    given = [k.value for k in value.keywords if k.arg == "default"] + value.args[:1]
    made = [dotted(k.value) for k in value.keywords if k.arg == "default_factory"]
    return any(map(_is_nothing, given)) or bool({"str", "bytes"}.intersection(made))


def _fields() -> dict[str, list[str]]:
    """The fields of the package's classes, in their order."""
    return {
        kind.name: [
            dotted(line.target)
            for line in kind.body
            if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation)
        ]
        for _, kind in nodes(ast.ClassDef)
    }


def _file(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def _functions() -> Iterator[tuple[Path, Any]]:
    return nodes(ast.FunctionDef, ast.AsyncFunctionDef)


def defaults_of_fields(path: Path, kind: ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    """The fields of a class whose default is nothing."""
    for line in kind.body:
        if isinstance(line, ast.AnnAssign) and _default(line.value):
            yield f"{kind.name}.{dotted(line.target)}", line


def arguments(call: ast.Call, fields: dict[str, list[str]]) -> Iterator[tuple[str, ast.AST]]:
    """The fields that a call of a class of the package, or of a copy, sets to nothing."""
    name = dotted(call.func).rpartition(".")[2]
    if name in ("replace", "_replace", "but"):
        name, places = "a copy", list[str]()
    elif name in fields:
        places = fields[name]
    else:
        return
    given = [*zip(places, call.args, strict=False), *((k.arg or "**", k.value) for k in call.keywords)]
    yield from ((f"{name}.{field}", call) for field, value in given if _is_nothing(value))


def returned(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """The places where a function, without those inside of it, returns nothing."""
    left: list[ast.AST] = list(function.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Return) and _is_nothing(node.value):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            left += ast.iter_child_nodes(node)


def defaults_of_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, ast.AST]]:
    """The parameters of a function whose default is nothing."""
    given, keywords = function.args, function.args.kwonlyargs
    placed = [*given.posonlyargs, *given.args]
    pairs = [
        *zip(reversed(placed), reversed(given.defaults), strict=False),
        *zip(keywords, given.kw_defaults, strict=True),
    ]
    yield from ((one.arg, one) for one, value in pairs if _is_nothing(value))


def _compare(found: dict[str, str], stays: dict[str, set[str]]) -> None:
    """Places that were found are those of the table, and the table has no other."""
    allowed = {name for names in stays.values() for name in names}
    new = sorted(f"{place}: {name}" for name, place in found.items() if name not in allowed)
    assert not new, "say absence by None:\n" + "\n".join(new)
    assert not allowed - set(found), f"gone from the code, so also from this list: {sorted(allowed - set(found))}"


def test_no_field_has_such_a_default() -> None:
    found = {
        name: where(path, line)
        for path, kind in nodes(ast.ClassDef)
        if TOML not in map(dotted, kind.bases)
        for name, line in defaults_of_fields(path, kind)
    }
    _compare(found, FIELDS)


def test_no_class_of_the_package_is_made_with_such_a_value() -> None:
    fields = _fields()
    fields.pop("Field", None)
    found = {name: where(path, call) for path, node in nodes(ast.Call) for name, call in arguments(node, fields)}
    allowed = {*(n for names in FIELDS.values() for n in names)}
    _compare({name: place for name, place in found.items() if name not in allowed}, ARGUMENTS)


def test_no_function_returns_such_a_value() -> None:
    found = {
        f"{_file(path)}:{function.name}": where(path, line)
        for path, function in _functions()
        if not _file(path).startswith(SHOWN)
        for line in returned(function)
    }
    _compare(found, RETURNS)


def test_no_attribute_is_set_to_such_a_value() -> None:
    found = {
        f"{_file(path)}:{dotted(target)}": where(path, line)
        for path, line in nodes(ast.Assign, ast.AnnAssign)
        for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
        if isinstance(target, ast.Attribute) and _is_nothing(line.value)
    }
    _compare(found, ATTRIBUTES)


def test_no_parameter_has_such_a_default() -> None:
    found = {
        f"{_file(path)}:{function.name}.{name}": where(path, line)
        for path, function in _functions()
        if not _file(path).startswith(OPTIONS)
        for name, line in defaults_of_parameters(function)
    }
    _compare(found, PARAMETERS)


@pytest.mark.parametrize("nothing", ['""', "b''", "-1", "-1.0", "x if y else ''", "x or b''", "'' if y else -1"])
def test_each_form_is_found(nothing: str) -> None:
    code = f"""
class A:
    a: str = {nothing}
    b: str = field(repr=False, default={nothing})
    c: str = pydantic.Field({nothing}, max_length=3)
    d: str

def made(p={nothing}, *, q={nothing}):
    def inside():
        return 1
    A(1, 2, 3, {nothing}), replace(made(), d={nothing}), A(d={nothing})
    if p:
        return {nothing}
"""
    module = ast.parse(code)
    kind, function = module.body
    assert isinstance(kind, ast.ClassDef)
    assert isinstance(function, ast.FunctionDef)
    assert [name for name, _ in defaults_of_fields(SRC, kind)] == ["A.a", "A.b", "A.c"]
    assert sorted(name for name, _ in defaults_of_parameters(function)) == ["p", "q"]
    assert len(list(returned(function))) == 1
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    assert [name for call in calls for name, _ in arguments(call, {"A": list("abcd")})] == ["A.d", "a copy.d", "A.d"]


def test_values_that_are_there_are_not_found() -> None:
    module = ast.parse(
        'class A:\n    a: float = 0.0\n    b: str = field(default="x")\n    c: int = 1\n    d: bool = False'
    )
    (kind,) = module.body
    assert isinstance(kind, ast.ClassDef)
    assert not list(defaults_of_fields(SRC, kind))
