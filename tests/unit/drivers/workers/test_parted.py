"""Trainers whose devices keep a part of the model: what travels, what stays, and what no message can name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from invited import invitation
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.core import frame, vector
from edgewise.core.errors import EdgewiseError, ModelError, RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.training import Correction, FitRequest
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.keys import simulated_root, simulated_secrets, simulated_trust
from edgewise.drivers.storage.device_store import FileDevices
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.drivers.workers.parted import parted
from edgewise.drivers.workers.personal import personal_model
from edgewise.engine.device_state import private_part
from edgewise.engine.trainer import Registered, registered
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.own_part import own_part
from edgewise.plan.recipe.recipe import from_plain

PLAIN: dict[str, Any] = {
    "stage": [{"kind": "weigh"}], "strategy": {"kind": "fedavg"}, "compare.local_only": False,
    "compare.centralised": False,
}  # fmt: skip
OWN = {"parts": ["b"], "steps": 3, "lr": 0.2}
DEVICE = "d00002"


def made(method: str, **settings: Any) -> tuple[Registered, Registered]:
    """The toy's trainer of whole models (w: 40, b: 10), and the one whose devices keep b."""
    recipe = make_recipe({**PLAIN, "personal": {"method": method, **OWN, **settings}})
    inner = registered(ToyTrainer(recipe))
    parts = own_part(recipe, inner.trainer.spec)
    assert parts is not None
    return inner, parted(inner, parts, recipe)


def asked(trainer: Registered, **changes: Any) -> FitRequest:
    rule = LocalRule(steps=2, lr=0.3)
    return replace(FitRequest(DEVICE, 0, trainer.initial(), rule, bytes(32), bytes(32)), **changes)


def test_fedper_trains_both_parts_together_and_sends_one() -> None:
    inner, kept = made("fedper")
    whole, update = inner.fit(asked(inner)).x, kept.fit(asked(kept))
    assert kept.trainer.spec.dim == 40
    assert np.array_equal(update.x, whole[:40])
    assert np.array_equal(update.personal["part"], whole[40:])
    own = np.full(10, 5.0, np.float32)
    later = kept.fit(asked(kept, personal={"part": own})).personal["part"]
    start = np.concatenate([np.zeros(40, np.float32), own])
    assert np.allclose(later, start[40:] + inner.fit(asked(inner, params=start)).x[40:])


def test_fedrep_trains_its_own_part_first_and_the_rest_beside_it() -> None:
    inner, kept = made("fedrep")
    update = kept.fit(asked(kept))
    assert np.allclose(update.x, inner.fit(asked(inner, rule=LocalRule(steps=2, lr=0.3, segments=("w",)))).x[:40])
    own, target = update.personal["part"], ToyTrainer(make_recipe())._target(DEVICE)[40:]
    assert np.linalg.norm(own - target) < 0.6 * np.linalg.norm(target), "three steps at .2 leave half of the way"


def test_terms_of_a_strategy_concern_what_is_shared() -> None:
    shift = np.ones(40, np.float32)
    _, kept = made("fedper")
    plain, shifted = kept.fit(asked(kept)), kept.fit(asked(kept, correction=Correction(0.0, shift)))
    assert np.array_equal(plain.personal["part"], shifted.personal["part"])
    assert not np.allclose(plain.x, shifted.x)
    with pytest.raises(EdgewiseError, match="hold their own parts back"):
        kept.fit(asked(kept, correction=Correction(0.1)))
    _, kept = made("fedrep")
    pulled = kept.fit(asked(kept, correction=Correction(0.1)))
    assert np.array_equal(pulled.personal["part"], kept.fit(asked(kept)).personal["part"])


