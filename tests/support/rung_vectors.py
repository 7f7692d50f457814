"""Sessions of several groups, and frames with a rung that is refused, for ``tests/protocol/vectors/groups.json``.

A session of groups is played by the round's machine, as a server plays it, and by one session's client on each device.
What is refused is played by the whole machine of a device, from facts that travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from invited import SECRETS, invited
from plan_vectors import SPEC, TENSORS
from session import IDENTITIES, ROOT, SID, registry

from edgewise.core import frame
from edgewise.core.keys import derive
from edgewise.core.training import Update
from edgewise.engine import device as machine
from edgewise.engine import device_events, round
from edgewise.engine import device_state as states
from edgewise.engine.ports import Trust
from edgewise.engine.round_states import Answered, Closed, Deadline, Exchanging, Letter, Masks, ReportLoss, RoundPolicy
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import canonical
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.secagg import client, messages, server
from edgewise.secagg.params import Params, TrustPolicy

RUN, ROUND, POLICY, DEADLINE_S = "run", 3, TrustPolicy(), 60.0
RUNGS = tuple(Params(POLICY, 2, bits, dim, 1, rung) for rung, (bits, dim) in enumerate(((20, 6), (16, 4), (12, 3))))
FIXED = Params(POLICY, 2, 20, 6, 1)
SIZES = (15.0, 8.0, 4.5)
CASES: dict[str, tuple[tuple[Params, ...], dict[str, int | None], dict[str, int]]] = {
    # name: rungs; device -> the rung that it names; device -> the message that it does not answer
    "two groups of one rung each": (RUNGS, {"d000": 0, "d001": 2, "d002": 0, "d003": 2, "d004": 0}, {}),
    "a group with the rung of its slowest": (RUNGS, {"d000": 0, "d001": 1, "d002": 2, "d003": 0, "d004": 0}, {}),
    "one group too few for two": (RUNGS, {"d000": 0, "d001": 2, "d002": 0}, {}),
    "one group is lost": (RUNGS, {f"d00{i}": 2 * (i % 2) for i in range(6)}, {"d001": 2, "d003": 2}),
    "two groups of a fixed codec": ((), dict.fromkeys(("d000", "d001", "d002", "d003", "d004")), {}),
}
LADDER: dict[str, Any] = {
    "privacy": "hidden", "codec": "adaptive", "merge": {"kind": "secure_sum"},
    "stage": [{"kind": "weigh"}, {"kind": "clip", "l2": 2.0}], "round": {"deadline_s": 20.0, "minimum": 0.5},
}  # fmt: skip
NAMED = 2


def params_of(rungs: tuple[Params, ...], rung: int | None) -> Params:
    return FIXED if rung is None else rungs[rung]


def residues(rungs: tuple[Params, ...], device: str, rung: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The update of a device as it encodes it by a rung: any residues."""
    p, rng = params_of(rungs, rung), np.random.default_rng([int(device[1:]), 9 if rung is None else rung])
    return rng.integers(0, 1 << p.bits, p.dim, dtype=np.uint32), rng.integers(0, 1 << 63, p.heads, dtype=np.uint64)


def entropy(device: str) -> bytes:
    return derive(ROOT, "entropy", device)


def masks(rungs: tuple[Params, ...], dealing: bytes) -> Masks:
    """The sessions of a round, before any keys arrive."""
    begun = server.SecAggSession(FIXED, SID, registry)
    return Masks(begun, rungs, SIZES if rungs else (), 2, 1, DEADLINE_S, dealing)


def open_round(devices: list[str], rungs: tuple[Params, ...], dealing: bytes) -> round.State:
    """The machine of a round that has invited these devices."""
    policy = RoundPolicy(len(devices), 2, DEADLINE_S)
    return round.start(ROUND, frozenset(devices), policy, masks(rungs, dealing))[0]


def step_frame(device: str, body: bytes, rung: int | None = None) -> bytes:
    return frame.dump(frame.Step(run=RUN, round=ROUND, device=device, body=body, rung=rung))


