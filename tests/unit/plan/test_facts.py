"""Facts of a run: its identity, signed data that a device compiles its plan from, and what it refuses of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest

from edgewise.core import frame
from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Spec
from edgewise.crypto import sign as ed25519
from edgewise.plan import facts as plan_facts
from edgewise.plan import noise as private
from edgewise.plan.acceptance import OwnerFloor, accept_facts, check_stated_facts, planned
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import Instance, PlanFacts, StatedNoise, canonical, parse, sign
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.secagg import messages
from edgewise.secagg.params import Floor

SPEC = Spec.of([("w", (40,), "float32")])
DP = {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}
SERVER, STRANGER = ed25519.pair(bytes(range(32))), ed25519.pair(bytes(32))
INSTANCE = Instance(server=SERVER.public.hex(), nonce="ab" * 32, roster="0f" * 32)
EXAMPLE = {"epsilon": 1.0, "unit": "example", "sample_rate": 0.1}
ANY = OwnerFloor()
MASKED = {"privacy": "hidden"}
NOISED = {"privacy": "distributed_dp", "dp": DP}
WORDS: dict[str, dict[str, Any]] = {
    "none": {"privacy": "none"},
    "hidden": MASKED,
    "two servers": {"privacy": "hidden", "merge": {"kind": "shared_sum"}},
    "rungs": {"privacy": "hidden", "codec": "adaptive"},
    "central_dp": {"privacy": "central_dp", "dp": DP},
    "distributed_dp": NOISED,
    "noise given": {"privacy": "distributed_dp", "dp": {"noise_multiplier": 1.1, "delta": 1e-5, "clip_l2": 1.0}},
    "local_dp": {"privacy": "local_dp", "dp": DP},
    "example": {"privacy": "local_dp", "dp": {**DP, **EXAMPLE}, "round": {"rounds": 2}},
}


def plan(plain: dict[str, Any], population: int = 40, spec: Spec = SPEC, instance: Instance | None = INSTANCE) -> Plan:
    return compile(from_plain(plain), spec, population, BUILT_IN, instance=instance)


@pytest.fixture(scope="module")
def served() -> Plan:
    return plan(NOISED)


def device(
    raw: bytes,
    signature: bytes | None = None,
    floor: OwnerFloor = ANY,
) -> Plan:
    """Read facts as a device does, by default facts that its server signed."""
    return accept_facts(
        raw, sign(SERVER.secret, raw) if signature is None else signature, SERVER.public, SPEC, floor, BUILT_IN
    )


def session(side: Plan) -> bytes:
    return side.session(
        frame.Invite(
            run=side.run, round=0, model="m", spec="s", rule=side.rule(0), public=side.public(0), accepted=None,
            deadline_s=9.0, nonce=bytes(32),
        )
    )  # fmt: skip


@pytest.mark.parametrize("word", [MASKED, NOISED], ids=["hidden", "distributed_dp"])
def test_sides_with_other_protocols_have_other_run_ids_and_sessions(word: dict[str, Any], monkeypatch: Any) -> None:
    """40 and 60 devices have other thresholds, rings and noise; so do other layouts and versions other bytes."""
    sides = [plan(word, n) for n in (6, 40, 60)]
    sides += [plan(word, spec=Spec.of([("w", (8, 5), "float32")])), plan(word, spec=Spec.of([("v", (40,), "float32")]))]
    sides += [
        plan(word, instance=None),
        plan(word, instance=Instance(server="00" * 32, nonce="ab" * 32, roster="0f" * 32)),
    ]
    sides += [plan(word, instance=Instance(server=INSTANCE.server, nonce="ac" * 32, roster="0f" * 32))]
    ids = [(side.run, session(side)) for side in sides]
    for module, name in ((frame, "VERSION"), (messages, "PROTOCOL"), (plan_facts, "FORMAT")):
        with monkeypatch.context() as patch:
            value = getattr(module, name)
            patch.setattr(module, name, value + (b"x" if isinstance(value, bytes) else 1))
            if module is plan_facts:
                patch.setattr("edgewise.plan.compile.FORMAT", value + 1)
            side = plan(word)
            ids.append((side.run, session(side)))
    runs, sessions = zip(*ids, strict=True)
    assert len(set(runs)) == len(set(sessions)) == len(ids)
    assert (plan(word).run, session(plan(word))) == ids[1]
    few, many = sides[1].facts, sides[2].facts
    assert (few.n_min, many.n_min) == (20, 30)
    assert (few.noise is None) == (word is MASKED)


@pytest.mark.parametrize("word", [pytest.param(w, marks=[pytest.mark.slow] * (w == "example")) for w in WORDS])
def test_a_device_compiles_the_servers_plan_from_facts_alone(word: str, monkeypatch: Any) -> None:
    made = plan(WORDS[word])
    raw = canonical(made.facts)
    assert hashlib.sha256(raw).hexdigest() == made.run
    assert parse(raw) == made.facts

    def never(*_: object) -> None:
        raise AssertionError("a device does not calibrate")

    monkeypatch.setattr(private.accountant, "calibrate", never)
    again = device(raw)
    assert again.facts == made.facts
    assert (again.run, again.rounds, again.rule(3), again.sessions) == (
        made.run,
        made.rounds,
        made.rule(3),
        made.sessions,
    )
    assert [p.encoded for p in again.rung_pipelines or again.pipelines] == [
        p.encoded for p in made.rung_pipelines or made.pipelines
    ]
    assert (None if again.spend is None else again.spend.budget) == (None if made.spend is None else made.spend.budget)
    assert session(again) == session(made)


def test_facts_of_a_calibration_in_other_last_digits_are_accepted(served: Plan) -> None:
    """Another processor's noise multiplier is no reason to refuse: it is stated, and its epsilon holds."""
    assert served.facts.noise is not None
    other = msgspec.structs.replace(served.facts.noise, multiplier=served.facts.noise.multiplier * (1 + 1e-12))
    again = device(canonical(msgspec.structs.replace(served.facts, noise=other)))
    assert again.run != served.run
    assert again.spend is not None
    assert again.spend.z == other.multiplier


