"""One damaged file in what a killed run left: the run goes on to the right model, or ends with an error by name."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

import pytest
from configurations import CONFIGURATIONS
from kit import Fault, Image, available, fresh, image, left
from long import LONG

from edgewise.drivers.storage.run_store import RunStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(bool(available()), reason=available()),
    pytest.mark.timeout(4 * 3600),
]

NAMED = {"E-CHECKPOINT", "E-RESUME", "E-RUN-EXISTS"}
CHOSEN = ("plain", "downlink", "distributed_dp", "compared") if LONG else ("downlink",)


def kind(path: str) -> str:
    """Name the kind of a file, without the random part of its name."""
    return re.sub(r"[0-9a-f]{16,}|\d{6}-[0-9a-f]{8}", "*", path)


def damages(raw: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Ways in which a file gets lost, wholly or in part; None where it is gone."""
    half = len(raw) // 2
    yield "gone", None
    yield "empty", b""
    if not raw:
        return
    yield "first half", raw[:half]
    yield "a byte less", raw[:-1]
    yield "a byte more", raw + b"\0"
    yield "zeros at the end", raw[:half] + bytes(len(raw) - half)
    yield "a bit at the beginning", bytes([raw[0] ^ 1]) + raw[1:]
    yield "a bit in the middle", raw[:half] + bytes([raw[half] ^ 1]) + raw[half + 1 :]


def damaged(image: Image) -> Iterator[tuple[str, Image]]:
    """Each kind of file, damaged in each way."""
    seen: set[str] = set()
    for i, (path, mode, raw) in enumerate(image.entries):
        if raw is None or kind(path) in seen:
            continue
        seen.add(kind(path))
        for how, after in damages(raw):
            new = () if after is None else ((path, mode, after),)
            yield f"{kind(path)}: {how}", Image((*image.entries[:i], *new, *image.entries[i + 1 :]))


@pytest.mark.parametrize("name", CHOSEN)
def test_a_damaged_file_is_harmless_or_named(stage, folder, record_property, name):
    began, settings, out = time.monotonic(), CONFIGURATIONS[name], fresh(folder)
    undisturbed = stage.play(out, settings)
    expected = left(out)
    writes, wrong, number = sorted(undisturbed.writes), [], 0
    for share in (0.3, 0.55, 0.8) if LONG else (0.6,):
        at = writes[int(share * len(writes))]
        out = fresh(folder)
        assert stage.play(out, settings, Fault("kill_torn", at)).status == -signal.SIGKILL
        for i, (what, broken) in enumerate(damaged(image(out.parent))):
            if not LONG and i % 5 != 2:
                continue
            number += 1
            broken.restore(fresh(folder).parent)
            after = stage.play(out, settings, resume=True)
            if after.status == 0:
                with RunStore(out) as store:
                    models, ledger = store.models(), store.charges()
                if (models, ledger) != (expected["models"], expected["ledger"]):
                    wrong.append(f"{at}, {what}: another model or ledger, and no word")
            elif (after.status, after.code in NAMED) != (1, True):
                wrong.append(f"{at}, {what}: {after.status} {after.code} {after.said[-600:]}")
    record_property("walk", [f"{name}, damaged", number, len(wrong), time.monotonic() - began])
    assert not wrong, "\n".join(wrong)
