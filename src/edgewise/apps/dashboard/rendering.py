"""Pages from Jinja templates. Everything is escaped, because devices and recipes name themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import segno
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from edgewise.apps.dashboard import charts
from edgewise.apps.report import numbers
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.http import browser
from edgewise.drivers.http.page_rules import HOME, LOGIN

TYPES = {"svg": "image/svg+xml", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


def _moment(at_s: float | None) -> str:
    """Write a point in time for a page, in UTC."""
    return numbers.NOTHING if not at_s else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))


def _ago(seconds: float | None) -> str:
    """Write for a page how long ago something was."""
    if seconds is None:
        return "not since the server started"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _plain(value: object) -> str:
    """Write a recipe's value for a page."""
    return numbers.NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)


def _qr(text: str) -> Markup:
    """Draw a QR code as SVG without inline styles."""
    drawn = segno.make(text, micro=False, error="m").svg_inline(
        scale=4, border=4, dark="#000", light="#fff", omitsize=True, svgclass="qr", lineclass=None
    )
    return Markup(drawn)


@cache
def _environment() -> Environment:
    """Make the environment of all templates. An unknown name in a template is an error."""
    made = Environment(
        loader=PackageLoader("edgewise.apps.dashboard"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "moment": _moment, "ago": _ago, "size": numbers.size, "figures": numbers.figures, "count": numbers.count,
        "duration": numbers.duration, "perplexity": numbers.perplexity, "plain": _plain,
    }  # fmt: skip
    made.globals |= {
        "chart": charts.dashboard_lines,
        "bar": charts.dashboard_bar,
        "qr": _qr,
        "home": HOME,
        "field": browser.FIELD,
    }
    return made


def _html(template: str, data: Mapping[str, Any]) -> str:
    """Render the template of a page."""
    return _environment().get_template(template).render(**data)


def dashboard_page(template: str, data: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """Render a template as an answer, with the headers of all pages."""
    return HTMLResponse(_html(template, data), status, dict(browser.HEADERS))


def dashboard_refusal(path: str, error: EdgewiseError, answer: Response) -> Response:
    """Make a page of a refusal. Whoever is not logged in goes to the login page."""
    headers = {k: v for k, v in answer.headers.items() if k == "retry-after"}
    if error.code == "E-SESSION" and path != LOGIN:
        return Response(status_code=303, headers={**browser.HEADERS, "location": LOGIN, "hx-redirect": LOGIN})
    fix = error.fix or f"`edgewise explain {error.code}` says what to do."
    shown = dashboard_page(
        "refused.html", {"title": "Refused", "code": error.code, "what": error.what, "fix": fix}, answer.status_code
    )
    shown.headers.update(headers)
    return shown


def dashboard_file(name: str) -> Response:
    """Answer with a style sheet or a script. Browsers ask again whether it has changed."""
    raw = resources.files("edgewise.apps.dashboard").joinpath("static", name).read_bytes()
    headers = {**browser.HEADERS, "cache-control": "private, max-age=300"}
    return Response(raw, media_type=TYPES[name.rpartition(".")[2]], headers=headers)
