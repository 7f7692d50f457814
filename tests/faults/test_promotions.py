"""A server that is killed inside of a promotion or a rollback has the old model or the new one, whole.

``make test`` walks a sample of the durable operations of either, ``make test-long`` all of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kit
import pytest
from configurations import SMALL
from kit import KILLS, Fault, Image, Stage, fresh, image
from long import LONG
from promotions import FIRST, SECOND, change, opened, prepared
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.fleet import mailboxes, promotions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(bool(kit.available()), reason=kit.available()),
]
SAMPLE = 12
LATER_S = 3600.0  # the lease of the killed server is over


@pytest.fixture(scope="module")
def images(folder: Path) -> Mapping[str, Image]:
    """The server's folder before a promotion and before a rollback."""
    run = folder / "run"
    simulation.run(make_recipe(SMALL), out=run, recipe_dir=Path("/"), extensions=["toy"], report=False)
    out = fresh(folder)
    prepared(out, run)
    found = {"promote": image(out.parent)}
    change(out, "promote")
    return {**found, "rollback": image(out.parent)}


def trouble(out: Path, verb: str) -> str:
    """Faults of the server after its next start. Empty where there are none."""
    done = {"promote": [FIRST, SECOND], "rollback": [FIRST, SECOND, FIRST]}[verb]
    with opened(out, lambda: time.time() + LATER_S) as service:
        with service.database.read() as c:
            history, published = promotions.promotion_history(c), mailboxes.published(c)
        played = [row.played for row in history]
        if played not in (done, done[:-1]):
            return f"the history is {played}"
        standing = promotions.standing_promotions(history)
        if published != {digest for one in standing for digest in one.blobs}:
            return "other blobs are published than those of the models that stand"
        service.sweep_blobs()
        try:
            for digest in published:
                service.blobs.get(digest)
        except EdgewiseError as e:
            return f"model {played}: {e}"
    if played != done:
        change(out, verb)  # the operator asks again; the first clock's lease was given back
        with opened(out) as service, service.database.read() as c:
            if [row.played for row in promotions.promotion_history(c)] != done:
                return "a second attempt did not succeed"
    return ""


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_a_kill_leaves_the_old_model_or_the_new_one(
    stage: Stage, folder: Path, images: Mapping[str, Image], record_property: Callable[[str, object], None], verb: str
) -> None:
    def play(fault: Fault) -> Any:
        out = fresh(folder)
        images[verb].restore(out.parent)
        return stage.play(out, {"server": verb}, fault)

    undisturbed, out = play(Fault()), folder / "runs" / "run"
    assert undisturbed.status == 0, undisturbed
    assert trouble(out, verb) == ""
    step = 1 if LONG else max(1, undisturbed.operations // SAMPLE)
    faults = [Fault(KILLS[at // step % 3], at) for at in range(1, undisturbed.operations + 1, step)]
    if LONG:
        faults = [Fault(kind, at) for at in range(1, undisturbed.operations + 1) for kind in KILLS]
    began, failures = time.monotonic(), []
    for fault in faults:
        hit = play(fault)
        said = trouble(out, verb) if hit.status == -signal.SIGKILL else f"was not killed: {hit}"
        failures += [f"{fault}: {said}"] * bool(said)
    record_property("walk", [verb, len(faults), len(failures), time.monotonic() - began])
    assert not failures, "\n".join(failures)
    assert len(faults) >= SAMPLE
