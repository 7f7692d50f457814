"""Orders to an agent, and what it says: through files in its home folder."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from edgewise.apps.device import control
from edgewise.apps.device.control import Agent, Order
from edgewise.core.errors import EdgewiseError


def test_an_order_holds_until_it_is_over_or_taken_back(tmp_path: Path) -> None:
    assert control.read_owner_order(tmp_path, 0.0) == Order()
    control.give_owner_order(tmp_path, Order("pause"))
    assert control.read_owner_order(tmp_path, 1e12).pause
    control.give_owner_order(tmp_path, Order("pause", 100.0))
    assert [control.read_owner_order(tmp_path, s).pause for s in (99.0, 100.0)] == [True, False]
    control.give_owner_order(tmp_path, Order("leave"))
    assert control.read_owner_order(tmp_path, 0.0).leave
    control.give_owner_order(tmp_path, Order())
    assert control.read_owner_order(tmp_path, 0.0) == Order()


@pytest.mark.parametrize("raw", [b"", b"{", b'{"word": "go"}', b'{"word": "pause", "more": 1}', b"\xff"])
def test_an_order_that_cannot_be_read_is_a_pause(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / control.ORDER).write_bytes(raw)
    assert control.read_owner_order(tmp_path, 0.0).pause


def test_one_agent_works_in_a_home_and_says_what_it_does(tmp_path: Path) -> None:
    assert control.running_agent(tmp_path) is None
    with Agent(tmp_path, lambda: 7.0) as agent:
        assert control.running_agent(tmp_path).state == "starting"  # type: ignore[union-attr]
        agent.say("waiting", "quiet hours until 06:30")
        agent.say("waiting", "quiet hours until 06:30")
        said = control.running_agent(tmp_path)
        assert said is not None
        assert (said.state, said.why, said.since_s) == ("waiting", "quiet hours until 06:30", 7.0)
        with pytest.raises(EdgewiseError) as caught:
            Agent(tmp_path)
        assert caught.value.code == "E-RUN-EXISTS"
        assert not control.wait_for_agent_end(tmp_path, 1.0, sleep=lambda _: None)
    assert control.running_agent(tmp_path) is None
    assert control.wait_for_agent_end(tmp_path, 0.0)
    Agent(tmp_path, time.time).close()


def test_no_signal_ends_a_process_that_does_more_than_be_an_agent(tmp_path: Path) -> None:
    """A script has its agent in a thread: who leaves must not end the owner's notebook."""
    pids = []

    def agent() -> None:
        with Agent(tmp_path) as made:
            made.say("waiting")
            pids.append(control.running_agent(tmp_path).pid)  # type: ignore[union-attr]

    thread = threading.Thread(target=agent)
    thread.start()
    thread.join()
    agent()
    assert pids == [0, os.getpid()]
