"""Permissions of the dashboard's pages, one line each, as ``rules`` has those of signed requests.

People call them with the cookie of a session. They are no part of the OpenAPI description, and no gateway passes them
on. Every page also exists as JSON, under its path with ``.json``.
"""

from __future__ import annotations

from edgewise.drivers.http.rules import ANYONE, OPERATOR, SMALL_BYTES, VIEWER, Rule
from edgewise.drivers.storage.store_place import CODES as STORE

HOME = "/dashboard"
LOGIN = f"{HOME}/login"
FILES = ("icon.svg", "style.css", "dashboard.js", "htmx.js", "uplot.js", "uplot.css")
_FORM_BYTES = SMALL_BYTES
_REPLAYED = ("E-UNKNOWN-ID", "E-VERIFY", "E-RESUME", "E-FACTS", "E-EXTENSION")


def _page(path: str, *refuses: str, operators: bool = False) -> tuple[Rule, Rule]:
    roles = OPERATOR if operators else VIEWER
    return (
        Rule("GET", f"{HOME}{path}", roles, 0, refuses, True),
        Rule("GET", f"{HOME}{path}.json", roles, 0, refuses, True),
    )


def _form(path: str, *refuses: str, viewers: bool = False) -> Rule:
    return Rule("POST", f"{HOME}{path}", VIEWER if viewers else OPERATOR, _FORM_BYTES, refuses, True)


PAGES = (
    *(Rule("GET", f"{HOME}/{name}", ANYONE) for name in FILES),
    Rule("GET", LOGIN, ANYONE),
    Rule("POST", LOGIN, ANYONE, _FORM_BYTES, ("E-SESSION", "E-ROLE", "E-REVOKED", "E-PENDING", "E-DISK")),
    _form("/logout", viewers=True),
    *_page(""),
    *_page("/runs"),
    *_page("/runs/{run}", "E-UNKNOWN-ID"),
    Rule("GET", f"{HOME}/runs/{{run}}/live", VIEWER, 0, ("E-UNKNOWN-ID",), True),
    _form("/runs/{run}/{verb}", "E-UNKNOWN-ID", "E-CONFLICT", "E-ROUTE"),
    *_page("/compare", "E-UNKNOWN-ID"),
    *_page("/devices"),
    _form("/devices/{member}/approve", "E-UNKNOWN-ID", "E-REVOKED"),
    _form("/devices/{member}/revoke", "E-UNKNOWN-ID"),
    *_page("/enrol", operators=True),
    _form("/enrol"),
    _form("/enrol/{token}/revoke", "E-UNKNOWN-ID"),
    *_page("/models"),
    _form("/models/promote", *_REPLAYED, *STORE),
    _form("/models/rollback", "E-CONFLICT", *_REPLAYED, *STORE),
    *_page("/privacy"),
    *_page("/audit"),
)


def is_page(path: str) -> bool:
    """Tell whether a refusal at this path is shown to a person as a page."""
    return (path == HOME or path.startswith(f"{HOME}/")) and not path.endswith(".json")