class Played:
    """A round of one device that keeps a part, with the frames that it sent."""

    def __init__(self, folder: Path, method: str = "fedper") -> None:
        folder.mkdir()
        recipe = make_recipe({**PLAIN, "personal": {"method": method, **OWN}})
        _, self.trainer = made(method)
        self.plan = compile(recipe, self.trainer.trainer.spec, 8, with_extensions(["toy"]))
        root = simulated_root(self.plan, "", {})
        self.folder, self.store = folder, FileDevices(folder, self.plan.run)
        self.model = self.trainer.initial()
        self.downloads = Downloads(self.plan.spec.dim, self.plan.downlink)
        self.publish(self.model)
        self.trust, self.secrets = simulated_trust(root), partial(simulated_secrets, self.plan, root)
        self.frames: list[bytes] = []

    def restart(self) -> None:
        """Forget all that is not in a file."""
        self.store.close()
        self.store = FileDevices(self.folder, self.plan.run)

    def publish(self, model: np.ndarray) -> str:
        raw = vector.to_bytes(model)
        self.downloads.put(vector.digest(raw), raw)
        return vector.digest(raw)

    def say(self, message: frame.Message) -> frame.Message:
        self.restart()
        devices = Devices(self.plan, self.trainer, self.store, self.downloads, self.trust, self.secrets)
        raw = devices.answer(DEVICE, frame.dump(message)).frame
        assert raw is not None
        self.frames.append(bytes(raw))
        return frame.load(raw)

    def invite(self, number: int, accepted: int | None, **changes: Any) -> frame.Message:
        self.publish(self.model)
        return self.say(invitation(self.plan, number, self.model, accepted=accepted, **changes))

    @property
    def own(self) -> np.ndarray:
        state = self.store.load(DEVICE)
        assert state is not None
        return private_part(state)["part"]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Played]]:
    made: list[Played] = []

    def start(method: str = "fedper") -> Played:
        made.append(Played(tmp_path / str(len(made)), method))
        return made[-1]

    yield start
    for played in made:
        played.store.close()


def test_no_message_carries_the_own_part_and_none_can_ask_for_it(play: Callable[..., Played]) -> None:
    """The fields of every message of a server are known here. Each is answered without a trace of the own part."""
    played = play()
    assert isinstance(played.invite(0, None), frame.Contribution)
    own, before = played.own, len(played.frames)
    other = play()
    for model in (played.model, np.zeros(50, np.float32)):  # the run's vector, and a whole model of the server's
        answers = []
        for each in (played, other):  # with an own part, and without
            probe = frame.Probe(run=each.plan.run, round=0, model=each.publish(model))
            answers.append(each.say(probe))
        assert answers[0] == answers[1], "a measurement does not depend on the own part"
    for segments in (("b",), ("w", "b"), ("part",)):
        rule = msgspec.structs.replace(played.plan.rule(1), segments=segments)
        assert isinstance(played.invite(1, 0, rule=rule), frame.Refusal), "an invitation that names it is refused"
    whole = vector.digest(vector.to_bytes(np.zeros(50, np.float32)))
    assert isinstance(played.invite(1, 0, spec=ToyTrainer(make_recipe()).spec.digest()), frame.Refusal)
    assert isinstance(played.invite(1, 0, model=whole), frame.Refusal)
    assert np.array_equal(played.own, own)
    assert isinstance(played.invite(1, 0), frame.Contribution)
    assert not np.array_equal(played.own, own)
    assert len(played.frames) == before + 8
    for kept in (own, played.own):
        assert not any(kept[i : i + 2].tobytes() in raw for raw in played.frames for i in range(9))
    fields = {name for kind in server_messages() for name in kind.__struct_fields__}
    assert not {name for name in fields if "priv" in name or "person" in name or "part" in name or "segment" in name}


def server_messages() -> Iterator[type]:
    yield from (frame.Invite, frame.Probe, frame.Step, frame.Call, frame.Commitments)


def test_a_part_goes_on_from_the_last_contribution_that_was_used(play: Callable[..., Played]) -> None:
    played = play()
    played.invite(0, None)
    first = played.own
    played.invite(1, 0)
    second = played.own
    played.invite(3, 0)  # The server has not used round 1, and comes back after a while.
    state = played.store.load(DEVICE)
    assert state is not None
    assert np.array_equal(state.committed.memory.child("private")["part"], first)  # type: ignore[union-attr]
    assert not np.array_equal(played.own, second)


