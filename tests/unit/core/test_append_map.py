"""Mapping that grows by one entry at a time: every version keeps its entries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.core.append_map import AppendMap


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=40))
def test_every_version_stays_as_it_was_whichever_is_added_to(additions):
    versions = [(AppendMap(), {})]
    for where, key in additions:
        version, plain = versions[where % len(versions)]
        if key in plain:
            with pytest.raises(ValueError, match="has the key already"):
                version.plus(key, where)
        else:
            versions.append((version.plus(key, where), {**plain, key: where}))
        for one, two in versions:
            assert list(one.items()) == list(two.items())
            assert len(one) == len(two)
            assert one == two
            assert [k in one for k in range(11)] == [k in two for k in range(11)]
            assert [one.get(k) for k in range(11)] == [two.get(k) for k in range(11)]


def test_a_version_can_be_gone_through_while_the_next_is_made():
    old = AppendMap([("a", 1), ("b", 2)])
    seen = []
    new = old
    for key in old:
        seen.append(key)
        new = new.plus(key * 2, 0)
    assert seen == ["a", "b"]
    assert list(new) == ["a", "b", "aa", "bb"]


def test_refuses_a_key_twice_and_prints_no_contents():
    with pytest.raises(ValueError, match="twice"):
        AppendMap([("a", 1), ("a", 2)])
    with pytest.raises(KeyError):
        AppendMap()["a"]
    assert repr(AppendMap([("device", b"secret")])) == "AppendMap(<1 entries>)"
