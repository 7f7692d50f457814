"""`edgewise join` hands on what a person gives, and None for what is left out."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from edgewise.drivers.http.link import Link
from support.commands import call


class Joined:
    """A connection whose server lets everybody in as a viewer."""

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def standing(self) -> dict[str, str]:
        return {"id": "me", "role": "viewer", "status": "approved"}


@pytest.mark.parametrize(("options", "expected"), [([], None), (["--gateway", "ab"], "ab")])
def test_a_gateway_that_is_not_named_is_none(
    options: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def join(*arguments: Any) -> Joined:
        given.append(arguments[-1])
        return Joined()

    monkeypatch.setattr(Link, "join", join)
    monkeypatch.setenv("EDGEWISE_TOKEN", "fedtok1_x")
    done = call("join", "https://a", "--home", str(tmp_path), "--json", *options)
    assert done.exit_code == 0, done.output
    assert given == [expected]