def test_a_device_without_a_part_begins_with_that_of_the_seed_and_takes_the_steps_afterwards(
    play: Callable[..., Played],
) -> None:
    played = play()
    released = np.full(40, 0.5, np.float32)
    make = partial(personal_model, played.plan, played.trainer)
    unseen = make(played.store, DEVICE, released, bytes(32))
    assert np.array_equal(unseen[:40], released), "what is shared stays as it was released"
    target = ToyTrainer(make_recipe())._target(DEVICE)[40:]
    assert np.linalg.norm(unseen[40:] - target) < 0.6 * np.linalg.norm(target)
    played.invite(0, None)
    again = make(played.store, DEVICE, released, bytes(32))
    assert np.linalg.norm(again[40:] - target) < np.linalg.norm(unseen[40:] - target)


LAYERS = Spec.of(
    [
        (name, (2,), "float32")
        for name in ("embed.weight", "layers.0.up", "layers.1.up", "layers.1.down", "norm", "head")
    ]
)


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, ["layers.1.up", "layers.1.down", "norm", "head"]),
        ({"blocks": 0}, ["norm", "head"]),
        ({"parts": ["head", "*.down"]}, ["layers.1.down", "head"]),
    ],
)
def test_the_own_part_is_chosen_by_blocks_or_by_names(settings: dict[str, Any], own: list[str]) -> None:
    parts = own_part(from_plain({"privacy": "none", "personal": {"method": "fedper", **settings}}), LAYERS)
    assert parts is not None
    assert [s.name for s in parts.own.segments] == own
    x = np.arange(12, dtype=np.float32)
    assert np.array_equal(parts.join(*parts.split(x)), x)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"parts": ["nothing.*"]}, "matches no trained"), ({"parts": ["*"]}, "nothing would travel"),
     ({"blocks": 0}, "leaves nothing on the device")],
)  # fmt: skip
def test_an_own_part_that_is_nothing_or_everything_is_refused(settings: dict[str, Any], words: str) -> None:
    spec = Spec(LAYERS.segments[:4])
    with pytest.raises(ModelError, match=words) as e:
        own_part(from_plain({"privacy": "none", "personal": {"method": "fedper", **settings}}), spec)
    assert e.value.code == "E-TARGETS"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"trainable.kind": "lora", "trainable.rule": "rolora"}, "factors of all layers"),
    ({"trainable.kind": "lora", "trainable.rule": "flora"}, "factors of all layers"),
    ({"round.keep": "best"}, "no device uses"),
    ({"engine.batch_devices": 4}, "train one by one"),
    ({"strategy": {"kind": "fedprox"}}, "hold back the part"),
    ({"strategy": {"kind": "zeroth_order"}}, "coefficients of directions"),
    ({"personal.weight": 0.2}, "weight is not read"),
    ({"personal.parts": ["b"], "personal.blocks": 2}, "both say"),
    ({"personal.method": "ditto", "personal.blocks": 2}, "are not read"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_what_does_not_go_with_an_own_part_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_recipe({**PLAIN, "personal.method": "fedper", **settings})


def test_noise_for_single_records_is_refused_beside_a_part_that_has_none() -> None:
    dp = {"unit": "example", "epsilon": 4.0, "delta": 1e-5, "clip_l2": 1.0}
    with pytest.raises(RecipeError, match="which no epsilon counts"):
        from_plain({"privacy": "local_dp", "dp": dp, "personal": {"method": "fedper"}})


def test_a_recipe_of_before_keeps_its_identity() -> None:
    plain = from_plain({"privacy": "none", "personal": {"method": "fine_tune"}}).resolved()
    assert not {"blocks", "parts"} & plain["personal"].keys()
