"""The result of ``Federation.check``: the page of `edgewise check` as a value that displays itself."""

from __future__ import annotations

import io
from collections.abc import Mapping
from html import escape
from typing import Any


class Checked:
    """The forecast of a run: what it would do, cost and reveal. Print it to see the page of `edgewise check`.

    Attributes:
        facts: the content of `edgewise check --json`.
    """

    def __init__(self, facts: Mapping[str, Any], name: str) -> None:
        self.facts, self._name = facts, name

    def __str__(self) -> str:
        return self._check_page(100)

    def __repr__(self) -> str:
        return f"<check of {self._name!r}: {self.facts['population']} devices, {self.facts['rounds']} rounds>"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self._check_page(110))}</pre>"

    def _check_page(self, width: int) -> str:
        """Render the page as text of a width."""
        from rich.console import Console

        from edgewise.apps.simulate import check_screen

        out = io.StringIO()
        check_screen.show_check(
            Console(file=out, width=width, no_color=True, force_jupyter=False), self.facts, self._name
        )
        return out.getvalue()