def _session(name: str) -> dict[str, Any]:
    rungs, named, leaves = CASES[name]
    dealing, lines, number = derive(ROOT, "dealing", name), list[dict[str, Any]](), 0
    state, clients = open_round(list(named), rungs, dealing), dict[str, client.State]()
    at, mail = dict[str, int | None](), list[tuple[str, bytes, int | None]]()
    answers = list[tuple[str, bytes, int | None]]()
    for device, rung in named.items():
        params = params_of(rungs, rung)
        clients[device], raw = client.advertise(params, SID, device, IDENTITIES[device].secret, entropy(device))
        answers.append((device, raw, rung))
    while not isinstance(state, Closed):
        mail = []
        for device, raw, rung in answers:
            lines.append({"from": device, "hex": step_frame(device, raw, rung).hex()})
            state, effects = round.step(state, Answered(device, ROUND, frame.Step(
                run=RUN, round=ROUND, device=device, body=raw, rung=rung), 0.0))  # fmt: skip
            mail += [(e.device, e.body, e.rung) for e in effects if isinstance(e, Letter)]
        if not mail and not isinstance(state, Closed):
            lines.append({"close": number})
            state, effects = round.step(state, Deadline(DEADLINE_S * (number + 1)))
            mail = [(e.device, e.body, e.rung) for e in effects if isinstance(e, Letter)]
        if number == 0 and isinstance(state, Exchanging):
            lines.append({"groups": [
                {"rung": g.rung, "devices": sorted(d for d, at in state.member.items() if at == i)}
                for i, g in enumerate(state.groups)
            ]})  # fmt: skip
        number, answers = number + 1, []
        for device, raw, rung in mail:
            lines.append({"to": device, "hex": step_frame(device, raw, rung).hex()})
            if number >= leaves.get(device, 9):
                continue
            held, params = clients[device], params_of(rungs, rung)
            if device not in at:
                at[device] = rung
                assert isinstance(held, client.Advertised)
                held = client.ready(params, held, *residues(rungs, device, rung))
            clients[device], answer = client.step(params, held, raw, registry)
            answers.append((device, answer, None))
    devices = {
        d: {
            "identity": IDENTITIES[d].secret.hex(),
            "public": IDENTITIES[d].public.hex(),
            "entropy": entropy(d).hex(),
            "names": rung,
            "updates": [_update(*residues(rungs, d, r)) for r in (range(len(rungs)) if rungs else [None])],
        }
        for d, rung in named.items()
    }
    return {"rungs": [_params(p) for p in rungs or (FIXED,)], "sizes": list(SIZES) if rungs else [], "devices": devices,
            "dealing": dealing.hex(), "lines": lines, "end": ending(state)}  # fmt: skip


def _params(p: Params) -> dict[str, Any]:
    return {"n_min": p.n_min, "bits": p.bits, "dim": p.dim, "heads": p.heads, "rung": p.rung,
            "corrupt": p.policy.corrupt, "dropout": p.policy.dropout, "server": p.policy.server}  # fmt: skip


def _update(body: np.ndarray, head: np.ndarray) -> dict[str, Any]:
    return {"body": body.tolist(), "head": [str(v) for v in head]}


def ending(state: round.State) -> list[dict[str, Any]]:
    """The sums of a round that has ended."""
    assert isinstance(state, Closed)
    return [{"rung": rung, "survivors": list(r.survivors), **_update(r.body, r.head)} for rung, r in state.released]


def ladder() -> Plan:
    """The plan of a run with rungs."""
    return compile(from_plain(LADDER), SPEC, 12, BUILT_IN)


def told(plan: Plan, up_mbit: float) -> tuple[states.State, frame.Step, Trust]:
    """d000 after it has trained and named its rung, with what it sent."""
    trust = Trust(registry, lambda d: IDENTITIES[d].secret)
    state: states.State = states.join(plan, "d000")
    state, _ = machine.step(plan, state, invited(plan))
    head = dict.fromkeys((metric.name for metric in plan.metrics), 0.0)
    update = Update(np.zeros(plan.layout.sent.dim, np.float32), head, 1.0)
    state, effects = machine.step(plan, state, device_events.Trained(update, 1.0, up_mbit), trust)
    sent = frame.load(next(e for e in effects if isinstance(e, device_events.SendFrame)).frame)
    assert isinstance(sent, frame.Step)
    return state, sent, trust


def answered(plan: Plan, state: states.State, raw: bytes, trust: Trust) -> bytes:
    """The frame with which a device answers another."""
    message = frame.from_server(raw, len(raw))
    assert isinstance(message, frame.Step)
    _, effects = machine.step(plan, state, device_events.Delivered(message), trust)
    (sent,) = (e for e in effects if isinstance(e, device_events.SendFrame))
    return bytes(sent.frame)


