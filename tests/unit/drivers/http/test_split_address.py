"""The signed port of sessions of split learning, and the number of a device's last connection."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import BudgetError, DecodeError, RecipeError, StoreError
from edgewise.drivers.http import identity, split_address
from edgewise.drivers.http.home import Home
from edgewise.drivers.storage.split_attempts import FILE, SplitAttempts
from edgewise.engine.split_rest import WantedSession

RUN = "ab" * 32


def test_a_port_is_that_of_this_server_and_run_alone(tmp_path: Path) -> None:
    server, other = (identity.make(tmp_path / name) for name in ("a.key", "b.key"))
    told = msgspec.to_builtins(split_address.made_split_address(server, RUN, 9443))
    assert split_address.checked_split_address(told, RUN, server.name) == 9443
    for document, run, name in (
        ({**told, "port": 9444}, RUN, server.name),
        (told, "cd" * 32, server.name),
        (told, RUN, other.name),
        (msgspec.to_builtins(split_address.made_split_address(other, RUN, 9443)), RUN, server.name),
        (None, RUN, server.name),
        ({**told, "signature": "zz"}, RUN, server.name),
    ):
        with pytest.raises(DecodeError) as refused:
            split_address.checked_split_address(document, run, name)
        assert refused.value.code == "E-SERVER-KEY"


def test_attempts_count_in_the_newest_round(tmp_path: Path) -> None:
    attempts = SplitAttempts(tmp_path)
    assert (attempts.last(0), attempts.begun(0)) == (0, False)
    attempts.save(3, 2)
    again = SplitAttempts(tmp_path)
    assert [again.last(r) for r in (2, 3, 4)] == [0, 2, 0]
    assert [again.begun(r) for r in (2, 3, 4)] == [True, True, False]
    (tmp_path / FILE).write_bytes(b"{")
    with pytest.raises(StoreError) as damaged:
        again.last(3)
    assert damaged.value.code == "E-CHECKPOINT"


def link(gateway: str | None = None, secure: bool = True) -> Any:
    return SimpleNamespace(home=Home("https://fed.example:8443", "s", "", "d", secure, gateway), name="d")


@pytest.mark.parametrize(("more", "what"), [({"gateway": "f" * 32}, "gateway"), ({"secure": False}, "TLS")])
def test_a_device_that_cannot_reach_the_listener_is_refused(tmp_path: Path, more: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError, match=what) as refused:
        split_address.RemoteSessions(link(**more), RUN, 9443, tmp_path)
    assert refused.value.code == "E-COMBO"


def test_a_noised_session_does_not_begin_a_second_time(tmp_path: Path) -> None:
    """A process that was killed would draw its noise anew, once more than the stated epsilon counts."""
    remote = split_address.RemoteSessions(link(), RUN, 9443, tmp_path)
    SplitAttempts(tmp_path).save(3, 1)
    for round in (2, 3):
        with pytest.raises(BudgetError) as refused:
            remote.play(WantedSession(round, "a", "b", True, 1, 2, once=True), lambda effect: None)
        assert refused.value.code == "E-BUDGET"
