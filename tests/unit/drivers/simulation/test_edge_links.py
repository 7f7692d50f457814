"""Two links counted apart: frames as they pass, and blobs once for each holder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgewise.core import frame
from edgewise.core.errors import StoreError
from edgewise.core.frame import Invite, LocalRule
from edgewise.core.vector import digest
from edgewise.drivers.simulation.edge_links import HUB, NODE, EdgeLinks, link_totals

MODEL, DELTA = b"m" * 1000, b"d" * 100


class Silent:
    """A cohort of which nobody answers."""

    def now_s(self) -> float:
        return 0.0

    def publish(self, blobs: Sequence[Any]) -> Sequence[str]:
        return [digest(blob) for blob in blobs]

    def send(self, to: str, frame: bytes) -> None: ...

    def resume(self, sent: object, at_s: float) -> None: ...

    def receive(self, timeout_s: float) -> None: ...

    def close_round(self, keep: object = ()) -> None: ...

    def carry(self, at_work: object) -> None: ...


def invitation(round: int) -> bytes:
    deltas: dict[str, Any] = {"base": digest(MODEL), "deltas": (digest(DELTA),)} if round else {}
    return frame.dump(
        Invite(
            run="r", round=round, spec="s", model=digest(MODEL), public=bytes(32), accepted=None, deadline_s=1.0,
            rule=LocalRule(steps=1, lr=0.1), **deltas,
        )
    )  # fmt: skip


def play(path: Path, rounds: Sequence[int], of_sites: bool = False) -> int:
    """Invite three nodes of two sites in each round. Returns the bytes of their invitations."""
    links, sent = EdgeLinks(Silent(), None if of_sites else lambda d: d[0], path), 0
    for number in rounds:
        links.publish([MODEL, DELTA])
        for device in ("a-0", "a-1", "b-0"):
            links.send(device, invitation(number))
            sent += len(invitation(number))
        links.close_round()
    return sent


def test_a_site_fetches_a_blob_once_and_its_nodes_fetch_it_from_there(tmp_path: Path) -> None:
    sent = play(tmp_path / "links.json", [0, 1])
    found = link_totals(tmp_path / "links.json")
    assert found[NODE] == {"up": 0, "down": sent + 3 * len(DELTA), "first_model": 3 * len(MODEL), "frames": 6}
    assert found[HUB] == {"up": 0, "down": sent + 2 * len(DELTA), "first_model": 2 * len(MODEL), "frames": 6}


def test_a_run_that_goes_on_has_the_counts_of_one_without_a_stop(tmp_path: Path) -> None:
    play(tmp_path / "whole.json", [0, 1])
    play(tmp_path / "links.json", [0])
    play(tmp_path / "links.json", [1])
    assert link_totals(tmp_path / "links.json") == link_totals(tmp_path / "whole.json")


def test_edge_servers_as_devices_have_one_link(tmp_path: Path) -> None:
    play(tmp_path / "links.json", [0], of_sites=True)
    assert not any(link_totals(tmp_path / "links.json")[NODE].values())


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "links.json").write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match="E-CHECKPOINT"):
        link_totals(tmp_path / "links.json")