Change = Callable[[PlanFacts], PlanFacts]


def with_(**changes: Any) -> Change:
    return lambda facts: msgspec.structs.replace(facts, **changes)


def recipe_with(section: str, **changes: Any) -> Change:
    def change(facts: PlanFacts) -> PlanFacts:
        tables = facts.settings()
        tables[section] = {**tables[section], **changes}
        return msgspec.structs.replace(facts, recipe=json.dumps(tables))

    return change


def noise(multiplier: float = 1.0, epsilon: float = 1.0) -> Change:
    def change(facts: PlanFacts) -> PlanFacts:
        assert facts.noise is not None
        scaled = StatedNoise(multiplier=facts.noise.multiplier * multiplier, epsilon=facts.noise.epsilon * epsilon)
        return msgspec.structs.replace(facts, noise=scaled)

    return change


REJECTED: dict[str, tuple[Change, str]] = {
    "weaker noise than the stated epsilon": (noise(multiplier=0.9), "their noise takes epsilon"),
    "a larger epsilon than the recipe's": (noise(epsilon=2.0), "state the epsilon"),
    "no noise at all": (with_(noise=None), "state noise"),
    "noise that is no number": (noise(multiplier=0.0), "finite numbers above 0"),
    "fewer survivors than the recipe": (with_(n_min=19), "state n_min = 19, and what follows from them is 20"),
    "more survivors than the recipe": (with_(n_min=21), "state n_min"),
    "fewer corrupt devices": (with_(corrupt=0), "state corrupt"),
    "another ring": (with_(ring_bits=(30,)), "state ring_bits"),
    "another population": (with_(population=60), "state n_min = 20"),
    "no population": (with_(population=0), "0 devices"),
    "another layout": (with_(spec="0" * 64), "another model"),
    "an unknown format": (with_(format=2), "format 2"),
    "an unknown protocol": (with_(secagg="secagg/99"), "of secure aggregation"),
    "unknown frames": (with_(wire=99), "version 99"),
    "no instance": (with_(instance=None), "instance"),
    "another server's instance": (
        with_(instance=Instance(server=STRANGER.public.hex(), nonce="ab" * 32, roster="0f" * 32)),
        "instance",
    ),
    "a short nonce": (with_(instance=Instance(server=SERVER.public.hex(), nonce="ab", roster="0f" * 32)), "instance"),
    "a smaller minimum": (recipe_with("round", minimum=0.45), "state n_min = 20"),
    "fewer corrupt devices in the recipe": (recipe_with("trust", malicious_fraction=0.0), "state corrupt"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_facts_that_a_server_signed_and_that_do_not_hold_are_refused(name: str, served: Plan) -> None:
    change, said = REJECTED[name]
    with pytest.raises(EdgewiseError, match=said) as caught:
        device(canonical(change(served.facts)))
    assert caught.value.code == "E-FACTS"


def test_facts_of_rounds_that_the_noise_does_not_cover_are_refused(served: Plan) -> None:
    with pytest.raises(EdgewiseError, match="takes epsilon") as caught:
        device(canonical(recipe_with("round", rounds=200)(served.facts)))
    assert caught.value.code == "E-FACTS"


def test_facts_that_nobody_known_signed_are_refused(served: Plan) -> None:
    raw = canonical(served.facts)
    good = sign(SERVER.secret, raw)
    device(raw, good)
    changed = canonical(msgspec.structs.replace(served.facts, population=41))
    for facts, signature in (
        (changed, good),
        (raw, sign(STRANGER.secret, raw)),
        (raw, ed25519.sign(SERVER.secret, raw)),  # without the context: a signature for something else
        (raw, good[:-1]),
        (raw, b""),
        (raw, bytes([good[0] ^ 1]) + good[1:]),
    ):
        with pytest.raises(EdgewiseError, match="not signed") as caught:
            device(facts, signature)
        assert caught.value.code == "E-FACTS"


@pytest.mark.parametrize(
    "broken",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b" ",
        lambda raw: raw.replace(b'"population":40', b'"population": 40'),
        lambda raw: raw.replace(b'"population":40', b'"population":40.0'),
        lambda raw: raw.replace(b'"population":40', b'"population":"40"'),
        lambda raw: raw.replace(b'"population":40', b'"population":40,"population":40'),
        lambda raw: raw.replace(b'"wire":', b'"wired":'),
        lambda raw: raw.replace(b'"wire":', b'"more":1,"wire":'),
        lambda raw: raw.replace(b'"population":40', b'"population":' + b"9" * 400),
        lambda raw: b"[]",
        lambda raw: b"null",
        lambda raw: b"\xff",
        lambda raw: b"[" * 5000,
        lambda raw: b'{"format":1}',
        lambda raw: b'{"format":1,"recipe":NaN}',
        lambda raw: raw + b" " * plan_facts.LIMIT_BYTES,
    ],
)
def test_bytes_that_are_no_facts_are_refused_and_nothing_else_happens(
    broken: Callable[[bytes], bytes], served: Plan
) -> None:
    with pytest.raises(EdgewiseError) as caught:
        parse(broken(canonical(served.facts)))
    assert caught.value.code == "E-FACTS"


@pytest.mark.parametrize(
    ("floor", "said"),
    [
        (OwnerFloor(epsilon=7.0), "epsilon against the server is 7"),
        (OwnerFloor(epsilon=1e3, delta=1e-9), "an epsilon holds at delta = 1e-09 or less"),
        (OwnerFloor(local_steps=5), "5 local steps at most; here it has 10"),
        (OwnerFloor(upload_bytes=10.0), "an upload has 10 bytes"),
        (OwnerFloor(secagg=Floor(n_min=21)), "over 21 devices or more"),
        (OwnerFloor(secagg=Floor(corrupt=0.3)), "a share of 0.3"),
    ],
)
def test_a_run_below_its_owners_floor_is_refused(floor: OwnerFloor, said: str, served: Plan) -> None:
    with pytest.raises(EdgewiseError, match=said) as caught:
        device(canonical(served.facts), floor=floor)
    assert caught.value.code == "E-FLOOR"


@pytest.mark.parametrize(("split", "refused"), [(None, False), ({"cut": 0}, False), ({"cut": 1}, True)])
def test_an_owner_can_refuse_models_that_are_split(split: dict[str, int] | None, refused: bool, served: Plan) -> None:
    tables = {**json.loads(served.facts.recipe), "split": split}
    stated = msgspec.structs.replace(served.facts, recipe=json.dumps(tables))
    check_stated_facts(OwnerFloor(), stated)
    with pytest.raises(EdgewiseError, match="no activations of its text leave") if refused else nullcontext():
        check_stated_facts(OwnerFloor(split=False), stated)


@pytest.mark.slow
def test_an_owner_can_ask_for_hidden_updates_and_for_an_epsilon_of_the_device(served: Plan) -> None:
    strict = OwnerFloor(8.0, True, True, 10, 1e6, Floor(20, 0.1, "malicious"), 1e-2)
    assert device(canonical(served.facts), floor=strict).run == served.run
    for word, floor, said in (
        ("none", OwnerFloor(hidden=True), "hidden from the server"),
        ("local_dp", OwnerFloor(hidden=True), "hidden from the server"),
        ("example", OwnerFloor(device_unit=True), "here it is about example"),
        ("hidden", OwnerFloor(device_unit=True), "here it is about nothing"),
        ("hidden", OwnerFloor(epsilon=1e6), "here it is inf"),
        ("central_dp", OwnerFloor(epsilon=1e6), "here it is inf"),
    ):
        with pytest.raises(EdgewiseError, match=said):
            device(canonical(plan(WORDS[word]).facts), floor=floor)


def test_what_only_measures_or_simulates_is_no_part_of_the_facts() -> None:
    same = {"simulation": {"dropout": 0.2}, "compare": {"local_only": False}, "eval": {"every": 2}}
    assert plan(MASKED).run == plan({**MASKED, **same}).run
    best = {"privacy": "none", "round": {"keep": "best"}}
    assert plan(best).run != plan({**best, "eval": {"every": 2}}).run, "evaluations decide which model counts"
    assert planned(plan(best).facts, SPEC, BUILT_IN).run == plan(best).run
