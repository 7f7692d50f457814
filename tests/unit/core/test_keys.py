"""Derived keys: golden values that must never change, and domain separation."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.core.keys import KEY_BYTES, Turn, derive, generator, root, word

LABEL = st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=4), st.binary(max_size=4))


def test_golden_values() -> None:
    """Runs are reproducible across versions of edgewise only as long as these values stay."""
    assert root(0) == hashlib.blake2b(b"edgewise/seed/0", digest_size=32).digest()
    mac = hashlib.blake2b(b"\x07\0\0\0\0\0\0\0scohort\x02\0\0\0\0\0\0\0i3", key=root(0), digest_size=32)
    assert derive(root(0), "cohort", 3) == mac.digest()
    assert word(bytes([0xFF] * 8 + [0] * 24)) == 2**63 - 1
    assert generator(root(0)).integers(0, 1000, 4).tolist() == generator(root(0)).integers(0, 1000, 4).tolist()


def test_a_generator_is_philox_under_the_first_half_of_the_key() -> None:
    key = derive(root(4), "x")
    ours = generator(key)
    theirs = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
    assert ours.random(9).tolist() == theirs.random(9).tolist()
    assert ours.permutation(50).tolist() == theirs.permutation(50).tolist()
    assert ours.normal(size=300).tolist() == theirs.normal(size=300).tolist()


def test_types_and_boundaries_separate() -> None:
    k = root(1)
    different = [(1,), ("1",), (b"1",), ("ab", "c"), ("a", "bc"), ("abc",), (), ("",), (b"",), ("", ""), (-1,), (0,)]
    assert len({derive(k, *labels) for labels in different}) == len(different)


@given(st.lists(LABEL, max_size=4), st.lists(LABEL, max_size=4))
def test_different_labels_give_different_keys(a: list[str | int | bytes], b: list[str | int | bytes]) -> None:
    same = [(type(x), x) for x in a] == [(type(x), x) for x in b]
    assert (derive(root(1), *a) == derive(root(1), *b)) == same


def test_keys_depend_on_the_parent() -> None:
    assert derive(root(1), "x") != derive(root(2), "x")
    assert len(derive(root(1), "x")) == KEY_BYTES
    with pytest.raises(ValueError):
        root(-1)


def test_streams_are_independent() -> None:
    a = generator(derive(root(1), "a")).standard_normal(20_000)
    b = generator(derive(root(1), "b")).standard_normal(20_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_a_turn_does_not_show_its_private_key() -> None:
    assert "private" not in repr(Turn(0, root(1), root(2)))


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), bytes(64)])
def test_a_key_is_whole(key: bytes) -> None:
    """An empty key would mean hashing without a key, and everybody would get the same numbers."""
    for use in (lambda: derive(key, "noise"), lambda: generator(key), lambda: word(key)):
        with pytest.raises(ValueError, match="32 bytes"):
            use()