def speed_of(plan: Plan, rung: int) -> float:
    """An upload speed at which a device has time for a rung and not for a larger one, in Mbit/s."""
    best = {plan.best(1.0, mbit): mbit for mbit in np.geomspace(1e-5, 10.0, 400).tolist()}
    return float(f"{best[rung]:.3g}")


def _by_devices() -> dict[str, Any]:
    plan = ladder()
    up_mbit = speed_of(plan, NAMED)
    state, sent, trust = told(plan, up_mbit)
    assert sent.rung == NAMED
    mine = messages.load_secagg_message(sent.body)
    assert isinstance(mine, messages.AdvertiseMessage)
    session, all_keys = plan.session(invited(plan).invite), {"d000": mine.keys}
    for d in ("d001", "d002", "d003", "d004", "d005"):
        raw = client.advertise(plan.secagg(0, 0), session, d, IDENTITIES[d].secret, entropy(d))[1]
        other = messages.load_secagg_message(raw)
        assert isinstance(other, messages.AdvertiseMessage)
        all_keys[d] = other.keys
    last = len(plan.rung_pipelines) - 1
    whole, few = messages.RosterMessage(keys=all_keys), messages.RosterMessage(keys={"d000": mine.keys})
    rosters = [
        ("the rung that it named", NAMED, whole),
        ("a smaller one", NAMED + 1, whole),
        ("the smallest one", last, whole),
        ("a larger one", NAMED - 1, whole),
        ("the largest one", 0, whole),
        ("one that the run does not have", last + 1, whole),
        ("none", None, whole),
        ("a larger one, and too few keys", NAMED - 1, few),
        ("the right one, and too few keys", NAMED, few),
    ]
    cases = []
    for name, rung, roster in rosters:
        told_ = frame.Step(run=plan.run, round=0, device="d000", body=messages.dump(roster), rung=rung)
        raw = frame.dump(told_)
        answer = answered(plan, state, raw, trust)
        body = messages.load_secagg_message(frame.load(answer).body)
        code = body.code if isinstance(body, messages.Abort) else ""
        cases.append({"name": name, "hex": raw.hex(), "code": code, "answer": answer.hex()})
    return {
        "facts": canonical(plan.facts).decode("ascii"), "layout": [list(tensor) for tensor in TENSORS],
        "device": "d000", "rungs": last + 1,
        "identity": IDENTITIES["d000"].secret.hex(), "entropy": SECRETS.session.hex(), "sid": session.hex(),
        "enrolled": {d: IDENTITIES[d].public.hex() for d in all_keys}, "up_mbit": up_mbit, "names": NAMED,
        "sends": frame.dump(sent).hex(), "cases": cases,
    }  # fmt: skip


def _by_servers() -> Iterator[dict[str, Any]]:
    for name, rungs, rung in (
        ("the largest one", RUNGS, 0),
        ("the smallest one", RUNGS, 2),
        ("one that the run does not have", RUNGS, 3),
        ("none, in a run with rungs", RUNGS, None),
        ("none, in a run without", (), None),
        ("one, in a run without", (), 0),
    ):
        raw = client.advertise(params_of(rungs, None), SID, "d000", IDENTITIES["d000"].secret, entropy("d000"))[1]
        for more, longer in (("", b""), (", and bad keys", b"\0")):
            sent = step_frame("d000", raw + longer, rung)
            found = reported(rungs, sent)
            yield {"name": name + more, "rungs": len(rungs), "hex": sent.hex(), "code": found}


def reported(rungs: tuple[Params, ...], raw: bytes) -> str:
    """The code with which a server reports the first frame of d000. Empty: it counts."""
    message = frame.from_device(raw, len(raw))
    assert isinstance(message, frame.Step)
    state = open_round(["d000", "d001", "d002"], rungs, bytes(32))
    _, effects = round.step(state, Answered("d000", ROUND, message, 0.0))
    return next((e.code for e in effects if isinstance(e, ReportLoss)), "")


def groups() -> dict[str, Any]:
    """The contents of ``groups.json``."""
    return {
        "run": RUN, "round": ROUND, "sid": SID.hex(), "sessions": {name: _session(name) for name in CASES},
        "by devices": _by_devices(), "by servers": list(_by_servers()),
    }  # fmt: skip
