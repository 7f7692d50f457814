"""A device with its own part of a split model trains as the simulator does, bit for bit, and holds nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from edgewise.core.errors import EdgewiseError
from edgewise.core.frame import LocalRule
from edgewise.core.training import FitRequest
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine import split_states as states
from edgewise.engine.split import step_device, step_server
from edgewise.engine.split_rest import WantedSession
from edgewise.learn.frozen_rest import FrozenRest
from edgewise.learn.models.shards import part_files, write_shards
from edgewise.learn.models.untrained import load_untrained
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.recipe import Recipe, from_plain

pytestmark = pytest.mark.slow
DEVICE = "phone"


class Here:
    """The rest of a device, in this process."""

    def __init__(self, rest: FrozenRest, key: bytes) -> None:
        self._rest, self._key = rest, key

    def play(self, wanted: WantedSession, perform: Callable[[Any], Any]) -> None:
        assert (wanted.device_part, wanted.rest) == (self._rest.parts.shared.digest(), self._rest.parts.own.digest())
        server, name = self._rest.part(self._key), bytes(32)
        sides: list[Any] = [
            states.DeviceSide(name, name, wanted.u_shape, wanted.steps, wanted.window),
            states.ServerSide(name, name, wanted.u_shape, frozen=True),
        ]
        waiting: list[tuple[int, Any]] = [(0, states.Connected())]
        while waiting:
            side, event = waiting.pop(0)
            sides[side], effects = (step_device, step_server)[side](sides[side], event)
            for effect in effects:
                if isinstance(effect, states.SendToPeer):
                    waiting.append((1 - side, effect.message))
                elif (after := (perform, server.perform)[side](effect)) is not None:
                    waiting.insert(0, (side, after))


def recipe(**more: Any) -> Recipe:
    plain: dict[str, Any] = {
        "seed": 3,
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "notes", "sequence_len": 16},
        "training": {"batch": 2, "accumulate": 2, "local_steps": 3, "clip_grad": 0.05},
        "split": {"cut": 1, "server_parts": "frozen"},
    }
    return from_plain({key: {**plain.get(key, {}), **more.get(key, {})} if isinstance(plain.get(key, {}), dict)
                       else plain[key] for key in {**plain, **more}})  # fmt: skip


LORA = {"kind": "lora", "rank": 3, "alpha": 6.0, "rule": "fedit"}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"split": {"shape": "head"}}),
        ("llama", {"trainable": LORA}),
        ("llama", {"trainable": {**LORA, "rule": "ffa"}, "split": {"shape": "head"}}),
        ("gpt2", {"training": {"optimizer": "sgd"}}),
    ],
)
def test_an_update_is_that_of_the_simulator_bit_for_bit(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    tiny_models.save(kind, tmp_path / "model")
    (tmp_path / "notes" / DEVICE).mkdir(parents=True)
    (tmp_path / "notes" / DEVICE / "1.txt").write_text("".join(f"the fox {i} jumps over it\n" for i in range(60)))
    wanted = recipe(**more)
    begun = load_untrained(wanted, tmp_path)
    assert begun.rest is not None
    simulated = make_trainer(wanted, tmp_path, tmp_path / "run", BUILT_IN)
    place = tmp_path / "device"
    (place / "model").mkdir(parents=True)
    for path in (tmp_path / "model").glob("*.json"):
        (place / "model" / path.name).write_bytes(path.read_bytes())
    write_shards(tmp_path / "model", place / "model")
    files = part_files(place / "model", wanted.split.cut, wanted.split.shape)
    for path in (place / "model").glob("*.safetensors"):
        if path.name not in (files or ()):
            path.unlink()
    own = wanted.model_copy(
        update={"data": wanted.data.model_copy(update={"path": str(tmp_path / "notes" / DEVICE), "partition": "whole"})}
    )
    request = FitRequest(
        DEVICE, 0, begun.initial + np.float32(0.01), LocalRule(steps=3, lr=0.01), bytes([1]) * 32, bytes([2]) * 32
    )
    rest = FrozenRest(wanted, tmp_path, tmp_path / "cache", begun.rest)
    alone = make_trainer(own, place, place / "run", BUILT_IN, DEVICE, remote=Here(rest, request.key))
    expected, found = simulated.fit(request), alone.fit(request)
    assert alone.trainer.spec == begun.spec
    assert np.any(found.x)
    assert found.x.tobytes() == expected.x.tobytes()
    assert (found.head, found.count) == (expected.head, expected.count)
    model = alone.trainer._text.model  # type: ignore[attr-defined]
    held = {name for name, p in model.named_parameters() if not p.is_meta}
    assert not any(".1." in name for name in held if "lora" not in name)
    with pytest.raises(EdgewiseError, match="cannot measure"):
        alone.evaluate(DEVICE, found.x)
