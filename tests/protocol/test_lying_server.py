"""A server that lies at random to devices that are killed, and lose their files, at any moment."""

from __future__ import annotations

import pytest
from cornered import NAMES, Local, Lying, Masks, Move, TwoServers
from hypothesis import given, settings
from hypothesis import strategies as st
from long import examples


def tried(machine: type[Lying], few: int, longest: int) -> None:
    """Play a number of servers, each of up to a number of moves."""
    name = st.sampled_from(NAMES)
    move = st.builds(
        Move,
        kind=st.sampled_from(machine.moves),
        session=st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([0, 0, 0, 1])),
        who=st.lists(name, min_size=1, max_size=5, unique=True),
        named=st.lists(name, min_size=3, max_size=5, unique=True),
        which=st.integers(0, 3),
        dies=st.none() | st.integers(0, 3),
        gone=st.sampled_from([*NAMES, ""]),
        steps=st.sampled_from([5, 4, 3, 5]),
        split=st.booleans(),
        weak=name,
    )

    @settings(max_examples=examples(few), derandomize=True, deadline=None)
    @given(st.booleans(), st.lists(move, min_size=3, max_size=longest))
    def play(budget: bool, moves: list[Move]) -> None:
        machine(budget).play(moves)

    Lying.told.clear()
    play()


@pytest.mark.quick(sample=1)
@pytest.mark.long
@pytest.mark.parametrize("machine", [Local, TwoServers])
def test_an_update_leaves_once_and_at_a_charge_whatever_a_server_and_a_disk_do(machine: type[Lying]) -> None:
    tried(machine, 15, 12)
    assert Lying.told[machine.__name__, "updates"] > 20


@pytest.mark.slow
@pytest.mark.long
def test_no_lies_and_no_restarts_open_a_masked_update() -> None:
    """A device never sends two updates of a round, never signs two survivor lists, and never reveals both secrets."""
    tried(Masks, 40, 8)
    assert Lying.told["Masks", "updates"] > 30
    assert Lying.told["Masks", "revealed"] > 10
