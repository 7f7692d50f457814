"""Recorded sessions of several groups, and refused rungs, from their file alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import rung_vectors
import secagg_vectors

from edgewise.core import frame
from edgewise.core.vector import Spec
from edgewise.engine import round
from edgewise.engine.round_states import Answered, Closed, Deadline, Exchanging, Letter, Masks, RoundPolicy
from edgewise.plan.acceptance import planned
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.facts import parse
from edgewise.secagg import client, messages, server
from edgewise.secagg.params import Params, TrustPolicy

FILE = json.loads((secagg_vectors.HERE / "groups.json").read_text())
SESSIONS, BY_DEVICES = FILE["sessions"], FILE["by devices"]
ROUND = FILE["round"]
LONG_S = 1e6


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


def params_of(session: dict[str, Any], rung: int | None) -> Params:
    p = session["rungs"][rung or 0]
    policy = TrustPolicy(p["corrupt"], p["dropout"], p["server"])
    return Params(policy, p["n_min"], p["bits"], p["dim"], p["heads"], p["rung"])


def read(raw: bytes) -> frame.Step:
    message = frame.from_device(raw, len(raw))
    assert isinstance(message, frame.Step)
    return message


def written(device: str, body: bytes, rung: int | None) -> str:
    return frame.dump(frame.Step(run=FILE["run"], round=ROUND, device=device, body=body, rung=rung)).hex()


@pytest.mark.parametrize("name", SESSIONS)
def test_devices_of_groups_say_what_was_recorded(name: str) -> None:
    """A device names its rung with its keys, and encodes its update by the rung that comes with the roster."""
    session = SESSIONS[name]
    enrolled = {d: hexed(v["public"]) for d, v in session["devices"].items()}.get
    for device, me in session["devices"].items():
        params, state = params_of(session, me["names"]), None
        identity, entropy = hexed(me["identity"]), hexed(me["entropy"])
        held, answer = client.advertise(params, hexed(FILE["sid"]), device, identity, entropy)
        said = written(device, answer, me["names"])
        for line in session["lines"]:
            if line.get("to") == device:
                message = read(hexed(line["hex"]))
                if state is None:
                    assert isinstance(held, client.Advertised)
                    params, update = params_of(session, message.rung), me["updates"][message.rung or 0]
                    head = np.array([int(v) for v in update["head"]], np.uint64)
                    with pytest.raises(ValueError, match="call ready first"):  # It deals no shares of nothing.
                        client.step(params, held, message.body, enrolled)
                    held = client.ready(params, held, np.array(update["body"], np.uint32), head)
                state, answer = client.step(params, held if state is None else state, message.body, enrolled)
                said = written(device, answer, None)
            elif line.get("from") == device:
                assert line["hex"] == said


@pytest.mark.parametrize("name", SESSIONS)
def test_the_server_of_groups_says_what_was_recorded(name: str) -> None:
    session = SESSIONS[name]
    known = {d: hexed(v["public"]) for d, v in session["devices"].items()}
    ladder = session["rungs"][0]["rung"] is not None
    rungs = tuple(params_of(session, p["rung"]) for p in session["rungs"]) if ladder else ()
    begun = server.SecAggSession(params_of(session, None), hexed(FILE["sid"]), known.get)
    protocol = Masks(begun, rungs, tuple(session["sizes"]), 2, 1, LONG_S, hexed(session["dealing"]))
    state, _ = round.start(ROUND, frozenset(known), RoundPolicy(len(known), 2, LONG_S), protocol)
    sent: list[tuple[str, str]] = []
    for line in session["lines"]:
        if "to" in line:
            assert sent.pop(0) == (line["to"], line["hex"])
            continue
        if "groups" in line:
            assert isinstance(state, Exchanging)
            dealt = [(g.rung, sorted(d for d, i in state.member.items() if i == n)) for n, g in enumerate(state.groups)]
            assert dealt == [(group["rung"], group["devices"]) for group in line["groups"]]
            continue
        event: round.Event = Deadline(9 * LONG_S)
        if "from" in line:
            event = Answered(line["from"], ROUND, read(hexed(line["hex"])), 0.0)
        state, effects = round.step(state, event)
        sent += [(e.device, written(e.device, e.body, e.rung)) for e in effects if isinstance(e, Letter)]
    assert not sent
    assert isinstance(state, Closed)
    assert rung_vectors.ending(state) == session["end"]


def test_the_sums_are_those_of_the_groups() -> None:
    """Of each group the sum of its survivors' updates, by its rung, in its ring."""
    for session in SESSIONS.values():
        for end in session["end"]:
            updates = [session["devices"][d]["updates"][end["rung"] or 0] for d in end["survivors"]]
            ring = 1 << params_of(session, end["rung"]).bits
            assert end["body"] == [sum(column) % ring for column in zip(*(u["body"] for u in updates), strict=True)]
            heads = zip(*(map(int, u["head"]) for u in updates), strict=True)
            assert end["head"] == [str(sum(column) % 2**64) for column in heads]


@pytest.fixture(scope="module")
def device() -> Any:
    """A device of the run of the facts, after it has named its rung."""
    plan = planned(parse(BY_DEVICES["facts"].encode()), Spec.of(BY_DEVICES["layout"]), BUILT_IN)
    state, sent, trust = rung_vectors.told(plan, BY_DEVICES["up_mbit"])
    assert sent.rung == BY_DEVICES["names"]
    assert frame.dump(sent).hex() == BY_DEVICES["sends"]
    return plan, state, trust


@pytest.mark.parametrize("case", BY_DEVICES["cases"], ids=lambda case: case["name"])
def test_devices_take_their_rung_and_smaller_ones_only(case: dict[str, Any], device: Any) -> None:
    """A device checks the rung of its group before the roster. Its shares follow from its secrets."""
    plan, state, trust = device
    answer = rung_vectors.answered(plan, state, hexed(case["hex"]), trust)
    assert answer.hex() == case["answer"]
    body = messages.load_secagg_message(frame.load(answer).body)
    assert (body.code if isinstance(body, messages.Abort) else "") == case["code"]


@pytest.mark.parametrize("case", FILE["by servers"], ids=lambda case: f"{case['name']} of {case['rungs']}")
def test_servers_refuse_a_rung_that_the_run_does_not_have(case: dict[str, Any]) -> None:
    assert rung_vectors.reported(rung_vectors.RUNGS[: case["rungs"]], hexed(case["hex"])) == case["code"]
