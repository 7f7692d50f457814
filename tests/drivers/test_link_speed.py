"""Links that measure themselves, so that devices choose their codec by what they can send in time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from enrolled_toys import Toy, played, working
from proxy import Way, proxied
from served import joined, running

from edgewise.core import events
from edgewise.drivers.http import home as homes
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.link_speed import LEAST_BYTES, SAMPLE_BYTES, SLOWER_UP, Samples, Speed

RATE = 2.0**16  # bytes a second of the slow link: half a megabit
ADAPTIVE = {
    "codec": "adaptive", "adaptive.patience": 0.0, "adaptive.deadline_s": 2.0, "stage": [{"kind": "weigh"}],
    "strategy": {"kind": "fedavg"}, "round.rounds": 2, "round.deadline_s": 60.0,
}  # fmt: skip


def noted(transfers: Sequence[tuple[int, float]]) -> list[float]:
    samples = Samples()
    for size, seconds in transfers:
        samples.note(size, seconds)
    return list(samples)


def test_small_transfers_hint_at_a_link_until_a_large_one_measures_it() -> None:
    assert noted([(LEAST_BYTES - 1, 1.0), (SAMPLE_BYTES, 0.0)]) == []
    assert noted([(LEAST_BYTES, 1.0), (2 * LEAST_BYTES, 1.0)]) == pytest.approx([0.016384, 0.032768])
    assert noted([(LEAST_BYTES, 1.0), (SAMPLE_BYTES, 1.0), (LEAST_BYTES, 1.0)]) == pytest.approx([0.524288])


def test_a_link_that_has_sent_nothing_is_taken_for_a_tenth_of_its_downlink() -> None:
    speed = Speed()
    assert speed.up_mbit == 0.0, "nothing is dared"
    speed.down.note(2**20, 1.0)
    assert speed.up_mbit == pytest.approx(speed.down.mbit / SLOWER_UP)
    speed.up.note(2**20, 4.0)
    assert speed.up_mbit == speed.up.mbit
    assert speed.up.mbit < speed.down.mbit


@pytest.mark.slow
def test_devices_choose_their_codec_by_the_link_that_they_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTPS, two devices behind proxies, one of which lets through half a megabit a second."""
    monkeypatch.setenv("TOY_DIM", "50000")  # 200 kB in float32: three seconds of the slow link
    told: list[events.AnyEvent] = []
    with running(tmp_path) as server, ExitStack() as stack:
        links = []
        for name, way in (("fast", Way()), ("slow", Way(rate=RATE))):
            joined(server, tmp_path / name).close()
            proxy = stack.enter_context(proxied(server.port, lambda _, way=way: way))
            homes.save(tmp_path / name, msgspec.structs.replace(homes.load(tmp_path / name), url=proxy.url))
            links.append(stack.enter_context(Link(tmp_path / name, 20.0)))
        toy = Toy.of([link.name for link in links], ADAPTIVE)
        with working(links, toy, tmp_path):
            played(server, toy, tmp_path / "out", told.append)
        fast, slow = (
            [e.bytes_up for e in told if isinstance(e, events.Accepted) and e.device == link.name] for link in links
        )
        assert len(fast) == len(slow) == 2
        assert fast[1] > 200_000, "nothing is left out"
        assert slow[1] < RATE * 2.0, "what its link brings in time"
        assert links[1].speed.up_mbit < 2 * 8e-6 * RATE < links[0].speed.up_mbit
