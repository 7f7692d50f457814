"""A whole toy run, and its story without wall-clock times."""

from __future__ import annotations

import msgspec
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.drivers.storage.run_store import RunStore


def play(out, overrides, wrap=None, resume=False):
    told = []
    simulation.run(
        make_recipe(overrides),
        out=out,
        recipe_dir=out,
        extensions=["toy"],
        sinks=[told.append],
        wrap=wrap,
        resume=resume,
        report=False,
    )
    with RunStore(out) as store:
        return store.models(), told, store.measures("federated")


def story(told):
    """The events without wall-clock times; order within a round is virtual, so it is part of the story."""
    zero = {"at_s", "seconds", "train_s", "encode_s", "aggregate_s"}
    return [
        msgspec.structs.replace(e, **dict.fromkeys(zero & set(e.__struct_fields__), 0.0))
        for e in told
        if not isinstance(e, events.Progress)
    ]
