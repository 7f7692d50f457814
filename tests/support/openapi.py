"""Requests from an OpenAPI document: what it allows, what it almost allows, and anything else.

for operation in operations(document): ...
requests(operation, document, names={"member": ["0" * 32]})      a Hypothesis strategy
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import strategies as st

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
NESTED = b"[" * 8_000
_WORDS = st.sampled_from(["", "-", "0", "-1", "1e9", "9" * 30, "..", "%00", "\u00e9", "a" * 200, "true", "[]"])
_PATH = st.text("0123456789abcdefxyz_-", min_size=1, max_size=80)


@dataclass(frozen=True)
class Operation:
    """A method and a path with its braces, and what the document says of it."""

    method: str
    path: str
    said: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(str(self))

    @property
    def codes(self) -> dict[str, list[str]]:
        """Error codes by status."""
        return {status: one["x-codes"] for status, one in self.said["responses"].items() if "x-codes" in one}


class Document(dict[str, Any]):
    """An OpenAPI document that a failing example does not print."""

    def __repr__(self) -> str:
        return "Document()"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))


@dataclass(frozen=True)
class Request:
    """Request that is sent."""

    method: str
    path: str
    query: str
    body: bytes


def operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    """All operations of a document."""
    for path, methods in document["paths"].items():
        for method, said in methods.items():
            yield Operation(method.upper(), path, said)


def values(schema: Mapping[str, Any], document: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows, more or less. See ``almost``."""
    if "$ref" in schema:
        return values(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]], document)
    if "enum" in schema:
        return st.sampled_from(list(schema["enum"]))
    if options := schema.get("anyOf"):
        return st.one_of([values(one, document) for one in options])
    match schema.get("type"):
        case "object":
            fields = {name: almost(one, document) for name, one in schema.get("properties", {}).items()}
            needed = {name: one for name, one in fields.items() if name in schema.get("required", ())}
            rest = {name: one for name, one in fields.items() if name not in needed}
            return st.fixed_dictionaries(needed, optional=rest)
        case "array":
            return st.lists(almost(schema.get("items", {}), document), max_size=3)
        case "integer":
            return st.integers(-1, 2**70) | st.integers(0, 3)
        case "number":
            return st.floats() | st.floats(0, 4000)
        case "boolean":
            return st.booleans()
        case "string":
            return st.text(max_size=40) | st.text("0123456789abcdef", min_size=64, max_size=64)
        case _:
            return JSON


def almost(schema: Mapping[str, Any], document: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Mostly what a schema allows."""
    return st.one_of(values(schema, document), values(schema, document), JSON)


def requests(
    operation: Operation, document: Mapping[str, Any], names: Mapping[str, Sequence[str]]
) -> st.SearchStrategy[Request]:
    """Requests for an operation. ``names``: what exists, by the name that stands in braces."""
    parameters = operation.said.get("parameters", ())
    path = st.fixed_dictionaries({one["name"]: _name(one["name"], names) for one in parameters if one["in"] == "path"})
    query = st.fixed_dictionaries(
        {}, optional={one["name"]: _argument(one, document) for one in parameters if one["in"] == "query"}
    )
    extra = st.sampled_from(["", "&", "a", "=", "wait=0&wait=0", "%ff=%00"])
    return st.builds(
        lambda path, query, extra, body: Request(
            operation.method, _filled(operation.path, path), "&".join(filter(None, [urlencode(query), extra])), body
        ),
        path, query, extra, _body(operation, document),
    )  # fmt: skip


def _name(name: str, names: Mapping[str, Sequence[str]]) -> st.SearchStrategy[str]:
    return st.sampled_from(list(names.get(name, ["0"]))) | _PATH


def _argument(said: Mapping[str, Any], document: Mapping[str, Any]) -> st.SearchStrategy[str]:
    if said["name"] == "wait":  # what is allowed would wait
        return _WORDS.filter(lambda word: not word.isdigit()) | st.just("0")
    return _WORDS | values(said["schema"], document).map(str).filter(lambda text: text.isprintable())


def _filled(path: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    return path


def _body(operation: Operation, document: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    if (said := operation.said.get("requestBody")) is None:
        return st.just(b"")
    ((kind, one),) = said["content"].items()
    if kind != "application/json":
        return st.binary(max_size=200)
    documents = almost(one["schema"], document).map(lambda value: json.dumps(value).encode())
    return st.one_of(documents, documents, st.binary(max_size=40), st.just(NESTED))
