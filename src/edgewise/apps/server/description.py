"""The OpenAPI description of a server, ``/openapi.json``.

It has FastAPI's description of the control plane, the routes that FastAPI does not know, the roles that may call each
route, and the codes of all errors that it answers with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from edgewise.core.errors import REGISTRY
from edgewise.drivers.http.rules import ANYONE, LOCAL, RULES, STATUS, Rule

_UNSIGNED = (ANYONE, LOCAL)
_HEX = {"type": "string", "pattern": "^[0-9a-f]+$"}
_COUNT = {"type": "integer", "minimum": 0}
_DIGEST = {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"}  # null: of no frame
_COUNTED = {"number": _COUNT, "digest": _DIGEST, "key": _HEX, "signature": _HEX}
_STATE = {"upload": _HEX, "size": _COUNT, "chunk": _COUNT, "received": _COUNT}


def _query(name: str, text: str, required: bool = False, schema: Mapping[str, Any] = _COUNT) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": dict(schema), "description": text}


def _json(properties: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": dict(properties), "required": sorted(properties)}
    return {"application/json": {"schema": schema}}


def _answers(status: int, text: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {str(status): {"description": text, **({"content": dict(content)} if content else {})}}


_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}

# These routes are not FastAPI's. docs/reference/transport.md describes them at length.
BARE: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("GET", "/healthz"): {"summary": "The server answers.", "responses": _answers(200, "It does.", _TEXT)},
    ("GET", "/readyz"): {
        "summary": "Whether the server can take frames.",
        "responses": _answers(200, "It can.", _json({"ready": {"type": "boolean"}, "checks": {"type": "object"}}))
        | _answers(503, "It cannot; `checks` says why."),
    },
    ("GET", "/metrics"): {"summary": "Counters for Prometheus.", "responses": _answers(200, "Text.", _TEXT)},
    ("GET", "/openapi.json"): {
        "summary": "This description.",
        "responses": _answers(200, "OpenAPI.", {"application/json": {"schema": {"type": "object"}}}),
    },
    ("GET", "/v1/server"): {
        "summary": "Who the server is, signed for a nonce.",
        "parameters": [_query("nonce", "32 fresh random bytes.", True, _HEX)],
        "responses": _answers(
            200, "Its identity.", _json({"key": _HEX, "authority": {"type": "string"}, "signature": _HEX})
        ),
    },
    ("GET", "/v1/inbox"): {
        "summary": "The oldest frame with a number above `after`.",
        "parameters": [_query("after", "Number of the last frame."), _query("wait", "Seconds to wait for one.")],
        "responses": _answers(200, "A frame; its number is in `edgewise-number`.", _BYTES)
        | _answers(204, "None; come back after `retry-after` seconds."),
    },
    ("POST", "/v1/counter"): {
        "summary": "Count the next frame of the device.",
        "requestBody": {"content": _json({"number": _COUNT, "digest": _DIGEST})},
        "responses": _answers(200, "It is the last one that the server remembers.", _json(_COUNTED)),
    },
    ("POST", "/v1/outbox"): {
        "summary": "Take a frame: the body, or an upload.",
        "parameters": [_query("upload", "An upload that is complete.", False, _HEX)],
        "requestBody": {"content": _BYTES},
        "responses": _answers(200, "It is on the server's disk.", _json({"number": _COUNT})),
    },
    ("POST", "/v1/uploads"): {
        "summary": "Begin an upload, or find it.",
        "requestBody": {"content": _json({"digest": _HEX, "size": _COUNT})},
        "responses": _answers(201, "How far it is.", _json(_STATE)),
    },
    ("GET", "/v1/uploads/{upload}"): {
        "summary": "How far an upload is.",
        "responses": _answers(200, "How far it is.", _json(_STATE)),
    },
    ("PUT", "/v1/uploads/{upload}"): {
        "summary": "Take a chunk.",
        "parameters": [_query("offset", "Where it begins.", True)],
        "requestBody": {"content": _BYTES},
        "responses": _answers(200, "It is on the server's disk.", _json({"received": _COUNT})),
    },
    ("GET", "/v1/blobs/{digest}"): {
        "summary": "A published blob; with the header `range` the rest of it.",
        "responses": _answers(200, "All of it.", _BYTES) | _answers(206, "The range.", _BYTES),
    },
}  # fmt: skip


_RUN = {
    "recipe": {"type": "object"}, "spec": {"type": "array"}, "initial": _HEX, "model": {"type": "string"},
    "facts": {"type": "object"}, "tags": {"type": "array", "items": {"type": "string"}},
}  # fmt: skip
BODIES: Mapping[tuple[str, str], Mapping[str, Any]] = {  # FastAPI does not read these bodies, so it does not know them.
    ("PUT", "/v1/staged/{digest}"): _BYTES,
    ("POST", "/v1/runs"): {
        "application/json": {
            "schema": {"type": "object", "properties": _RUN, "required": ["recipe", "spec", "initial"]}
        }
    },
}


def openapi_document(api: FastAPI) -> dict[str, Any]:
    """Make the OpenAPI document of a server."""
    document: dict[str, Any] = get_openapi(
        title=api.title, version=api.version, routes=api.routes,
        description="Requests are signed: `edgewise explain transport`. `edgewise explain CODE` explains an error.",
    )  # fmt: skip
    components = document.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):  # These errors have the form of all others.
        components.setdefault("schemas", {}).pop(name, None)
    components["schemas"]["Error"] = {
        "type": "object",
        "properties": {
            "code": {"type": "string", "enum": sorted({code for rule in RULES for code in rule.codes})},
            "what": {"type": "string", "description": "What was asked, and why it cannot be."},
            "fix": {"type": "string", "description": "What to do."},
        },
        "required": ["code", "what", "fix"],
    }
    components["securitySchemes"] = {
        "signature": {
            "type": "apiKey", "in": "header", "name": "signature", "description": "See `edgewise explain transport`.",
        }
    }  # fmt: skip
    paths = document.setdefault("paths", {})
    for rule in RULES:
        bare = BARE.get((rule.method, rule.path))
        operation = paths.setdefault(rule.path, {}).setdefault(rule.method.lower(), dict(bare or {}))
        if (body := BODIES.get((rule.method, rule.path))) is not None:
            operation["requestBody"] = {"content": body}
        operation["x-roles"] = sorted(rule.roles)
        operation["security"] = [] if rule.roles in _UNSIGNED else [{"signature": []}]
        _name_path(rule, operation)
        operation["responses"] = {**_without(operation["responses"], "422"), **_errors(rule)}
    return document


def _name_path(rule: Rule, operation: dict[str, Any]) -> None:
    """Describe the parameters in braces of a path."""
    given = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
    for part in rule.path.split("/"):
        if part.startswith("{") and (name := part.strip("{}")) not in given:
            one = {"name": name, "in": "path", "required": True, "schema": dict(_HEX)}
            operation["parameters"] = [one, *operation.get("parameters", ())]


def _without(responses: Mapping[str, Any], status: str) -> dict[str, Any]:
    return {key: value for key, value in responses.items() if key != status}


def _errors(rule: Rule) -> dict[str, Any]:
    """Describe the error answers of a route by status. ``x-codes`` has the codes of each."""
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in sorted(rule.codes):
        by_status[STATUS.get(code, 503)].append(code)
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(status): {
            "description": "; ".join(f"{code}: {REGISTRY[code].title}" for code in codes),
            "x-codes": codes,
            "content": content,
        }
        for status, codes in sorted(by_status.items())
    }
